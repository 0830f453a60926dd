//! Marks of private virtual servers (T2): one for each place that has one, the same until the process ends, and after a
//! restart as long as the kernel has it.
//!
//! A mark is a packet's whole mark between the first hook and IPVS. Other agents use marks, too: kubelet and kube-proxy
//! the bits 0x4000 and 0x8000, some network plugins the upper half or a few low bits. Ours are known by a set of them, so
//! a foreign mark is never taken for ours, and they leave a packet behind IPVS.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::element::Place;

/// Marks given so far.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    of: FxHashMap<Place, u32>,
    taken: FxHashSet<u32>,
    last: u32,
}

/// Numbers of marks; a mark is its number in the upper half, where no bit means masquerading by default.
const NUMBERS: u32 = 0xffff;

impl Marks {
    /// Takes in what the kernel has.
    pub(crate) fn learn(&mut self, present: impl IntoIterator<Item = (Place, u32)>) {
        for (place, mark) in present {
            if self.taken.insert(mark) {
                self.of.insert(place, mark);
            }
        }
    }

    /// The mark of a place; `None` where all are taken.
    pub(crate) fn get(&mut self, place: Place) -> Option<u32> {
        if let Some(mark) = self.of.get(&place) {
            return Some(*mark);
        }
        // Every number was given, or passed over since the kernel had it.
        while self.last < NUMBERS {
            self.last += 1;
            let mark = self.last << 16;
            if self.taken.insert(mark) {
                self.of.insert(place, mark);
                return Some(mark);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_keeps_its_mark_and_no_two_share_one() {
        let at = |last, port| Place {
            address: [192, 0, 2, last].into(),
            port,
            protocol: ipvs::Protocol::Tcp,
        };
        let place = |port| at(1, port);
        let mut marks = Marks::default();
        marks.learn([(place(7), 0x1_0000), (place(8), 0x1_0000)]);
        assert_eq!(marks.get(place(7)), Some(0x1_0000));
        assert_eq!(marks.get(place(1)), Some(0x2_0000));
        assert_eq!(marks.get(place(8)), Some(0x3_0000));
        assert_eq!(marks.get(place(1)), Some(0x2_0000));
        let many = (2..4).flat_map(|last| (0..0xffff).map(move |port| at(last, port)));
        assert_eq!(many.filter_map(|place| marks.get(place)).count(), 0xffff - 3);
    }
}
