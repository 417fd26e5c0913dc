//! MNT before the mount.

use std::fs;

use super::*;

fn refusal(config: &Config) -> AttachError {
    let error = prepare(config).unwrap_err();
    assert!(!error.to_string().contains('\n'));
    error
}

#[test]
fn unusable_targets_are_told_apart() {
    let place = Place::new();
    let at = |name: &str| Config {
        target: place.folder.path().join(name),
        ..place.config()
    };
    fs::write(place.folder.path().join("file"), "").unwrap();

    let error = refusal(&at("missing\nmnt"));
    assert_eq!(error.kind, AttachErrorKind::TargetMissing);
    assert!(
        error
            .to_string()
            .ends_with("missing\\nmnt does not exist: create it, or use --mkdir")
    );
    assert_eq!(error.exit_code(), crate::exit::ExitCode::MountFailed);

    assert_eq!(
        refusal(&at("file")).kind,
        AttachErrorKind::TargetNotDirectory
    );
    assert_eq!(
        refusal(&at("file/mnt")).kind,
        AttachErrorKind::TargetNotDirectory
    );
    let made = |name| Config {
        make_target: true,
        ..at(name)
    };
    assert_eq!(
        refusal(&made("file")).kind,
        AttachErrorKind::TargetNotDirectory
    );
    assert_eq!(
        refusal(&made("missing/mnt")).kind,
        AttachErrorKind::TargetMissing
    );
}

#[test]
fn a_missing_device_and_no_device_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let missing = open_device(&folder.path().join("fuse")).unwrap_err();
    assert_eq!(missing.kind, AttachErrorKind::NoDevice);
    assert_eq!(missing.exit_code(), crate::exit::ExitCode::System);
}

#[test]
fn a_directory_made_for_the_mount_goes_with_it() {
    let place = Place::new();
    let target = place.folder.path().join("made");
    let config = Config {
        target: target.clone(),
        make_target: true,
        ..place.config()
    };

    drop(prepare(&config).unwrap());
    assert!(!target.exists(), "start-up failed");

    let attachment = prepare(&config).unwrap().publish().unwrap();
    attachment.remove_made_target();
    assert!(attachment.is_present(), "too early: it is mounted on");
    end_politely(&attachment);
    attachment.remove_made_target();
    assert!(!target.exists());

    let attachment = prepare(&config).unwrap().publish().unwrap();
    assert_eq!(attachment.detach(Detach::Lazy), Ok(Detached::Done));
    fs::write(target.join("something"), "").unwrap();
    drop(attachment);
    assert!(target.join("something").exists(), "somebody filled it");

    drop(prepare(&config).unwrap());
    assert!(target.exists(), "it was there before");
}

#[test]
fn a_dead_mount_is_named_and_replaced_when_asked() {
    let place = Place::new();
    place.mount_dead();
    let error = refusal(&place.config());
    assert_eq!(error.kind, AttachErrorKind::TargetDead);
    assert!(error.to_string().contains("--replace-stale"));

    let inside = Config {
        target: place.mnt().join("sub"),
        ..place.config()
    };
    assert_eq!(refusal(&inside).kind, AttachErrorKind::TargetDead);
    let inside = Config {
        make_target: true,
        replace_stale: true,
        ..inside
    };
    assert_eq!(refusal(&inside).kind, AttachErrorKind::TargetDead);
    assert_eq!(place.mounted().len(), 1);

    let config = Config {
        replace_stale: true,
        ..place.config()
    };
    let (attachment, _daemon) = served(Method::NewApi, &config);
    assert_eq!(place.mounted().len(), 1);
    end_politely(&attachment);
}

#[test]
fn only_dead_fuse_mounts_are_replaced() {
    let place = Place::new();
    place.mount_tmpfs();
    let config = Config {
        replace_stale: true,
        ..place.config()
    };
    let (living, _daemon) = served(Method::NewApi, &config);
    let (upper, _daemon) = served(Method::NewApi, &config);
    assert_eq!(place.mounted().len(), 3);
    assert!(living.is_covered());
    end_politely(&upper);
    end_politely(&living);
    assert_eq!(place.mounted().len(), 1);
}

#[test]
fn a_target_that_does_not_answer_costs_a_line_and_not_a_hang() {
    let place = Place::new();
    let mut pending = prepare(&place.config()).unwrap();
    let _device = pending.take_device().unwrap(); // nobody reads it
    let attachment = pending.publish().unwrap();
    let config = Config {
        replace_stale: true,
        ..place.config()
    };
    assert_eq!(refusal(&config).kind, AttachErrorKind::TargetUnresponsive);
    assert!(attachment.is_present());
    attachment.abort_connection().unwrap();
}
