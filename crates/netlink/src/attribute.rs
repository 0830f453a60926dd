//! Netlink attributes: written into a buffer, read from one. Reading never panics; what does not parse ends the walk.

/// `NLA_F_NESTED | NLA_F_NET_BYTEORDER` (linux/netlink.h): not part of the type.
const TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;
const HEADER: usize = 4;

/// One attribute as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Type without its flags.
    pub kind: u16,
    /// Payload without padding.
    pub payload: &'a [u8],
}

/// The attributes in a buffer, in order. Ends at the first that does not fit the buffer.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(u16::from_ne_bytes(array(self.0)?));
        let kind = u16::from_ne_bytes(array(self.0.get(2..)?)?);
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Attribute {
            kind: kind & TYPE_MASK,
            payload,
        })
    }
}

impl<'a> Attribute<'a> {
    /// The attributes inside.
    pub fn nested(&self) -> Attributes<'a> {
        Attributes(self.payload)
    }

    /// Native-endian 8 bits.
    pub fn u8(&self) -> Option<u8> {
        self.payload.first().copied()
    }

    /// Native-endian 16 bits; longer payloads are read from their start, shorter ones are `None`.
    pub fn u16(&self) -> Option<u16> {
        array(self.payload).map(u16::from_ne_bytes)
    }

    /// Big-endian 16 bits.
    pub fn be16(&self) -> Option<u16> {
        array(self.payload).map(u16::from_be_bytes)
    }

    /// Native-endian 32 bits.
    pub fn u32(&self) -> Option<u32> {
        array(self.payload).map(u32::from_ne_bytes)
    }

    /// Native-endian 64 bits.
    pub fn u64(&self) -> Option<u64> {
        array(self.payload).map(u64::from_ne_bytes)
    }

    /// Text up to the first NUL; `None` where it is not UTF-8.
    pub fn str(&self) -> Option<&'a str> {
        let text = self.payload.split(|byte| *byte == 0).next()?;
        std::str::from_utf8(text).ok()
    }
}

/// The first bytes of a slice, where there are enough.
pub fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.get(..N)?.try_into().ok()
}

/// Lengths in netlink are padded to 4 bytes (`NLMSG_ALIGN`, `NLA_ALIGN`).
pub fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// Appends one attribute.
///
/// # Panics
/// Where the payload is longer than 65,531 bytes: nothing that we send comes near.
pub fn put(buffer: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    let length = u16::try_from(HEADER + payload.len()).expect("an attribute's length is 16 bits");
    buffer.extend_from_slice(&length.to_ne_bytes());
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(payload);
    buffer.resize(align(buffer.len()), 0);
}

/// Appends a native-endian 16-bit attribute.
pub fn put_u16(buffer: &mut Vec<u8>, kind: u16, value: u16) {
    put(buffer, kind, &value.to_ne_bytes());
}

/// Appends a big-endian 16-bit attribute.
pub fn put_be16(buffer: &mut Vec<u8>, kind: u16, value: u16) {
    put(buffer, kind, &value.to_be_bytes());
}

/// Appends a native-endian 32-bit attribute.
pub fn put_u32(buffer: &mut Vec<u8>, kind: u16, value: u32) {
    put(buffer, kind, &value.to_ne_bytes());
}

/// Appends text with its terminating NUL.
pub fn put_str(buffer: &mut Vec<u8>, kind: u16, text: &str) {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    put(buffer, kind, &bytes);
}

/// Appends an attribute that holds those which `fill` appends. The buffer's start must be aligned to 4 bytes.
///
/// # Panics
/// As [`put`].
pub fn put_nested(buffer: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEADER]);
    fill(buffer);
    let length = u16::try_from(buffer.len() - start).expect("an attribute's length is 16 bits");
    let header = buffer
        .get_mut(start..start + HEADER)
        .expect("the header was just written");
    let (size, flagged) = header.split_at_mut(2);
    size.copy_from_slice(&length.to_ne_bytes());
    flagged.copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(kinds in proptest::collection::vec((0u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let mut buffer = Vec::new();
            put_nested(&mut buffer, 7, |buffer| kinds.iter().for_each(|(kind, payload)| put(buffer, *kind, payload)));
            let outer: Vec<_> = Attributes(&buffer).collect();
            prop_assert_eq!(outer.len(), 1);
            prop_assert_eq!(outer[0].kind, 7);
            let inner: Vec<_> = outer[0].nested().map(|a| (a.kind, a.payload.to_vec())).collect();
            prop_assert_eq!(inner, kinds);
        }

        #[test]
        fn any_bytes_end_the_walk(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Attributes(&bytes).count() <= bytes.len() / HEADER);
            for attribute in Attributes(&bytes) {
                let _ = (attribute.u8(), attribute.u16(), attribute.be16(), attribute.u32(), attribute.u64(), attribute.str());
                let _ = attribute.nested().count();
            }
        }
    }
}
