//! What is asked and answered: one line of JSON each way, then the connection ends.

use serde::{Deserialize, Serialize};

use crate::figures::Figures;

/// The longest question, in bytes.
pub const LONGEST_QUESTION: usize = 1024;
/// The longest answer: some hundred bytes an operation, and two short lists.
pub const LONGEST_ANSWER: usize = 1 << 20;

/// Which mount is meant. The device number that a socket is named by is another mount's as soon as this one has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountId {
    /// Its id in the mount table, which another one may get.
    pub recycled: u64,
    /// The one that no other mount ever gets, where the kernel has such (Linux 6.8).
    pub unique: Option<u64>,
}

impl MountId {
    /// Of the mount that a daemon tells of.
    #[must_use]
    pub fn told(figures: &Figures) -> Self {
        Self {
            recycled: figures.mount_id,
            unique: figures.unique_mount_id,
        }
    }

    /// Whether both are the same mount.
    #[must_use]
    pub fn is(self, other: Self) -> bool {
        match (self.unique, other.unique) {
            (Some(one), Some(other)) => one == other,
            _ => self.recycled == other.recycled,
        }
    }
}

/// How a mount is to be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unmount {
    /// Only if nobody uses it.
    Politely,
    /// Even if somebody does: then it works for those who have files open until they close them.
    Lazily,
    /// And cut off whoever uses it.
    ByForce,
}

/// What a client wants. Whatever would end a mount says which one is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Question {
    /// How are you?
    Figures,
    /// Take the mount away.
    Unmount {
        /// This one.
        mount: MountId,
        /// In this way.
        how: Unmount,
    },
    /// Let the program that lies on the disk by now go on. Who is asked has ended then, without an answer.
    Upgrade {
        /// With this mount.
        mount: MountId,
    },
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// So am I.
    Figures(Box<Figures>),
    /// What came of [`Question::Unmount`], unless by force.
    Detached(Detached),
    /// It is being done.
    CuttingOff,
    /// It is another mount that is served here; nothing was done.
    AnotherMount,
    /// It can't be done, in a line.
    Refused(String),
}

/// What came of a detach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detached {
    /// It is no longer in the mount table.
    Done,
    /// It was not any more.
    AlreadyGone,
    /// Somebody uses it, and nothing was done.
    Busy,
    /// Something is mounted on it, and nothing was done.
    Covered,
}

/// A line, to be sent.
pub(super) fn written(message: &impl Serialize) -> Vec<u8> {
    // It can't fail: no map has keys that are not text, and nothing is written but to memory.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A question that was received, or why it is none.
pub(super) fn question(line: &[u8]) -> Result<Question, String> {
    serde_json::from_slice(line)
        .map_err(|error| format!("not a question that is known here: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn questions_come_back() {
        let mount = MountId {
            recycled: u64::MAX,
            unique: Some(u64::MAX),
        };
        for asked in [
            Question::Figures,
            Question::Unmount {
                mount,
                how: Unmount::Lazily,
            },
            Question::Upgrade { mount },
        ] {
            let line = written(&asked);
            assert!(line.len() < LONGEST_QUESTION);
            assert_eq!(line.last(), Some(&b'\n'));
            assert_eq!(question(&line), Ok(asked));
        }
    }

    #[test]
    fn a_mount_is_known_by_the_id_that_is_given_once() {
        let id = |recycled, unique| MountId { recycled, unique };
        assert!(id(1, Some(2)).is(id(1, Some(2))));
        assert!(!id(1, Some(2)).is(id(1, Some(3))));
        // One of the two can't be told of it: what is left is the other one.
        assert!(id(1, None).is(id(1, Some(3))) && !id(1, None).is(id(4, None)));
    }

    #[test]
    fn answers_come_back() {
        for answer in [
            Answer::Figures(Box::default()),
            Answer::Detached(Detached::AlreadyGone),
            Answer::CuttingOff,
            Answer::AnotherMount,
            Answer::Refused("no".into()),
        ] {
            let line = written(&answer);
            assert_eq!(serde_json::from_slice::<Answer>(&line).unwrap(), answer);
        }
    }

    #[test]
    fn what_is_no_question_is_refused() {
        for line in [
            "",
            "{",
            "{}",
            r#"{"ask":"everything"}"#,
            r#"{"ask":"unmount"}"#,
            "[[[[",
        ] {
            assert!(question(line.as_bytes()).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_question_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = question(&bytes);
        }
    }
}
