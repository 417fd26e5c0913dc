//! As a service of systemd: what it is told over its socket. Here the test is the service manager.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::process::run;
use crate::common::table::mount_at;
use crate::common::{LIMIT, Mount, Signal, TestEnv};

/// A service manager's end of the conversation.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn new(env: &TestEnv) -> Self {
        let socket = UnixDatagram::bind(env.root().join("notify")).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self {
            socket,
            heard: Vec::new(),
        }
    }

    /// Starts `loopfs -f OPTIONS SRC MNT` as a service.
    fn start(env: TestEnv, watchdog: Option<Duration>, options: &[&str]) -> (Self, Mount) {
        let manager = Self::new(&env);
        let mut command = env.loopfs(["-f"]);
        command.args(options).arg(env.src()).arg(env.mnt());
        command.env("NOTIFY_SOCKET", env.root().join("notify"));
        if let Some(limit) = watchdog {
            command.env("WATCHDOG_USEC", limit.as_micros().to_string());
        }
        (manager, Mount::start_command(env, command))
    }

    /// Waits for a line that `wanted` takes.
    #[track_caller]
    fn hear(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(place) = self.heard.iter().position(|line| wanted(line)) {
                return self.heard.drain(..=place).next_back().unwrap();
            }
            assert!(Instant::now() < deadline, "not heard: {what}");
            let mut message = [0; 4096];
            let length = self.socket.recv(&mut message).expect(what);
            let text = std::str::from_utf8(&message[..length]).unwrap();
            self.heard.extend(text.lines().map(str::to_owned));
        }
    }

    /// Whether nothing like that comes within `time`.
    fn silent(&mut self, time: Duration, unwanted: impl Fn(&str) -> bool) -> bool {
        let deadline = Instant::now() + time;
        self.heard.clear();
        while let Some(left) = deadline
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut message = [0; 4096];
            match self.socket.recv(&mut message) {
                Ok(length)
                    if std::str::from_utf8(&message[..length])
                        .unwrap()
                        .lines()
                        .any(&unwanted) =>
                {
                    return false;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.socket.set_read_timeout(Some(LIMIT)).unwrap();
        true
    }
}

/// READY when it is mounted, the status with what is open, STOPPING when it is told to end.
#[test]
fn ready_status_stopping() {
    let (mut manager, mount) = Manager::start(TestEnv::new(), None, &["--drain-timeout", "5"]);
    manager.hear("READY", |line| line == "READY=1");
    assert!(mount_at(&mount.mnt()).is_some());
    // The first one may come before the release of what the self-test had open.
    let (src, mnt) = (mount.src(), mount.mnt());
    let wanted = format!(
        "STATUS={} at {}, nothing open",
        src.display(),
        mnt.display()
    );
    manager.hear("a status", |line| line == wanted);
    let file = File::create(mount.path("f")).unwrap();
    manager.hear("the open file", |line| line.ends_with("1 file open"));
    mount.signal(Signal::TERM);
    manager.hear("STOPPING", |line| line == "STOPPING=1");
    manager.hear("the drain", |line| {
        line.contains("no longer at") && line.contains(": 1 of 1 still open, ")
    });
    drop(file);
    let (env, status, _) = mount.ended_somehow();
    assert!(status.is_some_and(|status| status.success()));
    env.assert_clean();
}

/// Fed as long as requests are answered, or there are none; not when all hang in SRC. SRC is on another
/// loopfs, which is stopped.
#[test]
fn the_watchdog_is_fed_by_progress() {
    let below = Mount::start(&[]);
    fs::write(below.source("f"), "x").unwrap();
    let env = TestEnv::new();
    let manager = Manager::new(&env);
    let mut command = env.loopfs([
        "-f",
        "--drain-timeout",
        "0",
        "-o",
        "attr_timeout=0,entry_timeout=0",
    ]);
    command.arg(below.mnt()).arg(env.mnt());
    command.env("NOTIFY_SOCKET", env.root().join("notify"));
    command.env("WATCHDOG_USEC", "300000");
    let mount = Mount::start_command(env, command);
    let mut manager = manager;
    manager.hear("READY", |line| line == "READY=1");
    let alive = |line: &str| line == "WATCHDOG=1";
    for _ in 0..3 {
        manager.hear("a sign of life", alive);
    }
    below.signal(Signal::STOP);
    let mut caller = Command::new("cat").arg(mount.path("f")).spawn().unwrap();
    // A look or two may have come before the request was taken up.
    let deadline = Instant::now() + LIMIT;
    while !manager.silent(Duration::from_secs(1), alive) {
        assert!(Instant::now() < deadline, "fed although everything hangs");
    }
    below.signal(Signal::CONT);
    manager.hear("a sign of life again", alive);
    assert!(caller.wait().unwrap().success());
    mount.finish();
    below.finish();
}

/// In a mount namespace of its own, which pid 1 does not see: an error that says what to change.
#[test]
fn invisible_to_pid_1_is_an_error() {
    let env = TestEnv::new();
    let _manager = Manager::new(&env);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    command
        .arg(crate::common::env::LOOPFS)
        .arg("-f")
        .arg(env.src())
        .arg(env.mnt());
    command.env("NOTIFY_SOCKET", env.root().join("notify"));
    command.env("RUST_LOG", "warn");
    let finished = run(&mut command, LIMIT);
    assert_eq!(finished.code(), 32, "{finished:?}");
    assert!(
        finished
            .stderr
            .contains("invisible outside of this service"),
        "{finished:?}"
    );
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
    env.assert_clean();
}
