//! Durations as Go writes them (`time.Duration`): flags and configuration files carry them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const SECOND: u64 = 1_000_000_000;

/// A Go duration: nanoseconds, with a sign, which no setting takes and validation therefore names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GoDuration(i64);

impl GoDuration {
    pub(crate) const fn seconds(seconds: u32) -> Self {
        Self(seconds as i64 * SECOND as i64)
    }

    pub(crate) const fn nanoseconds(nanoseconds: i64) -> Self {
        Self(nanoseconds)
    }

    pub(crate) const fn as_nanoseconds(self) -> i64 {
        self.0
    }

    pub(crate) const fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// A negative one, which validation refuses, is zero here.
    pub(crate) fn to_std(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or_default())
    }
}

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (negative, size) = match text.strip_prefix('-') {
            // Two signs are none.
            Some(rest) if !rest.starts_with(['+', '-']) => (true, rest),
            _ => (false, text),
        };
        let size = service_model::parse_duration(size)?.as_nanos();
        let size = i64::try_from(size).map_err(|_| format!("duration {text:?} is too long"))?;
        Ok(Self(if negative { -size } else { size }))
    }
}

/// As Go prints one: `0s`, `1.5ms`, `15m0s`, `24h0m0s`.
impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let size = self.0.unsigned_abs();
        let below_a_second = [("ns", 1), ("\u{b5}s", 1_000), ("ms", 1_000_000)];
        if size == 0 || size >= SECOND {
            let (hours, minutes) = (size / SECOND / 3600, size / SECOND / 60 % 60);
            if hours > 0 {
                write!(f, "{hours}h")?;
            }
            if hours > 0 || minutes > 0 {
                write!(f, "{minutes}m")?;
            }
            write_decimal(f, size % (60 * SECOND), SECOND)?;
            return f.write_str("s");
        }
        let unit = below_a_second.iter().rev().find(|(_, scale)| size >= *scale);
        let (name, scale) = unit.expect("one nanosecond is the least");
        write_decimal(f, size, *scale)?;
        f.write_str(name)
    }
}

/// `size / scale` without zeros at its end; the scale is a power of ten.
fn write_decimal(f: &mut fmt::Formatter<'_>, size: u64, scale: u64) -> fmt::Result {
    write!(f, "{}", size / scale)?;
    let digits = usize::try_from(scale.ilog10()).unwrap_or_default();
    let fraction = format!("{:0digits$}", size % scale);
    match fraction.trim_end_matches('0') {
        "" => Ok(()),
        fraction => write!(f, ".{fraction}"),
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_reads_them() {
        let check = |text: &str, expect: Option<i64>| {
            assert_eq!(text.parse::<GoDuration>().ok().map(|d| d.0), expect, "{text}");
        };
        check("0", Some(0));
        check("0s", Some(0));
        check("+0", Some(0));
        check("-0s", Some(0));
        check("30s", Some(30_000_000_000));
        check("1m30s", Some(90_000_000_000));
        check("1.5h", Some(5_400_000_000_000));
        check("300ms", Some(300_000_000));
        check(".5s", Some(500_000_000));
        check("-.5s", Some(-500_000_000));
        check("1.s", Some(1_000_000_000));
        check("1\u{b5}s", Some(1_000));
        check("1\u{3bc}s", Some(1_000));
        check("1us", Some(1_000));
        check("+1s", Some(1_000_000_000));
        check("-1m1s", Some(-61_000_000_000));
        check("0.9ns", Some(0));
        check("2h45m0.5s", Some(9_900_500_000_000));
        check("9223372036854775807ns", Some(i64::MAX));
        check("9223372036854775808ns", None);
        check("", None);
        check("-", None);
        check("+-1s", None);
        check("--1s", None);
        check("1", None);
        check("s", None);
        check("1d", None);
        check("1s1", None);
        check("1 s", None);
        check(".s", None);
        check("1e3s", None);
        check("99999999999999999999h", None);
    }

    #[test]
    fn as_go_writes_them() {
        let check = |nanoseconds: i64, expect: &str| {
            assert_eq!(GoDuration(nanoseconds).to_string(), expect);
            assert_eq!(expect.parse(), Ok(GoDuration(nanoseconds)));
        };
        check(0, "0s");
        check(1, "1ns");
        check(1_100, "1.1\u{b5}s");
        check(2_200_000, "2.2ms");
        check(999_999_999, "999.999999ms");
        check(3_300_000_000, "3.3s");
        check(60_000_000_000, "1m0s");
        check(900_000_000_000, "15m0s");
        check(86_400_000_000_000, "24h0m0s");
        check(245_001_000_000, "4m5.001s");
        check(-1_500_000_000, "-1.5s");
    }
}
