//! One entry of `nodePortAddresses`: a CIDR or one of the keywords of Kubernetes 1.37.

use ipnet::IpNet;

use super::address;

/// What an entry of the list stands for (T16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodePortAddress {
    /// The node's primary address of each family.
    Primary,
    /// Loopback of both families.
    Localhost,
    /// Every address of both families.
    All,
    /// The node's addresses within it.
    Cidr(IpNet),
}

impl NodePortAddress {
    /// The keywords, in upstream's order.
    pub(super) const KEYWORDS: [(&'static str, Self); 3] = [
        ("primary", Self::Primary),
        ("localhost", Self::Localhost),
        ("all", Self::All),
    ];

    /// `None` = neither a keyword nor a CIDR. Keywords are lower case, as upstream's.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let keyword = Self::KEYWORDS.into_iter().find(|(word, _)| *word == text);
        keyword
            .map(|(_, keyword)| keyword)
            .or_else(|| address::cidr(text).map(Self::Cidr))
    }

    /// Those of a valid list.
    pub(crate) fn all_of(list: &[String]) -> impl Iterator<Item = Self> {
        list.iter().filter_map(|text| Self::read(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_keyword_or_a_cidr() {
        assert_eq!(NodePortAddress::read("primary"), Some(NodePortAddress::Primary));
        assert_eq!(NodePortAddress::read("localhost"), Some(NodePortAddress::Localhost));
        assert_eq!(NodePortAddress::read("all"), Some(NodePortAddress::All));
        let cidr = NodePortAddress::Cidr("10.0.0.0/8".parse().unwrap());
        assert_eq!(NodePortAddress::read("10.0.0.0/8"), Some(cidr));
        for text in ["", "All", "any", "10.0.0.1", " primary"] {
            assert_eq!(NodePortAddress::read(text), None, "{text:?}");
        }
    }
}
