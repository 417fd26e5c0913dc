//! What a supervisor leaves to the one that takes its place: the program that lies on the disk by now, in the same process
//! (`loopfs upgrade`), or the one that systemd starts after it (`store`).
//!
//! That is a record, and descriptors that have names. The record is in a memfd that nobody can change any more. In the same process
//! it tells their numbers as well; systemd hands them back with their names. Neither is believed blindly: a record that does
//! not begin with [`EDITION`], or that is not whole, is refused.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::FdFlags;
use rustix::process::Pid;
use rustix::time::ClockId;

use super::link::Link;
use super::message::{Mounted, Place};
use super::pace::Death;
use super::process::{Process, Program};
use crate::exit::{ExitCode, Failure};
use crate::lifecycle::State;
use crate::record::{Reader, Writer};
use crate::sys::descriptor;

/// Set for a process that goes on as the supervisor that it was as another program: the number of the record's
/// descriptor.
pub(crate) const VARIABLE: &str = "LOOPFS_SUCCESSION";

/// What a record begins with; whoever changes what follows counts it up.
const EDITION: &str = "what a supervisor of loopfs leaves, edition 1";

/// No record is longer: it holds a command line and some paths.
const LONGEST: u64 = 16 << 20;

/// Names of descriptors.
pub(super) mod name {
    pub(crate) const ROOT: &str = "root";
    pub(crate) const DEVICE: &str = "device";
    pub(crate) const ABORT: &str = "abort";
    pub(crate) const COVERED: &str = "covered";
    pub(crate) const MEMORY: &str = "memory";
    /// The socket to the process that serves.
    pub(crate) const LINK: &str = "link";
    /// With a node's number behind it.
    pub(crate) const KEPT: &str = "kept-";

    pub(crate) fn of_kept(node: u64) -> String {
        format!("{KEPT}{node}")
    }
}

/// A mount that is to have another supervisor.
#[derive(Debug)]
pub struct Succession {
    /// The command line of the one before.
    pub(super) arguments: Vec<OsString>,
    /// The number of the record that systemd has, or 0.
    pub(super) record: u64,
    pub(super) place: Place,
    pub(super) mounted: Mounted,
    pub(super) state: State,
    /// Since when the limit runs that counts in that state.
    pub(super) drains_since: Option<Instant>,
    /// The deaths of late.
    pub(super) deaths: Vec<(Instant, Death)>,
    pub(super) kept: BTreeMap<u64, OwnedFd>,
    /// The process that serves, if it is this one's child.
    pub(super) child: Option<Process>,
}

/// The same while it has one still.
#[derive(Debug)]
pub(super) struct Leaving<'a> {
    pub(super) record: u64,
    pub(super) place: &'a Place,
    pub(super) mounted: &'a Mounted,
    pub(super) state: State,
    pub(super) drains_since: Option<Instant>,
    pub(super) deaths: &'a [(Instant, Death)],
    pub(super) kept: &'a BTreeMap<u64, OwnedFd>,
}

impl<'a> Leaving<'a> {
    /// All of its descriptors.
    pub(super) fn descriptors(&self) -> Vec<(String, BorrowedFd<'a>)> {
        let mounted = self.mounted;
        let optional = [
            (name::ABORT, &mounted.abort),
            (name::COVERED, &mounted.covered),
            (name::MEMORY, &mounted.memory),
        ];
        let optional = optional
            .into_iter()
            .filter_map(|(name, it)| Some((name, it.as_ref()?)));
        [
            (name::ROOT, &self.place.root),
            (name::DEVICE, &mounted.device),
        ]
        .into_iter()
        .chain(optional)
        .map(|(name, it)| (name.to_owned(), it.as_fd()))
        .chain(
            self.kept
                .iter()
                .map(|(node, it)| (name::of_kept(*node), it.as_fd())),
        )
        .collect()
    }

    /// The record alone.
    pub(super) fn record(&self) -> io::Result<OwnedFd> {
        sealed(&self.write(None, &[]))
    }

    /// Has this process become `program`, which goes on with it; `process` goes on serving. Returns if that can't be done, and
    /// nothing has changed then.
    pub(super) fn hand_to(&self, program: &Program, process: &Process) -> io::Error {
        let mut descriptors = self.descriptors();
        descriptors.push((name::LINK.to_owned(), process.link().as_fd()));
        let record = match sealed(&self.write(Some(process.pid()), &descriptors)) {
            Ok(record) => record,
            Err(error) => return error,
        };
        descriptors.push((String::new(), record.as_fd()));
        let inherited = |is: bool| {
            let flags = if is {
                FdFlags::empty()
            } else {
                FdFlags::CLOEXEC
            };
            let set = |(_, it): &(_, BorrowedFd<'_>)| rustix::io::fcntl_setfd(it, flags);
            descriptors.iter().try_for_each(set)
        };
        let error = match inherited(true) {
            Ok(()) => program.take_this_process((VARIABLE, record.as_raw_fd().to_string().into())),
            Err(errno) => errno.into(),
        };
        // What could not be set can't have been changed before.
        let _ = inherited(false);
        error
    }

    fn write(&self, child: Option<Pid>, descriptors: &[(String, BorrowedFd<'_>)]) -> Vec<u8> {
        let mounted = self.mounted;
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        let writer = Writer::default()
            .bytes(EDITION.as_bytes())
            .number(now())
            .number(self.record)
            .number(arguments.len() as u64);
        let writer = arguments
            .iter()
            .fold(writer, |writer, it| writer.bytes(it.as_bytes()))
            .bytes(self.place.source.as_os_str().as_bytes())
            .bytes(self.place.target.as_os_str().as_bytes())
            .number(u8::from(mounted.restartable))
            .bytes(&mounted.terms)
            .bytes(&mounted.attachment)
            .bytes(&self.state.to_record())
            .maybe(self.drains_since.map(|since| millis(since.elapsed())))
            .number(self.deaths.len() as u64);
        let writer = self.deaths.iter().fold(writer, |writer, (at, how)| {
            writer
                .number(millis(at.elapsed()))
                .number(u8::from(*how == Death::Killed))
        });
        let child = child.map(|pid| u64::from(pid.as_raw_nonzero().get().cast_unsigned()));
        let writer = writer.maybe(child).number(descriptors.len() as u64);
        let number = |it: &BorrowedFd<'_>| it.as_raw_fd().cast_unsigned();
        descriptors
            .iter()
            .fold(writer, |writer, (name, it)| {
                writer.bytes(name.as_bytes()).number(number(it))
            })
            .done()
    }
}

/// A record that was read, without the descriptors.
#[derive(Debug)]
pub(super) struct Record {
    number: u64,
    arguments: Vec<OsString>,
    source: PathBuf,
    target: PathBuf,
    restartable: bool,
    terms: Vec<u8>,
    attachment: Vec<u8>,
    state: State,
    drains_since: Option<Instant>,
    deaths: Vec<(Instant, Death)>,
    child: Option<Pid>,
    numbers: Vec<(String, i32)>,
}

impl Record {
    /// What a memfd holds; or one line on why it is not taken over.
    pub(super) fn read(memory: BorrowedFd<'_>) -> Result<Self, String> {
        let bytes = unsealed(memory)
            .map_err(|error| format!("what the supervisor leaves can't be read: {error}"))?;
        let mut reader = Reader::new(&bytes);
        // Compared as it stands here, so that it can be found in the program.
        if reader.bytes() != Some(black_box(EDITION).as_bytes()) {
            return Err(
                "what the supervisor leaves is not of the edition that this program knows"
                    .to_owned(),
            );
        }
        Self::parse(&mut reader)
            .filter(|_| reader.is_done())
            .ok_or_else(|| "what the supervisor leaves is not complete".to_owned())
    }

    fn parse(reader: &mut Reader<'_>) -> Option<Self> {
        let age = Duration::from_millis(now().saturating_sub(reader.number()?));
        let since = |millis| Instant::now().checked_sub(age + Duration::from_millis(millis));
        Some(Self {
            number: reader.number()?,
            arguments: many(reader, |reader| {
                Some(OsString::from_vec(reader.bytes()?.to_vec()))
            })?,
            source: path(reader)?,
            target: path(reader)?,
            restartable: reader.number::<u8>()? != 0,
            terms: reader.bytes()?.to_vec(),
            attachment: reader.bytes()?.to_vec(),
            state: State::from_record(reader.bytes()?)?,
            // The clock may not reach back so far.
            drains_since: reader
                .maybe()?
                .map(|millis| since(millis).unwrap_or_else(Instant::now)),
            deaths: many(reader, |reader| {
                let (at, killed) = (since(reader.number()?), reader.number::<u8>()? != 0);
                Some((
                    at,
                    if killed {
                        Death::Killed
                    } else {
                        Death::Crashed
                    },
                ))
            })?
            .into_iter()
            .filter_map(|(at, how)| Some((at?, how)))
            .collect(),
            child: match reader.maybe()? {
                None => None,
                Some(pid) => Some(Pid::from_raw(pid.try_into().ok()?)?),
            },
            numbers: many(reader, |reader| {
                let name = String::from_utf8(reader.bytes()?.to_vec()).ok()?;
                Some((name, reader.number()?))
            })?,
        })
    }

    /// With its descriptors, by name, of which each is taken that belongs to it. Nothing if one is missing.
    pub(super) fn with(self, descriptors: &mut HashMap<String, OwnedFd>) -> Option<Succession> {
        let child = match self.child {
            None => None,
            Some(pid) => {
                let link = Link::of(descriptors.remove(name::LINK)?);
                Some(Process::again(pid, link).ok()?)
            }
        };
        let place = Place {
            source: self.source,
            target: self.target,
            root: descriptors.remove(name::ROOT)?,
        };
        let mounted = Mounted {
            restartable: self.restartable,
            terms: self.terms,
            attachment: self.attachment,
            device: descriptors.remove(name::DEVICE)?,
            abort: descriptors.remove(name::ABORT),
            covered: descriptors.remove(name::COVERED),
            memory: descriptors.remove(name::MEMORY),
        };
        let node = |name: &str| name.strip_prefix(name::KEPT)?.parse().ok();
        let kept = descriptors
            .extract_if(|name, _| node(name).is_some())
            .filter_map(|(name, it)| Some((node(&name)?, it)))
            .collect();
        Some(Succession {
            arguments: self.arguments,
            record: self.number,
            place,
            mounted,
            state: self.state,
            drains_since: self.drains_since,
            deaths: self.deaths,
            kept,
            child,
        })
    }
}

impl Succession {
    /// What this process was handed as another program, if it was.
    ///
    /// # Errors
    /// One line: it can't go on with that.
    pub fn of_this_process() -> Result<Option<Self>, Failure> {
        let Some(number) = std::env::var_os(VARIABLE) else {
            return Ok(None);
        };
        let taken = number
            .to_str()
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| "not a number".to_owned())
            .and_then(|number| descriptor::inherited(number).map_err(|error| error.to_string()))
            .and_then(|record| Self::inherited(record.as_fd()));
        taken.map(Some).map_err(|why| {
            let text = format!(
                "{VARIABLE} is set, to {}: {why}: unset it, only loopfs itself sets it when another program is to go on",
                number.display()
            );
            Failure::new(ExitCode::System, text)
        })
    }

    fn inherited(record: BorrowedFd<'_>) -> Result<Self, String> {
        let record = Record::read(record)?;
        let mut descriptors = HashMap::new();
        for (name, number) in &record.numbers {
            let descriptor = descriptor::inherited(*number)
                .map_err(|error| format!("its descriptor '{name}' can't be taken: {error}"))?;
            descriptors.insert(name.clone(), descriptor);
        }
        record
            .with(&mut descriptors)
            .filter(|it| it.child.is_some())
            .ok_or_else(|| "what the supervisor leaves is not complete".to_owned())
    }

    /// SRC and MNT.
    #[must_use]
    pub fn paths(&self) -> (PathBuf, PathBuf) {
        (self.place.source.clone(), self.place.target.clone())
    }
}

/// Whether this program could go on with a record that a supervisor would leave; one line if not.
pub fn could_go_on_with(record: impl AsFd) -> Result<(), Failure> {
    Record::read(record.as_fd()).map(drop).map_err(|why| {
        Failure::new(
            ExitCode::System,
            format!("can't take the supervisor's place: {why}"),
        )
    })
}

fn path(reader: &mut Reader<'_>) -> Option<PathBuf> {
    Some(Path::new(OsStr::from_bytes(reader.bytes()?)).to_owned())
}

fn many<T>(
    reader: &mut Reader<'_>,
    mut one: impl FnMut(&mut Reader<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    // Not allocated before they are there.
    let count = reader.number::<u64>()?;
    (0..count).map(|_| one(reader)).collect()
}

/// Milliseconds since the machine was started.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    Duration::try_from(now).map_or(0, millis)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut memory = File::from(rustix::fs::memfd_create("loopfs-succession", flags)?);
    memory.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(&memory, SEALS)?;
    Ok(memory.into())
}

const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK)
    .union(SealFlags::SEAL);

fn unsealed(memory: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    if !rustix::fs::fcntl_get_seals(memory)?.contains(SEALS) {
        return Err(io::Error::other("it can be changed"));
    }
    let memory = File::from(memory.try_clone_to_owned()?);
    let length = memory.metadata()?.len();
    if length > LONGEST {
        return Err(io::Error::other("it is too long"));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    memory.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::message::tests::{descriptor, mounted, place};
    use super::*;
    use crate::lifecycle::Cause;

    /// Has `look` look at what a supervisor leaves that drains for a minute and has a descriptor of node 7.
    fn with_one<T>(look: impl FnOnce(&Leaving<'_>) -> T) -> T {
        let (place, mounted) = (place(), mounted(true));
        let mounted = Mounted {
            abort: None,
            ..mounted
        };
        let kept = BTreeMap::from([(7, descriptor())]);
        let before = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        look(&Leaving {
            record: 5,
            place: &place,
            mounted: &mounted,
            state: State::Stopped {
                cause: Cause::Unmounted,
            },
            drains_since: Some(before),
            deaths: &[(before, Death::Killed), (before, Death::Crashed)],
            kept: &kept,
        })
    }

    fn owned(leaving: &Leaving<'_>) -> HashMap<String, OwnedFd> {
        let owned = |(name, it): (String, BorrowedFd<'_>)| (name, it.try_clone_to_owned().unwrap());
        leaving.descriptors().into_iter().map(owned).collect()
    }

    #[test]
    fn what_is_left_is_found() {
        with_one(|leaving| {
            let record = Record::read(leaving.record().unwrap().as_fd()).unwrap();
            let mut descriptors = owned(leaving);
            descriptors.insert("another's".into(), descriptor());
            let found = record.with(&mut descriptors).unwrap();
            assert_eq!(found.paths(), ("/a".into(), "/b c".into()));
            assert_eq!(found.state, leaving.state);
            let own: Vec<_> = std::env::args_os().skip(1).collect();
            assert_eq!((found.record, found.arguments), (5, own));
            assert!(found.mounted.memory.is_some() && found.mounted.abort.is_none());
            assert!(found.mounted.restartable && found.mounted.terms == b"terms");
            assert!(found.drains_since.unwrap().elapsed() >= Duration::from_secs(60));
            assert!(found.drains_since.unwrap().elapsed() < Duration::from_secs(70));
            let how: Vec<_> = found.deaths.iter().map(|(_, how)| *how).collect();
            assert_eq!(how, [Death::Killed, Death::Crashed]);
            assert_eq!(found.kept.keys().collect::<Vec<_>>(), [&7]);
            assert!(found.child.is_none());
            assert_eq!(descriptors.len(), 1, "{descriptors:?}");
        });
    }

    #[test]
    fn what_is_missing_is_missed() {
        with_one(|leaving| {
            for name in [name::ROOT, name::DEVICE] {
                let record = Record::read(leaving.record().unwrap().as_fd()).unwrap();
                let mut descriptors = owned(leaving);
                descriptors.remove(name).unwrap();
                assert!(record.with(&mut descriptors).is_none(), "{name}");
            }
        });
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let whole = with_one(|leaving| leaving.write(None, &[]));
        let read = |bytes: &[u8]| Record::read(sealed(bytes).unwrap().as_fd());
        assert!(read(&whole).is_ok());
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        assert!(read(&[&whole[..], b"more"].concat()).is_err());
        let other = whole
            .iter()
            .map(|&byte| if byte == b'1' { b'2' } else { byte });
        let why = read(&other.collect::<Vec<_>>()).unwrap_err();
        assert!(why.contains("edition"), "{why}");
        assert!(Record::read(descriptor().as_fd()).is_err(), "no memfd");
        let open = rustix::fs::memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        let why = Record::read(open.as_fd()).unwrap_err();
        assert!(why.contains("can be changed"), "{why}");
    }
}
