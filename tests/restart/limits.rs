//! Where a restart can't be had, it is said at the start; and a start that fails, fails as without a supervisor.

use std::fs;
use std::process::Command;

use super::supervised::Supervised;
use crate::common::{Mount, Signal, TestEnv};

/// Without file handles nobody finds the inodes that the kernel knows.
#[test]
fn require_refuses_where_inodes_are_not_found_again() {
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f", "--supervise=require"]);
    command
        .arg(env.src())
        .arg(env.mnt())
        .env("LOOPFS_FEATURES_OFF", "file-handles");
    let (code, line) = env.refused_by(&mut command);
    assert_eq!(code, 32, "{line}");
    assert!(
        line.contains("supervise=require can't be had") && line.contains("file handles"),
        "{line}"
    );
}

#[test]
fn require_refuses_locks_that_would_be_lost() {
    let env = TestEnv::new();
    let arguments = [
        "-f".into(),
        "--supervise=require".into(),
        "--forward-locks".into(),
    ];
    let (code, line) = env.refused(arguments.into_iter().chain([env.src(), env.mnt()]));
    assert_eq!(code, 32, "{line}");
    assert!(line.contains("--forward-locks"), "{line}");
}

/// Without `require` it is said, and a death takes the mount down instead of leaving it dead.
#[test]
fn where_nobody_can_go_on_the_mount_is_taken_down() {
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f", "--supervise"]);
    command
        .arg(env.src())
        .arg(env.mnt())
        .env("LOOPFS_FEATURES_OFF", "file-handles");
    let mount = Supervised::of(Mount::start_command(env, command));
    assert!(
        mount
            .log()
            .contains("if the serving process dies the mount is taken down"),
        "{}",
        mount.log()
    );
    mount.child().signal(Signal::KILL);
    let (env, status, log) = mount.into_mount().ended_somehow();
    assert_eq!(status.unwrap().code(), Some(4), "{log}");
    assert!(
        log.contains("was killed by signal 9; the mount is taken down"),
        "{log}"
    );
    env.assert_clean();
}

/// The same words, the same status, and nothing left.
#[test]
fn a_start_that_fails_fails_as_without_a_supervisor() {
    let env = TestEnv::new();
    fs::write(env.root().join("file"), "").unwrap();
    let file = env.root().join("file");
    for background in [false, true] {
        let refused = |supervise: &str| {
            let options = ["-f", supervise];
            let options = options.into_iter().skip(usize::from(background));
            let arguments = options.map(Into::into).chain([env.src(), file.clone()]);
            env.refused(arguments)
        };
        assert_eq!(refused("--supervise=off"), refused("--supervise"));
    }
}

/// Which limit is in the way is said, and what to do about it; nothing of what a mount would be like that is not there.
#[test]
fn a_limit_that_leaves_no_memory_for_the_next_process_is_named() {
    let supervise = "or serve without --supervise";
    for (limit, remedy) in [
        ("--fsize=512", "(ulimit -f, LimitFSIZE=)"),
        ("--as=3221225472", "(ulimit -v, LimitAS=, MemoryMax=)"),
    ] {
        for foreground in [true, false] {
            let env = TestEnv::new();
            let (code, line) = env.refused_by(&mut limited(&env, limit, foreground));
            assert_eq!(code, 2, "{line}");
            assert!(line.contains(remedy) && line.ends_with(supervise), "{line}");
        }
    }
}

/// `loopfs --supervise` with a limit that root, too, can't lift.
fn limited(env: &TestEnv, limit: &str, foreground: bool) -> Command {
    let ordinary = env.loopfs(["--supervise"]);
    let mut command = Command::new("prlimit");
    command
        .arg(limit)
        .args(["setpriv", "--bounding-set=-sys_resource"])
        .arg(ordinary.get_program())
        .args(ordinary.get_args())
        .args(foreground.then_some("-f"))
        .args([env.src(), env.mnt()]);
    command
}

#[test]
fn words_that_are_wrong_are_refused() {
    let env = TestEnv::new();
    for (option, says) in [
        ("--supervise=yes", "invalid value 'yes' for '--supervise"),
        ("--restart-limit=-1", "not a whole number, or 'never'"),
        ("-osupervise=maybe", "'maybe' is not off, on or require"),
        ("-orestart_limit=x", "'x' is not a whole number, or 'never'"),
    ] {
        let arguments = [option.into(), env.src(), env.mnt()];
        let (code, line) = env.refused(arguments);
        assert_eq!(code, 1, "{line}");
        assert!(line.contains(says), "{line}");
    }
}
