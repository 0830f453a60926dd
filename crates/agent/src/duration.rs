//! Durations as Go writes them (`time.ParseDuration`): flags and configuration files carry them.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A Go duration, not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GoDuration(pub(crate) Duration);

impl std::str::FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        service_model::parse_duration(text).map(Self)
    }
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
