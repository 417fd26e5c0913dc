//! Faults on demand, for tests: `LOOPFS_FAULTS=getxattr=panic,unlink=5` makes every getxattr
//! panic and every unlink fail with errno 5; `crash` takes the event loop down; `stall` never answers, but for a process that goes
//! on with another one's mount, which does. Whoever may set the daemon's environment may do
//! anything to it anyway; without the variable none of this is there.

use crate::op::Op;

/// The environment variable that lists the faults.
pub const VARIABLE: &str = "LOOPFS_FAULTS";

/// What is to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation panics.
    Panic,
    /// The event loop panics outside any operation, as a bug in fuser would make it.
    Crash,
    /// The operation is not answered.
    Stall,
    /// The operation fails with this errno.
    Errno(i32),
}

/// The faults of this process: one for each operation at most.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<(Op, Fault)>);

impl Faults {
    /// Reads a list; the first word that makes no sense as the error.
    pub fn parse(list: &str) -> Result<Self, String> {
        let one = |word: &str| {
            let (op, fault) = word.split_once('=')?;
            let op = Op::ALL.iter().find(|known| known.name() == op)?;
            let fault = match fault {
                "panic" => Fault::Panic,
                "crash" => Fault::Crash,
                "stall" => Fault::Stall,
                errno => Fault::Errno(
                    errno
                        .parse()
                        .ok()
                        .filter(|errno| (1..4096).contains(errno))?,
                ),
            };
            Some((*op, fault))
        };
        list.split(',')
            .filter(|word| !word.is_empty())
            .map(|word| one(word).ok_or_else(|| word.to_owned()))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Those of a process that goes on where another one has ended.
    #[must_use]
    pub fn of_a_successor(mut self) -> Self {
        self.0.retain(|(_, fault)| *fault != Fault::Stall);
        self
    }

    /// The fault for an operation.
    #[must_use]
    pub fn get(&self, op: Op) -> Option<Fault> {
        self.0
            .iter()
            .find(|(which, _)| *which == op)
            .map(|&(_, fault)| fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_nonsense_is_named() {
        let faults = Faults::parse("getxattr=panic,unlink=5");
        let faults = faults.unwrap_or_default();
        assert_eq!(faults.get(Op::Getxattr), Some(Fault::Panic));
        assert_eq!(faults.get(Op::Unlink), Some(Fault::Errno(5)));
        assert_eq!(faults.get(Op::Lookup), None);
        for bad in ["getxattr", "nothing=5", "unlink=0", "unlink=-5", "unlink=x"] {
            assert_eq!(Faults::parse(bad), Err(bad.to_owned()));
        }
        assert_eq!(Faults::parse(""), Ok(Faults::default()));
        let faults = Faults::parse("read=stall,unlink=5").unwrap_or_default();
        assert_eq!(faults.get(Op::Read), Some(Fault::Stall));
        let faults = faults.of_a_successor();
        assert_eq!(faults.get(Op::Read), None);
        assert_eq!(faults.get(Op::Unlink), Some(Fault::Errno(5)));
    }
}
