//! A YAML document as JSON text, so that there is one decoder. What JSON has no form for becomes text, which a field
//! that wants a number refuses: an infinity, a key that is no string. A key that is there twice stays there twice.

use std::fmt::{self, Write};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};

/// The document as JSON; `null` for an empty one.
///
/// # Errors
/// What is not YAML, in one line.
pub(super) fn to_json(document: &str) -> Result<Box<RawValue>, String> {
    // The budget guards against hostile input; these files are the operator's own, and may be large.
    let options = serde_saphyr::options! {
        budget: None,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    let Json(text) = serde_saphyr::from_str_with_options(document, options).map_err(|error| error.to_string())?;
    RawValue::from_string(text).map_err(|error| error.to_string())
}

/// JSON text.
struct Json(String);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ToJson)
    }
}

struct ToJson;

fn text(value: &str) -> Json {
    Json(serde_json::Value::from(value).to_string())
}

fn scalar<T: fmt::Display, E>(value: T) -> Result<Json, E> {
    Ok(Json(value.to_string()))
}

impl<'de> Visitor<'de> for ToJson {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        scalar("null")
    }

    fn visit_none<E>(self) -> Result<Json, E> {
        scalar("null")
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Json, D::Error> {
        Json::deserialize(from)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<Json, D::Error> {
        Json::deserialize(from)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        scalar(value)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        scalar(value)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        scalar(value)
    }

    fn visit_i128<E>(self, value: i128) -> Result<Json, E> {
        scalar(value)
    }

    fn visit_u128<E>(self, value: u128) -> Result<Json, E> {
        scalar(value)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(serde_json::Number::from_f64(value)
            .map_or_else(|| text(&value.to_string()), |number| Json(number.to_string())))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(text(value))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Json, E> {
        Ok(text(&String::from_utf8_lossy(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut all = String::from("[");
        while let Some(Json(item)) = items.next_element()? {
            separate(&mut all);
            all.push_str(&item);
        }
        all.push(']');
        Ok(Json(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut all = String::from("{");
        while let Some((Json(key), Json(value))) = entries.next_entry()? {
            separate(&mut all);
            let key = if key.starts_with('"') { Json(key) } else { text(&key) };
            // Writing to a string does not fail.
            let _ = write!(all, "{}:{value}", key.0);
        }
        all.push('}');
        Ok(Json(all))
    }
}

/// A comma, but for what is first.
fn separate(all: &mut String) {
    if all.len() > 1 {
        all.push(',');
    }
}
