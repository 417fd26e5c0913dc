//! What can go wrong and what to do then: the section DIAGNOSTICS of loopfs(1).
//!
//! `tests/diagnostics.rs` goes through every message in `src/` that can end the program, and fails if one is not
//! in this list; the integration tests ask [`is_documented`] of every line that they see a refusal print.

use clap_mangen::roff::Roff;

use super::rich;
use crate::exit::ExitCode;

/// A message, and what to do.
#[derive(Debug, Clone, Copy)]
pub struct Diagnostic {
    /// As it is printed, behind `loopfs: `; what differs from time to time stands between bars.
    pub message: &'static str,
    /// The status that the program ends with.
    pub code: ExitCode,
    /// What it means and what to do next.
    pub next: &'static str,
}

const fn said(code: ExitCode, message: &'static str, next: &'static str) -> Diagnostic {
    Diagnostic {
        message,
        code,
        next,
    }
}

const fn refused(message: &'static str) -> Diagnostic {
    said(System, message, REFUSED)
}

use ExitCode::{Internal, Interrupted, MountFailed, System, Usage};

/// All of them, by exit status.
pub const DIAGNOSTICS: &[Diagnostic] = &[
    said(
        Usage,
        "|SRC and MNT are missing, unexpected argument, invalid value ...| (Usage: |SYNOPSIS|)",
        "The command line is wrong. Write it as the synopsis says; a mistyped option is answered with the nearest one: \
         ; did you mean '|OPTION|'?",
    ),
    said(
        Usage,
        "unknown mount option '|WORD|': did you mean '|OPTION|'? See loopfs(1) for the list",
        "Correct the word, or leave it out. MOUNT OPTIONS above has the list.",
    ),
    said(
        Usage,
        "mount option '|WORD|' takes no value: write '|WORD|'",
        "Leave out what follows the equals sign.",
    ),
    said(
        Usage,
        "mount option '|WORD|' needs a value: '|WORD=VALUE|'",
        "Give it one.",
    ),
    said(
        Usage,
        "mount option '|WORD|': '|VALUE|' is not |FORM|",
        "Write a value of the form that the message names.",
    ),
    said(
        Usage,
        "'nodefault_permissions' with 'allow_other' would give every user root's rights on SRC: leave one of them \
         out, or add 'noallow_other'",
        "Only root is told so, whose mounts are for everybody unless they say `noallow_other`.",
    ),
    said(
        Usage,
        "'cache=none' keeps nothing for any time: leave out the timeouts, or it",
        "`cache=none` and the options that end in `_timeout` contradict each other.",
    ),
    said(
        Usage,
        "LOOPFS_FAULTS: '|WORD|' is no fault; write OPERATION=panic, =crash, =stall or =ERRNO",
        "The variable is for tests: unset it.",
    ),
    said(
        Usage,
        "there are several mounts, and no terminal to choose on: loopfs top MNT",
        "Name the one to look at.",
    ),
    said(
        System,
        "can't read the mount table (/proc/self/mountinfo): |REASON|",
        "/proc is not mounted: mount -t proc proc /proc.",
    ),
    said(
        System,
        "|MNT| was mounted by user |UID|: only they and root may unmount it",
        "Ask them, or root.",
    ),
    said(
        System,
        "the connection of |MNT| can't be cut: |REASON|",
        "`loopfs unmount --force` found no daemon that could do it. Mount the control file system: mount -t fusectl \
         fusectl /sys/fs/fuse/connections; or end the daemon.",
    ),
    said(
        System,
        "can't reach |MNT|: |REASON|",
        "The directory that it is mounted on can't be looked up any more. `umount -l` may still know it.",
    ),
    said(
        System,
        "can't use the terminal: |REASON|; in a pipe 'loopfs top MNT' prints lines",
        "Something is wrong with the terminal or with TERM.",
    ),
    said(
        System,
        "can't write to stdout: |REASON|",
        "Where the output goes to is full, or was closed.",
    ),
    said(
        System,
        "/dev/fuse is missing: load the module (modprobe fuse), or give the container the device (--device /dev/fuse)",
        "Of `podman run` and `docker run` that is an option. The same is said where the kernel itself has no FUSE: this \
         kernel has no FUSE file system: load the module (modprobe fuse).",
    ),
    said(
        System,
        "/dev/fuse can't be opened: |REASON|: its mode is usually 0666, and a container or service must be allowed the \
         device",
        "For another user than root: `chmod 666 /dev/fuse`. For a unit of systemd: DeviceAllow=/dev/fuse and no \
         PrivateDevices=.",
    ),
    said(
        System,
        "mounting on |MNT| is not permitted: |REASON|: it needs CAP_SYS_ADMIN, or the package fuse3 with a fusermount3 \
         that is set-user-id root",
        "Run it as root, or install the package fuse3.",
    ),
    said(
        System,
        "fusermount3 is needed to mount without root's rights and is not installed: install the package fuse3",
        "It is searched for in PATH, /usr/bin and /bin.",
    ),
    said(
        System,
        "fusermount3 refused to mount on |MNT|: |ITS WORDS|: let root write the line user_allow_other in \
         /etc/fuse.conf, or mount without allow_other",
        "Without that line only the user who mounted may use the mount.",
    ),
    said(
        System,
        "fusermount3 refused to mount on |MNT|: |ITS WORDS|: unmount one, or let root raise mount_max in /etc/fuse.conf",
        "Users have more FUSE mounts than the file allows.",
    ),
    said(
        System,
        "fusermount3 refused to mount on |MNT|: |ITS WORDS|: this user may not open /dev/fuse (its mode is usually 0666)",
        "`chmod 666 /dev/fuse`.",
    ),
    said(
        System,
        "fusermount3 refused to mount on |MNT|: |ITS WORDS|: load the module (modprobe fuse), or give the container the \
         device /dev/fuse",
        "The kernel has no FUSE, or the device is not there.",
    ),
    said(
        System,
        "fusermount3 refused to mount on |MNT|: |ITS WORDS|: is it set-user-id root, and does the service or container \
         allow set-user-id programs?",
        "`chmod u+s` on the program; in a unit no NoNewPrivileges=, RestrictNamespaces= or LockPersonality=.",
    ),
    said(
        System,
        "fusermount3 could not be run: |REASON|: install the package fuse3",
        "The same of: fusermount3 did not end within |N| seconds: a mount on the way to MNT may hang; and where it \
         refuses without a word: it ended with |STATUS| and said nothing.",
    ),
    said(
        System,
        "fusermount3 could not unmount |MNT|: |ITS WORDS|: try umount -l",
        "Somebody has changed the mount or its directory meanwhile.",
    ),
    said(
        System,
        "/proc is not mounted, and files are opened through it: mount -t proc proc /proc",
        "That is so in a chroot or a minimal container.",
    ),
    said(
        System,
        "this process may have |N| files open, and 64 are the least to serve with: raise the limit on open files (ulimit -n, \
         LimitNOFILE=)",
        "It is the hard limit that counts: `ulimit -Hn`. Only root may raise it.",
    ),
    said(
        System,
        "--low-latency: |DEVICE|: |REASON|; it takes root, or leave the option out",
        "The device is /dev/cpu_dma_latency, which not every kernel has.",
    ),
    said(
        System,
        "can't enter the mount namespace |FILE|: |REASON|: it takes root, and a file such as /proc/PID/ns/mnt",
        "Of `-N` of `mount`(8): the process has ended, or this user may not.",
    ),
    said(
        System,
        "can't go to the background: |REASON| (-f stays in the foreground)",
        "The system is out of processes or memory, or the process that started it is gone.",
    ),
    said(
        System,
        "the handshake with the kernel failed, which takes Linux 5.10 or later: |REASON|",
        "`uname -r` tells which one is running.",
    ),
    refused("can't take over signals: |REASON|"),
    refused("can't make an eventfd: |REASON|"),
    refused("can't start the serving thread: |REASON|"),
    refused("can't start the control thread: |REASON|"),
    refused("can't say that the mount is ready: |REASON|"),
    refused("can't read the mount table: |REASON|"),
    refused("can't find the new mount on |MNT| in the mount table: |REASON|"),
    refused("can't find out whether |MNT| answers: |REASON|"),
    refused("can't tell which mount lies at |MNT|: |REASON|"),
    refused("can't tell which mount this is: |REASON|"),
    refused("can't open the mount's root: |REASON|"),
    refused("can't run the self-test: |REASON|"),
    refused("can't unmount: |REASON|"),
    said(
        System,
        "can't unmount: a mount that lies on the way there does not answer: end its daemon or let it go on first \
         ('loopfs doctor' shows which)",
        "To walk to MNT would wait for that mount's daemon.",
    ),
    said(
        System,
        "|MNT| is not upgraded: |REASON|",
        "The process that served it goes on. The reasons: it is served without --supervise: unmount it, and mount it anew; no \
         other process can go on with this mount, as was said at the start; nobody serves the mount right now; the program on \
         the disk can't be started, can't go on, or was not ready in time; its daemon can't be asked; 'loopfs status' says \
         more; its daemon does not answer; it has just been unmounted; the process that served it has ended, and no other one is heard.",
    ),
    said(
        System,
        "lost the supervisor: |REASON|",
        "A process that serves under |--supervise| was started by something else, or its supervisor was killed.",
    ),
    said(
        System,
        "LOOPFS_SUPERVISED is set, to |VALUE|: unset it, only loopfs itself sets it for a process of its own version",
        "The environment variable tells a process that it serves under |--supervise|.",
    ),
    said(
        System,
        "LOOPFS_SUCCESSION is set, to |VALUE|: |REASON|: unset it, only loopfs itself sets it when another program is to go on",
        "The environment variable tells the program that a supervisor has become (|loopfs upgrade|) what it goes on with. If the \
         supervisor itself says so, it has ended, and the process that serves takes the mount down. The reasons: not a number; its descriptor '|NAME|' can't be taken: |REASON|; what the supervisor leaves is \
         not complete, can't be read, or is not of the edition that this program knows.",
    ),
    said(
        System,
        "can't make memory that outlives the process (a sparse file of |N| GiB): |REASON|; or serve without --supervise",
        "A limit is in the way, and the reason says which one to raise: that on file sizes (`ulimit -f`, |LimitFSIZE=|), on memory \
         (`ulimit -v`, |LimitAS=|) or on open files. The memory is used as far as it is written to, some 64 bytes for each file \
         that the kernel remembers.",
    ),
    said(
        System,
        "can't take the supervisor's place: |REASON|",
        "|loopfs upgrade| gives the reason: the program that is installed by now is of another edition. Nothing has changed; \
         unmount, and mount anew.",
    ),
    refused(
        "can't start the process that serves: |REASON|, can't hold back signals: |REASON|, lost the process that serves: \
         |REASON|, can't share the connection: |REASON|, can't hand the mount over to the supervisor: |REASON|, can't start a \
         thread: |REASON|",
    ),
    refused("lost the background process |PID|: |REASON|: findmnt shows whether it has mounted"),
    said(
        System,
        "can't unmount: the mount table keeps changing",
        "Try again.",
    ),
    said(
        System,
        "something was mounted over the mount at the moment of the unmount and was unmounted in its place",
        "Mount that again.",
    ),
    said(
        Internal,
        "the background process was killed by signal |N| before the mount was ready: -f shows more, and dmesg if the \
         system was out of memory",
        "After a signal that asks for an end the status is 8.",
    ),
    said(
        Internal,
        "the serving process |was killed by signal N, or ended with status N and without a word,| before the mount was \
         ready: start it again",
        "After a signal that asks for an end the status is 8. The log says more, and dmesg if the system was out of memory.",
    ),
    said(
        Internal,
        "the serving process |was killed by signal N, or ended with status N and without a word|; the mount is taken down: \
         start it again",
        "With |--supervise|, where no other process could go on: what is missing was said at the start.",
    ),
    said(
        Internal,
        "the serving process dies again and again; the mount is taken down: see the log for why",
        "Each death is in the log, of which |--restart-limit| allows so many in a minute. It may be the same request that kills it \
         each time: please report it.",
    ),
    said(
        Internal,
        "nobody can go on; the mount is taken down: |REASON|: start it again",
        "The process that was to go on serving, or the program that was to replace it, could not; the reason says why.",
    ),
    said(
        Internal,
        "the background process ended with status |N| and without a word: -f shows more",
        "A bug: please report it with what it prints with `-d`.",
    ),
    said(
        Interrupted,
        "|SIGNAL| came before the mount was ready; nothing is mounted: start it again",
        "Somebody pressed Ctrl-C, or a service manager ended the start.",
    ),
    said(
        MountFailed,
        "fusermount3 refused to mount on |MNT|: |ITS WORDS|: this fusermount3 does not know it: leave it out, or mount as \
         root",
        "Of the mount option `nosymfollow`, which that of fuse 3.14 lacks. Root of a user namespace needs no fusermount3.",
    ),
    said(
        MountFailed,
        "SRC '|PATH|': no such file or directory: check the path, or mount what it is on",
        "A link that leads nowhere is answered like this, too.",
    ),
    said(
        MountFailed,
        "SRC '|PATH|': not a directory: name one",
        "A file can't be served by itself.",
    ),
    said(
        MountFailed,
        "SRC '|PATH|' can't be opened: |REASON|: serve it as a user who may read it",
        "loopfs has the rights of who starts it. Where a limit is the reason, the message says which one to raise, such as: raise \
         the limit on open files (ulimit -n, LimitNOFILE=).",
    ),
    said(
        MountFailed,
        "MNT '|PATH|': the mount on the way to it (|PLACE|) did not answer within |N| seconds: 'loopfs doctor' shows what \
         helps",
        "The daemon of that mount, or a server, is stopped or hangs. With `loopfs doctor` and |PATH| behind it only those          mounts are looked at.",
    ),
    said(
        MountFailed,
        "|SRC or MNT| '|PATH|': permission denied on the way to it: mount as a user who may go there",
        "A directory on the way can't be searched by this user. Of another reason, such as an error of the disk, the \
         message has the system's own words: |SRC or MNT| '|PATH|': |REASON|.",
    ),
    said(
        MountFailed,
        "|SRC or MNT| '|PATH|': on a dead mount (Transport endpoint is not connected); unmount that one first",
        "`fusermount3 -uz` or `umount -l`.",
    ),
    said(
        MountFailed,
        "MNT '|PATH|': no such file or directory (nor the one that should hold it): create it (mkdir -p)",
        "With `--mkdir` the last component is made by loopfs.",
    ),
    said(
        MountFailed,
        "MNT '|PATH|': not a directory on the way to it: check the path",
        "The same of: |MNT| can't be reached: something on the way to it is not a directory: check the path.",
    ),
    said(
        MountFailed,
        "|SRC or MNT| '|PATH|': too many symbolic links: name the directory itself",
        "Links that lead to each other. In the same way: a name in it is too long: check the path.",
    ),
    said(
        MountFailed,
        "|MNT| does not exist: create it, or use --mkdir",
        "`mkdir` |MNT|.",
    ),
    said(
        MountFailed,
        "|MNT| is not a directory: name a directory to mount on",
        "loopfs serves directories, which a file can't show.",
    ),
    said(
        MountFailed,
        "|MNT| can't be reached: |REASON|: check the path and who may go there",
        "The system's own words say why.",
    ),
    said(
        MountFailed,
        "|MNT| can't be made: the directory that it is to be in does not exist (--mkdir makes one directory; mkdir -p all)",
        "`mkdir -p` |MNT|.",
    ),
    said(
        MountFailed,
        "|MNT| can't be made: |REASON|: make it as somebody who may, or elsewhere",
        "Of `--mkdir`.",
    ),
    said(
        MountFailed,
        "|MNT| is a dead FUSE mount (Transport endpoint is not connected): its daemon has gone; unmount it (fusermount3 -u \
         |MNT|) or use --replace-stale",
        "That is what a crash leaves.",
    ),
    said(
        MountFailed,
        "|PATH| lies in the dead FUSE mount |MNT| (Transport endpoint is not connected): its daemon has gone; unmount that \
         first (fusermount3 -u |MNT|)",
        "`--replace-stale` takes a dead mount at MNT only, and not one above.",
    ),
    said(
        MountFailed,
        "the dead mount at |MNT| can't be replaced: other file systems are mounted in it: unmount those first (findmnt -R \
         shows them)",
        "The same if it is in use: umount -l takes it.",
    ),
    said(
        MountFailed,
        "|N| dead mounts were taken off |MNT| and there are more: run it again",
        "Each crash leaves one.",
    ),
    said(
        MountFailed,
        "|PATH| lies on a mount (|TYPE| at |MNT|) that did not answer within |N| seconds: end its daemon or unmount it first",
        "That mount hangs, and so would whoever touches it.",
    ),
    said(
        MountFailed,
        "the new mount does not work: its root answers: |REASON|: is SRC readable?",
        "The same of: can't reach the new mount: |REASON|. Nothing is mounted.",
    ),
    said(
        MountFailed,
        "the new mount did not answer within |N| seconds: SRC may hang",
        "`ls` |SRC|, with `timeout`, shows whether it does. Nothing is mounted.",
    ),
    said(
        MountFailed,
        "the kernel refused to mount on |MNT|: |REASON|: dmesg may say more",
        "An option that this kernel does not have, or a limit on mounts (`sysctl fs.mount-max`).",
    ),
    said(
        MountFailed,
        "fusermount3 refused to mount on |MNT|: |ITS WORDS|: mount on a directory of your own",
        "It allows a user to mount on directories that the user may write to.",
    ),
    said(
        MountFailed,
        "supervise=require can't be had: |REASON|; or leave it to supervise=on",
        "The reason says what is missing: the kernel can't give out a request twice (Linux 6.9); inodes can't be found again: \
         the source's file system has no file handles, or this user may not open them (that takes root); locks that are held in \
         the source (--forward-locks) would be lost.",
    ),
    said(
        MountFailed,
        "io=passthrough can't be had: |REASON|; or leave it to io=auto",
        "The reason says what is missing: root, a newer kernel, a file system that can be stacked on.",
    ),
    said(
        MountFailed,
        "cache=coherent can't be had: |REASON|; or leave it to cache=auto",
        "The reason says what is missing: a newer kernel, a file system of which fanotify(7) tells.",
    ),
    said(
        MountFailed,
        "can't remount |MNT|: nothing of type |TYPE| is mounted there (findmnt |MNT| shows what is)",
        "`remount` changes a mount of loopfs that is there.",
    ),
    said(
        MountFailed,
        "can't remount |MNT|: |REASON|: files are open for writing: close them first (fuser -vm shows whose)",
        "Only then it can become read-only.",
    ),
    said(
        MountFailed,
        "can't remount |MNT|: |REASON|: a mount on the way there does not answer ('loopfs doctor' shows which)",
        "|MNT| lies in another mount, whose daemon is stopped or hangs.",
    ),
    said(
        MountFailed,
        "can't remount |MNT|: |REASON|: only root may: use sudo, or mount anew",
        "A user can unmount and mount with other options.",
    ),
    said(
        MountFailed,
        "|MNT|: mounted, but invisible outside of this service, which has a mount namespace of its own: remove \
         ProtectSystem=, ProtectHome=, PrivateTmp=, PrivateMounts= and their kin from its unit",
        "The comments in loopfs@.service say which settings keep the mount visible.",
    ),
    said(
        MountFailed,
        "nothing of loopfs is mounted at |MNT|; 'loopfs list' shows what is",
        "Write the directory that the mount is on, not one below it.",
    ),
    said(
        MountFailed,
        "no loopfs mount to look at",
        "There is none on this machine.",
    ),
    said(
        MountFailed,
        "|MNT| is still in use by |PROCESSES|; --lazy lets them finish, --force cuts them off",
        "Nothing was changed. End the processes, or take one of the options.",
    ),
    said(
        MountFailed,
        "|PATH| is mounted on |MNT|: unmount that first, it is never taken along",
        "What is mounted on it or in it hides it, and belongs to somebody.",
    ),
];

/// Whether `line` is one of these messages, as the program prints it.
#[must_use]
pub fn is_documented(line: &str) -> bool {
    DIAGNOSTICS.iter().any(|it| fits(it.message, line))
}

/// Whether everything of `message` that does not stand between bars is in `line`, in that order.
fn fits(message: &str, line: &str) -> bool {
    let mut rest = line;
    message.split('|').step_by(2).all(|part| {
        rest.find(part)
            .map(|at| rest = &rest[at + part.len()..])
            .is_some()
    })
}

/// The section of the page.
pub(super) fn section(page: &mut Roff) {
    page.control("SH", ["DIAGNOSTICS"]).text(rich(INTRODUCTION));
    let mut code = None;
    // Neighbours in the list share what is to be done.
    for group in DIAGNOSTICS.chunk_by(|one, next| (one.code, one.next) == (next.code, next.next)) {
        if code.replace(group[0].code) != Some(group[0].code) {
            let heading = format!("Status {}", group[0].code as u8);
            page.control("SS", [heading.as_str()]);
        }
        for (index, diagnostic) in group.iter().enumerate() {
            let tag = if index == 0 { "TP" } else { "TQ" };
            page.control(tag, []).text(rich(diagnostic.message));
        }
        page.text(rich(group[0].next));
    }
}

/// Of what is usually granted.
const REFUSED: &str = "The system refused something that it usually grants: it is out of memory, processes or open files (the \
     reason says of what, and which limit to raise), or a sandbox forbids the system call.";

const INTRODUCTION: &str = "A failure is told in one line on stderr that begins with |loopfs:| and says what to do. These are \
     all that a user can cause. What comes while a mount is being served is in the log.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_its_message() {
        assert!(is_documented(
            "loopfs: SRC '/none': no such file or directory: check the path, or mount what it is on"
        ));
        assert!(!is_documented("loopfs: something else went wrong"));
    }

    #[test]
    fn they_come_by_status() {
        assert!(DIAGNOSTICS.is_sorted_by_key(|it| it.code as u8));
    }
}
