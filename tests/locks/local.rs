//! Without `--forward-locks`: locks are the mount's own affair.

use super::agent::{Agent, quoted};
use crate::common::Mount;

/// Programs on the mount keep each other out; those on SRC neither see that nor are seen.
#[test]
fn locks_stay_on_the_mount() {
    let mount = Mount::start(&[]);
    let (path, source) = (mount.path("f"), mount.source("f"));
    let (mut one, mut other) = (Agent::with(&path), Agent::with(&path));
    let mut on_src = Agent::with(&source);
    for style in ["flock", "posix", "ofd"] {
        let take = format!("{style}('f', 'ex')");
        assert_eq!(one.ask(&take), "ok");
        assert_eq!(other.ask(&take), "EAGAIN");
        assert_eq!(on_src.ask("getlk('posix', 'f', 'ex')"), "free");
        assert_eq!(on_src.ask(&take), "ok", "{style}");
        for agent in [&mut one, &mut on_src] {
            assert_eq!(agent.ask(&format!("{style}('f', 'un')")), "ok");
        }
        assert_eq!(other.ask(&take), "ok");
        assert_eq!(other.ask(&format!("{style}('f', 'un')")), "ok");
    }
    assert!(!mount.log().contains("_LOCKS"), "nothing was negotiated");
    drop((one, other, on_src));
    mount.finish();
}

/// A directory's locks are the kernel's affair even with the option: FUSE has no way to hand them on.
#[test]
fn locks_of_directories_stay_on_the_mount() {
    for options in [&[][..], &["--forward-locks"]] {
        let mount = Mount::start(options);
        let (mut one, mut other, mut on_src) = (Agent::new(), Agent::new(), Agent::new());
        for (agent, path) in [
            (&mut one, mount.mnt()),
            (&mut other, mount.mnt()),
            (&mut on_src, mount.src()),
        ] {
            agent.ask(&format!("files.update(f=os.open({}, 0))", quoted(&path)));
        }
        assert_eq!(one.ask("flock('f', 'ex')"), "ok");
        assert_eq!(other.ask("flock('f', 'sh')"), "EAGAIN");
        assert_eq!(on_src.ask("flock('f', 'ex')"), "ok");
        drop((one, other, on_src));
        mount.finish();
    }
}
