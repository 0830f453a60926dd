//! `LoggingConfiguration` of Kubernetes' component-base: the field `logging`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::duration::GoDuration;

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LoggingConfiguration {
    pub(crate) format: String,
    pub(crate) flush_frequency: FlushFrequency,
    pub(crate) verbosity: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) vmodule: Vec<VModuleItem>,
    pub(crate) options: FormatOptions,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct VModuleItem {
    pub(crate) file_pattern: String,
    pub(crate) verbosity: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct FormatOptions {
    pub(crate) text: OutputRouting,
    pub(crate) json: OutputRouting,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct OutputRouting {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) split_stream: bool,
    pub(crate) info_buffer_size: Quantity,
}

/// A duration as text, or as a number of nanoseconds, which it was once; written as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlushFrequency {
    Text(GoDuration),
    Nanoseconds(GoDuration),
}

impl FlushFrequency {
    pub(crate) fn is_zero(self) -> bool {
        let (Self::Text(time) | Self::Nanoseconds(time)) = self;
        time.is_zero()
    }
}

impl Default for FlushFrequency {
    fn default() -> Self {
        Self::Text(GoDuration::default())
    }
}

/// Text, or a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(i64),
}

impl<'de> Deserialize<'de> for FlushFrequency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match TextOrNumber::deserialize(deserializer)? {
            TextOrNumber::Text(text) => text.parse().map(Self::Text).map_err(serde::de::Error::custom),
            TextOrNumber::Number(number) => Ok(Self::Nanoseconds(GoDuration::nanoseconds(number))),
        }
    }
}

impl Serialize for FlushFrequency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(time) => time.serialize(serializer),
            Self::Nanoseconds(time) => serializer.serialize_i64(time.as_nanoseconds()),
        }
    }
}

/// A number of bytes with Kubernetes' suffixes, in the words in which it was given. Limit: no fractions, no exponents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quantity(String);

impl Quantity {
    pub(crate) fn is_zero(&self) -> bool {
        self.0.chars().all(|c| !('1'..='9').contains(&c))
    }
}

impl Default for Quantity {
    fn default() -> Self {
        Self("0".to_owned())
    }
}

impl std::str::FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, suffix) = text.split_at(end);
        let suffixes = ["", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        if digits.is_empty() || !suffixes.contains(&suffix) {
            return Err(format!(
                "invalid quantity {text:?}, want something like 512, 64k or 1Mi"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match TextOrNumber::deserialize(deserializer)? {
            TextOrNumber::Text(text) => text,
            TextOrNumber::Number(number) => number.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_flush_frequency_is_text_or_nanoseconds() {
        let check = |value: serde_json::Value, zero: bool| {
            let read: FlushFrequency = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(read.is_zero(), zero);
            assert_eq!(serde_json::to_value(read).unwrap(), value);
        };
        check(json!("5s"), false);
        check(json!(5_000_000_000_i64), false);
        check(json!(0), true);
        assert!(serde_json::from_value::<FlushFrequency>(json!("5")).is_err());
    }

    #[test]
    fn quantities() {
        let zero = |text: &str| text.parse::<Quantity>().map(|quantity| quantity.is_zero());
        assert_eq!(zero("0"), Ok(true));
        assert_eq!(zero("00Ki"), Ok(true));
        assert_eq!(zero("10Ki"), Ok(false));
        for wrong in ["", "Ki", "1K", "-1", "1 K"] {
            assert!(zero(wrong).is_err(), "{wrong}");
        }
    }
}
