//! Every word that `-o` knows, with what it does and its line in the man page. This table is the only
//! list: the parser, the suggestions and loopfs(1) are all made from it.

use std::ffi::OsStr;

use crate::config::{Cache, Choice as _, Io, Listing, MountOptions, Supervise};

use super::Options;
use super::value::{self, LIMIT, MAX_READ, RESTART_LIMIT, SECONDS, THREADS};

/// One word of the `-o` list.
#[derive(Debug)]
pub struct Word {
    /// As it is written; a trailing `*` stands for any ending.
    pub name: &'static str,
    /// Its line in the man page.
    pub help: &'static str,
    /// What it does.
    pub(super) effect: Effect,
}

impl Word {
    /// The placeholder for its value, if it needs one: `SECONDS` in `attr_timeout=SECONDS`.
    #[must_use]
    pub fn placeholder(&self) -> Option<&'static str> {
        match self.effect {
            Effect::Value { placeholder, .. } => Some(placeholder),
            Effect::Switch(..) | Effect::Flag(_) | Effect::UserMount(_) | Effect::Ignored => None,
        }
    }

    /// Whether the word is accepted only because others pass it on.
    #[must_use]
    pub fn is_ignored(&self) -> bool {
        matches!(self.effect, Effect::Ignored)
    }

    /// Whether it decides something that stays as it is as long as the mount lasts.
    pub(super) fn lasts(&self) -> bool {
        let decides = matches!(
            self.effect,
            Effect::Switch(..) | Effect::Flag(_) | Effect::Value { .. }
        );
        decides && !CHANGEABLE.contains(&self.name)
    }

    pub(super) fn matches(&self, name: &OsStr) -> bool {
        match self.name.strip_suffix('*') {
            Some(prefix) => name.as_encoded_bytes().starts_with(prefix.as_bytes()),
            None => name == self.name,
        }
    }
}

/// What a word does.
#[derive(Debug)]
pub(super) enum Effect {
    /// Takes no value, and switches one thing on or off.
    Switch(Field, bool),
    /// Takes no value.
    Flag(fn(&mut Options)),
    /// `user` and its kin: a flag that mount(8) may pass on with the name of the user as its value.
    UserMount(fn(&mut Options)),
    /// Needs a value; `form` says in words which ones, `set` answers `None` for any other.
    Value {
        placeholder: &'static str,
        form: &'static str,
        set: fn(&mut Options, &OsStr) -> Option<()>,
    },
    /// For somebody else; with or without a value.
    Ignored,
}

/// What `remount` can change, itself, and what has no effect.
const CHANGEABLE: [&str; 17] = [
    "rw",
    "ro",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "symfollow",
    "nosymfollow",
    "sync",
    "async",
    "dirsync",
    "atime",
    "noatime",
    "remount",
    "auto_unmount",
];

type Field = fn(&mut MountOptions) -> &mut bool;

const fn on(name: &'static str, help: &'static str, field: Field) -> Word {
    Word {
        name,
        help,
        effect: Effect::Switch(field, true),
    }
}

const fn off(name: &'static str, help: &'static str, field: Field) -> Word {
    Word {
        name,
        help,
        effect: Effect::Switch(field, false),
    }
}

const fn flag(name: &'static str, help: &'static str, set: fn(&mut Options)) -> Word {
    Word {
        name,
        help,
        effect: Effect::Flag(set),
    }
}

const fn user_mount(name: &'static str, help: &'static str, set: fn(&mut Options)) -> Word {
    Word {
        name,
        help,
        effect: Effect::UserMount(set),
    }
}

const fn ignored(name: &'static str, help: &'static str) -> Word {
    Word {
        name,
        help,
        effect: Effect::Ignored,
    }
}

const fn seconds(
    name: &'static str,
    help: &'static str,
    set: fn(&mut Options, &OsStr) -> Option<()>,
) -> Word {
    Word {
        name,
        help,
        effect: Effect::Value {
            placeholder: "SECONDS",
            form: SECONDS,
            set,
        },
    }
}

const MADE_BY_KERNEL: &str = "For other file systems, or the default.";
const SHOWN_BY_KERNEL: &str =
    "Shown in the mount table by the kernel; mount(8) passes it back with remount.";

/// The words, in the order of the man page.
pub static TABLE: &[Word] = &[
    // What may be done through the mount.
    off("rw", "Changes are allowed (default).", |m| &mut m.read_only),
    on(
        "ro",
        "Nothing can be changed through the mount; the same as -r.",
        |m| &mut m.read_only,
    ),
    off(
        "suid",
        "Set-user-ID bits and file capabilities count (default for root, if they do where SRC is).",
        |m| &mut m.nosuid,
    ),
    on(
        "nosuid",
        "Set-user-ID bits and file capabilities have no effect (default for other users).",
        |m| &mut m.nosuid,
    ),
    off(
        "dev",
        "Device nodes can be opened (default for root, if they can where SRC is).",
        |m| &mut m.nodev,
    ),
    on(
        "nodev",
        "Device nodes can't be opened (default for other users).",
        |m| &mut m.nodev,
    ),
    off(
        "exec",
        "Programs can be executed (default, if they can where SRC is).",
        |m| &mut m.noexec,
    ),
    on("noexec", "Nothing can be executed.", |m| &mut m.noexec),
    off(
        "symfollow",
        "Symlinks are followed (default, if they are where SRC is).",
        |m| &mut m.nosymfollow,
    ),
    on(
        "nosymfollow",
        "Symlinks can be made and read, and nobody is led on by one (ELOOP). Not with fusermount3, which does not know it.",
        |m| &mut m.nosymfollow,
    ),
    on(
        "sync",
        "Writes reach the storage before they return.",
        |m| &mut m.sync,
    ),
    off(
        "async",
        "Writes are buffered as the file system of SRC does it (default).",
        |m| &mut m.sync,
    ),
    on(
        "dirsync",
        "Changes of directories reach the storage before they return.",
        |m| &mut m.dirsync,
    ),
    // Who may use it.
    flag(
        "allow_other",
        "Every user may use the mount (default for root).",
        |o| {
            o.mount.allow_other = true;
            o.mount.allow_root = false;
        },
    ),
    off(
        "noallow_other",
        "Only the user who mounted it may use the mount (default for other users).",
        |m| &mut m.allow_other,
    ),
    flag(
        "allow_root",
        "Only the user who mounted it and root may use the mount; replaces allow_other.",
        |o| {
            o.mount.allow_root = true;
            o.mount.allow_other = false;
        },
    ),
    on(
        "default_permissions",
        "The kernel checks modes and access control lists (default for root, and with allow_other).",
        |m| &mut m.default_permissions,
    ),
    off(
        "nodefault_permissions",
        "Only the file system of SRC checks, as the user who mounted.",
        |m| &mut m.default_permissions,
    ),
    // What is below it.
    flag("one_file_system", "The same as --one-file-system.", |o| {
        o.tree.one_file_system = true;
    }),
    flag("forward_locks", "The same as --forward-locks.", |o| {
        o.tree.forward_locks = true;
    }),
    // How it is served.
    flag("low_latency", "The same as --low-latency.", |o| {
        o.low_latency = true;
    }),
    // How it is shown.
    Word {
        name: "fsname",
        help: "The source that the mount table shows (default: SRC). A comma in it needs a backslash in front.",
        effect: Effect::Value {
            placeholder: "TEXT",
            form: "a text of at least one character",
            set: |o, text| (!text.is_empty()).then(|| o.mount.fsname = Some(text.to_owned())),
        },
    },
    Word {
        name: "subtype",
        help: "The type that the mount table shows behind 'fuse.' (default: loopfs).",
        effect: Effect::Value {
            placeholder: "TEXT",
            form: "a text of at least one character",
            set: |o, text| (!text.is_empty()).then(|| text.clone_into(&mut o.mount.subtype)),
        },
    },
    // What the kernel may keep, and how it asks.
    seconds(
        "entry_timeout",
        "How long the kernel may keep a name and what it stands for (default: 1, where changes in SRC are not followed).",
        |o, text| {
            o.caching.entry = value::seconds(text.to_str()?).ok()?;
            o.timed = true;
            Some(())
        },
    ),
    seconds(
        "attr_timeout",
        "How long the kernel may keep the attributes of a file (default: 1, where changes in SRC are not followed).",
        |o, text| {
            o.caching.attr = value::seconds(text.to_str()?).ok()?;
            o.timed = true;
            Some(())
        },
    ),
    seconds(
        "negative_timeout",
        "How long the kernel may keep that a name does not exist (default: 0, not at all, where changes in SRC are not followed).",
        |o, text| {
            o.caching.negative = value::seconds(text.to_str()?).ok()?;
            o.timed = true;
            Some(())
        },
    ),
    Word {
        name: "max_read",
        help: "The largest read request (default: the largest that the kernel makes).",
        effect: Effect::Value {
            placeholder: "BYTES",
            form: MAX_READ,
            set: |o, text| {
                o.mount.max_read = Some(value::max_read(text.to_str()?).ok()?);
                Some(())
            },
        },
    },
    Word {
        name: "threads",
        help: "The same as --threads, which wins over it.",
        effect: Effect::Value {
            placeholder: "N",
            form: THREADS,
            set: |o, text| {
                o.threads = Some(value::threads(text.to_str()?).ok()?);
                Some(())
            },
        },
    },
    Word {
        name: "io",
        help: "The same as --io, which wins over it.",
        effect: Effect::Value {
            placeholder: "WAY",
            form: "auto, passthrough, cached or direct",
            set: |o, text| {
                o.io = Some(Io::of_name(text.to_str()?)?);
                Some(())
            },
        },
    },
    Word {
        name: "readdirplus",
        help: "Whether a listing brings the attributes of the files along (default: auto, if the kernel thinks that they are \
               wanted).",
        effect: Effect::Value {
            placeholder: "WHEN",
            form: "auto, always or never",
            set: |o, text| {
                o.listing = Listing::of_name(text.to_str()?)?;
                Some(())
            },
        },
    },
    Word {
        name: "cache",
        help: "The same as --cache, which wins over it.",
        effect: Effect::Value {
            placeholder: "MODE",
            form: "auto, coherent, ttl or none",
            set: |o, text| {
                o.cache = Some(Cache::of_name(text.to_str()?)?);
                Some(())
            },
        },
    },
    Word {
        name: "drain_timeout",
        help: "The same as --drain-timeout, which wins over it.",
        effect: Effect::Value {
            placeholder: "SECONDS|never",
            form: LIMIT,
            set: |o, text| {
                o.drain_timeout = value::limit(text.to_str()?).ok()?;
                Some(())
            },
        },
    },
    Word {
        name: "supervise",
        help: "The same as --supervise, which wins over it.",
        effect: Effect::Value {
            placeholder: "MODE",
            form: "off, on or require",
            set: |o, text| {
                o.restart.supervise = Supervise::of_name(text.to_str()?)?;
                Some(())
            },
        },
    },
    Word {
        name: "restart_limit",
        help: "The same as --restart-limit, which wins over it.",
        effect: Effect::Value {
            placeholder: "N|never",
            form: RESTART_LIMIT,
            set: |o, text| {
                o.restart.limit = value::restart_limit(text.to_str()?).ok()?;
                Some(())
            },
        },
    },
    Word {
        name: "lazy_timeout",
        help: "The same as --lazy-timeout, which wins over it.",
        effect: Effect::Value {
            placeholder: "SECONDS|never",
            form: LIMIT,
            set: |o, text| {
                o.lazy_timeout = value::limit(text.to_str()?).ok()?;
                Some(())
            },
        },
    },
    // Access times: the kernel keeps none for FUSE (fuse_iget sets S_NOATIME); SRC keeps its own.
    on(
        "noatime",
        "Shown in the mount table. Access times are those of SRC in any case.",
        |m| &mut m.noatime,
    ),
    off("atime", "Undoes noatime (default).", |m| &mut m.noatime),
    ignored("relatime", "Access times are those of SRC."),
    ignored("norelatime", "Access times are those of SRC."),
    ignored("strictatime", "Access times are those of SRC."),
    ignored("nostrictatime", "Access times are those of SRC."),
    ignored("diratime", "Access times are those of SRC."),
    ignored("nodiratime", "Access times are those of SRC."),
    ignored("lazytime", "Times are those of SRC."),
    ignored("nolazytime", "Times are those of SRC."),
    // What a user may mount, as mount(8) says: owner and group imply no noexec.
    user_mount(
        "user",
        "From fstab(5): implies noexec, nosuid and nodev unless a later word says otherwise.",
        |o| {
            o.mount.noexec = true;
            restrict(o);
        },
    ),
    user_mount("users", "The same as user.", |o| {
        o.mount.noexec = true;
        restrict(o);
    }),
    user_mount(
        "owner",
        "From fstab(5): implies nosuid and nodev unless a later word says otherwise.",
        restrict,
    ),
    user_mount("group", "The same as owner.", restrict),
    // What fstab(5), mount(8), systemd and other FUSE programs pass on.
    ignored("defaults", "Changes nothing."),
    ignored("nouser", "For mount(8)."),
    ignored("noowner", "For mount(8)."),
    ignored("nogroup", "For mount(8)."),
    ignored("auto", "For mount(8)."),
    ignored("noauto", "For mount(8)."),
    ignored("nofail", "For mount(8) and systemd."),
    ignored("_netdev", "For mount(8) and systemd."),
    ignored("_rnetdev", "For mount(8)."),
    ignored("uhelper", "For umount(8)."),
    ignored("helper", "For umount(8)."),
    ignored(
        "silent",
        "For the kernel, which has nothing to be silent about.",
    ),
    ignored(
        "loud",
        "For the kernel, which has nothing to be loud about.",
    ),
    ignored("mand", MADE_BY_KERNEL),
    ignored("nomand", MADE_BY_KERNEL),
    ignored("iversion", MADE_BY_KERNEL),
    ignored("noiversion", MADE_BY_KERNEL),
    ignored("comment", "A comment in fstab(5)."),
    ignored("x-*", "For other programs, as fstab(5) says."),
    ignored("X-*", "For other programs, as fstab(5) says."),
    ignored(
        "nonempty",
        "The default: MNT need not be empty, as with mount(8).",
    ),
    flag(
        "auto_unmount",
        "Not needed: loopfs unmounts at every orderly end.",
        |o| {
            o.remarks.push(
            "mount option 'auto_unmount' is not needed and has no effect: loopfs unmounts at every orderly end, \
             and --replace-stale clears what a crash leaves"
                .to_owned(),
        );
        },
    ),
    ignored("user_id", SHOWN_BY_KERNEL),
    ignored("group_id", SHOWN_BY_KERNEL),
    flag(
        "remount",
        "Change an existing mount: ro, rw and the flags from nosuid to dirsync; everything else stays as it was mounted.",
        |o| o.remount = true,
    ),
];

fn restrict(options: &mut Options) {
    options.mount.nosuid = true;
    options.mount.nodev = true;
}
