//! A mount that changes hands: what another process has to know to tell it from others and to take it down.
//!
//! A serving process that dies leaves the mount to whoever keeps its connection, and that one, or the next that serves it, has
//! to be as exact about it as the first was. So the whole identity goes over, and the open abort file with it: its name
//! may be another connection's by the time that it is needed.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use rustix::io::Errno;

use super::abort::AbortFile;
use super::mountinfo::DeviceNumber;
use super::table::{Identity, Label};
use super::target::MadeDirectory;
use super::{Attachment, Method, Pending, Stage};
use crate::record::{Reader, Writer};

/// What the next one is given.
#[derive(Debug)]
pub struct Handover {
    /// What there is to know.
    pub record: Vec<u8>,
    /// The open abort file, if there is one.
    pub abort: Option<OwnedFd>,
}

impl Pending {
    /// For whoever takes the mount down if this process can't.
    pub fn handover(&self) -> Result<Handover, Errno> {
        match &self.stage {
            Stage::Visible(attachment) => attachment.handover(),
            Stage::Detached(hanging) => Ok(Handover {
                record: record(
                    &hanging.identity,
                    &hanging.path,
                    Method::NewApi,
                    hanging.made.as_ref(),
                ),
                abort: hanging
                    .abort
                    .as_ref()
                    .map(AbortFile::duplicate)
                    .transpose()?,
            }),
        }
    }
}

impl Attachment {
    /// For whoever takes the mount down if this process can't.
    pub fn handover(&self) -> Result<Handover, Errno> {
        let (abort, made) = self.belongings();
        Ok(Handover {
            record: record(self.identity(), self.target(), self.method(), made),
            abort: abort.map(AbortFile::duplicate).transpose()?,
        })
    }

    /// The mount that another process has handed over; nothing if the record is not one of this program's.
    #[must_use]
    pub fn take_over(handover: Handover) -> Option<Self> {
        let mut reader = Reader::new(&handover.record);
        let identity = identity(&mut reader)?;
        let target = path(&mut reader)?;
        let method = method(reader.number()?)?;
        let made = match reader.number()? {
            0_u8 => None,
            _ => Some(MadeDirectory::read(target.clone(), &mut reader)?),
        };
        let abort = handover.abort.map(AbortFile::of);
        reader
            .is_done()
            .then(|| Self::new(identity, target, method, abort, made))
    }
}

fn record(
    identity: &Identity,
    target: &std::path::Path,
    method: Method,
    made: Option<&MadeDirectory>,
) -> Vec<u8> {
    let DeviceNumber { major, minor } = identity.device();
    let label = identity.label();
    let writer = Writer::default()
        .maybe(identity.unique_id())
        .number(identity.mount_id())
        .number(major)
        .number(minor)
        .bytes(label.fs_type.as_bytes())
        .bytes(label.source.as_bytes())
        .bytes(target.as_os_str().as_bytes())
        .number(match method {
            Method::NewApi => 0_u8,
            Method::MountCall => 1,
            Method::Fusermount => 2,
        });
    match made {
        None => writer.number(0_u8),
        Some(made) => made.write(writer.number(1_u8)),
    }
    .done()
}

fn identity(reader: &mut Reader<'_>) -> Option<Identity> {
    let unique = reader.maybe()?;
    let recycled = reader.number()?;
    let device = DeviceNumber {
        major: reader.number()?,
        minor: reader.number()?,
    };
    let label = Label {
        fs_type: OsString::from_vec(reader.bytes()?.to_vec()),
        source: OsString::from_vec(reader.bytes()?.to_vec()),
    };
    Some(Identity::from_parts(unique, recycled, device, label))
}

fn path(reader: &mut Reader<'_>) -> Option<PathBuf> {
    Some(OsString::from_vec(reader.bytes()?.to_vec()).into())
}

fn method(number: u8) -> Option<Method> {
    match number {
        0 => Some(Method::NewApi),
        1 => Some(Method::MountCall),
        2 => Some(Method::Fusermount),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::attach::tests::{Place, identity_of, until_idle};
    use crate::attach::{Detach, Detached};

    #[test]
    fn a_mount_that_was_handed_over_is_the_same_and_goes_at_the_word_of_the_new_owner() {
        let place = Place::new();
        let first = place.attached();
        let second = Attachment::take_over(first.handover().unwrap()).unwrap();
        assert_eq!(identity_of(&first), identity_of(&second));
        assert_eq!(first.target(), second.target());
        assert!(second.is_present());
        until_idle(|| second.detach(Detach::Polite).unwrap());
        assert_eq!(place.mounted(), []);
        assert_eq!(first.detach(Detach::Lazy), Ok(Detached::AlreadyGone));
    }

    #[test]
    fn a_mount_that_is_not_yet_visible_is_handed_over_too() {
        let place = Place::new();
        let pending = super::super::prepare(&place.config()).unwrap();
        let other = Attachment::take_over(pending.handover().unwrap()).unwrap();
        assert!(!other.is_present() || pending.method() != Method::NewApi);
        let other = Attachment::take_over(pending.handover().unwrap()).unwrap();
        let first = pending.publish().unwrap();
        assert!(other.is_present());
        assert_eq!(identity_of(&first), identity_of(&other));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let place = Place::new();
        let whole = place.attached().handover().unwrap().record;
        for length in 0..whole.len() {
            let record = whole[..length].to_vec();
            let abort = None;
            assert!(Attachment::take_over(Handover { record, abort }).is_none());
        }
    }
}
