//! `loopfs-churn DIRECTORY`: keeps a directory busy, for stress tests of the daemon that serves it.
//!
//! Each job creates, writes, checks, renames, lists and unlinks files of its own until Ctrl-C,
//! SIGTERM, `--seconds`, or until the mount below it goes away. It ends with one line,
//! `created=N ... kept=N errors=N unmounted=BOOL`.
//!
//! Every file's content follows from its name, and some files are kept: whoever looks at the tree
//! afterwards (`--verify`, on MNT or on SRC) knows what each must contain. A file gets its final
//! name by a rename after it was closed, so a file with a final name has its whole content: bytes
//! that are lost are noticed, and a file cut off in the middle by an unmount is not taken for one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

/// Of how many files that were checked one is kept.
const KEEP_EVERY: u64 = 10;

/// What begins the name of a file that is whole.
const WHOLE: &str = "whole-";

#[derive(Parser)]
#[command(about = "Keep DIRECTORY busy until Ctrl-C, then say in one line what was done")]
struct Arguments {
    /// Where to work; must exist. Each process works in a directory of its own below it.
    directory: PathBuf,
    /// Number of threads, each with files of its own.
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Stop by itself after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Don't work: check every whole file that runs before this one have kept below DIRECTORY.
    #[arg(long)]
    verify: bool,
}

/// What all jobs together have done.
#[derive(Default)]
struct Counts {
    created: AtomicU64,
    checked: AtomicU64,
    renamed: AtomicU64,
    listed: AtomicU64,
    unlinked: AtomicU64,
    /// Files that stay, whole and closed.
    kept: AtomicU64,
    errors: AtomicU64,
    /// The file system went away under us: that ends a job and is no error.
    unmounted: AtomicBool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = if arguments.verify {
        verify(&arguments.directory)
    } else {
        churn(&arguments)
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("loopfs-churn: {}: {error}", arguments.directory.display());
        ExitCode::FAILURE
    })
}

fn churn(arguments: &Arguments) -> io::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    let handler = Arc::clone(&stop);
    ctrlc::set_handler(move || handler.store(true, Ordering::SeqCst)).map_err(io::Error::other)?;
    let deadline = arguments
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let top = arguments
        .directory
        .join(format!("churn-{}", std::process::id()));
    fs::create_dir(&top)?;
    let counts = Counts::default();
    thread::scope(|scope| {
        for number in 0..arguments.jobs {
            let job = Job {
                number,
                top: &top,
                counts: &counts,
            };
            let stop = &stop;
            scope.spawn(move || {
                job.run(|| {
                    stop.load(Ordering::SeqCst) || deadline.is_some_and(|at| Instant::now() >= at)
                });
            });
        }
    });
    println!("{}", counts.line());
    Ok(if counts.errors.load(Ordering::SeqCst) == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Counts {
    fn line(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        format!(
            "created={} checked={} renamed={} listed={} unlinked={} kept={} errors={} unmounted={}",
            count(&self.created),
            count(&self.checked),
            count(&self.renamed),
            count(&self.listed),
            count(&self.unlinked),
            count(&self.kept),
            count(&self.errors),
            self.unmounted.load(Ordering::SeqCst),
        )
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::SeqCst);
}

/// One thread's work.
struct Job<'a> {
    number: u64,
    top: &'a Path,
    counts: &'a Counts,
}

impl Job<'_> {
    fn run(&self, stop: impl Fn() -> bool) {
        for round in 0.. {
            if stop() {
                return;
            }
            if let Err(error) = self.round(round) {
                if is_unmount(&error) || !self.top.exists() {
                    self.counts.unmounted.store(true, Ordering::SeqCst);
                    return;
                }
                add(&self.counts.errors);
                eprintln!("loopfs-churn: job {}, round {round}: {error}", self.number);
            }
        }
    }

    /// The life of one file.
    fn round(&self, round: u64) -> io::Result<()> {
        let name = format!("{}-{round}", self.number);
        let content = content_of(&name);
        let (partial, whole) = (
            self.top.join(format!("partial-{name}")),
            self.top.join(format!("{WHOLE}{name}")),
        );
        let mut file = File::create_new(&partial)?;
        add(&self.counts.created);
        for piece in content.chunks(4_096) {
            file.write_all(piece)?;
        }
        // Every tenth is made durable, so that fsync takes part.
        if round.is_multiple_of(KEEP_EVERY) {
            file.sync_all()?;
        }
        // The last close of a written file reports what an earlier write could not.
        loopfs::sys::fs::close(file.into())?;
        check(&partial, &content)?;
        add(&self.counts.checked);
        fs::rename(&partial, &whole)?;
        add(&self.counts.renamed);
        if round.is_multiple_of(KEEP_EVERY) {
            add(&self.counts.kept);
            self.list()?;
        } else {
            fs::remove_file(&whole)?;
            add(&self.counts.unlinked);
        }
        Ok(())
    }

    fn list(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.top)? {
            entry?;
        }
        add(&self.counts.listed);
        Ok(())
    }
}

/// Whether an error means that the file system went away: the connection is gone, or the path now
/// leads below the mount (its directory is missing there).
fn is_unmount(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, NotConnected};
    matches!(error.kind(), NotConnected | ConnectionAborted)
}

/// The bytes of the file called `name`: 0 to 20,000 of them, different for every name.
fn content_of(name: &str) -> Vec<u8> {
    // FNV-1a for the seed, then xorshift64: any spread will do, it only has to be repeatable.
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words = next() % 2_500;
    (0..words).flat_map(|_| next().to_le_bytes()).collect()
}

fn check(path: &Path, expected: &[u8]) -> io::Result<()> {
    let mut found = Vec::with_capacity(expected.len());
    File::open(path)?.read_to_end(&mut found)?;
    if found == expected {
        return Ok(());
    }
    let at = found
        .iter()
        .zip(expected)
        .position(|(a, b)| a != b)
        .unwrap_or(found.len().min(expected.len()));
    let message = format!(
        "{}: wrong content: {} bytes instead of {}, the first difference at {at}",
        path.display(),
        found.len(),
        expected.len()
    );
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

/// Checks every whole file below `directory` and says how many there are.
fn verify(directory: &Path) -> io::Result<ExitCode> {
    let (mut whole, mut errors) = (0_u64, 0_u64);
    for run in fs::read_dir(directory)? {
        let run = run?;
        if !run.file_name().to_string_lossy().starts_with("churn-") {
            continue;
        }
        for entry in fs::read_dir(run.path())? {
            let entry = entry?;
            let Some(name) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_prefix(WHOLE))
                .map(str::to_owned)
            else {
                continue;
            };
            whole += 1;
            if let Err(error) = check(&entry.path(), &content_of(&name)) {
                errors += 1;
                eprintln!("loopfs-churn: {error}");
            }
        }
    }
    println!("whole={whole} errors={errors}");
    Ok(if errors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
