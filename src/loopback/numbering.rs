//! Which number an inode has.
//!
//! SRC's own numbers are kept: programs compare `st_ino` with what they saw in SRC, and `d_ino` of
//! a listing with `st_ino`. With fuser the number in a reply is also the kernel's node id, and the
//! mount has one `st_dev`, so two files must never share one. Inodes of other mounts below SRC
//! therefore get numbers of their own, the same one each time: an index for the mount in the upper
//! bits and their own number in the lower. The few that don't fit (0 and 1, which FUSE reserves, numbers
//! that use the upper bits themselves, and whatever is on more mounts than there are indices) get a keyed
//! hash of their identity, so that nothing has to be remembered for them: with a million of those, the
//! chance that any two share one is one in four million, and nobody can look for two that do.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use super::inode::{Identity, NodeNo};
use crate::survive::State;
use crate::sync::{Arc, PoisonError, RwLock};

/// Numbers from here on are ours; SRC's own below it are kept. Bit 63 stays clear: some programs
/// take inode numbers for signed.
const OURS: u64 = 1 << 62;
/// Of ours, those that are hashes.
const HASHED: u64 = 1 << 61;
/// Bits of a foreign inode number that are kept.
const KEPT_BITS: u32 = 48;
/// How many other mounts there are indices for: what lies between the kept bits and [`HASHED`], but one.
const MOST_OTHERS: u64 = NO_INODE;
/// The index of numbers that stand for no inode.
const NO_INODE: u64 = (1 << (61 - KEPT_BITS)) - 1;

/// The mapping from identities to numbers.
#[derive(Debug)]
pub struct Numbering {
    home: (u64, u64),
    /// Mount and device of the others, each with its index.
    others: RwLock<HashMap<(u64, u64), u64>>,
    /// The key of the hashes.
    key: (u64, u64),
    /// Where both are for a later process, if there may be one.
    state: Option<Arc<State>>,
}

impl Numbering {
    /// A numbering for a tree whose root is `root`, which goes on where one has ended before.
    #[must_use]
    pub fn new(root: Identity, state: Option<Arc<State>>) -> Self {
        // What two empty hashers of std say tells nobody their keys.
        let random = RandomState::new();
        let key = (random.hash_one(0), random.hash_one(1));
        let home = (root.mount, root.device);
        let others = state.as_ref().map(|state| state.others());
        let others = others.into_iter().flatten().zip(0..);
        Self {
            home,
            others: RwLock::new(others.collect()),
            key: state.as_ref().map_or(key, |state| state.key(key)),
            state,
        }
    }

    /// The same mount whichever process asks: SRC's own has another id for each where it is a copy
    /// (`--one-file-system`).
    fn lasting(&self, mount: u64) -> u64 {
        if mount == self.home.0 { 0 } else { mount }
    }

    /// The number of the inode with that identity, the same whenever it is asked for.
    #[must_use]
    pub fn number(&self, identity: Identity) -> NodeNo {
        let Identity { mount, device, ino } = identity;
        let number = if (mount, device) == self.home {
            Some(ino).filter(|&ino| ino > NodeNo::ROOT.0 && ino < OURS)
        } else {
            self.index((self.lasting(mount), device))
                .filter(|_| ino < 1 << KEPT_BITS)
                .map(|index| OURS | index << KEPT_BITS | ino)
        };
        let hash = || hash(self.key, [self.lasting(mount), device, ino]);
        NodeNo(number.unwrap_or_else(|| OURS | HASHED | (hash() % HASHED)))
    }

    /// A number for a listed name whose inode could not be reached: the kernel drops it again, and
    /// no inode ever has it. (0 would have the kernel do without, but fuser gives a listing and its inode one
    /// number, and programs skip names with the number 0.)
    #[must_use]
    pub fn no_inode(cookie: u64) -> NodeNo {
        NodeNo(OURS | NO_INODE << KEPT_BITS | cookie & ((1 << KEPT_BITS) - 1))
    }

    /// Whether [`Self::no_inode`] made this number.
    #[must_use]
    pub fn is_no_inode(node: NodeNo) -> bool {
        node.0 >> KEPT_BITS == (OURS >> KEPT_BITS | NO_INODE)
    }

    fn index(&self, mount: (u64, u64)) -> Option<u64> {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let known = others.get(&mount).copied();
        drop(others);
        if known.is_some() {
            return known;
        }
        let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
        let next = others.len() as u64;
        if let Some(known) = others.get(&mount) {
            Some(*known) // somebody else was faster
        } else if next < MOST_OTHERS {
            others.insert(mount, next);
            if let Some(state) = &self.state {
                state.add_other(mount);
            }
            Some(next)
        } else {
            None
        }
    }
}

/// A keyed hash that is the same in every version of this program, as that of a hasher of std need not be: SipHash-2-4
/// of three words.
fn hash(key: (u64, u64), words: [u64; 3]) -> u64 {
    let mut v = [
        key.0 ^ 0x736f_6d65_7073_6575,
        key.1 ^ 0x646f_7261_6e64_6f6d,
        key.0 ^ 0x6c79_6765_6e65_7261,
        key.1 ^ 0x7465_6462_7974_6573,
    ];
    let round = |[mut a, mut b, mut c, mut d]: [u64; 4]| {
        a = a.wrapping_add(b);
        c = c.wrapping_add(d);
        b = b.rotate_left(13) ^ a;
        d = d.rotate_left(16) ^ c;
        a = a.rotate_left(32).wrapping_add(d);
        c = c.wrapping_add(b);
        d = d.rotate_left(21) ^ a;
        b = b.rotate_left(17) ^ c;
        [a, b, c.rotate_left(32), d]
    };
    let length = 24 << 56;
    for word in words.into_iter().chain([length]) {
        v[3] ^= word;
        v = round(round(v));
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    v = (0..4).fold(v, |v, _| round(v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::Hasher as _;

    const ROOT: Identity = Identity {
        mount: 10,
        device: 20,
        ino: 2,
    };

    #[test]
    fn numbers_of_the_roots_mount_are_kept() {
        let numbering = Numbering::new(ROOT, None);
        for ino in [2, 3, 1 << 40, OURS - 1] {
            assert_eq!(numbering.number(Identity { ino, ..ROOT }), NodeNo(ino));
        }
    }

    #[test]
    fn no_two_inodes_share_a_number_and_each_keeps_its_own() {
        let numbering = Numbering::new(ROOT, None);
        let inos = [
            0,
            1,
            2,
            3,
            (1 << 48) - 1,
            1 << 48,
            OURS - 1,
            OURS,
            OURS + 5,
            u64::MAX,
        ];
        let all: Vec<Identity> = [(10, 20), (10, 21), (11, 20), (12, 22)]
            .into_iter()
            .flat_map(|(mount, device)| inos.map(|ino| Identity { mount, device, ino }))
            .collect();
        let first: Vec<NodeNo> = all.iter().map(|&id| numbering.number(id)).collect();
        let again: Vec<NodeNo> = all
            .iter()
            .rev()
            .map(|&id| numbering.number(id))
            .rev()
            .collect();
        assert_eq!(first, again);
        assert_eq!(first.iter().collect::<HashSet<_>>().len(), all.len());
        assert!(first.iter().all(|node| node.0 > 1 && node.0 < 1 << 63));
        assert!(first.iter().all(|&node| !Numbering::is_no_inode(node)));
        assert!(Numbering::is_no_inode(Numbering::no_inode(u64::MAX)));
    }

    #[test]
    #[allow(deprecated)] // in favour of hashers that don't say what they are
    fn the_hash_is_siphash_2_4() {
        for key in [(0_u64, 0), (1, u64::MAX), (0x0706_0504_0302_0100, 77)] {
            let words = [key.1, 5, key.0.rotate_left(9)];
            let mut theirs = std::hash::SipHasher::new_with_keys(key.0, key.1);
            for word in words {
                theirs.write_u64(word);
            }
            assert_eq!(hash(key, words), theirs.finish());
        }
    }

    #[test]
    fn there_may_be_any_number_of_other_mounts() {
        let numbering = Numbering::new(ROOT, None);
        let of = |mount| numbering.number(Identity { mount, ..ROOT });
        let count = MOST_OTHERS + 100;
        let all: HashSet<NodeNo> = (1000..1000 + count).map(of).collect();
        assert_eq!(all.len() as u64, count);
        assert_eq!(numbering.others.read().unwrap().len() as u64, MOST_OTHERS);
        assert!(
            all.contains(&of(1000)) && all.contains(&of(999 + count)),
            "the same again"
        );
    }
}
