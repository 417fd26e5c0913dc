//! `mount.fuse.loopfs(8)`: what an administrator with an fstab to write reads.

use clap_mangen::roff::{Roff, bold, italic};

use super::{DATE, mount_helper, options, paragraphs, rich, term};

const DESCRIPTION: [&str; 3] = [
    "`mount`(8) runs this program for `mount -t fuse.loopfs` and for lines of `fstab`(5) whose type is |fuse.loopfs|. \
     It is `loopfs`(1) under another name: it makes the directory tree |SRC| visible at |MNT| too, goes to the \
     background, and returns when the mount can be used.",
    "The words of the option list are those of `loopfs`(1). Words that are for others (`noauto`, `nofail`, `_netdev`, \
     `x-systemd.`*) are accepted and change nothing. An unknown word is an error, so that a slip does not go unnoticed.",
    "`umount`(8) needs no helper: it ends the mount, and the program with it.",
];

const FSTAB: [(&str, &str); 4] = [
    (
        "/srv/photos  /home/ann/photos  fuse.loopfs  ro,noexec  0 0",
        "Photos, unchangeable, at boot.",
    ),
    (
        "/srv/my\\040data  /data  fuse.loopfs  nofail,x-mount.mkdir  0 0",
        "A path with a space; the directory is made; the boot goes on if it fails.",
    ),
    (
        "/srv/archive  /archive  fuse.loopfs  noauto,x-systemd.automount,x-systemd.idle-timeout=60  0 0",
        "Mounted when somebody looks, unmounted after a minute in which nobody did.",
    ),
    (
        "/mnt/nas/share  /share  fuse.loopfs  _netdev,x-systemd.requires-mounts-for=/mnt/nas  0 0",
        "Of a network file system, after that is there.",
    ),
];

const EXIT_STATUS: [&str; 2] = [
    "That of `loopfs`(1), whose numbers are those of `mount`(8), which hands them on: 0 it is mounted, 1 a word of the list is \
     wrong, 2 something of the system is missing or was refused, 8 it was interrupted, 32 |SRC| or |MNT| can't be used. One \
     line says why and what to do; DIAGNOSTICS in `loopfs`(1) has them all. `mount -a` has one of its own: 64, if some lines \
     were mounted and others not.",
    "`systemctl status` shows the same numbers. Those from 200 on are systemd's, and then loopfs has not even been started: \
     |203/EXEC| says that the program in |ExecStart=| can't be executed, because it was removed, or the mount that it is on \
     is dead or gone; |226/NAMESPACE| that the sandboxing which the unit asks for can't be set up. The journal names the file. \
     A dead mount at |MNT| itself is in nobody's way: the service replaces it. In front of `mount`(8) it is an error, 32, and \
     `loopfs unmount` takes it away.",
];

const UNITS: [&str; 4] = [
    "A line in `fstab`(5) becomes a mount unit; what stands above is all that it takes. A mount unit of its own has \
     |Type=fuse.loopfs|, |What=|SRC and |Where=|MNT, and with an automount unit beside it the tree is mounted when somebody \
     looks, and unmounted when nobody has used it for |TimeoutIdleSec=|.",
    "As a service the program is watched and started again after a crash: \
     `systemctl enable --now \"$(systemd-escape -p --template=loopfs@.service` MNT`)\"`, with |SOURCE=| and |OPTIONS=| in \
     the file of that path below |/etc/loopfs|. The service is ready when everybody sees the mount. Its status tells what is \
     open, and while it stops what is left to be closed.",
    "`systemctl reload` takes over what has changed in that file of `ro`, `rw` and the flags from `nosuid` to `dirsync`. What \
     else has changed takes a restart; the log names it.",
    "A stop of what is in use waits for |--drain-timeout|, which has to be shorter than |TimeoutStopSec=|. Sandboxing that \
     gives the service a mount namespace of its own (|ProtectSystem=|, |PrivateTmp=| and others) would hide the mount from \
     everybody; then it does not start, and says so.",
];

const FILES: [(&str, &str); 3] = [
    (
        "/etc/loopfs/MNT.conf",
        "What `loopfs@.service` mounts at MNT, such as |/etc/loopfs/mnt/photos.conf|.",
    ),
    (
        "/usr/lib/systemd/system/loopfs@.service",
        "The unit, with what each of its lines is for.",
    ),
    (
        "/usr/share/doc/loopfs/examples",
        "A plain service, a mount and an automount unit.",
    ),
];

const SEE_ALSO: &str = "`loopfs`(1), `mount`(8), `umount`(8), `fstab`(5), `systemd.mount`(5)";

pub(super) fn man_page(version: &str) -> String {
    let command = mount_helper::command();
    let mut page = Roff::new();
    page.control(
        "TH",
        [
            "MOUNT.FUSE.LOOPFS",
            "8",
            DATE,
            &format!("loopfs {version}"),
            "System Administration",
        ],
    );
    page.control("SH", ["NAME"]).text(rich(
        "mount.fuse.loopfs, mount.loopfs - mount a directory tree at another place",
    ));
    page.control("SH", ["SYNOPSIS"]).text(rich(
        "`mount.fuse.loopfs` |SRC| |MNT| [`-sfnv`] [`-N` |NAMESPACE|] [`-t` |TYPE|] [`-o` |LIST|]",
    ));
    page.control("SH", ["DESCRIPTION"]);
    paragraphs(&mut page, &DESCRIPTION);
    page.control("SH", ["OPTIONS"]);
    options(&mut page, &command);
    page.control("SH", ["EXIT STATUS"]);
    paragraphs(&mut page, &EXIT_STATUS);
    page.control("SH", ["EXAMPLES"])
        .text(rich("Lines for |/etc/fstab|:"));
    for (line, what) in FSTAB {
        term(&mut page, vec![bold(line)], what);
    }
    page.control("SH", ["UNITS OF SYSTEMD"]);
    paragraphs(&mut page, &UNITS);
    page.control("SH", ["FILES"]);
    for (name, what) in FILES {
        term(&mut page, vec![italic(name)], what);
    }
    page.control("SH", ["SEE ALSO"]).text(rich(SEE_ALSO));
    page.render()
}
