//! What the supervisor and the processes that serve say to each other. Each message is a [`record`](crate::record) that begins
//! with a number for its kind; a kind that is not known is `None`, and the end of what the two have to say to each other.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use super::link::Parcel;
use crate::exit::ExitCode;
use crate::lifecycle::State;
use crate::record::{Reader, Writer};

/// Of what is said here; another one is not understood.
pub(crate) const VERSION: &str = "2";

/// From the process that serves.
#[derive(Debug)]
pub(crate) enum Report {
    /// It hears signals from now on.
    Up,
    /// The mount is made, and not yet visible where that can be had. If it dies from now on, the mount is the supervisor's.
    Made(Mounted),
    /// What it was handed is good: it can take over.
    Prepared,
    /// It serves a mount that can be used.
    Ready,
    /// Where its life stands now.
    Stands(State),
    /// It holds up what comes from now on; `true`: and has answered everything that came before.
    Paused(bool),
    /// It ends, and that is all right.
    Ended { code: ExitCode, message: String },
    /// It can't serve what it was handed.
    Refused(String),
    /// The descriptor of a node is to be kept.
    Keep {
        node: u64,
        descriptor: OwnedFd,
        /// systemd has it already.
        is_stored: bool,
    },
    /// It need not be kept any longer.
    Drop {
        node: u64,
        /// systemd has been told.
        is_taken_out: bool,
    },
    /// Somebody wants the program that lies on the disk by now to go on.
    Upgrade,
}

/// From the supervisor.
#[derive(Debug)]
pub(crate) enum Order {
    /// Make the mount and serve it.
    Begin(Place),
    /// Get ready to serve a mount that is there.
    Resume {
        place: Place,
        mounted: Mounted,
        /// For another program: what the supervisor would leave to it, which it has to understand as well.
        succession: Option<OwnedFd>,
    },
    /// A descriptor that was kept by this number.
    Kept(u64, OwnedFd),
    /// Serve what you got ready for: whoever served it is dead.
    Go {
        state: State,
        draining_for: Duration,
        /// As [`Order::Stored`].
        stored: bool,
        /// How many descriptors follow, each in an [`Order::Kept`].
        kept: u64,
    },
    /// Should the supervisor be killed, another one goes on.
    Stored,
    /// Answer what is being served, and hold up what comes.
    Pause,
    /// Go on after all: nobody takes over, for this reason.
    GoOn(String),
}

/// What is served, and where, as it was found at the start.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    /// SRC itself (`O_PATH`): what its path leads to may change, or be covered by the mount.
    pub(crate) root: OwnedFd,
}

impl Place {
    fn write(&self, writer: Writer) -> Writer {
        writer
            .bytes(self.source.as_os_str().as_bytes())
            .bytes(self.target.as_os_str().as_bytes())
    }

    fn read(
        reader: &mut Reader<'_>,
        descriptors: &mut impl Iterator<Item = OwnedFd>,
    ) -> Option<Self> {
        let mut path = || Some(PathBuf::from(OsStr::from_bytes(reader.bytes()?)));
        Some(Self {
            source: path()?,
            target: path()?,
            root: descriptors.next()?,
        })
    }

    /// The same once more.
    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self {
            source: self.source.clone(),
            target: self.target.clone(),
            root: self.root.try_clone()?,
        })
    }
}

/// A mount, and everything that it takes to serve it.
#[derive(Debug)]
pub(crate) struct Mounted {
    /// Who can take over if who serves it dies: somebody, or nobody.
    pub(crate) restartable: bool,
    /// [`crate::fuse::Terms`], as a record.
    pub(crate) terms: Vec<u8>,
    /// [`crate::attach::Handover`], as a record.
    pub(crate) attachment: Vec<u8>,
    pub(crate) device: OwnedFd,
    pub(crate) abort: Option<OwnedFd>,
    /// The directory below the mount, if it can be seen in SRC.
    pub(crate) covered: Option<OwnedFd>,
    /// The memory that survives.
    pub(crate) memory: Option<OwnedFd>,
}

impl Mounted {
    fn write(&self, writer: Writer) -> Writer {
        let [abort, covered, memory] = [&self.abort, &self.covered, &self.memory]
            .map(|descriptor| u8::from(descriptor.is_some()));
        writer
            .number(u8::from(self.restartable))
            .bytes(&self.terms)
            .bytes(&self.attachment)
            .number(abort)
            .number(covered)
            .number(memory)
    }

    fn read(
        reader: &mut Reader<'_>,
        descriptors: &mut impl Iterator<Item = OwnedFd>,
    ) -> Option<Self> {
        let restartable = reader.number::<u8>()? != 0;
        let terms = reader.bytes()?.to_vec();
        let attachment = reader.bytes()?.to_vec();
        let device = descriptors.next()?;
        let mut optional = || match reader.number()? {
            0_u8 => Some(None),
            _ => descriptors.next().map(Some),
        };
        Some(Self {
            restartable,
            terms,
            attachment,
            device,
            abort: optional()?,
            covered: optional()?,
            memory: optional()?,
        })
    }

    fn descriptors(&self) -> Vec<&OwnedFd> {
        let optional = [&self.abort, &self.covered, &self.memory];
        std::iter::once(&self.device)
            .chain(optional.into_iter().flatten())
            .collect()
    }

    /// The same once more.
    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        let again =
            |descriptor: &Option<OwnedFd>| descriptor.as_ref().map(OwnedFd::try_clone).transpose();
        Ok(Self {
            restartable: self.restartable,
            terms: self.terms.clone(),
            attachment: self.attachment.clone(),
            device: self.device.try_clone()?,
            abort: again(&self.abort)?,
            covered: again(&self.covered)?,
            memory: again(&self.memory)?,
        })
    }
}

impl Report {
    /// As it is sent.
    pub(crate) fn parcel(&self) -> (Vec<u8>, Vec<&OwnedFd>) {
        let kind = |kind: u8| Writer::default().number(kind);
        let mut descriptors = Vec::new();
        let writer = match self {
            Self::Up => kind(0),
            Self::Made(mounted) => {
                descriptors = mounted.descriptors();
                mounted.write(kind(1))
            }
            Self::Prepared => kind(2),
            Self::Ready => kind(3),
            Self::Stands(state) => kind(4).bytes(&state.to_record()),
            Self::Paused(drained) => kind(5).number(u8::from(*drained)),
            Self::Ended { code, message } => kind(6).number(*code as u8).bytes(message.as_bytes()),
            Self::Refused(message) => kind(7).bytes(message.as_bytes()),
            Self::Keep {
                node,
                descriptor,
                is_stored,
            } => {
                descriptors.push(descriptor);
                kind(8).number(*node).number(u8::from(*is_stored))
            }
            Self::Drop { node, is_taken_out } => {
                kind(9).number(*node).number(u8::from(*is_taken_out))
            }
            Self::Upgrade => kind(10),
        };
        (writer.done(), descriptors)
    }

    /// What came.
    pub(crate) fn of(parcel: Parcel) -> Option<Self> {
        let mut reader = Reader::new(&parcel.bytes);
        let mut descriptors = parcel.descriptors.into_iter();
        let report = match reader.number()? {
            0_u8 => Self::Up,
            1 => Self::Made(Mounted::read(&mut reader, &mut descriptors)?),
            2 => Self::Prepared,
            3 => Self::Ready,
            4 => Self::Stands(State::from_record(reader.bytes()?)?),
            5 => Self::Paused(reader.number::<u8>()? != 0),
            6 => Self::Ended {
                code: ExitCode::from_number(reader.number()?)?,
                message: text(&mut reader)?,
            },
            7 => Self::Refused(text(&mut reader)?),
            8 => Self::Keep {
                node: reader.number()?,
                descriptor: descriptors.next()?,
                is_stored: reader.number::<u8>()? != 0,
            },
            9 => Self::Drop {
                node: reader.number()?,
                is_taken_out: reader.number::<u8>()? != 0,
            },
            10 => Self::Upgrade,
            _ => return None,
        };
        reader.is_done().then_some(report)
    }
}

impl Order {
    /// As it is sent.
    pub(crate) fn parcel(&self) -> (Vec<u8>, Vec<&OwnedFd>) {
        let kind = |kind: u8| Writer::default().number(kind);
        let mut descriptors = Vec::new();
        let writer = match self {
            Self::Begin(place) => {
                descriptors.push(&place.root);
                place.write(kind(0))
            }
            Self::Resume {
                place,
                mounted,
                succession,
            } => {
                descriptors.push(&place.root);
                descriptors.extend(mounted.descriptors());
                descriptors.extend(succession);
                let writer = mounted.write(place.write(kind(1)));
                writer.number(u8::from(succession.is_some()))
            }
            Self::Kept(number, descriptor) => {
                descriptors.push(descriptor);
                kind(2).number(*number)
            }
            Self::Go {
                state,
                draining_for,
                stored,
                kept,
            } => {
                let millis = u64::try_from(draining_for.as_millis()).unwrap_or(u64::MAX);
                kind(3)
                    .bytes(&state.to_record())
                    .number(millis)
                    .number(u8::from(*stored))
                    .number(*kept)
            }
            Self::Pause => kind(4),
            Self::GoOn(why) => kind(5).bytes(why.as_bytes()),
            Self::Stored => kind(6),
        };
        (writer.done(), descriptors)
    }

    /// What came.
    pub(crate) fn of(parcel: Parcel) -> Option<Self> {
        let mut reader = Reader::new(&parcel.bytes);
        let mut descriptors = parcel.descriptors.into_iter();
        let order = match reader.number()? {
            0_u8 => Self::Begin(Place::read(&mut reader, &mut descriptors)?),
            1 => Self::Resume {
                place: Place::read(&mut reader, &mut descriptors)?,
                mounted: Mounted::read(&mut reader, &mut descriptors)?,
                succession: match reader.number()? {
                    0_u8 => None,
                    _ => Some(descriptors.next()?),
                },
            },
            2 => Self::Kept(reader.number()?, descriptors.next()?),
            3 => Self::Go {
                state: State::from_record(reader.bytes()?)?,
                draining_for: Duration::from_millis(reader.number()?),
                stored: reader.number::<u8>()? != 0,
                kept: reader.number()?,
            },
            4 => Self::Pause,
            5 => Self::GoOn(text(&mut reader)?),
            6 => Self::Stored,
            _ => return None,
        };
        reader.is_done().then_some(order)
    }
}

fn text(reader: &mut Reader<'_>) -> Option<String> {
    Some(String::from_utf8_lossy(reader.bytes()?).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::fs::File;
    use std::os::fd::{AsFd as _, OwnedFd};

    use super::super::link::Link;
    use super::*;
    use crate::lifecycle::{Cause, SignalName};

    pub(crate) fn descriptor() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    pub(crate) fn place() -> Place {
        Place {
            source: "/a".into(),
            target: "/b c".into(),
            root: descriptor(),
        }
    }

    /// With every descriptor that there may be but one, or with none of those.
    pub(crate) fn mounted(with: bool) -> Mounted {
        let optional = || with.then(descriptor);
        Mounted {
            restartable: true,
            terms: b"terms".to_vec(),
            attachment: b"attachment".to_vec(),
            device: descriptor(),
            abort: optional(),
            covered: None,
            memory: optional(),
        }
    }

    fn sent((bytes, descriptors): (Vec<u8>, Vec<&OwnedFd>)) -> Parcel {
        let (one, other) = Link::pair().unwrap();
        let descriptors: Vec<_> = descriptors.iter().map(|it| it.as_fd()).collect();
        one.send(&bytes, &descriptors).unwrap();
        other.receive().unwrap().unwrap()
    }

    /// Without the numbers of descriptors, which differ.
    fn shape(message: &impl std::fmt::Debug) -> String {
        let text = format!("{message:?}");
        let mut words = text.split("OwnedFd { fd: ");
        let first = words.next().unwrap().to_owned();
        words.fold(first, |shape, word| {
            shape + "OwnedFd" + word.trim_start_matches(char::is_numeric)
        })
    }

    #[test]
    fn what_is_said_is_heard() {
        let cause = Cause::Signal(SignalName::Term);
        let reports = [
            Report::Up,
            Report::Made(mounted(true)),
            Report::Made(mounted(false)),
            Report::Prepared,
            Report::Ready,
            Report::Stands(State::Stopped { cause }),
            Report::Paused(true),
            Report::Ended {
                code: ExitCode::Internal,
                message: "why".into(),
            },
            Report::Refused("why not".into()),
            Report::Keep {
                node: 7,
                descriptor: descriptor(),
                is_stored: true,
            },
            Report::Drop {
                node: u64::MAX,
                is_taken_out: false,
            },
            Report::Upgrade,
        ];
        for report in reports {
            let heard = Report::of(sent(report.parcel())).unwrap();
            assert_eq!(shape(&heard), shape(&report));
        }
        let orders = [
            Order::Begin(place()),
            Order::Resume {
                place: place(),
                mounted: mounted(true),
                succession: None,
            },
            Order::Resume {
                place: place(),
                mounted: mounted(true),
                succession: Some(descriptor()),
            },
            Order::Kept(1, descriptor()),
            Order::Go {
                state: State::Serving,
                draining_for: Duration::from_millis(1500),
                stored: true,
                kept: 3,
            },
            Order::Pause,
            Order::GoOn("why".into()),
            Order::Stored,
        ];
        for order in orders {
            let heard = Order::of(sent(order.parcel())).unwrap();
            assert_eq!(shape(&heard), shape(&order));
        }
    }

    #[test]
    fn what_nobody_says_is_not_heard() {
        let parcel = |bytes: &[u8]| Parcel {
            bytes: bytes.to_vec(),
            descriptors: Vec::new(),
        };
        assert!(Report::of(parcel(&[99, 0, 0, 0, 0, 0, 0, 0])).is_none());
        assert!(Report::of(parcel(b"x")).is_none());
        let (bytes, _) = Report::Made(mounted(true)).parcel();
        assert!(Report::of(parcel(&bytes)).is_none(), "no descriptors came");
        let (bytes, _) = Order::Pause.parcel();
        assert!(Order::of(parcel(&[&bytes[..], b"more"].concat())).is_none());
    }
}
