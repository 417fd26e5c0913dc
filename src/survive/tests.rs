//! What is there after a kill, wherever it comes.
#![allow(clippy::unwrap_used)]

use super::kill::killed_after;
use super::*;
use proptest::strategy::Strategy as _;

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
    // Not dropped before the end: a process that is killed gives nothing back.
    let _of_the_killed: Vec<_> = (1..=10).map(|unique| state.begin(unique * 2)).collect();
    let state = next(&state);
    assert_eq!(state.take_over((1, 2), 12).unwrap().len(), 10);
    let slots: Vec<Slot> = (100..100 + layout::MOST_SLOTS as u64)
        .map(|unique| state.begin(unique).unwrap())
        .collect();
    assert!(state.begin(5).is_none(), "all are in use");
    drop(slots);
    assert!(!state.begin(again(2)).unwrap().comes_again());
}

/// Something that happens to a mount.
#[derive(Debug, Clone)]
enum Step {
    /// A request whose answer gives counts on nodes, and perhaps a handle.
    Give(Vec<u64>, bool),
    /// FORGET of all that the kernel has of a node.
    Forget(u64),
    /// RELEASE of the oldest handle.
    Release,
}

/// What the kernel has got.
#[derive(Debug, Default)]
struct Kernel {
    counts: std::collections::BTreeMap<u64, u64>,
    handles: Vec<u64>,
    unique: u64,
}

/// One process after the other, each with the requests of the kernel.
struct Run {
    state: Arc<State>,
    kernel: Kernel,
    /// Of processes that were killed, which give nothing back.
    slots: std::cell::RefCell<Vec<Slot>>,
}

impl Run {
    fn place(&self, node: u64) -> Option<Place> {
        let all = 0..self.state.words.load(header::PAGES) * 64;
        let mut places = all.map(|at| Place::of_number(at + 1).unwrap());
        places.find(|place| {
            let at = layout::NODES + usize::try_from(place.number() - 1).unwrap() * node::SHORT;
            self.state.lookups(*place) > 0 && self.state.words.load(at + node::NUMBER) == node
        })
    }

    /// What a thread does for a request; what it gave when its answer was sent.
    fn serve(&self, slot: Slot, nodes: &[u64], opens: bool) -> Vec<u64> {
        let in_hand = slot.enter();
        for node in nodes {
            match self.place(*node) {
                Some(place) => self.state.count_up(place),
                None => drop(self.state.enter(&found(*node), None)),
            }
        }
        let handle = opens.then(|| self.state.opened(1, 0, false).unwrap());
        drop(in_hand);
        slot.sending();
        self.slots.borrow_mut().push(slot);
        handle.into_iter().collect()
    }

    fn was_sending(&self, unique: u64) -> bool {
        let slots = (0..layout::MOST_SLOTS).map(|at| layout::SLOTS + at * layout::slot::WORDS);
        let word = |at: usize, word: usize| self.state.words.load(at + word);
        let mut slots = slots.filter(|at| word(*at, layout::slot::UNIQUE) == unique);
        slots.any(|at| word(at, layout::slot::SENDING) != 0)
    }

    fn answered(&mut self, nodes: &[u64], handles: Vec<u64>) {
        for node in nodes {
            *self.kernel.counts.entry(*node).or_default() += 1;
        }
        self.kernel.handles.extend(handles);
    }

    fn next_process(&mut self) {
        self.state = next(&self.state);
        let unsent = self.state.take_over((1, 2), 12).unwrap();
        let known = self.state.known();
        for given in unsent {
            self.take_back(&known, &given);
        }
    }

    fn take_back(&self, known: &[(Place, Node)], given: &Given) {
        let in_hand = self.state.enter_left(given);
        for node in &given.nodes {
            let place = known.iter().find(|(_, known)| known.number == *node);
            let place = place.map_or_else(|| self.place(*node).unwrap(), |(place, _)| *place);
            self.state.count_down(place, 1).unwrap();
        }
        given
            .handle
            .into_iter()
            .for_each(|handle| self.state.closed(handle));
        drop(in_hand);
        self.state.taken_back(given);
    }

    /// A step, with a kill after some points if it lasts so long; whether the request comes again then, or who asked
    /// was killed too.
    fn step(&mut self, step: &Step, points: u64, comes_again: bool) {
        match step {
            Step::Give(nodes, opens) => {
                self.kernel.unique += 2;
                let unique = self.kernel.unique;
                let given = killed_after(points, || {
                    let slot = self.state.begin(unique).unwrap();
                    self.serve(slot, nodes, *opens)
                });
                if let Some(handles) = given {
                    return self.answered(nodes, handles);
                }
                self.next_process();
                let slot = self.state.begin(again(unique)).unwrap();
                if comes_again {
                    if slot.comes_again() {
                        self.take_back(&[], &slot.given());
                    }
                    let handles = self.serve(slot, nodes, *opens);
                    self.answered(nodes, handles);
                } else if slot.comes_again() {
                    // Who asked was killed as well, and it does not come again. What an answer gave that was about to
                    // go stays counted, because it may have arrived; anything else was taken back by then.
                    let given = slot.given();
                    let nothing = given.nodes.is_empty() && given.handle.is_none();
                    assert!(nothing || self.was_sending(unique));
                    self.take_back(&[], &given);
                }
            }
            Step::Forget(node) => {
                let Some(count) = self.kernel.counts.remove(node) else {
                    return;
                };
                let place = self.place(*node).unwrap();
                if killed_after(points, || self.state.count_down(place, count)).is_none() {
                    self.next_process();
                    // It was read, and may be lost: that is known.
                    if let Some(place) = self.place(*node) {
                        self.state.count_down(place, count);
                    }
                }
            }
            Step::Release => {
                if self.kernel.handles.is_empty() {
                    return;
                }
                let handle = self.kernel.handles.remove(0);
                if killed_after(points, || self.state.closed(handle)).is_none() {
                    self.next_process();
                    // It comes again.
                    self.state.closed(handle);
                }
            }
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    /// Whatever is asked for and whenever processes are killed: what is counted and open is what the kernel has got.
    #[test]
    fn any_kills_leave_what_the_kernel_has_got(
        steps in proptest::collection::vec(
            (
                proptest::prop_oneof![
                    4 => (proptest::collection::vec(1_u64..6, 0..5), proptest::bool::ANY)
                        .prop_map(|(nodes, opens)| Step::Give(nodes, opens)),
                    2 => (1_u64..6).prop_map(Step::Forget),
                    1 => proptest::strategy::Just(Step::Release),
                ],
                0_u64..200,
                proptest::bool::weighted(0.8),
            ),
            1..30,
        )
    ) {
        let mut run = Run { state: fresh(), kernel: Kernel::default(), slots: std::cell::RefCell::default() };
        for (step, points, comes_again) in &steps {
            run.step(step, *points, *comes_again);
        }
        run.next_process();
        let kernel: Vec<(u64, u64)> = run.kernel.counts.iter().map(|(a, b)| (*a, *b)).collect();
        proptest::prop_assert_eq!(counts(&run.state), kernel);
        let mut open: Vec<u64> = run.state.all_open().iter().map(|open| open.number).collect();
        let mut handles = run.kernel.handles.clone();
        open.sort_unstable();
        handles.sort_unstable();
        proptest::prop_assert_eq!(open, handles);
    }
}
