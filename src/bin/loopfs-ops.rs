//! `loopfs-ops WORKLOAD DIRECTORY`: one workload of scripts/bench, which times how long it takes.
//!
//! Prints one number: the seconds that the workload itself took, without its preparation. Everything that is read is
//! checked, so that a fast wrong answer is no result.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use clap::{Parser, ValueEnum};

/// What a small file contains.
const SMALL: usize = 4096;
/// How much is read or written at a time, in order.
const LARGE: usize = 1 << 20;

#[derive(Clone, Copy, ValueEnum)]
enum Workload {
    /// Create COUNT files of 4 KiB.
    Create,
    /// stat(2) of each of them.
    Stat,
    /// Open, read and close each of them.
    Read,
    /// Rename each of them there and back.
    Rename,
    /// Unlink each of them.
    Unlink,
    /// Create and unlink a file COUNT times.
    Churn,
    /// Look up COUNT names that are not there.
    Missing,
    /// Make and remove COUNT directories.
    Mkdir,
    /// Write a file of COUNT MiB.
    WriteOut,
    /// Read it.
    ReadIn,
    /// Read 4 KiB of it COUNT times, anywhere.
    RandomRead,
    /// Write 4 KiB of it COUNT times, anywhere.
    RandomWrite,
}

#[derive(Parser)]
#[command(about = "Do WORKLOAD in DIRECTORY and print how many seconds it took")]
struct Arguments {
    workload: Workload,
    /// Where; must exist.
    directory: PathBuf,
    /// How many.
    #[arg(long, default_value_t = 2000)]
    count: usize,
    /// So many threads at once, each with COUNT of its own.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(seconds) => {
            println!("{seconds:.9}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("loopfs-ops: {}: {error}", arguments.directory.display());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<f64> {
    let workers: Vec<_> = (0..arguments.threads)
        .map(|number| {
            let directory = arguments.directory.join(format!("worker-{number}"));
            fs::create_dir_all(&directory).map(|()| Worker {
                directory,
                count: arguments.count,
            })
        })
        .collect::<io::Result<_>>()?;
    let begin = Instant::now();
    thread::scope(|scope| {
        let running: Vec<_> = workers
            .iter()
            .map(|worker| scope.spawn(|| worker.work(arguments.workload)))
            .collect();
        running.into_iter().try_for_each(|thread| {
            let panicked = |_| Err(io::Error::other("a thread panicked"));
            thread.join().unwrap_or_else(panicked)
        })
    })?;
    Ok(begin.elapsed().as_secs_f64())
}

/// One thread's share.
struct Worker {
    directory: PathBuf,
    count: usize,
}

impl Worker {
    fn small(&self, number: usize) -> PathBuf {
        self.directory.join(format!("file-{number:06}"))
    }

    fn large(&self) -> PathBuf {
        self.directory.join("large")
    }

    fn work(&self, workload: Workload) -> io::Result<()> {
        match workload {
            Workload::Create => self.each(|number| write_new(&self.small(number))),
            Workload::Stat => self.each(|number| {
                let length = fs::symlink_metadata(self.small(number))?.len();
                expect(length == SMALL as u64)
            }),
            Workload::Read => {
                let mut block = [0; SMALL];
                self.each(|number| {
                    let mut file = File::open(self.small(number))?;
                    file.read_exact(&mut block)?;
                    expect(block[0] == b'x' && block[SMALL - 1] == b'x')
                })
            }
            Workload::Rename => self.each(|number| {
                let (here, there) = (self.small(number), self.directory.join("renamed"));
                fs::rename(&here, &there)?;
                fs::rename(&there, &here)
            }),
            Workload::Unlink => self.each(|number| fs::remove_file(self.small(number))),
            Workload::Churn => {
                let path = self.directory.join("churn");
                self.each(|_| {
                    write_new(&path)?;
                    fs::remove_file(&path)
                })
            }
            Workload::Missing => self.each(|number| {
                let path = self.directory.join(format!("missing-{number}"));
                let found = fs::symlink_metadata(path);
                expect(found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound))
            }),
            Workload::Mkdir => self.each(|number| {
                let path = self.directory.join(format!("directory-{number}"));
                fs::create_dir(&path)?;
                fs::remove_dir(&path)
            }),
            Workload::WriteOut => self.write_out(),
            Workload::ReadIn => {
                let mut file = File::open(self.large())?;
                let mut block = vec![0; LARGE];
                self.each(|_| {
                    file.read_exact(&mut block)?;
                    expect(block[0] == b'x')
                })
            }
            Workload::RandomRead => {
                let file = File::open(self.large())?;
                let mut block = [0; SMALL];
                self.anywhere(&file, |offset| {
                    file.read_exact_at(&mut block, offset)?;
                    expect(block[0] == b'x')
                })
            }
            Workload::RandomWrite => {
                let file = OpenOptions::new().write(true).open(self.large())?;
                self.anywhere(&file, |offset| file.write_all_at(&[b'x'; SMALL], offset))
            }
        }
    }

    fn each(&self, act: impl FnMut(usize) -> io::Result<()>) -> io::Result<()> {
        (0..self.count).try_for_each(act)
    }

    /// At places that are the same in every run (a linear congruential generator).
    fn anywhere(&self, file: &File, mut act: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        let blocks = file.metadata()?.len() / SMALL as u64;
        expect(blocks > 0)?;
        let mut state = 1_u64;
        self.each(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            act((state >> 33) % blocks * SMALL as u64)
        })
    }

    fn write_out(&self) -> io::Result<()> {
        let mut file = File::create(self.large())?;
        let block = vec![b'x'; LARGE];
        self.each(|_| file.write_all(&block))
    }
}

fn write_new(path: &Path) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(&[b'x'; SMALL])
}

fn expect(condition: bool) -> io::Result<()> {
    if condition {
        Ok(())
    } else {
        Err(io::Error::other("what was read is not what was written"))
    }
}
