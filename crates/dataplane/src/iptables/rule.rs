//! One rule, as a value that prints as a line of `iptables-restore`. Matches are printed in their order: it is part of
//! what `iptables-save` shows, and so of what is compared with upstream's.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use service_model::{Protocol, Source};

use super::name::{ChainName, protocol_name};

/// The longest comment that the kernel keeps (include/uapi/linux/netfilter/xt_comment.h `XT_MAX_COMMENT_LEN`, with its
/// NUL).
const COMMENT: usize = 255;

/// A rule, at the end of its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The chain that it is in.
    pub chain: ChainName,
    /// What has to be true, and what is written down on the way.
    pub matches: Vec<Match>,
    /// What happens then; `None` = the rule is there for its comment.
    pub target: Option<Target>,
}

/// Part of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// For the reader.
    Comment(String),
    /// For the reader, in clusters that are not large.
    EndpointComment(String),
    /// Protocol, with the module that knows its ports.
    Protocol(Protocol),
    /// Destination port.
    Port(u16),
    /// Destination address.
    To(Is, IpNet),
    /// Who it comes from.
    From(Is, Source),
    /// An address of this node: the source's.
    SourceLocal,
    /// An address of this node: the destination's.
    DestinationLocal,
    /// State in the connection tracker.
    State(Is, &'static str),
    /// Bits of the packet's mark, all of them.
    Mark(Is, u32),
    /// The client is in the list of an endpoint, not longer than these seconds; older entries go.
    Recent(ChainName, u32),
    /// The client gets into the list of an endpoint.
    Remember(ChainName),
    /// One of so many connections.
    OneOf(usize),
}

/// A condition, or its contrary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// It holds.
    So,
    /// It does not.
    Not,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The chain is gone through.
    Jump(ChainName),
    /// Accepted.
    Accept,
    /// Dropped.
    Drop,
    /// Refused with the kernel's default, an ICMP error for the port.
    Reject,
    /// Refused with a reset (T5).
    Reset,
    /// Back to where the chain was gone to from.
    Return,
    /// Bits of the mark are set.
    OrMark(u32),
    /// Bits of the mark are turned.
    XorMark(u32),
    /// The source address becomes this node's.
    Masquerade,
    /// The destination becomes this.
    Dnat(SocketAddr),
}

/// How much is said in comments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comments {
    /// Everything.
    Full,
    /// Endpoints are not named, which is two fifths of the text of a large cluster.
    Large,
}

impl Rule {
    /// Appends its line.
    pub(crate) fn write(&self, text: &mut String, comments: Comments) {
        // Writing into a String does not fail.
        let _ = write!(text, "-A {}", self.chain);
        for part in &self.matches {
            if comments == Comments::Full || !matches!(part, Match::EndpointComment(_)) {
                let _ = write!(text, " {part}");
            }
        }
        if let Some(target) = &self.target {
            let _ = write!(text, " {target}");
        }
        text.push('\n');
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text, Comments::Full);
        f.write_str(text.trim_end())
    }
}

impl fmt::Display for Is {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::So => Ok(()),
            Self::Not => f.write_str("! "),
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Comment(text) | Self::EndpointComment(text) => {
                write!(f, "-m comment --comment \"{}\"", safe(text, COMMENT))
            }
            Self::Protocol(protocol) => {
                let name = protocol_name(*protocol);
                write!(f, "-m {name} -p {name}")
            }
            Self::Port(port) => write!(f, "--dport {port}"),
            Self::To(is, net) => write!(f, "{is}-d {}", Net(*net)),
            Self::From(is, Source::Within(net)) => write!(f, "{is}-s {}", Net(*net)),
            Self::From(is, Source::Interface(name)) => write!(f, "{is}-i \"{}\"", safe(name, usize::MAX)),
            Self::From(is, Source::InterfacePrefix(prefix)) => {
                write!(f, "{is}-i \"{}+\"", safe(prefix, usize::MAX))
            }
            Self::SourceLocal => f.write_str("-m addrtype --src-type LOCAL"),
            Self::DestinationLocal => f.write_str("-m addrtype --dst-type LOCAL"),
            Self::State(is, states) => write!(f, "-m conntrack {is}--ctstate {states}"),
            Self::Mark(is, bits) => write!(f, "-m mark {is}--mark {bits:#010x}/{bits:#010x}"),
            Self::Recent(list, seconds) => {
                write!(f, "-m recent --name {list} --rcheck --seconds {seconds} --reap")
            }
            Self::Remember(list) => write!(f, "-m recent --name {list} --set"),
            Self::OneOf(number) => {
                #[allow(clippy::cast_precision_loss, reason = "no service has 2^52 endpoints")]
                let probability = 1.0 / *number as f64;
                write!(f, "-m statistic --mode random --probability {probability:.10}")
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(chain) => write!(f, "-j {chain}"),
            Self::Accept => f.write_str("-j ACCEPT"),
            Self::Drop => f.write_str("-j DROP"),
            Self::Reject => f.write_str("-j REJECT"),
            Self::Reset => f.write_str("-j REJECT --reject-with tcp-reset"),
            Self::Return => f.write_str("-j RETURN"),
            Self::OrMark(bits) => write!(f, "-j MARK --or-mark {bits:#010x}"),
            Self::XorMark(bits) => write!(f, "-j MARK --xor-mark {bits:#010x}"),
            // As before 1.6.2 (of 2018) no iptables could.
            Self::Masquerade => f.write_str("-j MASQUERADE --random-fully"),
            Self::Dnat(to) => write!(f, "-j DNAT --to-destination {to}"),
        }
    }
}

/// A network; one that is a single address is written as that.
struct Net(IpNet);

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let net = self.0;
        if net.prefix_len() == net.max_prefix_len() {
            write!(f, "{}", net.addr())
        } else {
            write!(f, "{net}")
        }
    }
}

/// The network that is one address.
pub(crate) fn only(address: IpAddr) -> IpNet {
    address.into()
}

/// Fit to stand between double quotes in one line: names come from objects that nobody may have validated.
fn safe(text: &str, longest: usize) -> String {
    let plain = |c: char| {
        if (c.is_ascii_graphic() || c == ' ') && !matches!(c, '"' | '\\') {
            c
        } else {
            '?'
        }
    };
    text.chars().map(plain).take(longest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(matches: Vec<Match>, target: Target, expect: &str) {
        let rule = Rule {
            chain: ChainName::Base("C"),
            matches,
            target: Some(target),
        };
        assert_eq!(rule.to_string(), format!("-A C {expect}"));
    }

    #[test]
    fn rules_print_as_upstream_writes_them() {
        let comment = Match::Comment("a/b cluster IP".to_owned());
        let to = Match::To(Is::So, only("10.96.0.1".parse().unwrap()));
        check(
            vec![comment, Match::Protocol(Protocol::Tcp), to, Match::Port(80)],
            Target::Reset,
            "-m comment --comment \"a/b cluster IP\" -m tcp -p tcp -d 10.96.0.1 --dport 80 -j REJECT --reject-with tcp-reset",
        );
        let pods = Source::InterfacePrefix("veth".into());
        check(
            vec![Match::From(Is::Not, pods), Match::OneOf(3)],
            Target::Dnat("[fd00::1]:80".parse().unwrap()),
            "! -i \"veth+\" -m statistic --mode random --probability 0.3333333333 -j DNAT --to-destination [fd00::1]:80",
        );
        check(
            vec![Match::Mark(Is::Not, 1 << 14)],
            Target::XorMark(1 << 14),
            "-m mark ! --mark 0x00004000/0x00004000 -j MARK --xor-mark 0x00004000",
        );
    }

    /// A name that breaks out of its comment would write rules.
    #[test]
    fn what_objects_say_stays_in_its_quotes() {
        check(
            vec![Match::Comment("a\"\\\n-A INPUT\u{e9}".to_owned())],
            Target::Drop,
            "-m comment --comment \"a???-A INPUT?\" -j DROP",
        );
        let long = Match::Comment("x".repeat(300)).to_string();
        assert_eq!(long.matches('x').count(), 255);
    }

    #[test]
    fn endpoints_are_not_named_in_large_clusters() {
        let rule = Rule {
            chain: ChainName::Base("C"),
            matches: vec![Match::EndpointComment("e".to_owned())],
            target: None,
        };
        let mut text = String::new();
        rule.write(&mut text, Comments::Large);
        assert_eq!(text, "-A C\n");
    }
}
