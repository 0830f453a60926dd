//! Resource versions: which of two is older.

use std::cmp::Ordering;

/// `version` is older than `than`. Versions are decimal numbers of any length (KEP-5504, promised from Kubernetes 1.35
/// and true of etcd's before); what is none is older than nothing.
pub(crate) fn is_older(version: &str, than: &str) -> bool {
    order(version, than) == Some(Ordering::Less)
}

fn order(a: &str, b: &str) -> Option<Ordering> {
    let is_number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() && !text.starts_with('0');
    (is_number(a) && is_number(b)).then(|| a.len().cmp(&b.len()).then_with(|| a.cmp(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_of_any_length() {
        let check = |a: &str, b: &str, expect| assert_eq!(is_older(a, b), expect, "{a} before {b}");
        check("9", "10", true);
        check("10", "9", false);
        check("519", "582", true);
        check("582", "582", false);
        check("99999999999999999999999", "100000000000000000000000", true);
        for none in ["", "0", "012", "x1", "-1", "1.5", "１"] {
            check(none, "5", false);
            check("5", none, false);
        }
    }
}
