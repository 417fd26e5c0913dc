//! The `-o` list in the style of mount(8) and fstab(5): `ro,fsname=photos`.
//!
//! In reading order: [`Options`] is what a list came to; [`table`](TABLE) has every word with its
//! effect and its line in the man page; `value` reads the numbers. Words apply one after the
//! other, so a later one wins over an earlier one, within a list and across several `-o`. An unknown
//! word is an error, because a mount that silently lacks the `noexec` somebody mistyped is worse than
//! none; the words that fstab(5) and mount(8) pass on to every helper are accepted.

mod table;
mod value;

use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use crate::config::{Cache, Caching, Io, Limit, Listing, MountOptions, Restart, TreeOptions};
use crate::exit::{ExitCode, Failure};

use table::Effect;
pub use table::{TABLE, Word};
pub(crate) use value::{limit_from_text, restart_limit_from_text, threads_from_text};

/// What the defaults and the `-o` lists came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is a word of the list, independent of the others
pub struct Options {
    /// What the mount is like.
    pub mount: MountOptions,
    /// What the kernel may keep.
    pub caching: Caching,
    /// How SRC is shown.
    pub tree: TreeOptions,
    /// How long open files are given after a signal.
    pub drain_timeout: Limit,
    /// How long open files are given after a lazy unmount from outside.
    pub lazy_timeout: Limit,
    /// What happens when the serving process dies.
    pub restart: Restart,
    /// Number of event loops, if a list named one.
    pub threads: Option<NonZeroUsize>,
    /// `io=`.
    pub io: Option<Io>,
    /// `readdirplus=`.
    pub listing: Listing,
    /// `cache=`.
    pub cache: Option<Cache>,
    /// A time was given for which the kernel may keep something.
    pub timed: bool,
    /// CPUs are kept from sleeping deeply while requests come.
    pub low_latency: bool,
    /// The flags of a mount that is there are to be changed.
    pub remount: bool,
    /// Words that were given and that a remount can't change.
    pub lasting: Vec<&'static str>,
    /// Unknown words are passed over with a remark (`-s` of mount(8)).
    pub sloppy: bool,
    /// What the user should know about accepted words, for the log.
    pub remarks: Vec<String>,
}

impl Options {
    /// The options without any list. `privileged` is root: its mounts are for everybody, with the
    /// kernel checking permissions, and as trusting as the mount that SRC is on. A mount of another user is for that
    /// user, and without set-user-ID programs and devices, which fusermount3 insists on anyway.
    #[must_use]
    pub fn defaults(privileged: bool) -> Self {
        Self {
            mount: MountOptions {
                read_only: false,
                nosuid: !privileged,
                nodev: !privileged,
                noexec: false,
                nosymfollow: false,
                noatime: false,
                sync: false,
                dirsync: false,
                allow_other: privileged,
                allow_root: false,
                default_permissions: privileged,
                fsname: None,
                subtype: "loopfs".into(),
                max_read: None,
            },
            caching: Caching {
                mode: Cache::Auto,
                entry: Duration::from_secs(1),
                attr: Duration::from_secs(1),
                negative: Duration::ZERO,
            },
            tree: TreeOptions::default(),
            drain_timeout: Limit::After(Duration::from_secs(10)),
            lazy_timeout: Limit::Never,
            restart: Restart::default(),
            threads: None,
            io: None,
            listing: Listing::Auto,
            cache: None,
            timed: false,
            low_latency: false,
            remount: false,
            lasting: Vec::new(),
            sloppy: false,
            remarks: Vec::new(),
        }
    }

    /// Applies one comma list on top of what is there.
    pub fn apply(&mut self, list: &OsStr) -> Result<(), Failure> {
        split(list)
            .iter()
            .try_for_each(|item| self.apply_item(item))
    }

    fn apply_item(&mut self, item: &OsStr) -> Result<(), Failure> {
        let bytes = item.as_bytes();
        let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]))),
            None => (bytes, None),
        };
        let name = OsStr::from_bytes(name);
        let Some(word) = TABLE.iter().find(|word| word.matches(name)) else {
            let failure = unknown(name);
            if self.sloppy {
                self.remarks.push(failure.message);
                return Ok(());
            }
            return Err(failure);
        };
        if word.lasts() && !self.lasting.contains(&word.name) {
            self.lasting.push(word.name);
        }
        let named = format!("mount option '{}'", word.name);
        match (&word.effect, value) {
            (Effect::Switch(field, on), None) => *field(&mut self.mount) = *on,
            (Effect::Flag(set), None) | (Effect::UserMount(set), _) => set(self),
            (Effect::Switch(..) | Effect::Flag(_), Some(_)) => {
                return Err(usage(format!(
                    "{named} takes no value: write '{}'",
                    word.name
                )));
            }
            (Effect::Value { placeholder, .. }, None) => {
                return Err(usage(format!(
                    "{named} needs a value: '{}={placeholder}'",
                    word.name
                )));
            }
            (Effect::Value { form, set, .. }, Some(value)) => {
                let wrong = || {
                    usage(format!(
                        "{named}: '{}' is not {form}",
                        value.to_string_lossy()
                    ))
                };
                set(self, value).ok_or_else(wrong)?;
            }
            (Effect::Ignored, _) => {}
        }
        Ok(())
    }
}

/// The items of a comma list, without empty ones. A backslash keeps the comma or backslash behind it
/// from its meaning, and is an ordinary character anywhere else.
fn split(list: &OsStr) -> Vec<OsString> {
    let mut items = vec![Vec::new()];
    let mut bytes = list.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let escaped = match byte {
            b'\\' => bytes.next_if(|next| matches!(next, b',' | b'\\')),
            b',' => {
                items.push(Vec::new());
                continue;
            }
            _ => None,
        };
        if let Some(item) = items.last_mut() {
            item.push(escaped.unwrap_or(byte));
        }
    }
    items.retain(|item| !item.is_empty());
    items.into_iter().map(OsString::from_vec).collect()
}

fn unknown(name: &OsStr) -> Failure {
    let name = name.to_string_lossy();
    let suggestion = nearest(&name).map_or_else(
        || ".".to_owned(),
        |known| format!(": did you mean '{known}'?"),
    );
    usage(format!(
        "unknown mount option '{name}'{suggestion} See loopfs(1) for the list"
    ))
}

/// The known word that `name` was probably meant to be: one slip for each four letters. Shorter names
/// get none, because nearly every short word is one slip away from another.
fn nearest(name: &str) -> Option<&'static str> {
    let letters = name.chars().count();
    if letters < 4 {
        return None;
    }
    TABLE
        .iter()
        .map(|word| (strsim::damerau_levenshtein(name, word.name), word.name))
        .min()
        .filter(|(slips, _)| *slips <= letters.div_ceil(4))
        .map(|(_, known)| known)
}

fn usage(message: String) -> Failure {
    Failure::new(ExitCode::Usage, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn parsed(list: &str) -> Options {
        let mut options = Options::defaults(true);
        options.apply(OsStr::new(list)).unwrap();
        options
    }

    fn refused(list: &str) -> String {
        let failure = Options::defaults(true).apply(OsStr::new(list)).unwrap_err();
        assert_eq!(failure.code, ExitCode::Usage);
        failure.message
    }

    #[test]
    fn a_later_word_wins() {
        assert!(!parsed("ro,rw").mount.read_only);
        assert!(parsed("rw,ro").mount.read_only);
        let mut options = parsed("noexec,attr_timeout=5");
        options.apply(OsStr::new("exec,attr_timeout=0.5")).unwrap();
        assert!(!options.mount.noexec);
        assert_eq!(options.caching.attr, Duration::from_millis(500));
    }

    #[test]
    fn user_restricts_unless_overridden_later() {
        let user = parsed("exec,user").mount;
        assert!(user.noexec && user.nosuid && user.nodev);
        // libmount appends the words that fstab overrode behind `user=NAME`.
        let overridden = parsed("user=joe,exec,suid").mount;
        assert!(!overridden.noexec && !overridden.nosuid && overridden.nodev);
        let owner = parsed("owner").mount;
        assert!(!owner.noexec && owner.nosuid && owner.nodev);
    }

    #[test]
    fn allow_root_and_allow_other_exclude_each_other() {
        let root = parsed("allow_other,allow_root").mount;
        assert!(root.allow_root && !root.allow_other);
        let other = parsed("allow_root,allow_other").mount;
        assert!(!other.allow_root && other.allow_other);
    }

    #[test]
    fn root_can_opt_out_of_its_defaults() {
        let mount = parsed("noallow_other,nodefault_permissions").mount;
        assert!(!mount.allow_other && !mount.default_permissions);
        let unprivileged = Options::defaults(false).mount;
        assert!(!unprivileged.allow_other && unprivileged.nosuid && unprivileged.nodev);
    }

    #[test]
    fn what_others_pass_on_changes_nothing() {
        let list = "defaults,noauto,nofail,_netdev,nouser,uhelper=udisks2,helper=x,comment=a b,\
                    x-systemd.automount,x-gvfs-name=Photos,X-mount.mkdir,relatime,nonempty,,";
        assert_eq!(parsed(list), Options::defaults(true));
    }

    #[test]
    fn commas_and_backslashes_can_be_escaped() {
        assert_eq!(
            parsed(r"fsname=a\,b\\,ro").mount.fsname,
            Some(r"a,b\".into())
        );
        assert_eq!(parsed(r"fsname=a\b\").mount.fsname, Some(r"a\b\".into()));
        assert_eq!(parsed("fsname=a=b").mount.fsname, Some("a=b".into()));
    }

    #[test]
    fn names_are_bytes() {
        let mut options = Options::defaults(true);
        options.apply(OsStr::from_bytes(b"fsname=\xff")).unwrap();
        assert_eq!(options.mount.fsname, Some(OsString::from_vec(vec![0xff])));
        let failure = options
            .apply(OsStr::from_bytes(b"\xff\xff\xff\xff"))
            .unwrap_err();
        assert_eq!(failure.code, ExitCode::Usage);
    }

    #[test]
    fn an_unknown_word_is_named_with_the_nearest() {
        assert_eq!(
            refused("ro,allow_othr"),
            "unknown mount option 'allow_othr': did you mean 'allow_other'? See loopfs(1) for the list"
        );
        assert_eq!(
            refused("uid=5"),
            "unknown mount option 'uid'. See loopfs(1) for the list"
        );
        assert_eq!(
            refused("RO"),
            "unknown mount option 'RO'. See loopfs(1) for the list"
        );
    }

    #[test]
    fn bad_values_say_what_is_allowed() {
        assert_eq!(
            refused("ro=1"),
            "mount option 'ro' takes no value: write 'ro'"
        );
        assert_eq!(
            refused("fsname"),
            "mount option 'fsname' needs a value: 'fsname=TEXT'"
        );
        assert_eq!(
            refused("subtype="),
            "mount option 'subtype': '' is not a text of at least one character"
        );
        assert_eq!(
            refused("max_read=1k"),
            "mount option 'max_read': '1k' is not a number of bytes from 4096 to 4294967295"
        );
        assert_eq!(
            refused("attr_timeout=-1"),
            "mount option 'attr_timeout': '-1' is not a number of seconds such as 1 or 0.5"
        );
        assert_eq!(
            refused("threads=0"),
            "mount option 'threads': '0' is not a whole number from 1 to 64"
        );
    }

    #[test]
    fn auto_unmount_is_accepted_with_a_remark() {
        let options = parsed("auto_unmount");
        assert_eq!(options.remarks.len(), 1);
        assert_eq!(options.mount, Options::defaults(true).mount);
    }

    #[test]
    fn the_table_is_sound() {
        for (index, word) in TABLE.iter().enumerate() {
            assert!(word.help.ends_with('.'), "{}", word.name);
            let first = TABLE
                .iter()
                .position(|other| other.matches(OsStr::new(word.name)));
            assert_eq!(
                first,
                Some(index),
                "{} is shadowed by an earlier word",
                word.name
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Options::defaults(false).apply(OsStr::from_bytes(&bytes));
        }

        #[test]
        fn any_known_words_are_parsed_or_refused(
            items in proptest::collection::vec((0..TABLE.len(), proptest::option::of("[0-9a-z.,\\\\-]{0,12}")), 0..8)
        ) {
            let list = items
                .iter()
                .map(|(index, value)| match value {
                    Some(value) => format!("{}={value}", TABLE[*index].name),
                    None => TABLE[*index].name.to_owned(),
                })
                .collect::<Vec<_>>()
                .join(",");
            let _ = Options::defaults(true).apply(OsStr::new(&list));
        }

        #[test]
        fn an_escaped_text_comes_back_as_it_was(text in "[a-z,\\\\=]{1,20}") {
            let escaped = text.replace('\\', r"\\").replace(',', r"\,");
            prop_assert_eq!(parsed(&format!("ro,fsname={escaped},noexec")).mount.fsname, Some(text.into()));
        }
    }
}
