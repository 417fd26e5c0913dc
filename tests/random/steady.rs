//! What programs rely on when several work at the same time: a file that all append to loses nothing, and
//! one that is replaced by rename is always there and always whole.
//!
//! Some work on the mount, some in SRC. There is a log for each side: the kernel sends a write that crosses
//! the end of a page in two requests, and between these somebody in SRC could append, too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use super::run::{Failure, Run, Setup};
use super::together::{PATIENCE, Workers};
use crate::common::Mount;
use crate::common::mount::assert_log_is_clean;
use crate::common::tree::{checksum, pattern};

/// How many records a writer appends in a round, and how often it replaces.
const RECORDS: usize = 150;

/// What is appended to on the mount, and in SRC. Everybody reads both.
const LOGS: [&str; 2] = ["log", "log-in-src"];

/// After how many records a writer opens the file anew.
const REOPENED: usize = 20;

/// The whole test: half of the workers on each side append and replace, and the others read.
pub(crate) fn run(workers: Workers, setup: Setup) {
    let mount = setup.start();
    let run = Run::new(setup);
    run.watched(&mount, || {
        for round in run.first.. {
            if run.is_over() {
                break;
            }
            if let Err(what) = one_round(&run, &mount, workers, round) {
                run.fail(Failure {
                    worker: 0,
                    round,
                    what,
                });
            }
        }
    });
    if let Some(Failure { round, what, .. }) = run.failure() {
        panic!("round {round}: {what}\nagain: {}", run.again(round));
    }
    mount.finish();
}

fn one_round(run: &Run, mount: &Mount, workers: Workers, round: u64) -> Result<(), String> {
    let name = format!("round-{round}");
    let (mounted, source) = (mount.path(&name), mount.source(&name));
    let all = workers.on_mount + workers.in_source;
    fs::create_dir(&mounted).map_err(|error| error.to_string())?;
    replace(&mounted, all, 0).map_err(|error| error.to_string())?;
    for log in LOGS {
        File::create(mounted.join(log)).map_err(|error| error.to_string())?;
    }

    let place = |worker| {
        if worker < workers.on_mount {
            (&mounted, LOGS[0])
        } else {
            (&source, LOGS[1])
        }
    };
    let writers: Vec<usize> = (0..all).filter(|worker| worker % 2 == 0).collect();
    let readers: Vec<usize> = (0..all).filter(|worker| worker % 2 == 1).collect();
    let left = AtomicUsize::new(writers.len());
    let results: Vec<Result<(), String>> = thread::scope(|scope| {
        let (left, place) = (&left, &place);
        let writing = writers.iter().map(|worker| {
            scope.spawn(move || {
                let result = write(run, place(*worker), *worker);
                left.fetch_sub(1, Ordering::Relaxed);
                result.map_err(|error| format!("writer {worker}: {error}"))
            })
        });
        let writing: Vec<_> = writing.collect();
        let reading = readers.iter().map(|worker| {
            scope.spawn(move || {
                while left.load(Ordering::Relaxed) > 0 {
                    run.step(*worker, &"read");
                    read(place(*worker).0).map_err(|error| format!("reader {worker}: {error}"))?;
                }
                Ok(())
            })
        });
        let reading: Vec<_> = reading.collect();
        let both = writing.into_iter().chain(reading);
        both.map(|thread| thread.join().unwrap()).collect()
    });
    results.into_iter().collect::<Result<Vec<()>, String>>()?;

    complete(&source, &writers)?;
    // How long a log is that was appended to in SRC, the kernel may have remembered from before.
    let deadline = Instant::now() + PATIENCE;
    while let Err(what) = complete(&mounted, &writers) {
        if Instant::now() > deadline {
            return Err(what);
        }
        thread::yield_now();
    }
    fs::remove_dir_all(&mounted).map_err(|error| error.to_string())?;
    assert_log_is_clean(&mount.log());
    Ok(())
}

/// Whether the logs below `top` have every record of every writer, in order.
fn complete(top: &Path, writers: &[usize]) -> Result<(), String> {
    let mut all = Vec::new();
    for log in LOGS {
        let log = fs::read(top.join(log)).map_err(|error| error.to_string())?;
        all.extend(records(&log).map_err(|error| format!("{}: {error}", top.display()))?);
    }
    for worker in writers {
        let own = all.iter().filter(|(writer, _)| writer == worker);
        let own: Vec<usize> = own.map(|(_, number)| *number).collect();
        if own != (0..RECORDS).collect::<Vec<_>>() {
            return Err(format!("{}: writer {worker}: {own:?}", top.display()));
        }
    }
    Ok(())
}

fn write(run: &Run, (top, log): (&PathBuf, &str), writer: usize) -> io::Result<()> {
    let mut open = None;
    for number in 0..RECORDS {
        run.step(writer, &number);
        let mut file: File = match open.take() {
            Some(file) if number % REOPENED != 0 => file,
            _ => OpenOptions::new().append(true).open(top.join(log))?,
        };
        let record = record(writer, number);
        // One call: several would be several records.
        let written = file.write(&record)?;
        if written != record.len() {
            return Err(io::Error::other(format!(
                "{written} of {} bytes",
                record.len()
            )));
        }
        open = Some(file);
        replace(top, writer, number)?;
    }
    Ok(())
}

/// A line with its own checksum.
fn record(writer: usize, number: usize) -> Vec<u8> {
    let length = (writer * 1_299_709 + number * 7_919) % 5_000;
    let seed = u8::try_from(number % 256).expect("a remainder");
    let text: Vec<u8> = pattern(seed, length)
        .into_iter()
        .map(|byte| b'a' + byte % 26)
        .collect();
    let text = String::from_utf8(text).expect("letters");
    let line = format!("{writer} {number} {text}");
    format!("{line} {:x}\n", checksum(line.as_bytes())).into_bytes()
}

fn replace(top: &Path, writer: usize, number: usize) -> io::Result<()> {
    let new: PathBuf = top.join(format!("new-{writer}"));
    fs::write(&new, record(writer, number))?;
    fs::rename(new, top.join("current"))
}

fn read(top: &Path) -> Result<(), String> {
    whole(&current(top)?).map_err(|error| format!("current: {error}"))?;
    for log in LOGS {
        let log = fs::read(top.join(log)).map_err(|error| format!("{log}: {error}"))?;
        // The last one may be on its way.
        let end = log.iter().rposition(|byte| *byte == b'\n');
        records(&log[..end.map_or(0, |end| end + 1)])?;
    }
    Ok(())
}

/// What the file that is replaced contains. Where it was replaced in SRC while the kernel looked it up anew,
/// it is ESTALE as on any network file system: somebody who asks again gets it.
fn current(top: &Path) -> Result<Vec<u8>, String> {
    const TRIES: usize = 20;
    let mut tries = (0..TRIES).map(|_| fs::read(top.join("current")));
    let stale = |error: &io::Error| error.raw_os_error() == Some(libc::ESTALE);
    let answer = tries.find(|answer| !answer.as_ref().is_err_and(stale));
    let answer = answer.ok_or_else(|| format!("current: ESTALE {TRIES} times"))?;
    answer.map_err(|error| format!("current: {error}"))
}

/// Writer and number of each record of a log.
fn records(log: &[u8]) -> Result<Vec<(usize, usize)>, String> {
    log.split_inclusive(|byte| *byte == b'\n')
        .map(whole)
        .collect()
}

/// Writer and number of a record that is as it was written.
fn whole(line: &[u8]) -> Result<(usize, usize), String> {
    let parse = || {
        let text = str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let (content, sum) = text.rsplit_once(' ')?;
        let mut fields = content.splitn(3, ' ');
        let writer = fields.next()?.parse().ok()?;
        let number = fields.next()?.parse().ok()?;
        (format!("{:x}", checksum(content.as_bytes())) == sum).then_some((writer, number))
    };
    parse().ok_or_else(|| {
        let start = &line[..line.len().min(80)];
        format!(
            "{} bytes that nobody wrote so: {}...",
            line.len(),
            start.escape_ascii()
        )
    })
}
