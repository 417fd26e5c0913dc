//! What is there after a kill, wherever it comes.
#![allow(clippy::unwrap_used)]

use super::kill::killed_after;
use super::*;

fn fresh() -> Arc<State> {
    let state = Arc::new(State::create().unwrap());
    assert!(state.is_blank());
    assert!(state.take_over((1, 2), 12).unwrap().is_empty());
    assert!(state.known().is_empty());
    state
}

/// The number of a request that comes a second time.
fn again(unique: u64) -> u64 {
    unique | 1 << 63
}

/// The next process.
fn next(state: &State) -> Arc<State> {
    let memory = state.as_fd().try_clone_to_owned().unwrap();
    Arc::new(State::open(memory).unwrap())
}

fn found(number: u64) -> Node<&'static [u8]> {
    Node {
        number,
        device: 7,
        ino: number + 1000,
        kind: 8,
        birth: 0x1234,
        reach: Reach::Handle(0x81, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    }
}

#[test]
fn what_is_known_and_open_is_there_for_the_next_process() {
    let state = fresh();
    let one = state.enter(&found(11), None).unwrap();
    state.count_up(one);
    state.note(one, Flag::Mappable);
    let by_descriptor = Node {
        reach: Reach::Descriptor(77),
        ..found(12)
    };
    let two = state.enter(&by_descriptor, None).unwrap();
    let gone = state.enter(&found(13), None).unwrap();
    assert_eq!(state.count_down(gone, 1), Some(0));
    let file = state.opened(11, 2, false).unwrap();
    state.note_way(file, 99);
    let dir = state.opened(12, 0, true).unwrap();
    state.closed(dir);
    state.add_other((8, 9));
    assert_eq!(state.next_generation(), 1);
    let key = state.key((10, 11));

    let state = next(&state);
    assert!(!state.is_blank());
    assert!(state.take_over((1, 2), 12).unwrap().is_empty());
    let owned = |node: Node<&[u8]>| Node {
        reach: match node.reach {
            Reach::Handle(kind, bytes) => Reach::Handle(kind, bytes.to_vec()),
            Reach::Descriptor(generation) => Reach::Descriptor(generation),
        },
        number: node.number,
        device: node.device,
        ino: node.ino,
        kind: node.kind,
        birth: node.birth,
    };
    let known = [(one, owned(found(11))), (two, owned(by_descriptor))];
    assert_eq!(state.known(), known);
    assert_eq!((state.lookups(one), state.lookups(two)), (2, 1));
    assert!(Flag::Mappable.is_in(state.flags(one)) && !Flag::Kept.is_in(state.flags(one)));
    let open = Open {
        number: file,
        node: 11,
        flags: 2,
        directory: false,
        closing: false,
        way: 99,
    };
    assert_eq!(state.all_open(), [open]);
    assert_ne!(state.opened(11, 2, false).unwrap(), dir, "never again");
    assert_eq!(state.others(), [(8, 9)]);
    assert_eq!((state.next_generation(), state.key((0, 0))), (2, key));
    // What was free is used again, and what was not is not.
    let three = state.enter(&found(14), None).unwrap();
    assert_eq!(three, gone);
}

#[test]
fn another_layout_or_source_and_what_is_no_state_are_refused() {
    let state = fresh();
    assert_eq!(
        next(&state).take_over((1, 3), 12).unwrap_err(),
        Unreadable::OtherSource
    );
    state.words.store(header::VERSION, layout::VERSION + 1);
    let memory = || state.as_fd().try_clone_to_owned().unwrap();
    let error = State::open(memory()).unwrap_err();
    assert_eq!(error, Unreadable::Version(layout::VERSION + 1));
    assert!(error.to_string().contains("unmount it"), "{error}");
    state.words.store(header::VERSION, layout::VERSION);
    state.words.store(header::MAGIC, 0);
    assert_eq!(State::open(memory()).unwrap_err(), Unreadable::NotOurs);
    let other = Shared::create("other", 512).unwrap();
    let other = other.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(State::open(other).unwrap_err(), Unreadable::NotOurs);
}

/// A request as its thread does it: two counts given of which one is taken back, another node in the place of an
/// older one, a file opened.
fn request(state: &Arc<State>, unique: u64, one: Place, old: Place, send: impl FnOnce()) {
    let slot = state.begin(unique).unwrap();
    let entered = slot.enter();
    state.intend(3, &[7, 8]);
    state.count_up(one);
    state.enter(&found(21), None);
    state.count_up(one);
    state.count_down(one, 1);
    state.enter(&found(12), Some(old));
    let file = state.opened(21, 2, false).unwrap();
    state.note_way(file, 5);
    drop(entered);
    slot.sending();
    send();
}

/// Wherever the kill comes: what was answered stays, what was not is as if it had never been asked, and what comes
/// again is known.
#[test]
fn a_kill_between_any_two_stores_leaves_counts_that_are_right() {
    let (mut points, mut seen) = (0, [0; 3]);
    loop {
        let state = fresh();
        let one = state.enter(&found(11), None).unwrap();
        let old = state.enter(&found(12), None).unwrap();
        state.count_up(old);
        let mut sent = false;
        let survived = killed_after(points, || {
            request(&state, 40, one, old, || sent = true);
        });
        let state = next(&state);
        for given in state.take_over((1, 2), 12).unwrap() {
            take_back(&state, &given);
        }
        let counts = counts(&state);
        let is_whole = counts == [(11, 2), (12, 3), (21, 1)];
        let open = state.all_open();
        let slot = state.begin(again(40)).unwrap();
        if sent {
            assert!(is_whole && open.len() == 1, "after {points}: {counts:?}");
            seen[2] += 1;
        } else {
            // The answer may just have been about to go: then it comes again, and is taken back now.
            if slot.comes_again() {
                let entered = slot.enter();
                let intended = state.intended();
                assert!(intended.is_none_or(|(what, with)| (what, with[0], with[1]) == (3, 7, 8)));
                drop(entered);
                take_back(&state, &slot.given());
                seen[1] += 1;
            } else {
                seen[0] += 1;
            }
            let counts = self::counts(&state);
            assert_eq!(counts, [(11, 1), (12, 2)], "after {points}");
            assert!(state.all_open().is_empty(), "after {points}");
        }
        drop(slot);
        if survived.is_some() {
            break;
        }
        points += 1;
    }
    assert!(
        points > 100 && seen.iter().all(|count| *count > 0),
        "{seen:?}"
    );
}

/// The taking back itself may be cut short, any number of times.
#[test]
fn a_kill_while_a_kill_is_mended_changes_nothing() {
    for points in 0..60 {
        let state = fresh();
        let one = state.enter(&found(11), None).unwrap();
        let old = state.enter(&found(12), None).unwrap();
        let _ = killed_after(points * 3, || request(&state, 40, one, old, || {}));
        if state.words.load(layout::SLOTS + layout::slot::SENDING) != 0 {
            break;
        }
        for points in 0.. {
            let state = next(&state);
            let mended = killed_after(points, || {
                for given in state.take_over((1, 2), 12).unwrap() {
                    take_back(&state, &given);
                }
            });
            if mended.is_some() {
                assert_eq!(counts(&state), [(11, 1), (12, 1)]);
                assert!(state.all_open().is_empty());
                break;
            }
        }
    }
}

/// As `loopback` does it, with its table for a way from numbers to places.
fn take_back(state: &Arc<State>, given: &Given) {
    let known = state.known();
    let entered = state.enter_left(given);
    for node in &given.nodes {
        let place = known.iter().find(|(_, known)| known.number == *node);
        state.count_down(place.unwrap().0, 1).unwrap();
    }
    given
        .handle
        .into_iter()
        .for_each(|handle| state.closed(handle));
    drop(entered);
    state.taken_back(given);
}

fn counts(state: &State) -> Vec<(u64, u64)> {
    let known = state.known();
    let mut counts: Vec<_> = known
        .iter()
        .map(|(place, node)| (node.number, state.lookups(*place)))
        .collect();
    counts.sort_unstable();
    counts
}

#[test]
fn places_are_used_again_and_what_was_emptied_is_given_back() {
    let state = fresh();
    let all: Vec<Place> = (100..20_100)
        .map(|number| state.enter(&found(number), None).unwrap())
        .collect();
    for place in &all {
        state.count_down(*place, 1);
    }
    let memory = rustix::fs::fstat(state.as_fd()).unwrap().st_blocks * 512;
    assert!(memory < 600_000, "{memory} bytes of 1.3 million");
    let again: Vec<Place> = (100..20_100)
        .map(|number| state.enter(&found(number), None).unwrap())
        .collect();
    assert_eq!(
        again.iter().max(),
        all.iter().max(),
        "no page more than before"
    );
    assert_eq!(next(&state).known().len(), 20_000);
}

#[test]
fn slots_that_nobody_asks_for_are_used_when_no_other_is_left() {
    let state = fresh();
    for unique in 1..=10 {
        std::mem::forget(state.begin(unique * 2));
    }
    let state = next(&state);
    assert_eq!(state.take_over((1, 2), 12).unwrap().len(), 10);
    let slots: Vec<Slot> = (100..100 + layout::MOST_SLOTS as u64)
        .map(|unique| state.begin(unique).unwrap())
        .collect();
    assert!(state.begin(5).is_none(), "all are in use");
    drop(slots);
    assert!(!state.begin(again(2)).unwrap().comes_again());
}
