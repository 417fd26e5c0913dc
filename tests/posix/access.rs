//! Who may do what, and whose a new file is: owners, groups, umask, setuid, sticky, ACLs.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, mkdirat, mknodat, open};

use crate::common::user::{NOBODY, OTHER};
use crate::common::{as_user, sh};
use crate::{Tree, chmod, errno};

fn owner_and_mode(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// A directory in which every user may create.
fn open_directory(t: &Tree, name: &str) -> std::path::PathBuf {
    let path = t.directory(name);
    chmod(&path, 0o777);
    path
}

cases! {
    /// Each kind of object belongs to the user and group that made it.
    fn what_a_user_creates_is_theirs(t) {
        let top = open_directory(t, "d");
        as_user(NOBODY, OTHER, &[], || {
            File::create(top.join("file")).unwrap();
            fs::create_dir(top.join("directory")).unwrap();
            std::os::unix::fs::symlink("x", top.join("symlink")).unwrap();
            mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
            std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
        });
        for name in ["file", "directory", "symlink", "fifo", "socket"] {
            let (uid, gid, mode) = owner_and_mode(&top.join(name));
            assert_eq!((uid, gid), (NOBODY, OTHER), "{name}");
            t.see(name, mode);
        }
    }

    /// The umask is the caller's, for each kind of object.
    fn umask_is_the_callers(t) {
        for mask in ["000", "022", "077", "027"] {
            let script = format!("umask {mask}; : >f{mask}; mkdir d{mask}; mkfifo p{mask}; mkdir -m 1777 m{mask}");
            sh(t.top(), &script);
            for kind in ["f", "d", "p", "m"] {
                let name = format!("{kind}{mask}");
                let bits = mode(&t.path(&name));
                t.see(&name, format!("{bits:o}"));
            }
        }
        assert_eq!(mode(&t.path("f027")), 0o640);
        assert_eq!(mode(&t.path("d077")), 0o700);
    }

    /// Modes that are asked for at creation, special bits too.
    fn creation_modes(t) {
        for bits in [0o000, 0o400, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0o7777] {
            let (file, directory) = (t.path(format!("f{bits:o}")), t.path(format!("d{bits:o}")));
            OpenOptions::new().write(true).create_new(true).mode(bits).open(&file).unwrap();
            mkdirat(CWD, &directory, Mode::from_raw_mode(bits)).unwrap();
            t.see("file", (bits, mode(&file)));
            t.see("directory", (bits, mode(&directory)));
        }
    }

    /// A file that is created without the right to write is writable through the descriptor that made it.
    fn a_read_only_file_is_written_by_its_creator(t) {
        let top = open_directory(t, "d");
        as_user(NOBODY, NOBODY, &[], || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(top.join("f")).unwrap();
            file.write_all(b"once").unwrap();
            assert_eq!(errno(OpenOptions::new().write(true).open(top.join("f"))), libc::EACCES);
        });
        t.try_see("content", fs::read_to_string(top.join("f")));
    }

    /// In a directory with the setgid bit, the group is the directory's and new directories have the bit.
    fn setgid_directories_give_their_group(t) {
        let top = open_directory(t, "d");
        chown(&top, Some(0), Some(42)).unwrap();
        chmod(&top, 0o2777);
        as_user(NOBODY, OTHER, &[], || {
            File::create(top.join("file")).unwrap();
            fs::create_dir(top.join("directory")).unwrap();
            // Not a member of group 42: a setgid executable of that group would be a way to become one.
            OpenOptions::new().write(true).create_new(true).mode(0o2775).open(top.join("setgid")).unwrap();
        });
        as_user(NOBODY, OTHER, &[42], || {
            OpenOptions::new().write(true).create_new(true).mode(0o2775).open(top.join("member")).unwrap();
        });
        for name in ["file", "directory", "setgid", "member"] {
            t.see(name, owner_and_mode(&top.join(name)));
            assert_eq!(owner_and_mode(&top.join(name)).1, 42, "{name}");
        }
        assert_eq!(mode(&top.join("directory")) & 0o2000, 0o2000);
    }

    /// Owner, group and others get what their bits say, no more.
    fn permissions_are_checked(t) {
        let path = t.file("f", "x");
        chown(&path, Some(NOBODY), Some(42)).unwrap();
        for bits in [0o000, 0o400, 0o200, 0o040, 0o020, 0o004, 0o002, 0o600, 0o660] {
            chmod(&path, bits);
            for (uid, groups) in [(NOBODY, vec![]), (OTHER, vec![42]), (OTHER, vec![])] {
                let (read, write) = as_user(uid, 7, &groups, || {
                    (File::open(&path).is_ok(), OpenOptions::new().write(true).open(&path).is_ok())
                });
                t.see(&format!("{bits:o} {uid} {groups:?}"), (read, write));
            }
        }
    }

    /// access(2) for root and for others, on every combination of bits.
    fn access_answers_like_the_directory(t) {
        let path = t.file("f", "x");
        let folder = t.directory("d");
        for bits in [0o000, 0o100, 0o444, 0o666, 0o755, 0o711] {
            chmod(&path, bits);
            chmod(&folder, bits);
            for right in [Access::EXISTS, Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK] {
                for place in [&path, &folder] {
                    let root = accessat(CWD, place, right, AtFlags::empty());
                    let user = as_user(NOBODY, NOBODY, &[], || accessat(CWD, place, right, AtFlags::empty()));
                    t.see(&format!("{bits:o} {right:?}"), (root.is_ok(), user.is_ok()));
                }
            }
        }
        t.try_see("absent", accessat(CWD, t.path("absent"), Access::EXISTS, AtFlags::empty()));
    }

    /// Without search permission nothing below a directory is reached.
    fn search_permission_is_needed(t) {
        let top = t.directory("d");
        t.file("d/f", "x");
        chmod(&top, 0o644);
        let (stat, list) = as_user(NOBODY, NOBODY, &[], || {
            (fs::metadata(top.join("f")).map(|_| ()), fs::read_dir(&top).map(Iterator::count))
        });
        assert_eq!(errno(stat), libc::EACCES);
        t.try_see("list", list);
    }

    /// In a sticky directory only the owner of a file, of the directory, or root removes or renames it.
    fn sticky_directories_protect(t) {
        let top = open_directory(t, "d");
        chmod(&top, 0o1777);
        as_user(NOBODY, NOBODY, &[], || fs::write(top.join("f"), "x").unwrap());
        let (remove, rename, over) = as_user(OTHER, OTHER, &[], || {
            fs::write(top.join("mine"), "y").unwrap();
            (
                fs::remove_file(top.join("f")),
                fs::rename(top.join("f"), top.join("g")),
                fs::rename(top.join("mine"), top.join("f")),
            )
        });
        t.see("others", (errno(remove), errno(rename), errno(over)));
        t.try_see("owner", as_user(NOBODY, NOBODY, &[], || fs::remove_file(top.join("f"))));
        t.try_see("root", fs::remove_file(top.join("mine")));
    }

    /// Who may chmod and chown, and which bits go when others do it.
    fn chmod_and_chown_by_others(t) {
        let path = t.file("f", "x");
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        let set = |bits| fs::set_permissions(&path, fs::Permissions::from_mode(bits));
        t.try_see("stranger chmod", as_user(OTHER, OTHER, &[], || set(0o777)));
        t.try_see("owner chmod", as_user(NOBODY, NOBODY, &[], || set(0o640)));
        t.try_see("owner gives away", as_user(NOBODY, NOBODY, &[], || chown(&path, Some(OTHER), None)));
        t.try_see("owner to foreign group", as_user(NOBODY, NOBODY, &[], || chown(&path, None, Some(42))));
        t.try_see("owner to own group", as_user(NOBODY, NOBODY, &[42], || chown(&path, None, Some(42))));
        t.see("now", owner_and_mode(&path));
        // Setting the setgid bit for a group one is not in: silently not set.
        t.try_see("setgid", as_user(NOBODY, NOBODY, &[], || set(0o2755)));
        t.see("setgid not set", owner_and_mode(&path));
    }

    /// chown clears the setuid and setgid bits of an executable file, by root and by its owner.
    fn chown_clears_setuid(t) {
        for bits in [0o4755, 0o2755, 0o6755, 0o2745, 0o6644] {
            for by_root in [true, false] {
                let path = t.file(&format!("f{bits:o}{by_root}"), "x");
                chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
                chmod(&path, bits);
                if by_root {
                    chown(&path, Some(OTHER), Some(OTHER)).unwrap();
                } else {
                    as_user(NOBODY, NOBODY, &[42], || chown(&path, None, Some(42))).unwrap();
                }
                t.see(&format!("{bits:o} by root: {by_root}"), owner_and_mode(&path));
            }
        }
        let folder = t.directory("d");
        chmod(&folder, 0o6755);
        chown(&folder, Some(OTHER), Some(OTHER)).unwrap();
        t.see("a directory keeps them", owner_and_mode(&folder));
    }

    /// chown(-1, -1) and lchown of a symlink.
    fn chown_of_nothing_and_of_symlinks(t) {
        let path = t.file("f", "x");
        chown(&path, Some(5), Some(6)).unwrap();
        chown(&path, None, None).unwrap();
        t.see("unchanged", owner_and_mode(&path));
        std::os::unix::fs::symlink("f", t.path("l")).unwrap();
        lchown(t.path("l"), Some(7), Some(8)).unwrap();
        t.see("link", owner_and_mode(&t.path("l")));
        t.see("target", owner_and_mode(&path));
        assert_eq!(owner_and_mode(&path).0, 5);
    }

    /// A write, truncation or O_TRUNC by a user without privilege clears setuid and setgid.
    fn changing_content_clears_setuid(t) {
        type Change = fn(&Path);
        let changes: [(&str, Change); 4] = [
            ("write", |path| OpenOptions::new().write(true).open(path).unwrap().write_all(b"y").unwrap()),
            ("append", |path| OpenOptions::new().append(true).open(path).unwrap().write_all(b"y").unwrap()),
            ("truncate", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(1).unwrap()),
            ("O_TRUNC", |path| drop(OpenOptions::new().write(true).truncate(true).open(path).unwrap())),
        ];
        for (name, change) in changes {
            for bits in [0o4777, 0o2777, 0o6777, 0o6666] {
                let path = t.file(&format!("{name}{bits:o}"), "content");
                chmod(&path, bits);
                as_user(NOBODY, NOBODY, &[], || change(&path));
                let now = mode(&path);
                t.see(&format!("{name} {bits:o}"), format!("{now:o}"));
                assert_eq!(now & 0o4000, 0, "{name} {bits:o}");
            }
        }
    }

    /// A default ACL of the directory decides the modes and ACLs of what is created in it.
    fn default_acls_are_inherited(t) {
        let listing = sh(t.top(), "
            mkdir d; chmod 755 d
            setfacl -d -m u:65534:rwx,g:42:r-x,o::- d
            umask 022; : >d/file; mkdir d/sub; umask 077; : >d/strict; mkdir d/sub/deep
            mkfifo d/fifo; mkdir -m 700 d/m700
            getfacl -n -R d");
        assert!(listing.contains("user:65534:rw"), "{listing}");
        t.see("ACLs", listing);
        for name in ["d/file", "d/sub", "d/strict", "d/fifo", "d/m700"] {
            t.see(name, mode(&t.path(name)));
        }
    }

    /// ACLs are obeyed, changed by chmod, and removed again.
    fn acls_are_obeyed(t) {
        sh(t.top(), "echo x >f; chmod 600 f; setfacl -m u:65534:r f");
        let path = t.path("f");
        t.see("granted", as_user(NOBODY, NOBODY, &[], || fs::read(&path).is_ok()));
        t.see("others", as_user(OTHER, OTHER, &[], || fs::read(&path).is_ok()));
        assert!(as_user(NOBODY, NOBODY, &[], || fs::read(&path)).is_ok());
        chmod(&path, 0o600); // the group bits are the ACL's mask
        t.see("masked", as_user(NOBODY, NOBODY, &[], || fs::read(&path).is_ok()));
        t.see("after chmod", sh(t.top(), "getfacl -n f"));
        t.see("removed", sh(t.top(), "setfacl -b f; getfacl -n f"));
    }

    /// Setting an ACL as a user outside the file's group takes the setgid bit away.
    fn setting_an_acl_clears_setgid(t) {
        let path = t.file("f", "x");
        chown(&path, Some(NOBODY), Some(42)).unwrap();
        chmod(&path, 0o2755);
        as_user(NOBODY, NOBODY, &[], || sh(t.top(), "setfacl -m u:1:rwx f"));
        // The shell is a child of the thread, so it had its ids.
        t.see("mode", owner_and_mode(&path));
        t.see("ACL", sh(t.top(), "getfacl -n f"));
    }

    /// O_NOATIME is for the owner only.
    fn noatime_is_for_the_owner(t) {
        let path = t.file("f", "x");
        let flags = OFlags::RDONLY | OFlags::NOATIME;
        t.try_see("root", open(&path, flags, Mode::empty()).map(|_| ()));
        t.try_see("other", as_user(NOBODY, NOBODY, &[], || open(&path, flags, Mode::empty()).map(|_| ())));
    }

    /// An executable runs, needs its bit, and can't be written while it runs.
    fn programs_run_from_it(t) {
        sh(t.top(), "cp /bin/sleep s; chmod 755 s; printf '#!/bin/sh\necho ran\n' >script; chmod 755 script");
        t.see("script", sh(t.top(), "./script"));
        let mut sleeper = std::process::Command::new(t.path("s")).arg("60").spawn().unwrap();
        t.try_see("busy", OpenOptions::new().write(true).open(t.path("s")).map(|_| ()));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        t.try_see("free", OpenOptions::new().write(true).open(t.path("s")).map(|_| ()));
        chmod(&t.path("script"), 0o644);
        t.try_see("without the bit", std::process::Command::new(t.path("script")).spawn().map(|_| ()));
    }
}
