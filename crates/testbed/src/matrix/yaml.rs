//! Objects as YAML that a person can read and change.

use std::fmt::Write as _;

use serde_json::Value;

/// Documents, each begun by `---`.
pub(super) fn documents(objects: &[Value]) -> String {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        block(object, 0, &mut text);
    }
    text
}

/// Maps and lists of these are written by lines, all else in JSON's form, which is YAML too.
fn block(value: &Value, depth: usize, text: &mut String) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let _ = write!(text, "{pad}{key}:");
                match value {
                    Value::Object(fields) if !fields.is_empty() => {
                        text.push('\n');
                        block(value, depth + 1, text);
                    }
                    Value::Array(items) if items.iter().any(Value::is_object) => {
                        text.push('\n');
                        for item in items {
                            let _ = writeln!(text, "{pad}- {item}");
                        }
                    }
                    _ => {
                        let _ = writeln!(text, " {value}");
                    }
                }
            }
        }
        _ => {
            let _ = writeln!(text, "{pad}{value}");
        }
    }
}
