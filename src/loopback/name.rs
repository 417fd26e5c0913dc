//! One name in a directory, checked once: after this it can't lead anywhere else.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use crate::error::{Error, Result};

/// A name as bytes (not necessarily UTF-8): not empty, not `.` or `..`, without `/` and NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(CString);

impl Name {
    /// Checks a name that came from outside. The kernel sends none that fails; who else could is
    /// not to be trusted.
    pub fn new(name: &OsStr) -> Result<Self> {
        let bytes = name.as_bytes();
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(Error::BAD_NAME);
        }
        CString::new(bytes).map(Self).map_err(|_| Error::BAD_NAME)
    }

    /// The text for a system call.
    #[must_use]
    pub fn as_c_str(&self) -> &CStr {
        &self.0
    }
}

/// Text without a NUL for a system call: a symlink's target, an attribute's name.
pub fn text(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Error::BAD_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_names_pass() {
        for bad in ["", ".", "..", "/", "a/b", "../x", "a/", "nul\0"] {
            assert_eq!(Name::new(OsStr::new(bad)), Err(Error::BAD_NAME), "{bad:?}");
        }
        for good in ["a", "...", "..a", " ", "new\nline", "-rf", "*"] {
            assert!(Name::new(OsStr::new(good)).is_ok(), "{good:?}");
        }
        assert!(
            Name::new(OsStr::from_bytes(&[0xff, 0xfe])).is_ok(),
            "not UTF-8"
        );
    }
}
