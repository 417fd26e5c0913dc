//! `loopfs top` where there is no terminal to draw on: a line every two seconds, until it is ended.

use std::io::{self, Write as _};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::mounts::{self, Mount};
use super::super::text;
use super::ENDING;
use super::rates::Watched;
use crate::sys::process::SignalQueue;

const PERIOD: Duration = Duration::from_secs(2);
/// The heading comes again after so many lines.
const PAGE: usize = 20;

pub(super) fn run(mount: Mount) -> io::Result<()> {
    let signals = SignalQueue::open(&ENDING)?;
    let (source, target) = (text::name(&mount.source.0), text::name(&mount.target.0));
    writeln!(io::stdout(), "{source} at {target}")?;
    let mut watched = Watched::new(mount);
    for line in 0_usize.. {
        if line.is_multiple_of(PAGE) {
            print([
                "STATE",
                "OPS/S",
                "ERRORS/S",
                "IN FLIGHT",
                "BUSIEST",
                "P50",
                "P99",
            ])?;
        }
        let pause = Timespec::try_from(PERIOD).ok();
        let _ = poll(&mut [PollFd::new(&signals, PollFlags::IN)], pause.as_ref());
        if signals.next()?.is_some() {
            break;
        }
        watched.update(mounts::again(&watched.mount().key()));
        if watched.ended() {
            return writeln!(io::stdout(), "the mount has ended");
        }
        tell(&watched)?;
    }
    Ok(())
}

fn tell(watched: &Watched) -> io::Result<()> {
    let mount = watched.mount();
    let in_flight = mount.figures.as_ref().map(|it| it.in_flight.to_string());
    let busiest = watched.rows().first().filter(|row| row.per_second > 0.0);
    let time = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), text::time);
    print([
        mount.state.word(),
        &text::rate(watched.per_second()),
        &text::rate(watched.errors_per_second()),
        in_flight.as_deref().unwrap_or("-"),
        busiest.map_or("-", |row| row.name.as_str()),
        &time(busiest.map(|row| row.p50)),
        &time(busiest.map(|row| row.p99)),
    ])
}

fn print([state, rate, errors, in_flight, busiest, p50, p99]: [&str; 7]) -> io::Result<()> {
    writeln!(
        io::stdout(),
        "{state:<9}{rate:>8}{errors:>10}{in_flight:>11}  {busiest:<16}{p50:>8}{p99:>8}"
    )
}
