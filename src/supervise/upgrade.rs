//! Another program takes over, if it can: from the process that serves, and then from the supervisor.

use std::io;
use std::time::{Duration, Instant};

use super::message::{Order, Report};
use super::pace::Death;
use super::process::{Process, Program};
use super::succession::Leaving;
use super::{DIES, DIES_SLOWLY, End, Keeper, Mount, system};

/// How long a program may take to get ready to go on before it is taken for one that can't.
const GETS_READY: Duration = Duration::from_secs(10);
/// How long the one before it may take to answer what it has taken up; what is left comes again.
const ANSWERS: Duration = Duration::from_secs(6);

impl Keeper {
    /// Has the program that lies on the disk by now go on, if it can; the one that serves does if not, and is told why.
    pub(super) fn upgrade(&mut self) -> Option<End> {
        let (program, process) = match self.get_ready() {
            Ok(ready) => ready,
            Err(why) => {
                log::warn!("no upgrade: {why}");
                // That it is dead is heard otherwise.
                let _ = self.process.tell(&Order::GoOn(why));
                return None;
            }
        };
        if let Some(over) = self.hold_up() {
            return Some(over);
        }
        self.died = Some(Instant::now());
        self.process.kill_and_wait();
        if let Some(over) = self.listen() {
            return Some(over);
        }
        if let Err(error) = self.process.reap(Duration::ZERO) {
            return Some(Err(system("lost the process that serves", &error)));
        }
        if let Some(Report::Ended { code, .. }) = self.process.take_last_word() {
            process.kill();
            return Some(Ok(code));
        }
        self.earlier = Some(std::mem::replace(&mut self.program, program));
        self.succeed(process);
        let given = self.give_word();
        self.or_give_up(given);
        None
    }

    /// Has the child answer what it has taken up, and hold up what comes.
    pub(super) fn hold_up(&mut self) -> Option<End> {
        if !self.process.serves() {
            return None;
        }
        let _ = self.process.tell(&Order::Pause);
        let end = Instant::now() + ANSWERS;
        while self.process.is_connected() && !self.process.has_paused() && Instant::now() < end {
            self.process.wait_for_word(end);
            if let Some(over) = self.listen() {
                return Some(over);
            }
        }
        None
    }

    /// A child that runs the program on the disk and is ready to take over; or why there is none.
    fn get_ready(&mut self) -> Result<(Program, Process), String> {
        if !self.process.serves() {
            return Err("nobody serves the mount right now".to_owned());
        }
        let Some(mount) = self
            .mount
            .as_ref()
            .filter(|mount| mount.mounted.restartable)
        else {
            return Err(
                "no other process can go on with this mount, as was said at the start".to_owned(),
            );
        };
        let path = self.program.path();
        let failed = |error: io::Error| format!("{} can't be started: {error}", path.display());
        let program = Program::at(&path).map_err(failed)?;
        let mut process = program.start().map_err(failed)?;
        let deaths = self.pace.deaths();
        let record = self.leaving(mount, &deaths).record().map_err(failed)?;
        let order = Order::Resume {
            place: self.place.try_clone().map_err(failed)?,
            mounted: mount.mounted.try_clone().map_err(failed)?,
            succession: Some(record),
        };
        let ready = prepare(&mut process, &order);
        match ready {
            Ok(()) => Ok((program, process)),
            Err(why) => {
                process.kill();
                // It is dead, so this waits for nothing.
                let _ = process.reap(DIES_SLOWLY);
                Err(format!("{} can't go on: {why}", path.display()))
            }
        }
    }

    /// What another supervisor goes on with.
    pub(super) fn leaving<'a>(
        &'a self,
        mount: &'a Mount,
        deaths: &'a [(Instant, Death)],
    ) -> Leaving<'a> {
        Leaving {
            record: self.stored.as_ref().map_or(0, |it| it.record),
            place: &self.place,
            mounted: &mount.mounted,
            state: self.state,
            drains_since: self.drains_since,
            deaths,
            kept: &self.kept,
        }
    }

    /// Becomes the program that its child has become. That one has understood already what it is handed here; who can't go
    /// on all the same ends, and the child, which hears that, ends in order.
    pub(super) fn upgrade_itself(&mut self) {
        // The next program does not know of them. By now there is somebody to answer what they may have waited for.
        for other in &mut self.unburied {
            let _ = other.reap(DIES);
        }
        let Some(mount) = &self.mount else {
            return;
        };
        let deaths = self.pace.deaths();
        let error = self
            .leaving(mount, &deaths)
            .hand_to(&self.program, &self.process);
        log::warn!(
            "{} is kept by the program that it was kept by: {error}",
            self.place.target.display()
        );
    }
}

/// Has `process` get ready to take over.
fn prepare(process: &mut Process, order: &Order) -> Result<(), String> {
    let end = Instant::now() + GETS_READY;
    while Instant::now() < end {
        process.wait_for_word(end);
        while let Some(report) = process.heard() {
            match report {
                Report::Up => {
                    process.is_up_now();
                    process.tell(order).map_err(|error| error.to_string())?;
                }
                Report::Prepared => return Ok(()),
                Report::Refused(why) => return Err(why),
                Report::Ended { message, .. } => return Err(message),
                other => return Err(format!("it says {other:?}")),
            }
        }
        if !process.is_connected() {
            return Err("it ended, and did not say why: the log may".to_owned());
        }
    }
    Err(format!(
        "it was not ready within {} s",
        GETS_READY.as_secs()
    ))
}
