//! A blocking netlink socket: batches out, one answer per message back; dumps.

use std::io;
use std::os::fd::AsRawFd;

use netlink_sys::{Socket as Raw, SocketAddr};

use crate::attribute::{Attributes, align, array};
use crate::batch::{Batch, HEADER};
use crate::error::{KernelError, TransportError};
use crate::whole::whole;

// linux/netlink.h
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// It is a request.
pub const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Bytes and messages of one `sendmsg`. The kernel copies all of it at once, and its errors (up to one for each
/// message, about 1 KiB of receive buffer each) must fit the buffer below.
const CHUNK_BYTES: usize = 128 << 10;
const CHUNK_MESSAGES: usize = 1024;
/// The same where the buffers could not be forced: about 240 answers fit the default ones (measured, Linux 7.2).
const CHUNK_MESSAGES_UNFORCED: usize = 128;
const SEND_BUFFER: i32 = 1 << 20;
const RECEIVE_BUFFER: i32 = 8 << 20;
/// Longest datagram that the kernel builds for a dump is 32 KiB (net/netlink/af_netlink.c, `netlink_dump`).
pub(crate) const DATAGRAM: usize = 64 << 10;

/// What went over a socket so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages sent.
    pub messages: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// `sendmsg` and `recvmsg` calls.
    pub system_calls: u64,
}

/// A netlink socket in the network namespace of the thread that opened it.
pub struct Socket {
    raw: Raw,
    port: u32,
    sequence: u32,
    datagram: Vec<u8>,
    chunk_messages: usize,
    counters: Counters,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("fd", &self.raw.as_raw_fd())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Socket {
    /// Opens a socket of a netlink protocol (`NETLINK_ROUTE` 0, `NETLINK_GENERIC` 16, …).
    ///
    /// # Errors
    /// Where the socket cannot be made or bound.
    pub fn open(protocol: isize) -> Result<Self, TransportError> {
        let mut raw = Raw::new(protocol).map_err(socket("open"))?;
        let port = raw.bind_auto().map_err(socket("bind"))?.port_number();
        raw.connect(&SocketAddr::new(0, 0)).map_err(socket("connect"))?;
        raw.set_cap_ack(true).map_err(socket("set NETLINK_CAP_ACK"))?;
        raw.set_ext_ack(true).map_err(socket("set NETLINK_EXT_ACK"))?;
        // Without CAP_NET_ADMIN the buffers stay as they are, and fewer messages go at once.
        let forced = force_buffer(&raw, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)
            .and_then(|()| force_buffer(&raw, libc::SO_SNDBUFFORCE, SEND_BUFFER));
        let chunk_messages = if forced.is_ok() {
            CHUNK_MESSAGES
        } else {
            CHUNK_MESSAGES_UNFORCED
        };
        Ok(Self {
            raw,
            port,
            sequence: 0,
            datagram: Vec::with_capacity(DATAGRAM),
            chunk_messages,
            counters: Counters::default(),
        })
    }

    /// Makes room for so many bytes in one `sendmsg`; what is there already stays. Without CAP_NET_ADMIN nothing changes.
    pub fn reserve(&self, bytes: i32) {
        // Refused or not: a message that does not fit is refused when it is sent.
        let _ = force_buffer(&self.raw, libc::SO_SNDBUFFORCE, bytes.max(SEND_BUFFER));
    }

    /// Makes the kernel check the header of dump requests and honor filters in them (`NETLINK_GET_STRICT_CHK`, 4.20).
    ///
    /// # Errors
    /// On a kernel without it.
    pub fn check_strictly(&self) -> Result<(), TransportError> {
        self.raw
            .set_netlink_get_strict_chk(true)
            .map_err(socket("set NETLINK_GET_STRICT_CHK"))
    }

    /// Its port id: whom the kernel names as the originator of what is done over it.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Sends all messages and returns the kernel's answer to each, in order. One message costs one `sendmsg` and one
    /// `recvmsg`; more cost one `sendmsg` per thousand, and a `recvmsg` for each error. An empty batch costs nothing.
    ///
    /// # Errors
    /// Where the transport broke; which messages were executed is then unknown.
    pub fn execute(&mut self, mut batch: Batch) -> Result<Vec<Result<(), KernelError>>, TransportError> {
        let mut answers = Vec::with_capacity(batch.len());
        while answers.len() < batch.len() {
            let first = self.sequence.wrapping_add(1);
            let mut chunk = batch.chunk(answers.len(), CHUNK_BYTES, self.chunk_messages);
            chunk.number(first, NLM_F_ACK);
            let start = answers.len();
            let count = chunk.len();
            answers.resize_with(start + count, || Ok(()));
            let last = u32::try_from(count - 1).unwrap_or(u32::MAX);
            self.sequence = first.wrapping_add(last);
            send(&self.raw, &mut self.counters, chunk.bytes, count)?;
            let mut waiting = true;
            while waiting {
                self.receive()?;
                for message in Messages(&self.datagram) {
                    let number = message.sequence.wrapping_sub(first);
                    // Answers to what was sent before belong to a request that was given up.
                    if message.kind != NLMSG_ERROR || number > last {
                        continue;
                    }
                    let answer = message.acknowledgement()?;
                    let place = usize::try_from(number).ok().and_then(|n| answers.get_mut(start + n));
                    if let Some(place) = place {
                        *place = answer;
                    }
                    waiting &= number != last;
                }
            }
        }
        Ok(answers)
    }

    /// Sends all messages at once and returns the kernel's answer to each, in order: for families that execute what
    /// stands between two marks (nfnetlink's BATCH_BEGIN and BATCH_END) as a whole. Where one answer is an error,
    /// nothing was executed (net/netfilter/nfnetlink.c, `nfnetlink_rcv_batch`).
    ///
    /// # Errors
    /// Where the transport broke, or the messages are more than a `sendmsg` takes; whether they were executed is then
    /// unknown.
    pub fn transaction(&mut self, mut batch: Batch) -> Result<Vec<Result<(), KernelError>>, TransportError> {
        let count = batch.len();
        let mut answers = Vec::with_capacity(count);
        answers.resize_with(count, || Ok(()));
        let first = self.sequence.wrapping_add(1);
        let mut whole = batch.chunk(0, usize::MAX, usize::MAX);
        // The marks themselves are not acknowledged by older kernels.
        let last = u32::try_from(count.saturating_sub(2)).unwrap_or(u32::MAX);
        whole.number(first, 0);
        whole.acknowledge(count.saturating_sub(2), NLM_F_ACK);
        self.sequence = first.wrapping_add(last).wrapping_add(1);
        send(&self.raw, &mut self.counters, whole.bytes, count)?;
        let mut waiting = true;
        while waiting {
            self.receive()?;
            for message in Messages(&self.datagram) {
                let number = message.sequence.wrapping_sub(first);
                if message.kind != NLMSG_ERROR || number > last.saturating_add(1) {
                    continue;
                }
                let answer = message.acknowledgement()?;
                // An error of the begin stands for the whole, and is the only answer then.
                waiting &= number != last && (number != 0 || answer.is_ok());
                if let Some(place) = usize::try_from(number).ok().and_then(|number| answers.get_mut(number)) {
                    *place = answer;
                }
            }
        }
        Ok(answers)
    }

    /// Asks for a list. `each` gets type and payload of every message of it, in the kernel's order.
    ///
    /// # Errors
    /// Where the transport broke, the kernel refused, or the tables changed meanwhile ([`TransportError::Interrupted`],
    /// told after the last message).
    pub fn dump(
        &mut self,
        message_type: u16,
        payload: impl FnOnce(&mut Vec<u8>),
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), TransportError> {
        let mut request = Batch::new();
        request.push(message_type, NLM_F_REQUEST | NLM_F_DUMP, payload);
        self.sequence = self.sequence.wrapping_add(1);
        let mut chunk = request.chunk(0, CHUNK_BYTES, 1);
        chunk.number(self.sequence, 0);
        send(&self.raw, &mut self.counters, chunk.bytes, 1)?;
        let mut interrupted = false;
        loop {
            self.receive()?;
            for message in Messages(&self.datagram).filter(|message| message.sequence == self.sequence) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR => return message.acknowledgement()?.map_err(TransportError::Refused),
                    NLMSG_DONE => {
                        // Carries an errno; nothing there means success (net/netlink/af_netlink.c, `netlink_dump_done`).
                        let errno = array(message.payload).map_or(0, i32::from_ne_bytes);
                        return match (errno, interrupted) {
                            (0, false) => Ok(()),
                            (0, true) => Err(TransportError::Interrupted),
                            (errno, _) => Err(TransportError::Refused(KernelError {
                                errno: errno.saturating_neg(),
                                sentence: None,
                            })),
                        };
                    }
                    kind => each(kind, message.payload),
                }
            }
        }
    }

    /// The same as a value, of what `decode` makes of each message; a list that a change interrupts is asked for again.
    ///
    /// # Errors
    /// As [`dump`](Self::dump), where five lists in a row were interrupted.
    pub fn list<T, D: IntoIterator<Item = T>>(
        &mut self,
        message_type: u16,
        payload: impl Fn(&mut Vec<u8>),
        decode: impl Fn(&[u8]) -> D,
    ) -> Result<Vec<T>, TransportError> {
        whole(|| {
            let mut all = Vec::new();
            self.dump(message_type, &payload, |_, message| all.extend(decode(message)))?;
            Ok(all)
        })
    }

    /// One request with one answer that is a message. `None` where the kernel only acknowledges.
    ///
    /// # Errors
    /// Where the transport broke; the inner error is the kernel's refusal.
    pub fn query(
        &mut self,
        message_type: u16,
        payload: impl FnOnce(&mut Vec<u8>),
        each: impl FnOnce(&[u8]),
    ) -> Result<Result<(), KernelError>, TransportError> {
        let mut request = Batch::new();
        request.push(message_type, NLM_F_REQUEST, payload);
        self.sequence = self.sequence.wrapping_add(1);
        let mut chunk = request.chunk(0, CHUNK_BYTES, 1);
        chunk.number(self.sequence, NLM_F_ACK);
        send(&self.raw, &mut self.counters, chunk.bytes, 1)?;
        let mut each = Some(each);
        loop {
            self.receive()?;
            for message in Messages(&self.datagram).filter(|message| message.sequence == self.sequence) {
                if message.kind == NLMSG_ERROR {
                    return message.acknowledgement();
                }
                if let Some(each) = each.take() {
                    each(message.payload);
                }
            }
        }
    }

    fn receive(&mut self) -> Result<(), TransportError> {
        self.counters.system_calls += 1;
        receive(&self.raw, &mut self.datagram)
    }
}

/// One datagram, in place of what was there.
pub(crate) fn receive(raw: &Raw, datagram: &mut Vec<u8>) -> Result<(), TransportError> {
    datagram.clear();
    loop {
        match raw.recv(datagram, libc::MSG_TRUNC) {
            // With MSG_TRUNC the length is the datagram's, also where it did not fit.
            Ok(length) if length > datagram.len() => return Err(TransportError::Overrun),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Err(TransportError::Overrun),
            Err(error) => return Err(socket("receive")(error)),
        }
    }
}

fn send(raw: &Raw, counters: &mut Counters, bytes: &[u8], messages: usize) -> Result<(), TransportError> {
    counters.messages += u64::try_from(messages).unwrap_or(u64::MAX);
    counters.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    loop {
        counters.system_calls += 1;
        match raw.send(bytes, 0) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(socket("send")(error)),
        }
    }
}

pub(crate) fn socket(operation: &'static str) -> impl Fn(io::Error) -> TransportError {
    move |source| TransportError::Socket { operation, source }
}

#[expect(
    unsafe_code,
    reason = "rustix has no SO_RCVBUFFORCE for a raw descriptor of netlink-sys"
)]
pub(crate) fn force_buffer(raw: &Raw, option: libc::c_int, size: libc::c_int) -> io::Result<()> {
    const LENGTH: libc::socklen_t = 4; // of a C int on every Linux
    // SAFETY: the descriptor is open for the whole call, and the value is a live c_int of the length given.
    let done = unsafe {
        libc::setsockopt(
            raw.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const size).cast(),
            LENGTH,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// One message of a datagram.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of a datagram; ends at the first that does not fit.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = usize::try_from(u32::from_ne_bytes(array(self.0)?)).ok()?;
        let kind = u16::from_ne_bytes(array(self.0.get(4..)?)?);
        let flags = u16::from_ne_bytes(array(self.0.get(6..)?)?);
        let sequence = u32::from_ne_bytes(array(self.0.get(8..)?)?);
        let port = u32::from_ne_bytes(array(self.0.get(12..)?)?);
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Message {
            kind,
            flags,
            sequence,
            port,
            payload,
        })
    }
}

impl Message<'_> {
    /// `struct nlmsgerr`: errno, the header of the message it answers, then the extended acknowledgement.
    pub(crate) fn acknowledgement(&self) -> Result<Result<(), KernelError>, TransportError> {
        let errno = array(self.payload)
            .map(i32::from_ne_bytes)
            .ok_or(TransportError::Malformed("short error message"))?;
        if errno == 0 {
            return Ok(Ok(()));
        }
        let quoted = array(self.payload.get(4..).unwrap_or_default()).map_or(0, u32::from_ne_bytes);
        let quoted = if self.flags & NLM_F_CAPPED != 0 {
            HEADER
        } else {
            usize::try_from(quoted).unwrap_or(HEADER)
        };
        let behind = self
            .payload
            .get(4 + align(quoted)..)
            .filter(|_| self.flags & NLM_F_ACK_TLVS != 0);
        let sentence = Attributes(behind.unwrap_or_default())
            .find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG)
            .and_then(|attribute| attribute.str())
            .map(Into::into);
        Ok(Err(KernelError {
            errno: errno.saturating_neg(),
            sentence,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_datagram_is_walked_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for message in Messages(&bytes) {
                let _ = message.acknowledgement();
            }
        }
    }

    /// NETLINK_ROUTE is on every kernel: adding an address to a device that is not there is refused, each with its errno.
    #[test]
    fn each_message_has_its_answer() {
        let mut socket = Socket::open(0).unwrap();
        // RTM_GETLINK of index 1 (lo) succeeds, of an index that no device has fails with ENODEV.
        let link = |index: i32| {
            move |buffer: &mut Vec<u8>| {
                buffer.extend_from_slice(&[0; 4]);
                buffer.extend_from_slice(&index.to_ne_bytes());
                buffer.extend_from_slice(&[0; 8]);
            }
        };
        let mut found = 0;
        assert_eq!(socket.query(18, link(1), |_| found += 1).unwrap(), Ok(()));
        assert_eq!(found, 1);
        let answer = socket.query(18, link(i32::MAX), |_| ()).unwrap().unwrap_err();
        assert_eq!(answer.errno, libc::ENODEV);
        assert!(answer.to_string().starts_with("no such device (ENODEV)"), "{answer}");

        // RTM_DELLINK of devices that are not there: a batch that fails everywhere, each message on its own.
        let mut batch = Batch::new();
        for index in 0..3000 {
            batch.push(17, NLM_F_REQUEST, link(i32::MAX - index));
        }
        let before = socket.counters();
        let answers = socket.execute(batch).unwrap();
        assert_eq!(answers.len(), 3000);
        assert!(answers.iter().all(Result::is_err));
        assert_eq!(socket.counters().messages - before.messages, 3000);
    }

    #[test]
    fn a_dump_ends() {
        let mut socket = Socket::open(0).unwrap();
        let mut links = 0;
        socket
            .dump(
                18,
                |buffer| buffer.extend_from_slice(&[0; 16]),
                |kind, _| links += usize::from(kind == 16),
            )
            .unwrap();
        assert!(links >= 1, "lo is there");
    }
}
