//! Cuts the bytes of a watch into lines: one line is one event.

use bytes::{Buf, BytesMut};

/// Bytes that wait for the end of their line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    waiting: BytesMut,
    /// How much of it holds no line end.
    searched: usize,
}

impl Lines {
    /// Adds what was read.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// The next whole line that is not blank, without its end.
    pub(crate) fn next(&mut self) -> Option<BytesMut> {
        loop {
            let fresh = self.waiting.get(self.searched..).unwrap_or_default();
            let Some(at) = fresh.iter().position(|byte| *byte == b'\n') else {
                self.searched = self.waiting.len();
                return None;
            };
            let line = self.waiting.split_to(self.searched + at);
            self.waiting.advance(1);
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_bytes_arrive(text in "[ab\n]{0,60}", cuts in proptest::collection::vec(0..60_usize, 0..8)) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let (mut lines, mut found, mut from) = (Lines::default(), Vec::new(), 0);
            for cut in cuts.into_iter().chain([text.len()]) {
                lines.push(&text.as_bytes()[from..cut]);
                from = cut;
                while let Some(line) = lines.next() {
                    found.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let expect: Vec<_> = whole.split('\n').filter(|line| !line.is_empty()).map(str::to_owned).collect();
            prop_assert_eq!(found, expect);
        }
    }
}
