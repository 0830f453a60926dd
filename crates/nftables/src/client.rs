//! Transactions: all commands or none; and what the kernel holds.

use netlink::attribute::put_str;
use netlink::{Batch, Counters, KernelError, Socket};

use crate::base_chain::{BaseChain, decode_base_chain};
use crate::command::{Command, Table};
use crate::error::{Error, transport};
use crate::message::{decode_elements, decode_rule, decode_table, encode, put_header};
use crate::set::{Element, Set};
use crate::uapi::{
    NETLINK_NETFILTER, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, NFPROTO_UNSPEC,
    NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE,
    NFTA_RULE_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE,
};

/// A transaction is one `sendmsg`. The kernel allows twice this (net/core/sock.c), and takes what is needed alone.
const SEND_BUFFER: i32 = 16 << 20;

/// A socket to nf_tables of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Nftables {
    socket: Socket,
}

impl Nftables {
    /// Opens a socket.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(NETLINK_NETFILTER).map_err(transport("open the netfilter socket"))?;
        socket.reserve(SEND_BUFFER);
        Ok(Self { socket })
    }

    /// Executes commands as one transaction: the kernel takes all or none. No commands cost nothing.
    ///
    /// # Errors
    /// [`Error::Command`] names the first command that was refused; nothing has changed then.
    pub fn commit(&mut self, commands: &[Command]) -> Result<(), Error> {
        let answers = self.transaction(commands)?;
        let refused = answers.into_iter().enumerate().find_map(|(place, answer)| {
            Some(Error::Command {
                command: commands.get(place)?.to_string(),
                place,
                source: answer.err()?,
            })
        });
        refused.map_or(Ok(()), Err)
    }

    /// As [`commit`](Self::commit), and tells of every command whether the kernel would take it: where one was refused,
    /// nothing has changed.
    ///
    /// # Errors
    /// The transaction as a whole was refused, or the transport broke.
    pub fn transaction(&mut self, commands: &[Command]) -> Result<Vec<Result<(), KernelError>>, Error> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut batch = Batch::new();
        let mark = |batch: &mut Batch, kind: u16| {
            batch.push(kind, netlink::socket::NLM_F_REQUEST, |buffer| {
                put_header(buffer, 0, NFNL_SUBSYS_NFTABLES);
            });
        };
        mark(&mut batch, NFNL_MSG_BATCH_BEGIN);
        for command in commands {
            let mut payload = Vec::new();
            let (kind, flags) = encode(command, &mut payload);
            let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
            batch.push(kind, netlink::socket::NLM_F_REQUEST | flags, |buffer| {
                buffer.extend(payload);
            });
        }
        mark(&mut batch, NFNL_MSG_BATCH_END);
        let mut answers = self
            .socket
            .transaction(batch)
            .map_err(transport("send a transaction"))?;
        // The first is to the begin, the last to the end.
        let end = answers.pop().unwrap_or(Ok(()));
        if answers.is_empty() {
            return Err(Error::Unanswered);
        }
        answers.remove(0).and(end).map_err(Error::Commit)?;
        Ok(answers)
    }

    /// The elements of a set, in the kernel's order.
    ///
    /// # Errors
    /// The table or the set is not there (ENOENT), or the transport broke.
    pub fn elements(&mut self, table: &Table, set: &Set) -> Result<Vec<Element>, Error> {
        let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM;
        let ask = |buffer: &mut Vec<u8>| {
            put_header(buffer, table.family.number(), 0);
            put_str(buffer, NFTA_SET_ELEM_LIST_TABLE, &table.name);
            put_str(buffer, NFTA_SET_ELEM_LIST_SET, &set.name);
        };
        // The kernel never says that a change interrupted this list (measured, Linux 6.18).
        self.socket
            .list(kind, ask, |payload| decode_elements(set, payload))
            .map_err(transport("list the elements of a set"))
    }

    /// Chain and fingerprint ([`fingerprint`](crate::message::fingerprint)) of each rule of a table, in order within
    /// each chain; empty where there is no such table, or where the kernel has no nf_tables.
    ///
    /// # Errors
    /// Where the transport broke.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE;
        let ask = |buffer: &mut Vec<u8>| {
            put_header(buffer, table.family.number(), 0);
            put_str(buffer, NFTA_RULE_TABLE, &table.name);
        };
        let listed = self.socket.list(kind, ask, decode_rule);
        none_without_nf_tables(listed.map_err(transport("list the rules of a table")))
    }

    /// The base chains of all tables of the families `ip`, `ip6` and `inet`, whoever made them; none where the kernel
    /// has no nf_tables.
    ///
    /// # Errors
    /// Where the transport broke.
    pub fn base_chains(&mut self) -> Result<Vec<BaseChain>, Error> {
        let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN;
        let ask = |buffer: &mut Vec<u8>| put_header(buffer, NFPROTO_UNSPEC, 0);
        let listed = self.socket.list(kind, ask, decode_base_chain);
        none_without_nf_tables(listed.map_err(transport("list the chains")))
    }

    /// The tables of the families `ip` and `ip6`, whoever made them; none where the kernel has no nf_tables.
    ///
    /// # Errors
    /// Where the kernel refuses or the transport broke.
    pub fn tables(&mut self) -> Result<Vec<Table>, Error> {
        let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE;
        let ask = |buffer: &mut Vec<u8>| put_header(buffer, NFPROTO_UNSPEC, 0);
        let listed = self.socket.list(kind, ask, decode_table);
        none_without_nf_tables(listed.map_err(transport("list the tables")))
    }

    /// A table has a chain of this name, base chain or not.
    ///
    /// # Errors
    /// Where the transport broke.
    pub fn has_chain(&mut self, table: &Table, name: &str) -> Result<bool, Error> {
        let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN;
        let ask = |buffer: &mut Vec<u8>| {
            put_header(buffer, table.family.number(), 0);
            put_str(buffer, NFTA_CHAIN_TABLE, &table.name);
            put_str(buffer, NFTA_CHAIN_NAME, name);
        };
        let answer = self
            .socket
            .query(kind, ask, |_| ())
            .map_err(transport("look up a chain"))?;
        Ok(answer.is_ok())
    }

    /// What the kernel calls this socket: the originator in notifications.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.socket.counters()
    }
}

/// A list of what a kernel without nf_tables cannot have.
fn none_without_nf_tables<T>(listed: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match listed {
        // nfnetlink knows no such subsystem (net/netfilter/nfnetlink.c, `nfnetlink_rcv_msg`).
        Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(Vec::new()),
        listed => listed,
    }
}
