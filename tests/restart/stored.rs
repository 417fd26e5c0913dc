//! systemd's store of descriptors: who keeps a mount may be killed too, and another one goes on. Here the test is systemd, as far as
//! that has a store; scripts/test-systemd has the real one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, IoSliceMut, Read as _, Seek as _, SeekFrom, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::supervised::child_of;
use crate::common::env::LOOPFS;
use crate::common::process::{Watched, eventually, wait_child};
use crate::common::table::{Entry, mounts};
use crate::common::{LIMIT, Mount, Signal, TestEnv, run};

/// How long a test may take. What it waits for then gets an error.
const LIFE: Duration = Duration::from_secs(60);

/// What every mount with a store has there.
const ALWAYS: [&str; 4] = [
    "loopfs-abort",
    "loopfs-device",
    "loopfs-memory",
    "loopfs-root",
];

/// Aborts what is stored: this process has the connection itself, and would wait for ever for an answer that nobody gives.
static ABORT: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

fn abort_all() {
    for abort in ABORT.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = rustix::io::write(abort, b"1");
    }
}

type Descriptors = BTreeMap<String, OwnedFd>;

/// A service manager, as far as it keeps descriptors.
struct Manager {
    store: Arc<Mutex<Descriptors>>,
    _watchdog: Sender<()>,
}

impl Manager {
    fn new(env: &TestEnv) -> Self {
        let socket = UnixDatagram::bind(env.root().join("notify")).unwrap();
        let store = Arc::new(Mutex::new(BTreeMap::new()));
        let theirs = Arc::clone(&store);
        thread::spawn(move || listen(&socket, &theirs));
        // Before anything is closed: that would wait as well.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            abort_all();
            hook(panic);
        }));
        let (watchdog, life) = channel::<()>();
        thread::spawn(move || {
            if life.recv_timeout(LIFE) == Err(RecvTimeoutError::Timeout) {
                abort_all();
            }
        });
        Self {
            store,
            _watchdog: watchdog,
        }
    }

    fn store(&self) -> MutexGuard<'_, Descriptors> {
        self.store.lock().unwrap()
    }

    /// `loopfs -f --supervise OPTIONS SRC MNT`, to be handed what there is; that has to live until it is started.
    fn command(&self, env: &TestEnv, options: &[&str]) -> (Command, Vec<OwnedFd>) {
        let store = self.store();
        let mut script = String::new();
        let mut inherited = Vec::new();
        for (number, descriptor) in (3..).zip(store.values()) {
            // Out of the way of those numbers.
            let again = rustix::io::fcntl_dupfd_cloexec(descriptor, 100).unwrap();
            rustix::io::fcntl_setfd(&again, FdFlags::empty()).unwrap();
            let from = again.as_raw_fd();
            write!(script, "exec {number}<&{from} {from}<&-; ").unwrap();
            inherited.push(again);
        }
        let names: Vec<&str> = store.keys().map(String::as_str).collect();
        script.push_str(r#"LISTEN_PID=$$ exec "$@""#);
        let mut command = Command::new("bash");
        command
            .args(["-c", &script, "bash", LOOPFS, "-f", "--supervise"])
            .args(["--restart-limit", "never"])
            .args(options)
            .arg(env.src())
            .arg(env.mnt())
            .current_dir(env.root())
            .env("RUST_LOG", "warn,loopfs=info,fuser::reply=off")
            .env("NOTIFY_SOCKET", env.root().join("notify"))
            .env("FDSTORE", "16")
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        (command, inherited)
    }

    /// Starts it, and waits until it serves and is stored.
    #[track_caller]
    fn start(&self, env: TestEnv, options: &[&str]) -> Mount {
        let (command, inherited) = self.command(&env, options);
        let mount = Mount::start_command(env, command);
        drop(inherited);
        eventually("all of it is stored", LIMIT, || {
            let store = self.store();
            ALWAYS.iter().all(|name| store.contains_key(*name))
                && store.keys().any(|name| name.starts_with("loopfs-record-"))
        });
        mount
    }

    /// Waits until it has all of a mount, and descriptors of so many nodes.
    #[track_caller]
    fn holds(&self, nodes: usize) {
        let begins = |store: &Descriptors, with| {
            let names = store.keys().filter(|name| name.starts_with(with));
            names.count()
        };
        eventually("what is stored is what there is", LIMIT, || {
            let store = self.store();
            ALWAYS.iter().all(|name| store.contains_key(*name))
                && begins(&store, "loopfs-record-") == 1
                && begins(&store, "loopfs-kept-") == nodes
                && store.len() == ALWAYS.len() + 1 + nodes
        });
    }

    /// Nothing is kept of a mount that has ended.
    #[track_caller]
    fn is_empty(&self) {
        eventually("nothing is stored", LIMIT, || self.store().is_empty());
    }
}

/// Does what is asked for, as systemd does.
fn listen(socket: &UnixDatagram, store: &Mutex<Descriptors>) {
    loop {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = {
            let mut data = [IoSliceMut::new(&mut bytes)];
            rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap()
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        let text = std::str::from_utf8(&bytes[..received.bytes]).unwrap();
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let mut store = store.lock().unwrap();
        if value("FDSTORE=") == Some("1") {
            assert_eq!(value("FDPOLL="), Some("0"), "{text}");
            let (name, descriptor) = (value("FDNAME=").unwrap(), descriptors.pop().unwrap());
            if name == "loopfs-abort" {
                ABORT.lock().unwrap().push(descriptor.try_clone().unwrap());
            }
            store.insert(name.to_owned(), descriptor);
        }
        if value("FDSTOREREMOVE=") == Some("1") {
            store.remove(value("FDNAME=").unwrap());
        }
    }
}

fn stays(entry: &Entry) -> bool {
    mounts().contains(entry)
}

/// SIGKILL for the supervisor, and for the process that serves or not: nobody is left, and the mount is.
#[track_caller]
fn kill(mount: Mount, both: bool) -> TestEnv {
    let child = child_of(mount.pid()).expect("a process that serves");
    let entry = mount.entry().clone();
    if both {
        mount.signal(Signal::STOP);
        child.signal(Signal::KILL);
    }
    let env = mount.kill();
    assert!(child.wait_end(LIMIT), "the child stays");
    assert!(stays(&entry), "it was unmounted");
    env
}

/// Programs go on, the supervisor killed alone or with the process that serves, again and again.
#[test]
fn who_keeps_a_mount_is_killed_and_another_one_goes_on() {
    let env = TestEnv::new();
    let manager = Manager::new(&env);
    let mut mount = manager.start(env, &[]);
    let entry = mount.entry().clone();
    let mut file = File::create_new(mount.path("f")).unwrap();
    for round in 1..=4_usize {
        file.write_all(b"some bytes").unwrap();
        let path = mount.path("g");
        let env = kill(mount, round % 2 == 0);
        // Who asks meanwhile waits, and gets an answer.
        let asks = thread::spawn(move || fs::write(path, "while nobody is there"));
        mount = manager.start(env, &[]);
        asks.join().unwrap().unwrap();
        assert_eq!(mount.entry(), &entry, "another mount");
        let mut content = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "some bytes".repeat(round));
        // What goes on does what a supervisor does.
        child_of(mount.pid()).unwrap().signal(Signal::KILL);
        file.write_all(b"!").unwrap();
        file.set_len(10 * round as u64).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        manager.holds(0);
    }
    drop(file);
    let log = mount.log();
    assert_eq!(log.matches("that systemd has kept").count(), 4, "{log}");
    mount.finish();
    manager.is_empty();
}

/// A file that has no name any more and that only the daemon has open is in the store, and found again there. Somebody else has it
/// open here: what this process has it would close between fork and exec, which is a request.
#[test]
fn what_has_no_name_is_kept_as_well() {
    let env = TestEnv::new();
    let manager = Manager::new(&env);
    let mut mount = manager.start(env, &["--io", "direct"]);
    let script = r#"exec 3>"$1" 4<"$1"; rm "$1"
        while read -r word; do echo "$word" >&3; read -r back <&4; echo "$back"; done"#;
    let mut holder = Command::new("sh")
        .args(["-euc", script, "sh"])
        .arg(mount.path("f"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut says = holder.stdin.take().unwrap();
    let mut hears = BufReader::new(holder.stdout.take().unwrap()).lines();
    let mut echoes = |word: &str| {
        writeln!(says, "{word}").unwrap();
        assert_eq!(hears.next().unwrap().unwrap(), word);
    };
    echoes("before");
    for (both, word) in [(true, "one"), (false, "two"), (true, "three")] {
        manager.holds(1);
        let env = kill(mount, both);
        mount = manager.start(env, &["--io", "direct"]);
        echoes(word);
    }
    drop(says);
    assert!(wait_child(&mut holder, LIMIT).unwrap().success());
    manager.holds(0);
    mount.finish();
    manager.is_empty();
}

/// More of them than the store takes: it is said, and what is there stays.
#[test]
fn a_store_that_is_full_is_spoken_of() {
    let env = TestEnv::new();
    let manager = Manager::new(&env);
    let mount = manager.start(env, &["--io", "direct"]);
    let files: Vec<File> = (0..20)
        .map(|number| {
            let path = mount.path(number.to_string());
            let file = File::create_new(&path).unwrap();
            fs::remove_file(path).unwrap();
            file
        })
        .collect();
    manager.holds(8);
    let log = mount.log();
    assert_eq!(
        log.matches("systemd keeps 8 files without a name at most")
            .count(),
        1,
        "{log}"
    );
    drop(files);
    manager.holds(0);
    mount.finish();
    manager.is_empty();
}

/// The signal that says that a start follows: nobody is cut off, and the status says so. A second one changes nothing.
#[test]
fn a_restart_leaves_the_mount() {
    let env = TestEnv::new();
    let manager = Manager::new(&env);
    let mount = manager.start(env, &[]);
    let mut file = File::create_new(mount.path("f")).unwrap();
    file.write_all(b"x").unwrap();
    let entry = mount.entry().clone();
    let supervisor = Watched::new(mount.pid()).unwrap();
    let child = child_of(mount.pid()).unwrap();
    mount.signal(Signal::USR1);
    assert!(supervisor.wait_end(LIMIT) && child.wait_end(LIMIT));
    assert!(
        mount.log().contains("is left to the next start"),
        "{}",
        mount.log()
    );
    assert!(stays(&entry));
    let env = mount.kill();
    let mount = manager.start(env, &[]);
    file.write_all(b"y").unwrap();
    drop(file);
    assert_eq!(fs::read(mount.source("f")).unwrap(), b"xy");
    mount.finish();
    manager.is_empty();
}

/// Where nobody would go on it is a signal like the others.
#[test]
fn a_restart_without_a_store_is_an_end() {
    let mount = Mount::start(&["--supervise"]);
    mount.signal(Signal::USR1);
    mount.ended();
    // Nor is a mount left that is on its way out: a start is to mount it.
    let env = TestEnv::new();
    let manager = Manager::new(&env);
    let mount = manager.start(env, &["--drain-timeout", "1"]);
    let file = File::create_new(mount.path("f")).unwrap();
    mount.unmount_with("umount", &["-l"]);
    eventually("it is known", LIMIT, || {
        manager.store().contains_key("loopfs-record-2")
    });
    mount.signal(Signal::USR1);
    let (env, status, log) = mount.ended_somehow();
    assert_eq!(status.unwrap().code(), Some(0), "{log}");
    drop(file);
    env.assert_clean();
    manager.is_empty();
}

/// Who is killed on its way out is followed by one that goes on from there.
#[test]
fn the_way_out_goes_on() {
    let env = TestEnv::new();
    let manager = Manager::new(&env);
    let mount = manager.start(env, &["--drain-timeout", "60"]);
    let mut file = File::create_new(mount.path("f")).unwrap();
    let entry = mount.entry().clone();
    mount.signal(Signal::TERM);
    eventually("it is detached", LIMIT, || !stays(&entry));
    // Draining, and then detached.
    eventually("it is known", LIMIT, || {
        manager.store().contains_key("loopfs-record-3")
    });
    let child = child_of(mount.pid()).unwrap();
    let env = mount.kill();
    assert!(child.wait_end(LIMIT), "the child stays");
    let (mut command, inherited) = manager.command(&env, &["--drain-timeout", "60"]);
    let mut next = command.spawn().unwrap();
    drop(inherited);
    file.write_all(b"x").unwrap();
    drop(file);
    let status = wait_child(&mut next, LIMIT).expect("it does not end");
    assert_eq!(status.code(), Some(0));
    assert_eq!(fs::read(env.src().join("f")).unwrap(), b"x");
    env.assert_clean();
    manager.is_empty();
}

/// What is not what the record says is taken down, and there is a new mount.
#[test]
fn what_can_t_be_gone_on_with_is_begun_anew() {
    for spoilt in [
        "root",
        "device",
        "memory",
        "record",
        "no record",
        "null",
        "options",
    ] {
        let env = TestEnv::new();
        let manager = Manager::new(&env);
        let mount = manager.start(env, &["--replace-stale"]);
        let file = File::create_new(mount.path("f")).unwrap();
        let before = mount.entry().clone();
        let env = kill(mount, true);
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let mut store = manager.store();
        let record = store
            .keys()
            .find(|name| name.starts_with("loopfs-record-"))
            .unwrap()
            .clone();
        let mut options = vec!["--replace-stale"];
        match spoilt {
            "record" => drop(store.insert(record, null())),
            "no record" => drop(store.remove(&record)),
            "null" => drop(store.insert("loopfs-device".into(), null())),
            "options" => options.push("-r"),
            name => drop(store.remove(&format!("loopfs-{name}"))),
        }
        drop(store);
        let begun = Instant::now();
        let mount = manager.start(env, &options);
        assert!(begun.elapsed() < Duration::from_secs(10), "{spoilt}");
        let log = mount.log();
        assert!(
            log.contains("is taken down, and begun anew"),
            "{spoilt}: {log}"
        );
        assert!(file.set_len(3).is_err(), "{spoilt}: the old one goes on");
        drop(file);
        assert_eq!(
            mounts()
                .iter()
                .filter(|it| it.target == before.target)
                .count(),
            1
        );
        assert!(fs::metadata(mount.path("f")).is_ok(), "{spoilt}");
        mount.signal(Signal::TERM);
        let (env, status, log) = mount.ended_somehow();
        assert_eq!(status.unwrap().code(), Some(0), "{spoilt}: {log}");
        env.assert_clean();
        manager.is_empty();
    }
}

/// A mount that was unmounted while nobody kept it is not gone on with either.
#[test]
fn what_was_unmounted_meanwhile_is_mounted_anew() {
    let env = TestEnv::new();
    let manager = Manager::new(&env);
    let mount = manager.start(env, &[]);
    let env = kill(mount, true);
    let mut command = Command::new("umount");
    command.arg("-l").arg(env.mnt());
    run(&mut command, LIMIT).success();
    let mount = manager.start(env, &[]);
    assert!(
        mount.log().contains("its connection has ended"),
        "{}",
        mount.log()
    );
    fs::write(mount.path("f"), "x").unwrap();
    mount.signal(Signal::TERM);
    let (env, status, _) = mount.ended_somehow();
    assert_eq!(status.unwrap().code(), Some(0));
    env.assert_clean();
    manager.is_empty();
}

/// The program changes in one process, and then who keeps it is killed: one follows the other.
#[test]
fn an_upgrade_and_a_death_follow_each_other() {
    let env = TestEnv::new();
    let manager = Manager::new(&env);
    let mut mount = manager.start(env, &[]);
    let mut file = File::create_new(mount.path("f")).unwrap();
    for round in 1..=2_usize {
        let mut command = mount.loopfs(["upgrade"]);
        command.arg(mount.mnt());
        run(&mut command, LIMIT).success();
        eventually("it is upgraded", LIMIT, || {
            mount.log().matches("is kept by").count() >= 2 * round - 1
        });
        file.write_all(b"x").unwrap();
        let env = kill(mount, round % 2 == 0);
        mount = manager.start(env, &[]);
        file.write_all(b"y").unwrap();
        manager.holds(0);
    }
    drop(file);
    assert_eq!(fs::read(mount.source("f")).unwrap(), b"xyxy");
    mount.finish();
    manager.is_empty();
}
