//! Making the mount: each way, with its options, and nothing left when it does not come off.

use std::fs;

use super::*;

#[test]
fn every_way_of_mounting_serves_and_ends_politely() {
    for method in METHODS {
        let place = Place::new();
        let mut pending = by_method(method, &place.config());
        let daemon = Daemon::serve(&mut pending);
        assert!(pending.take_device().is_err());
        assert_eq!(
            place.mounted().is_empty(),
            pending.method() == Method::NewApi
        );
        pending.self_test().unwrap();
        let device = pending.device_number().unwrap();
        let attachment = pending.publish().unwrap();

        let [line] = place.mounted().try_into().unwrap();
        assert_eq!(
            (line.device, line.source.as_os_str()),
            (device, OsStr::new("/the source\n#\\040"))
        );
        assert_eq!(line.fs_type, "fuse.loopfs");
        assert!(attachment.is_present() && !attachment.is_covered());
        assert_eq!(attachment.mount_point(), Some(place.mnt()));

        end_politely(&attachment);
        assert_eq!(attachment.detach(Detach::Polite), Ok(Detached::AlreadyGone));
        assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::AlreadyGone));
        assert!(!attachment.is_present());
        assert!(place.mounted().is_empty());
        assert_eq!(daemon.end(), Errno::NODEV);
    }
}

#[test]
fn options_reach_the_mount() {
    let place = Place::new();
    let mut config = place.config();
    config.mount.read_only = true;
    for method in METHODS {
        // Which fusermount3 does not know.
        config.mount.nosymfollow = method != Method::Fusermount;
        let attachment = by_method(method, &config).publish().unwrap();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mnt = place.mnt().into_os_string().into_string().unwrap();
        let line = table
            .lines()
            .find(|line| line.contains(&mnt))
            .unwrap()
            .to_owned();
        let all = format!(" {} ", line.replace(',', " "));
        let nosymfollow = all.contains(" nosymfollow ");
        assert_eq!(nosymfollow, config.mount.nosymfollow, "{method:?}: {line}");
        for word in [
            "ro",
            "nosuid",
            "nodev",
            "noatime",
            "dirsync",
            "default_permissions",
            "allow_other",
            "max_read=131072",
        ] {
            assert!(
                all.contains(&format!(" {word} ")),
                "{method:?}: no {word} in {line}"
            );
        }
        drop(attachment);
        assert!(place.mounted().is_empty());
    }
}

#[test]
fn dropping_what_is_not_published_leaves_nothing() {
    for method in METHODS {
        let place = Place::new();
        let mut pending = by_method(method, &place.config());
        let daemon = Daemon::serve(&mut pending);
        pending.self_test().unwrap();
        drop(pending);
        assert!(place.mounted().is_empty());
        assert_eq!(daemon.end(), Errno::NODEV);
    }
}

#[test]
fn a_silent_daemon_fails_the_self_test_in_time() {
    for method in METHODS {
        let place = Place::new();
        let mut pending = by_method(method, &place.config());
        let daemon = Daemon::start(pending.take_device().unwrap(), false);
        let error = pending
            .self_test_within(Duration::from_millis(100))
            .unwrap_err();
        assert_eq!(error.kind, AttachErrorKind::SelfTest);
        assert_eq!(daemon.end(), Errno::NODEV); // aborted
        drop(pending);
        assert!(place.mounted().is_empty());
    }
}

#[test]
fn a_source_too_long_for_the_new_calls_is_mounted_and_shown_whole() {
    let place = Place::new();
    let mut source = vec![b'x'; 400];
    source.extend(b"\xff end");
    let mut config = place.config();
    config.mount.fsname = Some(OsString::from_vec(source.clone()));
    let pending = prepare(&config).unwrap();
    assert_eq!(pending.method(), Method::MountCall);
    assert_eq!(place.mounted()[0].source.as_bytes(), source);
}
