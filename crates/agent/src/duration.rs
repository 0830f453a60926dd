//! Durations as Go writes them (`time.ParseDuration`): flags and configuration files carry them.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A Go duration, not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GoDuration(pub(crate) Duration);

/// Nanoseconds of each unit. `µs` is written with U+00B5 or U+03BC.
const UNITS: &[(&str, u128)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl std::str::FromStr for GoDuration {
    type Err = String;

    /// `0`, `300ms`, `1.5h`, `2h45m`; the sign of a negative one is an error here, since no setting takes it.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid duration {text:?}, want something like 30s, 1m30s or 300ms");
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest.starts_with('-') {
            return Err(format!("duration {text:?} must not be negative"));
        }
        if rest == "0" {
            return Ok(Self::default());
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total: u128 = 0;
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .ok_or_else(invalid)?;
            let (number, after) = rest.split_at(digits);
            let end = after
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(after.len());
            let (unit, after) = after.split_at(end);
            let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
            total = total
                .checked_add(scaled(number, *scale).ok_or_else(invalid)?)
                .ok_or_else(invalid)?;
            rest = after;
        }
        // Go's durations are 64-bit nanoseconds.
        let nanoseconds = u64::try_from(total)
            .ok()
            .filter(|n| i64::try_from(*n).is_ok())
            .ok_or_else(invalid)?;
        Ok(Self(Duration::from_nanos(nanoseconds)))
    }
}

fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(scale)?;
    let mut unit = scale;
    for digit in fraction.chars() {
        unit /= 10;
        total = total.checked_add(u128::from(digit.to_digit(10)?) * unit)?;
    }
    Some(total)
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_reads_them() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(
                text.parse::<GoDuration>().ok().map(|d| d.0.as_nanos()),
                expect.map(u128::from),
                "{text}"
            );
        };
        check("0", Some(0));
        check("0s", Some(0));
        check("30s", Some(30_000_000_000));
        check("1m30s", Some(90_000_000_000));
        check("1.5h", Some(5_400_000_000_000));
        check("300ms", Some(300_000_000));
        check(".5s", Some(500_000_000));
        check("1\u{b5}s", Some(1_000));
        check("+1s", Some(1_000_000_000));
        check("", None);
        check("1", None);
        check("s", None);
        check("-1s", None);
        check("1d", None);
        check("1s1", None);
        check(".s", None);
        check("99999999999999999999h", None);
    }
}
