//! flock and fcntl locks, between processes and between descriptors.

use std::fs::{File, OpenOptions};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock, flock};

use crate::common::process::{run, wait_child};
use crate::common::{LIMIT, sh};
use crate::{Tree, errno};

fn open(t: &Tree) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(t.path("lock"))
        .unwrap()
}

cases! {
    /// flock: shared with shared, exclusive with nothing, and gone with the last descriptor.
    fn flock_between_descriptors(t) {
        let (a, b) = (open(t), open(t));
        t.try_see("a shared", flock(&a, FlockOperation::NonBlockingLockShared));
        t.try_see("b shared", flock(&b, FlockOperation::NonBlockingLockShared));
        assert_eq!(errno(flock(&a, FlockOperation::NonBlockingLockExclusive)), libc::EWOULDBLOCK);
        t.try_see("b unlock", flock(&b, FlockOperation::Unlock));
        t.try_see("a exclusive", flock(&a, FlockOperation::NonBlockingLockExclusive));
        assert_eq!(errno(flock(&b, FlockOperation::NonBlockingLockShared)), libc::EWOULDBLOCK);
        drop(a);
        t.try_see("b after the close of a", flock(&b, FlockOperation::NonBlockingLockExclusive));
    }

    /// A contended flock(1) waits, and gets the lock when it is free: nothing hangs meanwhile.
    fn contended_flock_waits(t) {
        let file = open(t);
        flock(&file, FlockOperation::LockExclusive).unwrap();
        let mut waiters: Vec<_> = (0..8).map(|number| {
            Command::new("flock").arg(t.path("lock")).args(["-c", &format!("echo {number} >>{}", t.path("out").display())]).spawn().unwrap()
        }).collect();
        for waiter in &mut waiters {
            assert_eq!(wait_child(waiter, Duration::from_millis(20)), None, "it should wait");
        }
        // Other operations go on while eight callers wait.
        t.file("other", "x");
        let asked = Instant::now();
        t.try_see("other", std::fs::read_to_string(t.path("other")));
        assert!(asked.elapsed() < LIMIT);
        flock(&file, FlockOperation::Unlock).unwrap();
        for mut waiter in waiters {
            assert!(wait_child(&mut waiter, LIMIT).expect("got the lock").success());
        }
        let mut lines: Vec<_> = std::fs::read_to_string(t.path("out")).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        t.see("all had it", lines);
    }

    /// fcntl locks are the process's: another process is kept out, the same one is not.
    fn fcntl_between_processes(t) {
        let (a, b) = (open(t), open(t));
        t.try_see("lock", fcntl_lock(&a, FlockOperation::NonBlockingLockExclusive));
        t.try_see("the same process again", fcntl_lock(&b, FlockOperation::NonBlockingLockExclusive));
        let script = "import fcntl, sys
f = open(sys.argv[1], 'r+')
try:
    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print('got it')
except OSError as error: print(error.strerror)";
        let other = || {
            let mut python = Command::new("python3");
            python.args(["-c", script]).arg(t.path("lock"));
            run(&mut python, LIMIT).success()
        };
        let held = other();
        drop(b); // closing any descriptor of the file gives the process's locks up
        let free = other();
        assert_eq!((held.trim(), free.trim()), ("Resource temporarily unavailable", "got it"));
        t.see("others", (held, free));
    }

    /// Byte ranges of fcntl locks, split and merged, as another process sees them.
    fn fcntl_ranges(t) {
        let script = "
import fcntl, os, struct
f = open('lock', 'w+b')
def lock(kind, start, length): fcntl.lockf(f, kind | fcntl.LOCK_NB, length, start)
def others(start, length):
    reader, writer = os.pipe()
    if os.fork() == 0:
        g = open('lock', 'r+b')
        want = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, start, length, 0)
        kind, whence, s, l, pid = struct.unpack('hhqqi4x', fcntl.fcntl(g, fcntl.F_GETLK, want))
        os.write(writer, repr((kind, s, l) if kind != fcntl.F_UNLCK else 'free').encode()); os._exit(0)
    os.wait(); print(start, length, os.read(reader, 100).decode())
lock(fcntl.LOCK_EX, 0, 100); fcntl.lockf(f, fcntl.LOCK_UN, 20, 40); lock(fcntl.LOCK_SH, 80, 100)
for start, length in [(0, 10), (40, 20), (50, 1), (60, 5), (90, 5), (150, 100), (180, 1), (0, 0)]: others(start, length)
";
        let seen = sh(t.top(), &format!("python3 - <<'END'\n{script}\nEND"));
        assert!(seen.contains("free"), "{seen}");
        t.see("ranges", seen);
    }

    /// Locks end with the process that holds them.
    fn locks_end_with_their_process(t) {
        File::create(t.path("lock")).unwrap();
        // --no-fork: flock becomes the program, so that one process has the lock.
        let mut holder = Command::new("flock").arg("--no-fork").arg(t.path("lock"))
            .args(["sh", "-c", "echo locked >ready; exec sleep 60"]).current_dir(t.top()).spawn().unwrap();
        crate::common::process::eventually("the lock is held", LIMIT, || t.path("ready").exists());
        let file = open(t);
        assert_eq!(errno(flock(&file, FlockOperation::NonBlockingLockExclusive)), libc::EWOULDBLOCK);
        holder.kill().unwrap();
        holder.wait().unwrap();
        t.try_see("free", flock(&file, FlockOperation::LockExclusive));
    }
}
