//! Commands as bytes, and elements and rules from bytes. Decoding never panics; what is not ours is passed over.

use std::net::IpAddr;

use netlink::attribute::{Attribute, Attributes, put, put_nested, put_str};

use crate::command::{Command, Table};
use crate::rule::{Chain, ChainKind, Field, Interface, Is, Rule, Statement};
use crate::set::{Element, ElementData, Set, SetData};
use crate::uapi::*;
use crate::value::{DataType, Family, Verdict, key_bytes, read_key};

/// `struct nfgenmsg`: family, version, resource id (big-endian).
pub(crate) fn put_header(buffer: &mut Vec<u8>, family: u8, resource: u16) {
    buffer.extend_from_slice(&[family, 0]);
    buffer.extend_from_slice(&resource.to_be_bytes());
}

/// Bytes of `struct nfgenmsg`.
pub(crate) const HEADER: usize = 4;

/// Message type, flags and payload of a command.
pub fn encode(command: &Command, buffer: &mut Vec<u8>) -> (u16, u16) {
    let table = command.table();
    put_header(buffer, table.family.number(), 0);
    let name = table.name.as_str();
    match command {
        Command::AddTable(_, comment) => {
            put_str(buffer, NFTA_TABLE_NAME, name);
            if !comment.is_empty() {
                put(
                    buffer,
                    NFTA_TABLE_USERDATA,
                    &user_comment(NFTNL_UDATA_TABLE_COMMENT, comment),
                );
            }
            (NFT_MSG_NEWTABLE, NLM_F_CREATE)
        }
        Command::DeleteTable(_) => {
            put_str(buffer, NFTA_TABLE_NAME, name);
            (NFT_MSG_DELTABLE, 0)
        }
        Command::AddChain(_, chain) => {
            put_str(buffer, NFTA_CHAIN_TABLE, name);
            put_chain(buffer, chain);
            (NFT_MSG_NEWCHAIN, NLM_F_CREATE)
        }
        Command::AddSet(_, set) => {
            put_str(buffer, NFTA_SET_TABLE, name);
            put_set(buffer, set);
            (NFT_MSG_NEWSET, NLM_F_CREATE)
        }
        Command::AddRule(_, rule) => {
            put_str(buffer, NFTA_RULE_TABLE, name);
            put_rule(buffer, table.family, rule);
            (NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND)
        }
        Command::AddElements(_, set, elements) => {
            put_elements(buffer, name, set, elements);
            (NFT_MSG_NEWSETELEM, NLM_F_CREATE)
        }
        Command::DeleteElements(_, set, elements) => {
            put_elements(buffer, name, set, elements);
            (NFT_MSG_DELSETELEM, 0)
        }
    }
}

fn put_be32(buffer: &mut Vec<u8>, kind: u16, value: u32) {
    put(buffer, kind, &value.to_be_bytes());
}

fn put_chain(buffer: &mut Vec<u8>, chain: &Chain) {
    put_str(buffer, NFTA_CHAIN_NAME, &chain.name);
    if let Some((kind, hook, priority)) = chain.hook {
        put_nested(buffer, NFTA_CHAIN_HOOK, |buffer| {
            put_be32(buffer, NFTA_HOOK_HOOKNUM, hook.number());
            put(buffer, NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
        });
        put(buffer, NFTA_CHAIN_POLICY, &NF_ACCEPT.to_be_bytes());
        put_str(
            buffer,
            NFTA_CHAIN_TYPE,
            match kind {
                ChainKind::Filter => "filter",
                ChainKind::Nat => "nat",
            },
        );
    }
}

/// nft's number of a concatenated type: six bits for each part (nftables, include/datatype.h).
fn type_number(types: &[DataType]) -> u32 {
    types.iter().fold(0, |number, part| number << 6 | part.number())
}

fn length(types: &[DataType]) -> u32 {
    match types {
        [only] => only.length(),
        several => several.iter().map(|part| part.padded()).sum(),
    }
}

fn put_set(buffer: &mut Vec<u8>, set: &Set) {
    put_str(buffer, NFTA_SET_NAME, &set.name);
    let concatenated = set.key.len() > 1;
    let flags = [
        (set.intervals, NFT_SET_INTERVAL),
        (set.intervals && concatenated, NFT_SET_CONCAT),
        (set.timeouts, NFT_SET_TIMEOUT),
        (set.data != SetData::None, NFT_SET_MAP),
    ];
    let flags = flags
        .into_iter()
        .filter(|(is, _)| *is)
        .fold(0, |all, (_, flag)| all | flag);
    put_be32(buffer, NFTA_SET_FLAGS, flags);
    put_be32(buffer, NFTA_SET_KEY_TYPE, type_number(&set.key));
    put_be32(buffer, NFTA_SET_KEY_LEN, length(&set.key));
    match &set.data {
        SetData::None => {}
        SetData::Verdict => put_be32(buffer, NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT),
        SetData::Values(types) => {
            put_be32(buffer, NFTA_SET_DATA_TYPE, type_number(types));
            put_be32(buffer, NFTA_SET_DATA_LEN, length(types));
        }
    }
    let data = match &set.data {
        SetData::Values(types) => types.as_slice(),
        SetData::None | SetData::Verdict => &[],
    };
    put(
        buffer,
        NFTA_SET_USERDATA,
        &[
            byte_order(NFTNL_UDATA_SET_KEYBYTEORDER, &set.key),
            byte_order(NFTNL_UDATA_SET_DATABYTEORDER, data),
        ]
        .concat(),
    );
    // The kernel wants a number that is this set's within the transaction, also where nothing refers to it by that.
    put_be32(buffer, NFTA_SET_ID, 1);
    if concatenated && set.intervals {
        put_nested(buffer, NFTA_SET_DESC, |buffer| {
            put_nested(buffer, NFTA_SET_DESC_CONCAT, |buffer| {
                for part in &set.key {
                    put_nested(buffer, NFTA_LIST_ELEM, |buffer| {
                        put_be32(buffer, NFTA_SET_FIELD_LEN, part.length());
                    });
                }
            });
        });
    }
}

/// For nft, which shows a set's values: the byte order of a single one (libnftnl, include/libnftnl/udata.h).
fn byte_order(kind: u8, types: &[DataType]) -> Vec<u8> {
    let order: u32 = match types {
        [] => return Vec::new(),
        [DataType::Mark] => BYTEORDER_HOST_ENDIAN,
        _ => BYTEORDER_BIG_ENDIAN,
    };
    let mut bytes = vec![kind, 4];
    bytes.extend(order.to_ne_bytes());
    bytes
}

fn put_elements(buffer: &mut Vec<u8>, table: &str, set: &Set, elements: &[Element]) {
    put_str(buffer, NFTA_SET_ELEM_LIST_TABLE, table);
    put_str(buffer, NFTA_SET_ELEM_LIST_SET, &set.name);
    put_nested(buffer, NFTA_SET_ELEM_LIST_ELEMENTS, |buffer| {
        for element in elements {
            put_nested(buffer, NFTA_LIST_ELEM, |buffer| put_element(buffer, set, element));
        }
    });
}

fn put_element(buffer: &mut Vec<u8>, set: &Set, element: &Element) {
    put_value(buffer, NFTA_SET_ELEM_KEY, &key_bytes(&element.key));
    // A set of ranges has an end for each element, also where the range is one key.
    if set.intervals {
        put_value(
            buffer,
            NFTA_SET_ELEM_KEY_END,
            &key_bytes(element.end.as_ref().unwrap_or(&element.key)),
        );
    }
    match &element.data {
        ElementData::None => {}
        ElementData::Verdict(verdict) => put_nested(buffer, NFTA_SET_ELEM_DATA, |buffer| put_verdict(buffer, verdict)),
        ElementData::Values(values) => put_value(buffer, NFTA_SET_ELEM_DATA, &key_bytes(values)),
    }
    if let Some(timeout) = element.timeout {
        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        put(buffer, NFTA_SET_ELEM_TIMEOUT, &milliseconds.to_be_bytes());
    }
}

fn put_value(buffer: &mut Vec<u8>, kind: u16, bytes: &[u8]) {
    put_nested(buffer, kind, |buffer| put(buffer, NFTA_DATA_VALUE, bytes));
}

fn put_verdict(buffer: &mut Vec<u8>, verdict: &Verdict) {
    let (code, chain) = verdict.code();
    put_nested(buffer, NFTA_DATA_VERDICT, |buffer| {
        put(buffer, NFTA_VERDICT_CODE, &code.to_be_bytes());
        if let Some(chain) = chain {
            put_str(buffer, NFTA_VERDICT_CHAIN, chain);
        }
    });
}

fn put_rule(buffer: &mut Vec<u8>, family: Family, rule: &Rule) {
    put_str(buffer, NFTA_RULE_CHAIN, &rule.chain);
    put_nested(buffer, NFTA_RULE_EXPRESSIONS, |buffer| {
        let mut expressions = Expressions { buffer, family };
        for statement in &rule.statements {
            expressions.statement(statement);
        }
    });
    put(buffer, NFTA_RULE_USERDATA, &fingerprint(family, rule));
}

/// A rule's user data: its comment, for nft, and what tells the rule when it is read again, a hash of its text (FNV-1a,
/// 64 bits). nft takes user data for a list of type, length, value; the type 255 is none of its own.
pub fn fingerprint(family: Family, rule: &Rule) -> Vec<u8> {
    let mut bytes = match &*rule.comment {
        "" => Vec::new(),
        comment => user_comment(NFTNL_UDATA_RULE_COMMENT, comment),
    };
    bytes.extend([255, 8]);
    bytes.extend(text_hash(&rule.text(family)).to_be_bytes());
    bytes
}

/// A hash of a text that is the same in every release: FNV-1a, 64 bits.
pub fn text_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A comment in user data, with its end. A longer one than nft takes is cut (NFTNL_UDATA_COMMENT_MAXLEN).
fn user_comment(kind: u8, comment: &str) -> Vec<u8> {
    let text: Vec<u8> = comment.bytes().take(127).chain([0]).collect();
    let length = u8::try_from(text.len()).unwrap_or_default();
    [vec![kind, length], text].concat()
}

/// Writes statements as the kernel's expressions, over its 32-bit registers.
struct Expressions<'a> {
    buffer: &'a mut Vec<u8>,
    family: Family,
}

/// The first register: values for a look-up begin there.
const FIRST: u32 = NFT_REG32_00;

impl Expressions<'_> {
    fn add(&mut self, name: &str, fill: impl FnOnce(&mut Vec<u8>)) {
        put_nested(self.buffer, NFTA_LIST_ELEM, |buffer| {
            put_str(buffer, NFTA_EXPR_NAME, name);
            put_nested(buffer, NFTA_EXPR_DATA, fill);
        });
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::CtNew => self.connection(NFT_CT_STATE, NF_CT_STATE_NEW),
            Statement::CtDnat => self.connection(NFT_CT_STATUS, IPS_DST_NAT),
            Statement::CtConfirmed => self.connection(NFT_CT_STATUS, IPS_CONFIRMED),
            Statement::SourceLocal(is) => self.fib_local(NFTA_FIB_F_SADDR, *is),
            Statement::DestinationLocal(is) => self.fib_local(NFTA_FIB_F_DADDR, *is),
            Statement::In(fields, set) => self.look_up(fields, set, 0, None),
            Statement::NotIn(fields, set) => self.look_up(fields, set, NFT_LOOKUP_F_INV, None),
            Statement::Proto(number) => {
                self.load(Field::L4Proto, FIRST);
                self.compare(NFT_CMP_EQ, &[*number]);
            }
            Statement::From(is, interface) => {
                self.meta(NFT_META_IIFNAME, FIRST);
                match interface {
                    Interface::Named(name) => {
                        // IFNAMSIZ bytes: the whole name with its end.
                        let mut bytes = name.as_bytes().to_vec();
                        bytes.resize(16, 0);
                        self.compare(is.comparison(), &bytes);
                    }
                    Interface::Prefix(prefix) => self.compare(is.comparison(), prefix.as_bytes()),
                }
            }
            Statement::SaddrWithin(is, range) => {
                let (address, mask) = (octets(range.network()), octets(range.netmask()));
                self.load(Field::Saddr, FIRST);
                if range.prefix_len() < range.max_prefix_len() {
                    self.bitwise(&mask, &vec![0; mask.len()]);
                }
                self.compare(is.comparison(), &address);
            }
            Statement::MarkIs { mask, value } => {
                self.meta(NFT_META_MARK, FIRST);
                self.bitwise(&mask.to_ne_bytes(), &[0; 4]);
                self.compare(NFT_CMP_EQ, &value.to_ne_bytes());
            }
            Statement::MarkOr(bits) => self.change_mark(!bits, *bits),
            Statement::MarkAnd(bits) => self.change_mark(*bits, 0),
            Statement::VerdictMap(fields, map) => self.look_up(fields, map, 0, Some(NFT_REG_VERDICT)),
            Statement::DnatMap(fields, map) => {
                self.look_up(fields, map, 0, Some(FIRST));
                let port = FIRST + Field::Daddr.data_type(self.family).padded() / 4;
                self.dnat(Some(port));
            }
            Statement::DnatToItself => {
                self.load(Field::Daddr, FIRST);
                self.dnat(None);
            }
            Statement::Masquerade => {
                self.add("masq", |buffer| {
                    put_be32(buffer, NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
                });
            }
            Statement::RejectTcp => self.add("reject", |buffer| {
                put_be32(buffer, NFTA_REJECT_TYPE, NFT_REJECT_TCP_RST);
                put(buffer, NFTA_REJECT_ICMP_CODE, &[0]);
            }),
            Statement::RejectPort => {
                let code = match self.family {
                    Family::Ip => ICMP_PORT_UNREACH,
                    Family::Ip6 => ICMPV6_PORT_UNREACH,
                };
                self.add("reject", |buffer| {
                    put_be32(buffer, NFTA_REJECT_TYPE, NFT_REJECT_ICMP_UNREACH);
                    put(buffer, NFTA_REJECT_ICMP_CODE, &[code]);
                });
            }
            Statement::Verdict(verdict) => self.add("immediate", |buffer| {
                put_be32(buffer, NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
                put_nested(buffer, NFTA_IMMEDIATE_DATA, |buffer| put_verdict(buffer, verdict));
            }),
        }
    }

    /// Loads the fields behind each other and looks them up.
    fn look_up(&mut self, fields: &[Field], set: &str, flags: u32, into: Option<u32>) {
        let mut register = FIRST;
        for field in fields {
            self.load(*field, register);
            register += field.data_type(self.family).padded() / 4;
        }
        self.add("lookup", |buffer| {
            put_str(buffer, NFTA_LOOKUP_SET, set);
            put_be32(buffer, NFTA_LOOKUP_SREG, FIRST);
            if let Some(into) = into {
                put_be32(buffer, NFTA_LOOKUP_DREG, into);
            }
            if flags != 0 {
                put_be32(buffer, NFTA_LOOKUP_FLAGS, flags);
            }
        });
    }

    fn load(&mut self, field: Field, register: u32) {
        // Offsets: struct iphdr, struct ipv6hdr; ports lead the headers of TCP, UDP and SCTP.
        let (base, offset) = match (field, self.family) {
            (Field::L4Proto, _) => return self.meta(NFT_META_L4PROTO, register),
            (Field::Mark, _) => return self.meta(NFT_META_MARK, register),
            (Field::ReplySaddr, Family::Ip) => return self.reply(NFT_CT_SRC_IP, register),
            (Field::ReplySaddr, Family::Ip6) => return self.reply(NFT_CT_SRC_IP6, register),
            (Field::ReplySport, _) => return self.reply(NFT_CT_PROTO_SRC, register),
            (Field::Saddr, Family::Ip) => (NFT_PAYLOAD_NETWORK_HEADER, 12),
            (Field::Daddr, Family::Ip) => (NFT_PAYLOAD_NETWORK_HEADER, 16),
            (Field::Saddr, Family::Ip6) => (NFT_PAYLOAD_NETWORK_HEADER, 8),
            (Field::Daddr, Family::Ip6) => (NFT_PAYLOAD_NETWORK_HEADER, 24),
            (Field::Sport, _) => (NFT_PAYLOAD_TRANSPORT_HEADER, 0),
            (Field::Dport, _) => (NFT_PAYLOAD_TRANSPORT_HEADER, 2),
        };
        let length = field.data_type(self.family).length();
        self.add("payload", |buffer| {
            put_be32(buffer, NFTA_PAYLOAD_DREG, register);
            put_be32(buffer, NFTA_PAYLOAD_BASE, base);
            put_be32(buffer, NFTA_PAYLOAD_OFFSET, offset);
            put_be32(buffer, NFTA_PAYLOAD_LEN, length);
        });
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.add("meta", |buffer| {
            put_be32(buffer, NFTA_META_KEY, key);
            put_be32(buffer, NFTA_META_DREG, register);
        });
    }

    /// A part of the tuple that answers of the connection have.
    fn reply(&mut self, key: u32, register: u32) {
        self.add("ct", |buffer| {
            put_be32(buffer, NFTA_CT_KEY, key);
            put_be32(buffer, NFTA_CT_DREG, register);
            put(buffer, NFTA_CT_DIRECTION, &[IP_CT_DIR_REPLY]);
        });
    }

    /// A field of the connection has a bit.
    fn connection(&mut self, key: u32, bit: u32) {
        self.add("ct", |buffer| {
            put_be32(buffer, NFTA_CT_KEY, key);
            put_be32(buffer, NFTA_CT_DREG, FIRST);
        });
        self.bitwise(&bit.to_ne_bytes(), &[0; 4]);
        self.compare(NFT_CMP_NEQ, &[0; 4]);
    }

    fn fib_local(&mut self, flags: u32, is: Is) {
        self.add("fib", |buffer| {
            put_be32(buffer, NFTA_FIB_FLAGS, flags);
            put_be32(buffer, NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
            put_be32(buffer, NFTA_FIB_DREG, FIRST);
        });
        self.compare(is.comparison(), &RTN_LOCAL.to_ne_bytes());
    }

    /// The first registers become themselves under a mask, with bits turned over.
    fn bitwise(&mut self, mask: &[u8], xor: &[u8]) {
        self.add("bitwise", |buffer| {
            put_be32(buffer, NFTA_BITWISE_SREG, FIRST);
            put_be32(buffer, NFTA_BITWISE_DREG, FIRST);
            put_be32(buffer, NFTA_BITWISE_LEN, u32::try_from(mask.len()).unwrap_or(0));
            put_value(buffer, NFTA_BITWISE_MASK, mask);
            put_value(buffer, NFTA_BITWISE_XOR, xor);
        });
    }

    fn change_mark(&mut self, mask: u32, xor: u32) {
        self.meta(NFT_META_MARK, FIRST);
        self.bitwise(&mask.to_ne_bytes(), &xor.to_ne_bytes());
        self.set_mark();
    }

    fn set_mark(&mut self) {
        self.add("meta", |buffer| {
            put_be32(buffer, NFTA_META_KEY, NFT_META_MARK);
            put_be32(buffer, NFTA_META_SREG, FIRST);
        });
    }

    fn compare(&mut self, operation: u32, bytes: &[u8]) {
        self.add("cmp", |buffer| {
            put_be32(buffer, NFTA_CMP_SREG, FIRST);
            put_be32(buffer, NFTA_CMP_OP, operation);
            put_value(buffer, NFTA_CMP_DATA, bytes);
        });
    }

    fn dnat(&mut self, port: Option<u32>) {
        let family = u32::from(self.family.number());
        self.add("nat", |buffer| {
            put_be32(buffer, NFTA_NAT_TYPE, NFT_NAT_DNAT);
            put_be32(buffer, NFTA_NAT_FAMILY, family);
            put_be32(buffer, NFTA_NAT_REG_ADDR_MIN, FIRST);
            if let Some(port) = port {
                put_be32(buffer, NFTA_NAT_REG_PROTO_MIN, port);
            }
        });
    }
}

impl Is {
    fn comparison(self) -> u32 {
        match self {
            Self::So => NFT_CMP_EQ,
            Self::Not => NFT_CMP_NEQ,
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The elements in a message of a dump, of a set of this form.
pub fn decode_elements(set: &Set, payload: &[u8]) -> Vec<Element> {
    let attributes = Attributes(payload.get(HEADER..).unwrap_or_default());
    attributes
        .filter(|attribute| attribute.kind == NFTA_SET_ELEM_LIST_ELEMENTS)
        .flat_map(|list| list.nested())
        .filter_map(|element| decode_element(set, &element))
        .collect()
}

fn decode_element(set: &Set, element: &Attribute<'_>) -> Option<Element> {
    let find = |kind: u16| element.nested().find(|attribute| attribute.kind == kind);
    let flags = find(NFTA_SET_ELEM_FLAGS)
        .and_then(|attribute| be32(&attribute))
        .unwrap_or(0);
    if flags & NFT_SET_ELEM_INTERVAL_END != 0 {
        return None;
    }
    let key = read_key(&set.key, value(&find(NFTA_SET_ELEM_KEY)?)?)?;
    let end = find(NFTA_SET_ELEM_KEY_END)
        .and_then(|end| read_key(&set.key, value(&end)?))
        .filter(|end| *end != key);
    let data = match &set.data {
        SetData::None => ElementData::None,
        SetData::Verdict => ElementData::Verdict(verdict(&find(NFTA_SET_ELEM_DATA)?)?),
        SetData::Values(types) => ElementData::Values(read_key(types, value(&find(NFTA_SET_ELEM_DATA)?)?)?),
    };
    let left = find(NFTA_SET_ELEM_EXPIRATION).and_then(|attribute| {
        netlink::attribute::array(attribute.payload)
            .map(u64::from_be_bytes)
            .map(std::time::Duration::from_millis)
    });
    Some(Element {
        key,
        end,
        data,
        timeout: left,
    })
}

fn be32(attribute: &Attribute<'_>) -> Option<u32> {
    netlink::attribute::array(attribute.payload).map(u32::from_be_bytes)
}

fn value<'a>(attribute: &Attribute<'a>) -> Option<&'a [u8]> {
    attribute
        .nested()
        .find(|inner| inner.kind == NFTA_DATA_VALUE)
        .map(|inner| inner.payload)
}

fn verdict(attribute: &Attribute<'_>) -> Option<Verdict> {
    let inner = attribute.nested().find(|inner| inner.kind == NFTA_DATA_VERDICT)?;
    let code = inner
        .nested()
        .find(|part| part.kind == NFTA_VERDICT_CODE)
        .and_then(|part| be32(&part))?;
    let chain = inner
        .nested()
        .find(|part| part.kind == NFTA_VERDICT_CHAIN)
        .and_then(|part| part.str());
    Verdict::from_code(i32::from_ne_bytes(code.to_ne_bytes()), chain)
}

/// The table in a message of a dump; `None` for one of another family than `ip` and `ip6`.
pub fn decode_table(payload: &[u8]) -> Option<Table> {
    let family = match *payload.first()? {
        NFPROTO_IPV4 => Family::Ip,
        NFPROTO_IPV6 => Family::Ip6,
        _ => return None,
    };
    let mut attributes = Attributes(payload.get(HEADER..).unwrap_or_default());
    let name = attributes.find(|attribute| attribute.kind == NFTA_TABLE_NAME)?.str()?;
    Some(Table {
        family,
        name: name.to_owned(),
    })
}

/// Chain and fingerprint of a rule in a message of a dump.
pub fn decode_rule(payload: &[u8]) -> Option<(String, Vec<u8>)> {
    let attributes = || Attributes(payload.get(HEADER..).unwrap_or_default());
    let chain = attributes()
        .find(|attribute| attribute.kind == NFTA_RULE_CHAIN)?
        .str()?
        .to_owned();
    let user_data = attributes().find(|attribute| attribute.kind == NFTA_RULE_USERDATA);
    Some((
        chain,
        user_data
            .map(|attribute| attribute.payload.to_vec())
            .unwrap_or_default(),
    ))
}

impl Command {
    /// The table that it is about.
    pub fn table(&self) -> &Table {
        match self {
            Self::AddTable(table, _)
            | Self::DeleteTable(table)
            | Self::AddChain(table, _)
            | Self::AddSet(table, _)
            | Self::AddRule(table, _)
            | Self::AddElements(table, ..)
            | Self::DeleteElements(table, ..) => table,
        }
    }
}
