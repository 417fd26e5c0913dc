//! What the kernel tells of locks, in every order in which it may do so.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::ffi::OsStr;
use std::fs;
use std::sync::Barrier;
use std::thread;

use super::*;
use crate::loopback::Settings;

const READ_ONLY: i32 = 0;
const READ_WRITE: i32 = 2;
const LONG: Duration = Duration::from_secs(60);

struct Setup {
    dir: tempfile::TempDir,
    node: NodeNo,
    locks: Arc<Locks>,
}

impl Setup {
    /// A tree with a file that was changed last a minute ago.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            file_limit: 1024,
            one_file_system: false,
            noatime: false,
        };
        let tree = Arc::new(Loopback::open(dir.path(), &settings).unwrap());
        fs::write(dir.path().join("f"), "x").unwrap();
        let entry = tree.lookup(NodeNo::ROOT, OsStr::new("f")).unwrap();
        entry.lookup.into_kernel();
        Self {
            dir,
            node: entry.attr.ino,
            locks: Arc::new(Locks::new(tree).unwrap()),
        }
    }

    fn open(&self, flags: i32) -> u64 {
        self.locks
            .tree
            .open_file(self.node, flags, false)
            .unwrap()
            .handle
    }

    fn asked(&self, handle: u64, owner: u64, kind: Kind) -> Asked {
        Asked {
            node: self.node,
            handle,
            owner,
            process: u32::try_from(owner).unwrap(),
            kind,
            range: Range::WHOLE,
        }
    }

    fn record(&self, handle: u64, owner: u64) -> Asked {
        self.asked(handle, owner, Kind::Record)
    }

    fn gets(&self, asked: &Asked) -> bool {
        let attempt = self.locks.try_lock(asked, Access::Exclusive).unwrap();
        matches!(attempt, Attempt::Granted(_))
    }

    /// FLUSH.
    fn close(&self, handle: u64, owner: u64) {
        self.locks.closed(self.node, handle, owner);
    }

    /// RELEASE.
    fn release(&self, handle: u64) {
        self.locks.tree.release(handle).unwrap();
        self.locks.released(self.node, handle);
    }
}

#[test]
fn a_close_frees_what_its_owner_has_and_a_release_what_came_through_it() {
    let setup = Setup::new();
    let (one, two, three) = (
        setup.open(READ_WRITE),
        setup.open(READ_WRITE),
        setup.open(READ_WRITE),
    );
    assert!(setup.gets(&setup.record(one, 7)));
    assert!(!setup.gets(&setup.record(three, 8)));
    // Another process has closed a copy; the owner has closed another open file of the same file.
    setup.close(one, 9);
    assert!(!setup.gets(&setup.record(three, 8)));
    setup.close(two, 7);
    assert!(setup.gets(&setup.record(three, 8)));
    setup.close(three, 8);
    // A lock of an open file: nobody closes as its owner.
    assert!(setup.gets(&setup.record(one, 10)));
    setup.close(one, 7);
    assert!(!setup.gets(&setup.record(three, 8)));
    setup.release(one);
    assert!(setup.gets(&setup.record(three, 8)));
    assert!(lock(&setup.locks.table).handles.len() == 1);
}

#[test]
fn a_release_leaves_what_its_owner_has_locked_through_another_file_since() {
    let setup = Setup::new();
    let (old, new, other) = (
        setup.open(READ_WRITE),
        setup.open(READ_WRITE),
        setup.open(READ_WRITE),
    );
    assert!(setup.gets(&setup.record(old, 7)));
    setup.close(old, 7);
    assert!(setup.gets(&setup.record(new, 7)));
    setup.release(old);
    assert!(!setup.gets(&setup.record(other, 8)));
    // A close that the kernel did not tell of, because writing back had failed (`fuse_flush`).
    setup.release(new);
    assert!(setup.gets(&setup.record(other, 8)));
}

#[test]
fn what_is_being_closed_is_worth_waiting_for() {
    let setup = Setup::new();
    for kind in [Kind::Flock, Kind::Record] {
        let (closing, other) = (setup.open(READ_WRITE), setup.open(READ_WRITE));
        assert!(setup.gets(&setup.asked(closing, 7, kind)));
        let asked = setup.asked(other, 8, kind);
        let held = |attempt| match attempt {
            Ok(Attempt::Held { until }) => until.is_some(),
            other => panic!("{other:?}"),
        };
        assert!(!held(setup.locks.try_lock(&asked, Access::Shared)));
        setup.close(closing, 1);
        assert!(held(setup.locks.try_lock(&asked, Access::Shared)));
        thread::scope(|scope| {
            let locks = &setup.locks;
            let waits = scope.spawn(move || locks.lock_when_released(&asked, Access::Shared));
            setup.release(closing);
            assert!(waits.join().unwrap().is_ok());
        });
        setup.locks.unlock(&asked).unwrap();

        // But not for long: it may be open elsewhere.
        let shared = setup.open(READ_WRITE);
        assert!(setup.gets(&setup.asked(shared, 7, kind)));
        setup.close(shared, 1);
        let result = setup.locks.lock_when_released(&asked, Access::Shared);
        assert_eq!(result, Err(Error::LOCKED));
        setup.release(shared);
        setup.release(other);
    }
}

/// Whoever asks while it is released sees that, at whatever point of it.
#[test]
fn what_is_released_meanwhile_is_not_taken_for_held() {
    let setup = Setup::new();
    for round in 0..2000 {
        let (closing, other) = (setup.open(READ_WRITE), setup.open(READ_WRITE));
        assert!(setup.gets(&setup.record(closing, 7)));
        setup.close(closing, 1);
        let asked = setup.record(other, 8);
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                setup.release(closing);
            });
            start.wait();
            for _ in 0..round % 50 {
                std::hint::spin_loop();
            }
            let attempt = setup.locks.try_lock(&asked, Access::Exclusive).unwrap();
            let is_missed = matches!(attempt, Attempt::Held { until: None });
            assert!(!is_missed, "{round}");
        });
        setup.release(other);
    }
}

#[test]
fn a_change_is_told_until_the_cache_is_said_to_be_true_for_it() {
    let setup = Setup::new();
    let handle = setup.open(READ_WRITE);
    let asked = setup.record(handle, 7);
    let changed = || match setup.locks.try_lock(&asked, Access::Exclusive) {
        Ok(Attempt::Granted(granted)) => granted.changed,
        other => panic!("{other:?}"),
    };
    // The file's clock has to have gone on since the last change.
    let begin = Instant::now();
    let stamp = loop {
        assert!(begin.elapsed() < LONG);
        match changed() {
            Some(stamp) if stamp.settled => break stamp,
            Some(stamp) => setup.locks.cache_is_true(&asked, stamp),
            None => panic!("known for a state that the next change might not have altered"),
        }
    };
    assert_eq!(changed(), Some(stamp));
    setup.locks.cache_is_true(&asked, stamp);
    assert_eq!(changed(), None);
    fs::write(setup.dir.path().join("f"), "y").unwrap();
    assert!(changed().is_some());
}

#[test]
fn states_are_the_same_only_if_a_change_would_have_shown() {
    let stamp = |settled| Stamp {
        size: 1,
        modified: (2, 3),
        changed: (4, 5),
        settled,
    };
    assert!(stamp(true).is(stamp(true)));
    assert!(stamp(true).is(stamp(false)));
    assert!(!stamp(false).is(stamp(true)));
    let mut later = stamp(true);
    later.changed.1 += 1;
    assert!(!stamp(true).is(later));
}

#[test]
fn a_wait_ends_with_the_error_that_it_is_given() {
    let setup = Setup::new();
    let (holder, other) = (setup.open(READ_WRITE), setup.open(READ_WRITE));
    for kind in [Kind::Flock, Kind::Record] {
        assert!(setup.gets(&setup.asked(holder, 7, kind)));
        let (waiter, asked) = (Waiter::new(0), setup.asked(other, 8, kind));
        thread::scope(|scope| {
            let wait = || setup.locks.lock(&asked, Access::Exclusive, &waiter);
            let waits = scope.spawn(wait);
            let begin = Instant::now();
            while lock(&waiter.state).thread.is_none() {
                assert!(begin.elapsed() < LONG);
                thread::yield_now();
            }
            assert!(!waiter.nudge(), "nothing to see");
            waiter.end(Errno::INTR);
            waiter.end(Errno::NOTCONN);
            while !waits.is_finished() {
                assert!(waiter.nudge());
                thread::yield_now();
            }
            assert_eq!(waits.join().unwrap().unwrap_err().errno(), Errno::INTR);
        });
        assert!(lock(&waiter.state).thread.is_none());
        // One that has ended already does not begin.
        let again = setup.locks.lock(&asked, Access::Exclusive, &waiter);
        assert_eq!(again.unwrap_err().errno(), Errno::INTR);
        let gone = setup.locks.held_by(setup.node, 8);
        assert_eq!(gone, []);
    }
}

#[test]
fn locks_move_to_a_file_that_can_be_written() {
    let setup = Setup::new();
    let (reads, writes) = (setup.open(READ_ONLY), setup.open(READ_WRITE));
    let part = |handle, start, end| Asked {
        range: Range { start, end },
        ..setup.record(handle, 7)
    };
    let try_lock = |asked: &Asked, access| setup.locks.try_lock(asked, access).unwrap();
    let _ = try_lock(&part(reads, 0, 9), Access::Shared);
    let _ = try_lock(&part(writes, 20, 29), Access::Exclusive);
    let _ = try_lock(&part(reads, 25, 39), Access::Shared);
    let expected = [
        (Access::Shared, Range { start: 0, end: 9 }),
        (Access::Exclusive, Range { start: 20, end: 24 }),
        (Access::Shared, Range { start: 25, end: 39 }),
    ];
    assert_eq!(setup.locks.held_by(setup.node, 7), expected);
    // Told by whichever of the two.
    setup.release(reads);
    assert_eq!(setup.locks.held_by(setup.node, 7), []);
}

#[test]
fn a_lock_that_comes_as_its_owner_closes_the_file_does_not_stay() {
    let setup = Setup::new();
    let (one, other) = (setup.open(READ_WRITE), setup.open(READ_WRITE));
    let asked = setup.record(one, 7);
    let file = setup.locks.tree.file(one).unwrap();
    let holder = setup
        .locks
        .holder(&asked, &file, Access::Exclusive)
        .unwrap();
    setup.close(one, 7);
    let set = holder.set(Some(Access::Exclusive), &asked, sys::Wait::No);
    assert_eq!(set, Ok(false));
    assert!(setup.gets(&setup.record(other, 8)));
}

#[test]
fn a_lock_that_comes_while_others_move_leaves_them_alone() {
    let setup = Setup::new();
    let (reads, writes) = (setup.open(READ_ONLY), setup.open(READ_WRITE));
    let asked = setup.record(reads, 7);
    let file = setup.locks.tree.file(reads).unwrap();
    let old = setup.locks.holder(&asked, &file, Access::Shared).unwrap();
    assert_eq!(
        old.set(Some(Access::Shared), &asked, sys::Wait::No),
        Ok(true)
    );
    old.state.store(MOVING, Ordering::SeqCst);
    let part = Asked {
        range: Range { start: 5, end: 9 },
        ..asked
    };
    assert_eq!(old.set(None, &part, sys::Wait::No), Ok(false));
    assert_eq!(setup.locks.held_by(setup.node, 7).len(), 2);
    let moved = setup.record(writes, 7);
    let attempt = setup.locks.try_lock(&moved, Access::Exclusive).unwrap();
    assert!(matches!(attempt, Attempt::Granted(_)));
    assert_eq!(old.state.load(Ordering::SeqCst), RETIRED);
    assert_eq!(sys::held(old.file.as_fd()).unwrap(), []);
}

#[test]
fn nothing_is_asked_of_a_handle_that_is_not_there() {
    let setup = Setup::new();
    let asked = setup.record(4711, 7);
    let bad = Err(Error::BAD_HANDLE);
    assert_eq!(setup.locks.try_lock(&asked, Access::Shared), bad);
    assert_eq!(setup.locks.unlock(&asked), Err(Error::BAD_HANDLE));
    assert!(setup.locks.test(&asked, None).is_err());
    setup.close(4711, 7);
    setup.locks.released(setup.node, 4711);
    assert!(lock(&setup.locks.table).handles.is_empty());
}
