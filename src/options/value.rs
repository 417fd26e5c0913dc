//! The values that mount options and command-line options share: read strictly, so that a slip of
//! the pen is an error and never a limit that nobody meant. Each `Err` is the allowed form in words.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::config::{Limit, RestartLimit};

/// What [`seconds`] accepts.
pub(super) const SECONDS: &str = "a number of seconds such as 1 or 0.5";
/// What [`limit`] accepts.
pub(super) const LIMIT: &str = "a number of seconds such as 10 or 0.5, or 'never'";
/// What [`threads`] accepts.
pub(super) const THREADS: &str = "a whole number from 1 to 64";
/// What [`restart_limit`] accepts.
pub(super) const RESTART_LIMIT: &str = "a whole number, or 'never'";
/// What [`max_read`] accepts.
pub(super) const MAX_READ: &str = "a number of bytes from 4096 to 4294967295";

/// More event loops than this only cost memory: a request at the limit of the kernel takes a buffer
/// of over a megabyte in each of them.
const MOST_THREADS: usize = 64;

/// The kernel raises a smaller `max_read` to this by itself (`fuse_fill_super_common`); saying so is
/// better than a mount table that shows another number than the one asked for.
const LEAST_READ: u32 = 4096;

/// Seconds with up to nine decimals. The largest, 2^32-1, is 136 years: enough for everybody, and
/// small enough that adding it to the clock can't overflow.
pub(super) fn seconds(text: &str) -> Result<Duration, &'static str> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let whole = digits(whole).ok_or(SECONDS)?;
    if decimals.len() > 9 {
        return Err(SECONDS);
    }
    let nanoseconds = digits(&format!("{decimals:0<9}"))
        .filter(|_| !decimals.is_empty())
        .ok_or(SECONDS)?;
    Ok(Duration::new(u64::from(whole), nanoseconds))
}

/// Seconds, or `never`.
pub(super) fn limit(text: &str) -> Result<Limit, &'static str> {
    if text == "never" {
        return Ok(Limit::Never);
    }
    seconds(text).map(Limit::After).map_err(|_| LIMIT)
}

/// A number of event loops.
pub(super) fn threads(text: &str) -> Result<NonZeroUsize, &'static str> {
    digits(text)
        .and_then(|number| usize::try_from(number).ok())
        .filter(|number| *number <= MOST_THREADS)
        .and_then(NonZeroUsize::new)
        .ok_or(THREADS)
}

/// A number of restarts, or `never`.
pub(super) fn restart_limit(text: &str) -> Result<RestartLimit, &'static str> {
    if text == "never" {
        return Ok(RestartLimit::Never);
    }
    let times = if text.is_empty() { None } else { digits(text) };
    times.map(RestartLimit::Times).ok_or(RESTART_LIMIT)
}

/// [`restart_limit`] for the command line.
pub(crate) fn restart_limit_from_text(text: &str) -> Result<RestartLimit, String> {
    restart_limit(text).map_err(|form| format!("not {form}"))
}

/// [`limit`] for the command line, where the error is a sentence of its own.
pub(crate) fn limit_from_text(text: &str) -> Result<Limit, String> {
    limit(text).map_err(|form| format!("not {form}"))
}

/// [`threads`] for the command line.
pub(crate) fn threads_from_text(text: &str) -> Result<NonZeroUsize, String> {
    threads(text).map_err(|form| format!("not {form}"))
}

/// The largest read request, in bytes.
pub(super) fn max_read(text: &str) -> Result<u32, &'static str> {
    digits(text)
        .filter(|bytes| *bytes >= LEAST_READ)
        .ok_or(MAX_READ)
}

/// Decimal digits and nothing else: `parse` alone would take a sign as well.
fn digits(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_decimal_numbers() {
        let accepted = [
            ("0", Duration::ZERO),
            ("1", Duration::from_secs(1)),
            ("0.5", Duration::from_millis(500)),
            ("1.000000001", Duration::new(1, 1)),
            ("3.25", Duration::from_millis(3250)),
            ("4294967295", Duration::from_secs(u64::from(u32::MAX))),
        ];
        for (text, duration) in accepted {
            assert_eq!(seconds(text), Ok(duration), "{text}");
        }
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "inf",
            "NaN",
            "1s",
            " 1",
            "1.-5",
            "4294967296",
            "0.1234567890",
        ] {
            assert_eq!(seconds(text), Err(SECONDS), "{text}");
        }
    }

    #[test]
    fn limits_know_never() {
        assert_eq!(limit("never"), Ok(Limit::Never));
        assert_eq!(limit("0"), Ok(Limit::After(Duration::ZERO)));
        assert_eq!(limit("Never"), Err(LIMIT));
    }

    #[test]
    fn threads_have_bounds() {
        assert_eq!(threads("1").map(NonZeroUsize::get), Ok(1));
        assert_eq!(threads("64").map(NonZeroUsize::get), Ok(64));
        for text in ["0", "65", "-1", "two", "", "99999999999999999999"] {
            assert_eq!(threads(text), Err(THREADS), "{text}");
        }
    }

    #[test]
    fn max_read_has_the_kernels_least() {
        assert_eq!(max_read("4096"), Ok(4096));
        assert_eq!(max_read("4294967295"), Ok(u32::MAX));
        assert_eq!(max_read("4095"), Err(MAX_READ));
        assert_eq!(max_read("4294967296"), Err(MAX_READ));
    }
}
