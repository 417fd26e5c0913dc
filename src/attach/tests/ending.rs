//! Knowing the mount and ending it, and it alone.

use std::fs;
use std::time::{Duration, Instant};

use super::*;

#[test]
fn a_busy_mount_stays_and_can_be_detached_lazily() {
    for method in METHODS {
        let place = Place::new();
        let (attachment, daemon) = served(method, &place.config());
        let held = fs::File::open(place.mnt()).unwrap();
        assert_eq!(attachment.detach(Detach::Polite), Ok(Detached::Busy));
        assert!(attachment.is_present());
        assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::Done));
        assert!(!attachment.is_present() && !daemon.0.is_finished());
        assert!(held.metadata().unwrap().is_dir()); // still served
        drop(held);
        assert_eq!(daemon.end(), Errno::NODEV);
    }
}

#[test]
fn a_newcomer_at_the_place_is_not_touched() {
    for method in METHODS {
        let place = Place::new();
        let (attachment, _daemon) = served(method, &place.config());
        rustix::mount::unmount(place.mnt(), UnmountFlags::DETACH).unwrap();
        place.mount_tmpfs();
        let newcomer = place.mounted();
        assert!(!attachment.is_present() && !attachment.is_covered());
        assert_eq!(attachment.detach(Detach::Polite), Ok(Detached::AlreadyGone));
        assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::AlreadyGone));
        drop(attachment);
        assert_eq!(place.mounted(), newcomer);
    }
}

#[test]
fn what_covers_ours_is_not_touched() {
    for method in METHODS {
        let place = Place::new();
        let (attachment, _daemon) = served(method, &place.config());
        place.mount_tmpfs();
        assert!(attachment.is_present() && attachment.is_covered());
        assert_eq!(attachment.upper(), [place.mnt()]);
        let both = place.mounted();
        assert_eq!(attachment.detach(Detach::Polite), Ok(Detached::Covered));
        assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::Covered));
        assert_eq!(place.mounted(), both);
        rustix::mount::unmount(place.mnt(), UnmountFlags::empty()).unwrap();
        assert!(!attachment.is_covered());
        end_politely(&attachment);
    }
}

/// Another mount by the very same name, which is what a lookup finds.
#[test]
fn what_is_mounted_below_a_mount_on_the_way_is_not_touched() {
    for method in METHODS {
        let place = Place::new();
        let (attachment, _daemon) = served(method, &place.config());
        place.mount_above();
        assert!(attachment.is_present() && attachment.is_covered());
        assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::Covered));
        place.mount_tmpfs();
        let both = place.mounted();
        for how in [Detach::Polite, Detach::Lazy] {
            assert_eq!(attachment.detach(how), Ok(Detached::Covered));
        }
        assert_eq!((both.len(), place.mounted()), (2, both));
        place.unmount_above();
        assert!(!attachment.is_covered());
        end_politely(&attachment);
    }
}

#[test]
fn statmount_and_mountinfo_say_the_same() {
    let place = Place::new();
    let (attachment, _daemon) = served(Method::NewApi, &place.config());
    let new = attachment.identity();
    let old = new.without_unique_id();
    let root = table::open_quietly(&place.mnt()).unwrap();
    for identity in [new, &old] {
        assert_eq!(identity.place(), Ok(Some(place.mnt())));
        assert_eq!(identity.upper(), Ok(Vec::new()));
        assert_eq!(identity.is_mount_of(&root), Ok(true));
    }
    place.mount_tmpfs();
    let cover = table::open_quietly(&place.mnt()).unwrap();
    for identity in [new, &old] {
        assert_eq!(identity.upper(), Ok(vec![place.mnt()]));
        assert_eq!(identity.is_mount_of(&cover), Ok(false));
        assert_eq!(detach::politely(identity), Ok(Detached::Covered));
    }
    drop((root, cover));
    rustix::mount::unmount(place.mnt(), UnmountFlags::empty()).unwrap();
    until_idle(|| detach::politely(&old).unwrap());
    for identity in [new, &old] {
        assert_eq!(identity.place(), Ok(None));
        assert_eq!(detach::lazily(identity), Ok(Detached::AlreadyGone));
    }
}

#[test]
fn a_mount_that_moved_is_found() {
    for how in [Detach::Polite, Detach::Lazy] {
        let place = Place::new();
        let folder = place.folder.path().join("a");
        fs::create_dir_all(folder.join("mnt")).unwrap();
        let config = Config {
            target: folder.join("mnt"),
            ..place.config()
        };
        let (attachment, _daemon) = served(Method::NewApi, &config);
        let elsewhere = place.folder.path().join("b c");
        fs::rename(&folder, &elsewhere).unwrap();
        assert_eq!(attachment.mount_point(), Some(elsewhere.join("mnt")));
        until_idle(|| attachment.detach(how).unwrap());
    }
}

#[test]
fn of_many_who_detach_one_does_it() {
    let place = Place::new();
    let (attachment, _daemon) = served(Method::NewApi, &place.config());
    let outcomes: Vec<_> = thread::scope(|scope| {
        let each = |n: u32| {
            let how = if n.is_multiple_of(2) {
                Detach::Polite
            } else {
                Detach::Lazy
            };
            attachment.detach(how).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || each(n))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(
        outcomes.iter().filter(|&&it| it == Detached::Done).count(),
        1,
        "{outcomes:?}"
    );
    assert!(!outcomes.contains(&Detached::Covered), "{outcomes:?}");
}

#[test]
fn an_abort_works_before_and_after_a_lazy_unmount_and_hits_nobody_later() {
    let place = Place::new();
    let (attachment, daemon) = served(Method::NewApi, &place.config());
    attachment.abort_connection().unwrap();
    assert_eq!(daemon.end(), Errno::NODEV);
    assert!(attachment.is_present()); // dead, and still there
    end_politely(&attachment);

    let (attachment, daemon) = served(Method::NewApi, &place.config());
    let held = fs::File::open(place.mnt()).unwrap();
    assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::Done));
    attachment.abort_connection().unwrap();
    assert_eq!(daemon.end(), Errno::NODEV);
    assert!(held.metadata().is_err());
    drop(held);

    // The number of the connection that has ended goes to the next mount.
    let (next, _daemon) = served(Method::NewApi, &place.config());
    attachment.abort_connection().unwrap();
    fs::read_dir(place.mnt()).unwrap();
    end_politely(&next);
}

#[test]
fn an_abort_by_force_leaves_the_unmounting_to_the_caller() {
    let place = Place::new();
    let (attachment, daemon) = served(Method::NewApi, &place.config());
    let root = table::open_quietly(&place.mnt()).unwrap();
    kernel::force_abort(root.as_fd()).unwrap();
    drop(root);
    assert_eq!(daemon.end(), Errno::NODEV);
    end_politely(&attachment);
}

/// A forced unmount cuts the connection first: whoever waits for the mount to leave sees it leave.
#[test]
fn who_waits_for_the_mount_to_leave_is_woken_when_it_does() {
    let place = Place::new();
    let (attachment, _daemon) = served(Method::NewApi, &place.config());
    let begin = Instant::now();
    assert!(attachment.stays(Duration::from_millis(20)));
    assert!(begin.elapsed() >= Duration::from_millis(20));
    let forced = UnmountFlags::FORCE | UnmountFlags::DETACH;
    std::thread::scope(|scope| {
        scope.spawn(|| rustix::mount::unmount(place.mnt(), forced).unwrap());
        assert!(!attachment.stays(Duration::from_secs(60)));
    });
    assert!(begin.elapsed() < Duration::from_secs(30));
}
