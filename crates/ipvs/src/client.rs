//! The typed client: commands out, one answer each; lists back.

use netlink::socket::NLM_F_REQUEST;
use netlink::{Attributes, Batch, Counters, KernelError, Socket, TransportError};

use crate::command::Command;
use crate::error::{Error, transport};
use crate::message::{
    Info, RealServerState, Timeouts, VirtualServerState, decode_destination, decode_info, decode_service,
    decode_timeouts, encode, put_service, put_timeouts,
};
use crate::uapi::*;
use crate::virtual_server::VirtualServer;

// linux/netlink.h, linux/genetlink.h
const NETLINK_GENERIC: isize = 16;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// `struct genlmsghdr`: command, version, two reserved bytes.
const GENL_HEADER: usize = 4;

/// The IPVS tables of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Ipvs {
    socket: Socket,
    family: u16,
}

impl Ipvs {
    /// Finds the family; asking for it makes the kernel load the module.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] where the kernel has no IPVS.
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::open(NETLINK_GENERIC).map_err(transport("open the IPVS socket"))?;
        let mut family = None;
        let request = |buffer: &mut Vec<u8>| {
            buffer.extend_from_slice(&[CTRL_CMD_GETFAMILY, 1, 0, 0]);
            netlink::attribute::put_str(buffer, CTRL_ATTR_FAMILY_NAME, IPVS_GENL_NAME);
        };
        let answer = socket.query(GENL_ID_CTRL, request, |payload| {
            family = Attributes(behind_header(payload))
                .find(|a| a.kind == CTRL_ATTR_FAMILY_ID)
                .and_then(|a| a.u16());
        });
        answer
            .map_err(transport("look up the generic netlink family IPVS"))?
            .map_err(Error::Family)?;
        let family = family.ok_or(Error::Unreadable("look up the generic netlink family IPVS"))?;
        Ok(Self { socket, family })
    }

    /// Executes commands in order, each on its own, and returns one answer each. Empty in, empty out.
    ///
    /// # Errors
    /// Where the transport broke; which commands were executed is then unknown.
    pub fn execute(&mut self, commands: &[Command]) -> Result<Vec<Result<(), Error>>, Error> {
        let mut batch = Batch::new();
        for command in commands {
            batch.push(self.family, NLM_F_REQUEST, |buffer| {
                let at = buffer.len();
                header(buffer, 0);
                let number = encode(command, buffer);
                if let Some(place) = buffer.get_mut(at) {
                    *place = number;
                }
            });
        }
        let answers = self.socket.execute(batch).map_err(transport("send IPVS commands"))?;
        let answer = |(answer, command): (Result<(), KernelError>, &Command)| {
            answer.map_err(|source| Error::Command {
                command: Box::new(*command),
                source,
            })
        };
        Ok(answers.into_iter().zip(commands).map(answer).collect())
    }

    /// All virtual servers. Those of protocols unknown here are left out.
    ///
    /// # Errors
    /// Where the kernel refuses or the transport breaks.
    pub fn virtual_servers(&mut self) -> Result<Vec<VirtualServerState>, Error> {
        self.list("list virtual servers", IPVS_CMD_GET_SERVICE, |_| (), decode_service)
    }

    /// One virtual server; `None` where it is not there.
    ///
    /// # Errors
    /// As [`Ipvs::virtual_servers`].
    pub fn virtual_server(&mut self, server: &VirtualServer) -> Result<Option<VirtualServerState>, Error> {
        let operation = "read a virtual server";
        let mut found = None;
        let put = |buffer: &mut Vec<u8>| put_service(buffer, server, None);
        match self.query(operation, IPVS_CMD_GET_SERVICE, put, |payload| {
            found = decode_service(payload);
        }) {
            Ok(()) => found.map(Some).ok_or(Error::Unreadable(operation)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The real servers of one virtual server; empty where it has none or is not there (the kernel does not tell).
    ///
    /// # Errors
    /// As [`Ipvs::virtual_servers`].
    pub fn real_servers(&mut self, server: &VirtualServer) -> Result<Vec<RealServerState>, Error> {
        let put = |buffer: &mut Vec<u8>| put_service(buffer, server, None);
        let family = server.family();
        self.list("list real servers", IPVS_CMD_GET_DEST, put, |payload| {
            decode_destination(payload, family)
        })
    }

    /// Idle times of connections.
    ///
    /// # Errors
    /// As [`Ipvs::virtual_servers`].
    pub fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let mut timeouts = Timeouts::default();
        self.query(
            "read the timeouts",
            IPVS_CMD_GET_CONFIG,
            |_| (),
            |payload| timeouts = decode_timeouts(payload),
        )?;
        Ok(timeouts)
    }

    /// Sets the idle times that are not 0.
    ///
    /// # Errors
    /// As [`Ipvs::virtual_servers`].
    pub fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error> {
        self.query(
            "set the timeouts",
            IPVS_CMD_SET_CONFIG,
            |buffer| put_timeouts(buffer, timeouts),
            |_| (),
        )
    }

    /// Version and table size.
    ///
    /// # Errors
    /// As [`Ipvs::virtual_servers`].
    pub fn info(&mut self) -> Result<Info, Error> {
        let mut info = Info::default();
        self.query(
            "read IPVS's information",
            IPVS_CMD_GET_INFO,
            |_| (),
            |payload| info = decode_info(payload),
        )?;
        Ok(info)
    }

    /// Removes all virtual servers of the namespace, whoever made them. A proxy that shares a node never wants this.
    ///
    /// # Errors
    /// As [`Ipvs::virtual_servers`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.query("flush", IPVS_CMD_FLUSH, |_| (), |_| ())
    }

    /// Sets the counters of one virtual server, or of all, to 0.
    ///
    /// # Errors
    /// As [`Ipvs::virtual_servers`]; one that is not there is [`Error::is_not_found`].
    pub fn zero(&mut self, server: Option<&VirtualServer>) -> Result<(), Error> {
        let put = |buffer: &mut Vec<u8>| server.into_iter().for_each(|server| put_service(buffer, server, None));
        self.query("zero the counters", IPVS_CMD_ZERO, put, |_| ())
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.socket.counters()
    }

    fn query(
        &mut self,
        operation: &'static str,
        command: u8,
        put: impl FnOnce(&mut Vec<u8>),
        each: impl FnOnce(&[u8]),
    ) -> Result<(), Error> {
        let request = |buffer: &mut Vec<u8>| {
            header(buffer, command);
            put(buffer);
        };
        self.socket
            .query(self.family, request, |payload| each(behind_header(payload)))
            .map_err(transport(operation))?
            .map_err(|source| Error::Refused { operation, source })
    }

    fn list<T>(
        &mut self,
        operation: &'static str,
        command: u8,
        put: impl Fn(&mut Vec<u8>),
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let request = |buffer: &mut Vec<u8>| {
            header(buffer, command);
            put(buffer);
        };
        self.socket
            .list(self.family, request, |payload| decode(behind_header(payload)))
            .map_err(|error| match error {
                TransportError::Refused(source) => Error::Refused { operation, source },
                source => Error::Transport { operation, source },
            })
    }
}

fn header(buffer: &mut Vec<u8>, command: u8) {
    buffer.extend_from_slice(&[command, IPVS_GENL_VERSION, 0, 0]);
}

fn behind_header(payload: &[u8]) -> &[u8] {
    payload.get(GENL_HEADER..).unwrap_or_default()
}
