//! Messages to be sent together. Each is executed by the kernel on its own, in order, and has its own answer.

/// `struct nlmsghdr` (linux/netlink.h): length, type, flags, sequence number, port.
pub(crate) const HEADER: usize = 16;

/// Messages in wire form, without sequence numbers yet.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where each message ends.
    ends: Vec<usize>,
}

impl Batch {
    /// No messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a message; `write` appends its payload.
    ///
    /// # Panics
    /// Where a message is longer than 4 GiB.
    pub fn push(&mut self, message_type: u16, flags: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER]);
        write(&mut self.bytes);
        let length = u32::try_from(self.bytes.len() - start).expect("a message's length is 32 bits");
        self.bytes.resize(crate::attribute::align(self.bytes.len()), 0);
        let header = self
            .bytes
            .get_mut(start..start + HEADER)
            .expect("the header was just written");
        header.fill(0);
        write_at(header, 0, &length.to_ne_bytes());
        write_at(header, 4, &message_type.to_ne_bytes());
        write_at(header, 6, &flags.to_ne_bytes());
        self.ends.push(self.bytes.len());
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// No messages.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The messages from `first` on that fit `bytes` and `messages`, at least one; with the number behind the last.
    pub(crate) fn chunk(&mut self, first: usize, bytes: usize, messages: usize) -> Chunk<'_> {
        let start = first
            .checked_sub(1)
            .and_then(|at| self.ends.get(at))
            .copied()
            .unwrap_or(0);
        let rest = self.ends.get(first..).unwrap_or_default();
        let fit = rest
            .iter()
            .take(messages)
            .take_while(|end| **end - start <= bytes)
            .count()
            .max(1)
            .min(rest.len());
        let ends = rest.get(..fit).unwrap_or_default();
        let end = ends.last().copied().unwrap_or(start);
        Chunk {
            bytes: self.bytes.get_mut(start..end).unwrap_or_default(),
            ends,
            start,
        }
    }
}

/// Some adjacent messages of a batch.
pub(crate) struct Chunk<'a> {
    pub(crate) bytes: &'a mut [u8],
    ends: &'a [usize],
    start: usize,
}

impl Chunk<'_> {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Sets a flag of the message at a place.
    pub(crate) fn acknowledge(&mut self, place: usize, flag: u16) {
        let at = place
            .checked_sub(1)
            .and_then(|before| self.ends.get(before))
            .map_or(0, |end| end - self.start);
        if let Some(header) = self.bytes.get_mut(at..at + HEADER) {
            let flags = header
                .get(6..)
                .and_then(crate::attribute::array)
                .map_or(0, u16::from_ne_bytes);
            write_at(header, 6, &(flags | flag).to_ne_bytes());
        }
    }

    /// Numbers the messages from `sequence` on and asks for an acknowledgement of the last; errors always come.
    pub(crate) fn number(&mut self, sequence: u32, acknowledge: u16) {
        let mut at = 0;
        for (end, number) in self.ends.iter().zip(0u32..) {
            if let Some(header) = self.bytes.get_mut(at..at + HEADER) {
                write_at(header, 8, &sequence.wrapping_add(number).to_ne_bytes());
                if usize::try_from(number + 1).is_ok_and(|n| n == self.ends.len()) {
                    let flags = header
                        .get(6..)
                        .and_then(crate::attribute::array)
                        .map_or(0, u16::from_ne_bytes);
                    write_at(header, 6, &(flags | acknowledge).to_ne_bytes());
                }
            }
            at = end - self.start;
        }
    }
}

fn write_at(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}
