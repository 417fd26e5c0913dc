//! What is asked and answered: one line of JSON each way, then the connection ends.

use serde::{Deserialize, Serialize};

use crate::figures::Figures;

/// The longest question, in bytes.
pub const LONGEST_QUESTION: usize = 1024;
/// The longest answer: some hundred bytes an operation, and two short lists.
pub const LONGEST_ANSWER: usize = 1 << 20;

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Question {
    /// How are you?
    Figures,
    /// Take the mount away.
    Detach {
        /// Even if somebody uses it: then it works for those who have files open until they close them.
        lazily: bool,
    },
    /// Take the mount away and cut off whoever uses it.
    CutOff,
    /// Let the program that lies on the disk by now go on. Who is asked has ended then, without an answer.
    Upgrade,
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// So am I.
    Figures(Box<Figures>),
    /// What came of [`Question::Detach`].
    Detached(Detached),
    /// It is being done.
    CuttingOff,
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
        for asked in [
            Question::Figures,
            Question::Detach { lazily: true },
            Question::CutOff,
            Question::Upgrade,
        ] {
            let line = written(&asked);
            assert!(line.len() < LONGEST_QUESTION);
            assert_eq!(line.last(), Some(&b'\n'));
            assert_eq!(question(&line), Ok(asked));
        }
    }

    #[test]
    fn answers_come_back() {
        for answer in [
            Answer::Figures(Box::default()),
            Answer::Detached(Detached::AlreadyGone),
            Answer::CuttingOff,
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
            r#"{"ask":"detach"}"#,
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
