//! A configuration as a tree of JSON, in which a field is named by the names on the way to it.

use serde::Serialize;
use serde_json::{Map, Value};

pub(super) fn of(configuration: &impl Serialize) -> Value {
    serde_json::to_value(configuration).expect("a configuration is a tree")
}

/// The value of a field such as `ipvs.scheduler`; `Null` where there is none.
pub(super) fn get<'a>(tree: &'a Value, field: &str) -> &'a Value {
    field
        .split('.')
        .try_fold(tree, |tree, name| tree.get(name))
        .unwrap_or(&Value::Null)
}

/// Sets a field; what is missing on the way is made.
pub(super) fn set(tree: &mut Value, field: &str, value: Value) {
    let mut at = tree;
    for name in field.split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let fields = at.as_object_mut().expect("made one");
        at = fields.entry(name).or_insert(Value::Null);
    }
    *at = value;
}

/// To Go a field that is `null` is one that is not there. kubeadm writes many.
pub(super) fn remove_nulls(tree: &mut Value) {
    match tree {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_set_and_found() {
        let mut tree = json!({"a": null, "b": [{"c": null}, 1]});
        set(&mut tree, "a.x.y", json!(1));
        assert_eq!(tree, json!({"a": {"x": {"y": 1}}, "b": [{"c": null}, 1]}));
        assert_eq!((get(&tree, "a.x.y"), get(&tree, "a.z.y")), (&json!(1), &Value::Null));
        set(&mut tree, "a.x", Value::Null);
        remove_nulls(&mut tree);
        assert_eq!(tree, json!({"a": {}, "b": [{}, 1]}));
    }
}
