//! What happens around every operation, written once: the gate, faults for tests, the panic
//! guard, counting and timing, tracing and the reply. Also for a reply that another thread sends later ([`Owed`]).
//! That a read-only mount is not changed is the kernel's to see to, which a remount tells.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::awake::Awake;
use super::journal::Journal;
use super::lack::Lack;
use crate::error::{Errno, Error, Result};
use crate::lifecycle::gate::{Gate, OwnedPass};
use crate::loopback::Caller;
use crate::observe::faults::{Fault, Faults};
use crate::observe::{Begun, Counters, Outcome};
use crate::op::Op;
use crate::survive::Slot;
use crate::sync::Arc;

/// A reply that is still owed. Dropping it unanswered answers EIO: fuser's replies do that, and it
/// is what a panic while answering comes down to.
pub(super) trait Respond: Sized {
    /// What a success carries.
    type Ok;
    /// Answers with a value.
    fn ok(self, value: Self::Ok);
    /// Answers with an errno, as a positive number.
    fn err(self, errno: i32);
}

/// Who asks, of which node, and in which request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) caller: Caller,
    pub(super) node: u64,
    pub(super) unique: u64,
}

/// How far an operation came that may have to wait.
pub(super) enum Step<T, W> {
    /// To its end, with this answer.
    Done(T),
    /// This is left to do, on another thread.
    Left(W),
}

/// A reply that is owed, in flight until it is sent, from whatever thread. Dropping it answers EIO.
pub(super) struct Owed<R> {
    // The order of the fields is that of their dropping: in flight until answered.
    reply: R,
    slot: Option<Slot>,
    under_way: UnderWay,
    pass: OwnedPass,
    caller: Caller,
}

/// A request in the counters, until this is dropped.
struct UnderWay {
    begun: Begun,
    service: Arc<Service>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.service.counters.leave(self.begun);
    }
}

impl<R: Respond> Owed<R> {
    /// Does the rest of the work and answers, with the same guard against panics as on an event loop.
    pub(super) fn answer(mut self, f: impl FnOnce(&mut R) -> Result<R::Ok>) {
        let (service, begun) = (Arc::clone(&self.under_way.service), self.under_way.begun);
        service.guarded(begun, || {
            let in_hand = self.slot.as_ref().map(Slot::enter);
            let result = f(&mut self.reply);
            drop(in_hand);
            self.send(result);
        });
    }

    /// Answers with an error, from wherever.
    pub(super) fn refuse(self, error: Error) {
        self.send(Err(error));
    }

    fn send(self, result: Result<R::Ok>) {
        let Self {
            reply,
            slot,
            under_way,
            pass,
            caller,
        } = self;
        let UnderWay { begun, service } = &under_way;
        service.answer((caller, *begun, slot.as_ref()), reply, result);
        drop(slot);
        drop(pass);
    }
}

/// What every operation goes through.
#[derive(Debug)]
pub(super) struct Service {
    gate: Arc<Gate>,
    counters: Arc<Counters>,
    awake: Option<Arc<Awake>>,
    journal: Option<Journal>,
    faults: Faults,
    lack: Lack,
}

impl Service {
    /// A service over the gate that shutdown closes.
    #[must_use]
    pub(super) fn new(
        gate: Arc<Gate>,
        counters: Arc<Counters>,
        awake: Option<Arc<Awake>>,
        journal: Option<Journal>,
        faults: Faults,
    ) -> Self {
        Self {
            gate,
            counters,
            awake,
            journal,
            faults,
            lack: Lack::default(),
        }
    }

    /// Serves one request. `f` does the work; it has the reply at hand only to fill it (a listing)
    /// and leaves the sending to this function, when no lock and no identity of `f` is held any
    /// more.
    ///
    /// A panic in `f` costs this request an EIO and nothing else: fuser would lose the event loop.
    pub(super) fn serve<R: Respond>(
        &self,
        asker: Asker,
        op: Op,
        mut reply: R,
        f: impl FnOnce(&Caller, &mut R) -> Result<R::Ok>,
    ) {
        let Some(_pass) = self.gate.enter() else {
            return reply.err(Error::CLOSING.code());
        };
        let begun = self.begin(asker, op);
        let Asker { caller, unique, .. } = asker;
        // Free again when the reply has been sent, or dropped.
        let slot = self.slot(unique, op);
        self.guarded(begun, || {
            let in_hand = slot.as_ref().map(Slot::enter);
            let result = self.admit(op).and_then(|()| f(&caller, &mut reply));
            drop(in_hand);
            self.answer((caller, begun, slot.as_ref()), reply, result);
        });
    }

    /// Serves a request that may have to wait, which no event loop does. `f` does what can be done at
    /// once; if something is left to do, the reply stays owed, and `hand_on` gets both: to answer it on
    /// another thread.
    pub(super) fn serve_or_owe<R: Respond, W>(
        self: &Arc<Self>,
        asker: Asker,
        op: Op,
        reply: R,
        f: impl FnOnce(&mut R) -> Result<Step<R::Ok, W>>,
        hand_on: impl FnOnce(Owed<R>, W),
    ) {
        let Some(pass) = self.gate.enter_owned() else {
            return reply.err(Error::CLOSING.code());
        };
        let begun = self.begin(asker, op);
        self.guarded(begun, || {
            let service = Arc::clone(self);
            let mut owed = Owed {
                reply,
                slot: self.slot(asker.unique, op),
                under_way: UnderWay { begun, service },
                pass,
                caller: asker.caller,
            };
            let in_hand = owed.slot.as_ref().map(Slot::enter);
            let step = self.admit(op).and_then(|()| f(&mut owed.reply));
            drop(in_hand);
            match step {
                Ok(Step::Done(value)) => owed.send(Ok(value)),
                Ok(Step::Left(work)) => hand_on(owed, work),
                Err(error) => owed.refuse(error),
            }
        });
    }

    fn slot(&self, unique: u64, op: Op) -> Option<Slot> {
        self.journal.as_ref()?.begin(unique, op)
    }

    fn answer<R: Respond>(
        &self,
        (caller, begun, slot): (Caller, Begun, Option<&Slot>),
        reply: R,
        result: Result<R::Ok>,
    ) {
        let op = begun.op;
        match result {
            Ok(value) => {
                if let Some(slot) = slot {
                    slot.sending();
                }
                self.counters.end(begun, Outcome::Served);
                log::trace!("{op} for uid {} pid {}: done", caller.uid, caller.pid);
                reply.ok(value);
            }
            Err(error) => {
                self.counters.end(begun, Outcome::Failed);
                log::trace!("{op} for uid {} pid {}: {error}", caller.uid, caller.pid);
                self.lack.tell(op, error);
                reply.err(error.code());
            }
        }
    }

    /// Serves a request that has no reply (FORGET), even when the gate is closed: it only gives
    /// back.
    pub(super) fn serve_silently(&self, op: Op, node: u64, f: impl FnOnce()) {
        // It has no caller: the kernel forgets when it likes.
        let begun = self.counters.begin(op, node, 0);
        self.guarded(begun, || {
            if let Some(Fault::Errno(_)) = self.faults.get(op) {
                // As if this process had been killed right now.
                return self.counters.end(begun, Outcome::Failed);
            }
            f();
            self.counters.end(begun, Outcome::Served);
        });
    }

    /// A request was taken up.
    fn begin(&self, asker: Asker, op: Op) -> Begun {
        if let Some(awake) = &self.awake {
            awake.touch();
        }
        self.crash_if_asked(op);
        self.counters.begin(op, asker.node, asker.caller.pid)
    }

    fn crash_if_asked(&self, op: Op) {
        let crash = self.faults.get(op) == Some(Fault::Crash);
        assert!(!crash, "a crash that was asked for");
    }

    fn admit(&self, op: Op) -> Result<()> {
        match self.faults.get(op) {
            None | Some(Fault::Crash) => Ok(()),
            Some(Fault::Errno(errno)) => Err(Error::new(
                Errno::from_raw_os_error(errno),
                "a fault that was asked for",
            )),
            Some(Fault::Stall) => {
                log::warn!("{op} is not answered, as was asked for");
                loop {
                    std::thread::park();
                }
            }
            #[allow(clippy::panic)] // what the fault is for
            Some(Fault::Panic) => panic!("a panic that was asked for"),
        }
    }

    fn guarded(&self, begun: Begun, work: impl FnOnce()) {
        let _guarded = Guarded::enter();
        // Unwind safety: what `work` can leave half-done is behind locks whose poison `sync::lock`
        // ignores because each section keeps its data consistent, or owned by `work` and dropped.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            let op = begun.op;
            self.counters.end(begun, Outcome::Panicked);
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            log::error!("{op} panicked and was answered with EIO; please report this: {text}");
        }
    }
}

thread_local!(static GUARDED: Cell<bool> = const { Cell::new(false) });

/// This thread is inside [`Service::guarded`]: a panic of it is caught there.
struct Guarded;

impl Guarded {
    fn enter() -> Self {
        GUARDED.set(true);
        Self
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        GUARDED.set(false);
    }
}

/// Calls `lost` when an event loop of fuser is about to be lost: when it panics outside an
/// operation. fuser notices that too, but only when the loops started before it have ended, and until
/// then the daemon would serve with a loop less, or none, and a caller would wait for ever.
pub(super) fn on_lost_loop(lost: impl Fn() + Send + Sync + 'static) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        let thread = std::thread::current();
        let is_loop = thread.name().is_some_and(|name| name.starts_with("fuser-"));
        if is_loop && !GUARDED.get() {
            log::error!("an event loop was lost to a panic in fuser; please report this: {panic}");
            lost();
        }
    }));
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// A reply that notes how it was answered, and answers EIO when dropped, as fuser's do.
    struct Note {
        log: Rc<RefCell<Vec<std::result::Result<u32, i32>>>>,
        sent: bool,
    }

    impl Note {
        fn new(log: &Rc<RefCell<Vec<std::result::Result<u32, i32>>>>) -> Self {
            Self {
                log: Rc::clone(log),
                sent: false,
            }
        }
    }

    impl Respond for Note {
        type Ok = u32;
        fn ok(mut self, value: u32) {
            self.sent = true;
            self.log.borrow_mut().push(Ok(value));
        }
        fn err(mut self, errno: i32) {
            self.sent = true;
            self.log.borrow_mut().push(Err(errno));
        }
    }

    impl Drop for Note {
        fn drop(&mut self) {
            if !self.sent {
                self.log.borrow_mut().push(Err(libc_eio()));
            }
        }
    }

    fn libc_eio() -> i32 {
        Errno::IO.raw_os_error()
    }

    const ASKER: Asker = Asker {
        node: 1,
        caller: Caller {
            uid: 0,
            gid: 0,
            pid: 1,
        },
        unique: 2,
    };

    fn service(faults: &str) -> Service {
        let faults = Faults::parse(faults).unwrap();
        Service::new(
            Arc::new(Gate::new()),
            Arc::new(Counters::new()),
            None,
            None,
            faults,
        )
    }

    #[test]
    fn a_value_and_an_errno_reach_the_reply() {
        let (service, log) = (service(""), Rc::default());
        service.serve(ASKER, Op::Read, Note::new(&log), |_, _| Ok(7));
        service.serve(ASKER, Op::Read, Note::new(&log), |_, _| Err(Error::STALE));
        assert_eq!(*log.borrow(), [Ok(7), Err(Errno::STALE.raw_os_error())]);
        assert_eq!(service.gate.in_flight(), 0);
    }

    #[test]
    fn a_panic_is_answered_with_eio_counted_and_survived() {
        let (service, log) = (service(""), Rc::default());
        service.serve(ASKER, Op::Read, Note::new(&log), |_, _| panic!("a bug"));
        service.serve(ASKER, Op::Read, Note::new(&log), |_, _| Ok(1));
        assert_eq!(*log.borrow(), [Err(libc_eio()), Ok(1)]);
        assert_eq!(service.counters.get(Op::Read, Outcome::Panicked), 1);
        assert_eq!(service.gate.in_flight(), 0);
        service.serve_silently(Op::Forget, 1, || panic!("a bug"));
        assert_eq!(service.counters.get(Op::Forget, Outcome::Panicked), 1);
    }

    #[test]
    fn a_closed_gate_refuses_before_anything_is_done() {
        let (service, log) = (service(""), Rc::default());
        service.gate.close();
        service.serve(ASKER, Op::Read, Note::new(&log), |_, _| {
            panic!("not to be called")
        });
        assert_eq!(*log.borrow(), [Err(Error::CLOSING.code())]);
        assert_eq!(service.counters.total(Outcome::Panicked), 0);
    }

    #[test]
    fn what_is_owed_is_in_flight_until_it_is_answered() {
        let (service, log) = (Arc::new(service("")), Rc::default());
        let owed = RefCell::new(Vec::new());
        let serve = |step: Result<Step<u32, &'static str>>| {
            let reply = Note::new(&log);
            service.serve_or_owe(
                ASKER,
                Op::Setlkw,
                reply,
                |_| step,
                |reply, work| owed.borrow_mut().push((reply, work)),
            );
        };
        serve(Ok(Step::Done(1)));
        serve(Err(Error::STALE));
        assert_eq!(service.gate.in_flight(), 0);
        serve(Ok(Step::Left("answered")));
        serve(Ok(Step::Left("panics")));
        serve(Ok(Step::Left("dropped")));
        assert_eq!(service.gate.in_flight(), 3);
        service.gate.close();
        serve(Ok(Step::Done(2)));
        for (reply, work) in owed.take() {
            match work {
                "answered" => reply.answer(|_| Ok(7)),
                "panics" => reply.answer(|_| panic!("a bug")),
                _ => drop(reply),
            }
        }
        assert_eq!(service.gate.in_flight(), 0);
        let expected = [
            Ok(1),
            Err(Error::STALE.code()),
            Err(Error::CLOSING.code()),
            Ok(7),
            Err(libc_eio()),
            Err(libc_eio()),
        ];
        assert_eq!(*log.borrow(), expected);
        assert_eq!(service.counters.get(Op::Setlkw, Outcome::Panicked), 1);
    }

    #[test]
    fn what_is_owed_is_under_way_until_it_is_answered() {
        let (service, log) = (Arc::new(service("")), Rc::default());
        let owed = RefCell::new(None);
        let hand_on = |reply, ()| *owed.borrow_mut() = Some(reply);
        let left = |_: &mut Note| Ok(Step::Left(()));
        service.serve_or_owe(ASKER, Op::Fsync, Note::new(&log), left, hand_on);
        assert_eq!(service.counters.oldest().map(|it| it.op), Some(Op::Fsync));
        drop(owed.take());
        assert_eq!(service.counters.oldest(), None);
        assert_eq!(*log.borrow(), [Err(libc_eio())]);
    }

    #[test]
    fn faults_come_when_asked_for() {
        let (service, log) = (service("read=panic,write=28"), Rc::default());
        service.serve(ASKER, Op::Read, Note::new(&log), |_, _| Ok(1));
        service.serve(ASKER, Op::Write, Note::new(&log), |_, _| Ok(1));
        assert_eq!(*log.borrow(), [Err(libc_eio()), Err(28)]);
    }
}
