//! The matching on texts of the kernel's, and a search on a real mount of a tmpfs.
#![allow(clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, unmount};

use super::*;

fn ours() -> Identity {
    Identity {
        target: "/mnt/a b".into(),
        device: Some((0, 77)),
        mount_id: Some(42),
    }
}

fn finder() -> Finder {
    Finder::new(ours())
}

#[test]
fn lines_of_the_mount_table() {
    let line = br"42 29 0:77 / /mnt/a\040b rw,nosuid shared:9 - fuse.loopfs /srv rw";
    assert_eq!(mount(line), Some((42, (0, 77), "/mnt/a b".into())));
    assert_eq!(mount(b""), None);
    assert_eq!(path(br"/odd\9end\"), Path::new(r"/odd\9end\"));
}

#[test]
fn lines_of_a_memory_map() {
    let line = b"7f00-7f10 r-xp 00000000 00:4d 1234                  /mnt/a b/lib.so (deleted)";
    assert_eq!(
        mapping(line),
        Some(((0, 77), "/mnt/a b/lib.so (deleted)".into()))
    );
    assert_eq!(
        mapping(b"7ffc-7ffd rw-p 00000000 00:00 0       [stack]"),
        None
    );
    assert_eq!(mapping(b"7ffc-7ffd rw-p 00000000 00:00 0 "), None);
}

#[test]
fn ours_the_others_and_a_reused_id() {
    let mut mounts = Mounts::default();
    mounts.learn(
        1,
        b"42 29 0:77 / /mnt/a\\040b rw - x\n50 29 0:77 /s /bind rw - x\n",
        &ours(),
    );
    mounts.learn(
        9,
        b"61 60 0:77 / /mnt/a\\040b rw - x\n62 60 0:78 / /o rw - x",
        &ours(),
    );
    assert!(mounts.attached && !mounts.taken);
    assert_eq!(mounts.ids, BTreeSet::from([50, 61]));
    assert_eq!(
        mounts.elsewhere[&1],
        BTreeSet::from([Use::MountedAt("/bind".into())])
    );
    assert_eq!(
        mounts.elsewhere[&9],
        BTreeSet::from([Use::MountedAt("/mnt/a b".into())])
    );

    let files = || vec![("/f".into(), 42), ("/bind/g".into(), 50), ("/h".into(), 7)];
    let found = |mounts: &Mounts| finder().by_files(files(), mounts);
    mounts.attached = false;
    let (f, g) = (Use::File("f".into()), Use::File("/bind/g".into()));
    assert_eq!(found(&mounts), BTreeSet::from([f, g.clone()]));
    mounts.learn(3, b"42 29 0:80 / /other rw - x", &ours());
    assert_eq!(
        found(&mounts),
        BTreeSet::from([g]),
        "42 is somebody else's now"
    );
}

#[test]
fn a_link_is_known_by_what_its_text_turns_into() {
    let mut finder = finder();
    let links = |cwd: &str| vec![(Link::Cwd, cwd.into()), (Link::Root, "/".into())];
    let used = |path: &str| BTreeSet::from([Use::WorkingDirectory(path.into())]);
    assert_eq!(finder.by_links(5, links("/mnt/a b/sub"), true), used("sub"));
    assert_eq!(finder.by_links(5, links("/mnt/a b"), true), used("."));
    assert!(finder.by_links(5, links("/mnt/a bc"), true).is_empty());
    finder.noted.insert(5, vec![(Link::Cwd, "sub".into())]);
    assert_eq!(finder.by_links(5, links("/sub"), false), used("sub"));
    assert!(
        finder.by_links(5, links("/else"), false).is_empty(),
        "it went elsewhere"
    );
    assert!(
        finder.by_links(6, links("/sub"), false).is_empty(),
        "it was never inside"
    );
}

#[test]
fn a_line_for_a_person() {
    let uses = ["c", "a", "b", "d"]
        .map(|name| Use::File(name.into()))
        .into();
    let mut holder = Holder {
        pid: 7,
        command: "vi".into(),
        uses,
    };
    assert_eq!(
        holder.to_string(),
        "pid 7 (vi): open a, open b, open c and 1 more"
    );
    holder.uses = BTreeSet::from([Use::WorkingDirectory(".".into())]);
    assert_eq!(holder.to_string(), "pid 7 (vi): working directory .");
}

/// A tmpfs of our own, with a program that runs in it until its input ends.
struct Scene {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let none: Option<&std::ffi::CStr> = None;
        rustix::mount::mount(
            "loopfs-test",
            dir.path(),
            "tmpfs",
            MountFlags::empty(),
            none,
        )
        .unwrap();
        Self { dir, child: None }
    }

    fn run(&mut self, program: &Path, cwd: &Path) -> u32 {
        let child = Command::new(program)
            .current_dir(cwd)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child.insert(child).id()
    }

    fn identity(&self) -> Identity {
        let target = self.dir.path().canonicalize().unwrap();
        let table = fs::read("/proc/self/mountinfo").unwrap();
        let (id, device, _) = table
            .split(|&byte| byte == b'\n')
            .filter_map(mount)
            .find(|(_, _, at)| *at == target)
            .unwrap();
        Identity {
            target,
            device: Some(device),
            mount_id: Some(id),
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            let _ = child.wait();
        }
        let _ = unmount(self.dir.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_file_a_directory_and_a_program_before_and_after_a_lazy_unmount() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount");
        return;
    }
    let mut scene = Scene::new();
    let inside = scene.dir.path().join("in side");
    let program = scene.dir.path().join("reader");
    fs::create_dir(&inside).unwrap();
    fs::copy("/bin/cat", &program).unwrap();
    let open = fs::File::create(inside.join("file")).unwrap();
    let child = scene.run(&program, &inside);
    let mut finder = Finder::new(scene.identity());

    let of_child = BTreeSet::from([
        Use::WorkingDirectory("in side".into()),
        Use::Program("reader".into()),
    ]);
    let of_us = BTreeSet::from([Use::File("in side/file".into())]);
    let check = |finder: &Finder| {
        let report = finder.find();
        let uses = |pid| {
            report
                .holders
                .iter()
                .find(|it| it.pid == pid)
                .map(|it| &it.uses)
        };
        assert_eq!(uses(child), Some(&of_child), "{report:?}");
        assert_eq!(uses(std::process::id()), Some(&of_us), "{report:?}");
    };
    check(&finder);

    finder.note_links();
    unmount(scene.dir.path(), UnmountFlags::DETACH).unwrap();
    check(&finder);

    // Nothing noted: the running program is still known, by what it has mapped.
    let report = Finder::new(finder.identity.clone()).find();
    let held = report.holders.iter().find(|it| it.pid == child).unwrap();
    assert_eq!(held.uses, BTreeSet::from([Use::Mapping("reader".into())]));
    drop(open);
}
