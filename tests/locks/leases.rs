//! Leases on files of SRC (fcntl(2), `F_SETLEASE`): who opens or truncates such a file on MNT waits until
//! the lease is given up, and nobody else does.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;

use super::agent::{Agent, quoted};
use crate::common::Mount;

/// With one event loop: each of three programs would stop it, and the mount with it.
#[test]
fn who_waits_for_a_lease_keeps_nobody_from_working() {
    let mount = Mount::start(&["--threads", "1"]);
    let path = mount.path("f");
    for name in ["f", "other"] {
        fs::write(mount.source(name), "content").unwrap();
    }
    assert_eq!(fs::read(&path).unwrap(), b"content");

    let mut holder = Agent::with(&mount.source("f"));
    // The signal that asks for the lease would end it.
    holder.ask("signal.signal(signal.SIGIO, signal.SIG_IGN)");
    let lease = |kind| format!("fcntl.fcntl(files['f'], fcntl.F_SETLEASE, fcntl.{kind})");
    assert_eq!(holder.ask(&lease("F_WRLCK")), "0");
    let refused = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::WouldBlock);

    let mut waiting = [Agent::new(), Agent::new(), Agent::new()];
    let path = quoted(&path);
    let [reader, writer, cutter] = &mut waiting;
    reader.begin(&format!("os.read(os.open({path}, os.O_RDONLY), 3)"));
    writer.begin(&format!("os.close(os.open({path}, os.O_RDWR))"));
    cutter.begin(&format!("os.truncate({path}, 4)"));
    for agent in &waiting {
        agent.still_waits();
    }
    assert_eq!(fs::read(mount.path("other")).unwrap(), b"content");
    fs::write(mount.path("new"), "new").unwrap();
    assert_eq!(holder.ask(&lease("F_UNLCK")), "0");
    let [reader, writer, cutter] = &waiting;
    assert_eq!(reader.hear(), "b'con'");
    assert_eq!([writer.hear(), cutter.hear()], ["None", "None"]);
    assert_eq!(fs::read(mount.source("f")).unwrap(), b"cont");
    drop((holder, waiting));
    mount.finish();
}

/// The same where the kernel opens files without asking: who reads or writes waits.
#[test]
fn who_waits_for_a_lease_on_a_file_without_handle() {
    let mount = Mount::start(&["--threads", "1", "--io=cached", "--cache=coherent"]);
    for name in ["f", "other"] {
        fs::write(mount.source(name), "content").unwrap();
    }
    // Once, because the first that is opened is asked for.
    assert_eq!(fs::read(mount.path("other")).unwrap(), b"content");

    let mut holder = Agent::with(&mount.source("f"));
    holder.ask("signal.signal(signal.SIGIO, signal.SIG_IGN)");
    let lease = |kind| format!("fcntl.fcntl(files['f'], fcntl.F_SETLEASE, fcntl.{kind})");
    assert_eq!(holder.ask(&lease("F_WRLCK")), "0");
    let mut waiting = [Agent::new(), Agent::new()];
    let path = quoted(&mount.path("f"));
    let [writer, reader] = &mut waiting;
    writer.begin(&format!(
        "os.pwrite(os.open({path}, os.O_WRONLY), b'CON', 0)"
    ));
    writer.still_waits();
    let direct = "os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK";
    reader.begin(&format!(
        "os.preadv(os.open({path}, {direct}), [mmap.mmap(-1, 4096)], 0)"
    ));
    reader.still_waits();
    assert_eq!(fs::read(mount.path("other")).unwrap(), b"content");
    fs::write(mount.path("new"), "new").unwrap();
    assert_eq!(holder.ask(&lease("F_UNLCK")), "0");
    let [writer, reader] = &waiting;
    assert_eq!([writer.hear(), reader.hear()], ["3", "7"]);
    assert_eq!(fs::read(mount.source("f")).unwrap(), b"CONtent");
    drop((holder, waiting));
    mount.finish();
}
