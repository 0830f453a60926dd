//! Values of flags: how each kind is read, by the rules of Go's `strconv` and Kubernetes' flag types, and written.

use serde_json::{Map, Value, json};

use super::address::{ip, split_host_port};
use super::duration::GoDuration;
use super::feature_gate;
use super::kube_proxy::shortest_number;
use super::logging::Quantity;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Bool,
    Int32,
    Float,
    Duration,
    /// Texts, separated by commas; a repeated flag adds to the list.
    List,
    /// `Name=bool` pairs; a repeated flag adds to them.
    Gates,
    /// An IP address; empty leaves the default.
    Ip,
    /// An IP address with or without a port; empty leaves the default.
    IpPort,
    /// A log level, 0 and up.
    Level,
    /// `pattern=N` pairs.
    VModule,
    Quantity,
    OneOf(&'static [&'static str]),
}

impl Kind {
    /// What stands for a value in the help.
    pub(super) fn value_name(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Bool => "BOOL",
            Self::Int32 | Self::Level => "NUMBER",
            Self::Float => "DECIMAL",
            Self::Duration => "DURATION",
            Self::List => "LIST",
            Self::Gates => "GATES",
            Self::Ip => "IP",
            Self::IpPort => "IP:PORT",
            Self::VModule => "PATTERN=N",
            Self::Quantity => "BYTES",
            Self::OneOf(_) => "WHICH",
        }
    }

    /// The value as it stands in a configuration; `Null` leaves what is there.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        Ok(match self {
            Self::Text => text.into(),
            Self::Bool => parse_bool(text)
                .ok_or_else(|| format!("invalid boolean {text:?}, must be true or false"))?
                .into(),
            Self::Int32 => parse_integer(text, i32::MIN.into(), i32::MAX.into())?.into(),
            Self::Level => parse_integer(text, 0, i32::MAX.into())?.into(),
            Self::Float => text
                .parse::<f32>()
                .ok()
                .filter(|number| number.is_finite())
                .map(shortest_number)
                .ok_or_else(|| format!("invalid number {text:?}"))?,
            Self::Duration => text.parse::<GoDuration>()?.to_string().into(),
            Self::List => list(text).into(),
            Self::Gates => json!(feature_gate::parse(text)?),
            Self::Ip | Self::IpPort if text.is_empty() => Value::Null,
            Self::Ip => match ip(text) {
                Some(_) => text.into(),
                None => return Err(format!("{text:?} is not a valid IP address")),
            },
            Self::IpPort => ip_port(text).map(|()| text.into())?,
            Self::VModule => v_module(text)?,
            Self::Quantity => text.parse::<Quantity>().map(|size| json!(size))?,
            Self::OneOf(words) if words.contains(&text) => text.into(),
            Self::OneOf(words) => return Err(format!("{text:?} is none of {}", words.join(", "))),
        })
    }

    /// A value of a configuration as one would write it on a command line.
    pub(super) fn write(self, value: &Value) -> String {
        match value {
            Value::Null => match self {
                Self::Bool => "false".to_owned(),
                _ => String::new(),
            },
            Value::String(text) => text.clone(),
            Value::Array(items) => {
                let pair = |item: &Value| match item {
                    Value::Object(fields) => {
                        let field = |name: &str| Self::Text.write(fields.get(name).unwrap_or(&Value::Null));
                        format!("{}={}", field("filePattern"), field("verbosity"))
                    }
                    other => Self::Text.write(other),
                };
                items.iter().map(pair).collect::<Vec<_>>().join(",")
            }
            Value::Object(gates) => {
                let pairs: Vec<_> = gates.iter().map(|(name, on)| format!("{name}={on}")).collect();
                pairs.join(",")
            }
            Value::Bool(_) | Value::Number(_) => value.to_string(),
        }
    }

    /// The value of a flag that was given more than once.
    pub(super) fn join(values: impl Iterator<Item = Value>) -> Value {
        values
            .reduce(|before, next| match (before, next) {
                (Value::Array(before), Value::Array(next)) => before.into_iter().chain(next).collect(),
                (Value::Object(before), Value::Object(next)) => {
                    Value::Object(before.into_iter().chain(next).collect::<Map<_, _>>())
                }
                (_, next) => next,
            })
            .unwrap_or(Value::Null)
    }

    pub(super) fn repeats(self) -> bool {
        matches!(self, Self::List | Self::Gates)
    }
}

/// `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// `strconv.ParseInt` with base 0: decimal, `0x`, `0b`, `0o` and `0` in front of an octal number.
fn parse_integer(text: &str, least: i64, most: i64) -> Result<i64, String> {
    let (sign, size) = match text.strip_prefix('-') {
        Some(size) => ("-", size),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixes = [
        ("0x", 16),
        ("0X", 16),
        ("0b", 2),
        ("0B", 2),
        ("0o", 8),
        ("0O", 8),
        ("0", 8),
    ];
    let (base, digits) = prefixes
        .iter()
        .find_map(|(prefix, base)| {
            let digits = size.strip_prefix(prefix).filter(|digits| !digits.is_empty())?;
            Some((*base, digits))
        })
        .unwrap_or((10, size));
    Some(digits)
        .filter(|digits| !digits.starts_with(['+', '-']))
        .and_then(|digits| i64::from_str_radix(&format!("{sign}{digits}"), base).ok())
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("invalid number {text:?}, must be within {least} to {most}"))
}

/// One line of CSV: a field in quotes may hold commas.
fn list(text: &str) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut quoted = false;
    let mut fields = vec![String::new()];
    for c in text.chars() {
        match (c, quoted, fields.last_mut()) {
            ('"', ..) => quoted = !quoted,
            (',', false, _) => fields.push(String::new()),
            (other, _, Some(field)) => field.push(other),
            (_, _, None) => {}
        }
    }
    fields
}

fn ip_port(text: &str) -> Result<(), String> {
    if ip(text).is_some() {
        return Ok(());
    }
    let (host, port) =
        split_host_port(text).ok_or_else(|| format!("{text:?} is not in a valid format (ip or ip:port)"))?;
    if ip(host).is_none() {
        return Err(format!("{host:?} is not a valid IP address"));
    }
    // 0 is refused later, with the other values that cannot be bound.
    port.parse::<u16>()
        .map(drop)
        .map_err(|_| format!("{port:?} is not a valid number"))
}

fn v_module(text: &str) -> Result<Value, String> {
    let item = |pair: &str| {
        let (pattern, level) = pair
            .split_once('=')
            .filter(|(pattern, level)| !pattern.is_empty() && !level.contains('='))
            .ok_or_else(|| format!("{pair:?} does not have the pattern=N format"))?;
        let level = parse_integer(level, 0, i32::MAX.into())?;
        Ok(json!({ "filePattern": pattern, "verbosity": level }))
    };
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    pairs.map(item).collect::<Result<Vec<_>, String>>().map(Value::Array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_reads_and_writes() {
        let check = |kind: Kind, text: &str, value: Value, back: &str| {
            assert_eq!(kind.parse(text), Ok(value.clone()), "{text}");
            assert_eq!(kind.write(&value), back);
        };
        check(Kind::Text, "a, b", json!("a, b"), "a, b");
        check(Kind::Bool, "T", json!(true), "true");
        check(Kind::Int32, "0x10", json!(16), "16");
        check(Kind::Int32, "-0b11", json!(-3), "-3");
        check(Kind::Int32, "010", json!(8), "8");
        check(Kind::Int32, "+7", json!(7), "7");
        check(Kind::Float, "2.5", json!(2.5), "2.5");
        check(Kind::Duration, "90s", json!("1m30s"), "1m30s");
        check(Kind::List, "a,\"b,c\",", json!(["a", "b,c", ""]), "a,b,c,");
        check(Kind::List, "", json!([]), "");
        check(Kind::Gates, "A=1,B=F", json!({"A": true, "B": false}), "A=true,B=false");
        check(Kind::Ip, "fd00::1", json!("fd00::1"), "fd00::1");
        check(Kind::IpPort, "0.0.0.0", json!("0.0.0.0"), "0.0.0.0");
        check(Kind::IpPort, "[::]:1", json!("[::]:1"), "[::]:1");
        check(Kind::IpPort, "", Value::Null, "");
        check(
            Kind::VModule,
            "a*=3,b=0",
            json!([{"filePattern": "a*", "verbosity": 3}, {"filePattern": "b", "verbosity": 0}]),
            "a*=3,b=0",
        );
        check(Kind::Quantity, "64Ki", json!("64Ki"), "64Ki");
        check(Kind::OneOf(&["a", "b"]), "b", json!("b"), "b");
    }

    #[test]
    fn what_go_refuses_is_refused() {
        let check = |kind: Kind, text: &str, expect: &str| {
            let error = kind.parse(text).expect_err(text);
            assert!(error.contains(expect), "{error}");
        };
        check(Kind::Bool, "yes", "invalid boolean");
        check(Kind::Int32, "2147483648", "within -2147483648 to 2147483647");
        check(Kind::Int32, "08", "invalid number");
        check(Kind::Int32, "--1", "invalid number");
        check(Kind::Int32, "0x-1", "invalid number");
        check(Kind::Int32, "", "invalid number");
        check(Kind::Level, "-1", "within 0");
        check(Kind::Float, "NaN", "invalid number");
        check(Kind::Duration, "5", "invalid duration");
        check(Kind::Gates, "A", "missing bool value");
        check(Kind::Ip, "localhost", "not a valid IP address");
        check(Kind::IpPort, "localhost", "ip or ip:port");
        check(Kind::IpPort, "localhost:1", "not a valid IP address");
        check(Kind::IpPort, "1.2.3.4:x", "not a valid number");
        check(Kind::VModule, "a", "pattern=N");
        check(Kind::VModule, "a=b", "invalid number");
        check(Kind::Quantity, "x", "invalid quantity");
        check(Kind::OneOf(&["a", "b"]), "c", "none of a, b");
    }

    #[test]
    fn of_a_repeated_flag_lists_add_and_others_replace() {
        let join = |values: Vec<Value>| Kind::join(values.into_iter());
        assert_eq!(join(vec![json!(["a"]), json!(["b"])]), json!(["a", "b"]));
        assert_eq!(
            join(vec![json!({"A": true, "B": true}), json!({"A": false})]),
            json!({"A": false, "B": true})
        );
        assert_eq!(join(vec![json!(1), json!(2)]), json!(2));
    }
}
