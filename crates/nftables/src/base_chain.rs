//! Base chains of any table, ours or another's: where they see packets, and what happens to those they say nothing of.

use std::fmt;

use netlink::attribute::{Attribute, Attributes};

use crate::message::HEADER;
use crate::rule::Hook;
use crate::uapi::{
    NF_ACCEPT, NF_DROP, NF_INET_FORWARD, NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING,
    NF_INET_PRE_ROUTING, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE, NFTA_HOOK_HOOKNUM,
};

/// A base chain of the families `ip`, `ip6` and `inet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// Family of its table.
    pub family: TableFamily,
    /// Name of its table.
    pub table: String,
    /// Name.
    pub name: String,
    /// Where it sees packets.
    pub hook: Hook,
    /// What happens to packets that none of its rules decides.
    pub policy: Policy,
}

/// Family of a table that sees IP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    /// `ip`.
    Ip,
    /// `ip6`.
    Ip6,
    /// `inet`: both.
    Inet,
}

/// Policy of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `accept`.
    Accept,
    /// `drop`.
    Drop,
}

impl fmt::Display for BaseChain {
    /// `inet filter forward`, as `nft` names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            TableFamily::Ip => "ip",
            TableFamily::Ip6 => "ip6",
            TableFamily::Inet => "inet",
        };
        write!(f, "{family} {} {}", self.table, self.name)
    }
}

/// The base chain in a message of a dump; `None` for a chain without a hook, or of another family.
pub fn decode_base_chain(payload: &[u8]) -> Option<BaseChain> {
    let family = match *payload.first()? {
        NFPROTO_IPV4 => TableFamily::Ip,
        NFPROTO_IPV6 => TableFamily::Ip6,
        NFPROTO_INET => TableFamily::Inet,
        _ => return None,
    };
    let find = |kind: u16| Attributes(payload.get(HEADER..).unwrap_or_default()).find(|found| found.kind == kind);
    let number = find(NFTA_CHAIN_HOOK)?
        .nested()
        .find(|inner| inner.kind == NFTA_HOOK_HOOKNUM)
        .and_then(|inner| be32(&inner))?;
    let hook = match number {
        NF_INET_PRE_ROUTING => Hook::Prerouting,
        NF_INET_LOCAL_IN => Hook::Input,
        NF_INET_FORWARD => Hook::Forward,
        NF_INET_LOCAL_OUT => Hook::Output,
        NF_INET_POST_ROUTING => Hook::Postrouting,
        // `ingress` of an inet table.
        _ => return None,
    };
    let policy = match be32(&find(NFTA_CHAIN_POLICY)?)?.cast_signed() {
        NF_DROP => Policy::Drop,
        NF_ACCEPT => Policy::Accept,
        _ => return None,
    };
    Some(BaseChain {
        family,
        table: find(NFTA_CHAIN_TABLE)?.str()?.to_owned(),
        name: find(NFTA_CHAIN_NAME)?.str()?.to_owned(),
        hook,
        policy,
    })
}

fn be32(attribute: &Attribute<'_>) -> Option<u32> {
    netlink::attribute::array(attribute.payload).map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use netlink::attribute::{put, put_nested, put_str};
    use proptest::prelude::*;

    use super::*;
    use crate::message::put_header;

    /// As the kernel writes it (net/netfilter/nf_tables_api.c, `nf_tables_fill_chain_info`), with a handle before the name.
    fn message(family: u8, hook: Option<u32>, policy: Option<i32>) -> Vec<u8> {
        let mut buffer = Vec::new();
        put_header(&mut buffer, family, 7);
        put_str(&mut buffer, NFTA_CHAIN_TABLE, "filter");
        put(&mut buffer, 2, &9_u64.to_be_bytes());
        put_str(&mut buffer, NFTA_CHAIN_NAME, "FORWARD");
        if let Some(hook) = hook {
            put_nested(&mut buffer, NFTA_CHAIN_HOOK, |buffer| {
                put(buffer, NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
            });
        }
        if let Some(policy) = policy {
            put(&mut buffer, NFTA_CHAIN_POLICY, &policy.to_be_bytes());
        }
        buffer
    }

    #[test]
    fn base_chains_are_read_and_others_passed_over() {
        let check = |family, hook, policy, expect: Option<(&str, Hook, Policy)>| {
            let found = decode_base_chain(&message(family, hook, policy));
            let found = found.map(|chain| (chain.to_string(), chain.hook, chain.policy));
            assert_eq!(
                found,
                expect.map(|(text, hook, policy)| (text.to_owned(), hook, policy))
            );
        };
        let forward = Some(NF_INET_FORWARD);
        check(
            2,
            forward,
            Some(0),
            Some(("ip filter FORWARD", Hook::Forward, Policy::Drop)),
        );
        check(
            10,
            Some(1),
            Some(1),
            Some(("ip6 filter FORWARD", Hook::Input, Policy::Accept)),
        );
        check(
            1,
            forward,
            Some(0),
            Some(("inet filter FORWARD", Hook::Forward, Policy::Drop)),
        );
        // Not a base chain, a bridge's, ingress, a policy of another world.
        check(2, None, None, None);
        check(7, forward, Some(0), None);
        check(1, Some(5), Some(0), None);
        check(2, forward, Some(3), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode_base_chain(&bytes);
            let whole = message(2, Some(2), Some(0));
            let _ = decode_base_chain(whole.get(..bytes.len()).unwrap_or(&whole));
        }
    }
}
