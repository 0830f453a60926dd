//! ipsets by netlink, as far as a predecessor's need: which there are, the ports in one, and removing one. The program
//! `ipset` is neither needed nor bound to its version.

use netlink::attribute::{put, put_str};
use netlink::socket::NLM_F_REQUEST;
use netlink::{Attribute, Attributes, Batch, KernelError, Socket, TransportError};

use crate::error::{Error, transport};
use crate::uapi::{
    IPSET_ATTR_ADT, IPSET_ATTR_DATA, IPSET_ATTR_FLAGS, IPSET_ATTR_PORT, IPSET_ATTR_PROTOCOL, IPSET_ATTR_SETNAME,
    IPSET_CMD_DESTROY, IPSET_CMD_LIST, IPSET_FLAG_LIST_SETNAME, IPSET_PROTOCOL, NETLINK_NETFILTER, NFNL_SUBSYS_IPSET,
};

/// `struct nfgenmsg`.
const HEADER: usize = 4;

/// The ipsets of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Ipsets {
    socket: Socket,
}

impl Ipsets {
    /// Opens a socket.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(NETLINK_NETFILTER).map_err(transport("open the netfilter socket"))?;
        Ok(Self { socket })
    }

    /// Names of all sets; none where the kernel has no ipsets.
    ///
    /// # Errors
    /// Where the kernel refuses or the transport breaks.
    pub fn names(&mut self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        let listed = self.list(
            "list ipsets",
            |buffer| put(buffer, IPSET_ATTR_FLAGS, &IPSET_FLAG_LIST_SETNAME.to_be_bytes()),
            |payload| names.extend(find(payload, IPSET_ATTR_SETNAME).and_then(|name| Some(name.str()?.to_owned()))),
        );
        match listed {
            // nfnetlink knows no such subsystem (net/netfilter/nfnetlink.c, `nfnetlink_rcv_msg`).
            Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(Vec::new()),
            listed => listed.map(|()| names),
        }
    }

    /// The ports in a set of type `bitmap:port` or `hash:ip,port`, once for each element.
    ///
    /// # Errors
    /// As [`Ipsets::names`]; one that is not there is [`Error::is_not_found`].
    pub fn ports(&mut self, name: &str) -> Result<Vec<u16>, Error> {
        let mut ports = Vec::new();
        self.list(
            "list an ipset",
            |buffer| put_str(buffer, IPSET_ATTR_SETNAME, name),
            |payload| ports.extend(decode_ports(payload)),
        )?;
        Ok(ports)
    }

    /// Removes a set; one that is not there is fine.
    ///
    /// # Errors
    /// As [`Ipsets::names`]; EBUSY for one that a rule uses.
    pub fn destroy(&mut self, name: &str) -> Result<(), Error> {
        let operation = "destroy an ipset";
        let mut batch = Batch::new();
        batch.push(message_type(IPSET_CMD_DESTROY), NLM_F_REQUEST, |buffer| {
            header(buffer);
            put_str(buffer, IPSET_ATTR_SETNAME, name);
        });
        let answers = self.socket.execute(batch).map_err(transport(operation))?;
        let refused = answers
            .into_iter()
            .filter_map(Result::err)
            .map(|source| Error::Refused {
                operation,
                source: told(source),
            });
        // Newer kernels say nothing of a missing one (net/netfilter/ipset/ip_set_core.c, `flag_exist`), older ones do.
        refused
            .filter(|error| !error.is_not_found())
            .map(Err)
            .next()
            .unwrap_or(Ok(()))
    }

    fn list(
        &mut self,
        operation: &'static str,
        ask: impl FnOnce(&mut Vec<u8>),
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        let request = |buffer: &mut Vec<u8>| {
            header(buffer);
            ask(buffer);
        };
        match self
            .socket
            .dump(message_type(IPSET_CMD_LIST), request, |_, payload| each(payload))
        {
            Ok(()) => Ok(()),
            Err(TransportError::Refused(source)) => Err(Error::Refused { operation, source }),
            Err(source) => Err(Error::Transport { operation, source }),
        }
    }
}

/// ipset has errors of its own from 4096 (linux/netfilter/ipset/ip_set.h, `enum ipset_errno`); one matters here.
fn told(error: KernelError) -> KernelError {
    const IPSET_ERR_BUSY: i32 = 4100;
    match error.errno {
        IPSET_ERR_BUSY => KernelError {
            errno: libc::EBUSY,
            ..error
        },
        _ => error,
    }
}

fn message_type(command: u16) -> u16 {
    NFNL_SUBSYS_IPSET << 8 | command
}

fn header(buffer: &mut Vec<u8>) {
    // The family is the set's own business; userspace sends AF_INET.
    buffer.extend_from_slice(&[2, 0, 0, 0]);
    put(buffer, IPSET_ATTR_PROTOCOL, &[IPSET_PROTOCOL]);
}

fn find(payload: &[u8], kind: u16) -> Option<Attribute<'_>> {
    Attributes(payload.get(HEADER..).unwrap_or_default()).find(|found| found.kind == kind)
}

/// A long set is told in several messages.
pub(crate) fn decode_ports(payload: &[u8]) -> Vec<u16> {
    let elements = find(payload, IPSET_ATTR_ADT).map_or(Attributes(&[]), |all| all.nested());
    elements
        .filter(|element| element.kind == IPSET_ATTR_DATA)
        .filter_map(|element| element.nested().find(|found| found.kind == IPSET_ATTR_PORT)?.be16())
        .collect()
}

#[cfg(test)]
mod tests {
    use netlink::attribute::{put_be16, put_nested};
    use proptest::prelude::*;

    use super::*;

    /// As the kernel lists `hash:ip,port` (net/netfilter/ipset/ip_set_hash_ipport.c).
    fn message() -> Vec<u8> {
        let mut buffer = Vec::new();
        header(&mut buffer);
        put_str(&mut buffer, IPSET_ATTR_SETNAME, "KUBE-NODE-PORT-SCTP-HASH");
        put_nested(&mut buffer, IPSET_ATTR_ADT, |buffer| {
            for port in [30_001, 30_002] {
                put_nested(buffer, IPSET_ATTR_DATA, |buffer| {
                    put_nested(buffer, 1, |buffer| put(buffer, 1, &[192, 0, 2, 10]));
                    put_be16(buffer, IPSET_ATTR_PORT, port);
                    put(buffer, 7, &[132]);
                });
            }
        });
        buffer
    }

    #[test]
    fn ports_are_read() {
        assert_eq!(decode_ports(&message()), [30_001, 30_002]);
        assert_eq!(decode_ports(&[]), []);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode_ports(&bytes);
            let whole = message();
            let _ = decode_ports(whole.get(..bytes.len()).unwrap_or(&whole));
        }
    }
}
