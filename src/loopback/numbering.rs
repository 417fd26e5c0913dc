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
use crate::sync::{PoisonError, RwLock};

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
    key: RandomState,
}

impl Numbering {
    /// A numbering for a tree whose root is `root`.
    #[must_use]
    pub fn new(root: Identity) -> Self {
        Self {
            home: (root.mount, root.device),
            others: RwLock::default(),
            key: RandomState::new(),
        }
    }

    /// The number of the inode with that identity, the same whenever it is asked for.
    #[must_use]
    pub fn number(&self, identity: Identity) -> NodeNo {
        let Identity { mount, device, ino } = identity;
        let number = if (mount, device) == self.home {
            Some(ino).filter(|&ino| ino > NodeNo::ROOT.0 && ino < OURS)
        } else {
            self.index((mount, device))
                .filter(|_| ino < 1 << KEPT_BITS)
                .map(|index| OURS | index << KEPT_BITS | ino)
        };
        NodeNo(number.unwrap_or_else(|| OURS | HASHED | (self.key.hash_one(identity) % HASHED)))
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
            Some(next)
        } else {
            None
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const ROOT: Identity = Identity {
        mount: 10,
        device: 20,
        ino: 2,
    };

    #[test]
    fn numbers_of_the_roots_mount_are_kept() {
        let numbering = Numbering::new(ROOT);
        for ino in [2, 3, 1 << 40, OURS - 1] {
            assert_eq!(numbering.number(Identity { ino, ..ROOT }), NodeNo(ino));
        }
    }

    #[test]
    fn no_two_inodes_share_a_number_and_each_keeps_its_own() {
        let numbering = Numbering::new(ROOT);
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
    fn there_may_be_any_number_of_other_mounts() {
        let numbering = Numbering::new(ROOT);
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
