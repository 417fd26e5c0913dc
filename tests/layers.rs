//! The layers of the crate, checked in the text of `src/`: which module may use which, where each
//! dependency may be named, and that `unsafe` stays in `sys/`. ARCHITECTURE.md tells the reasons.
//!
//! Test modules (`#[cfg(test)]`, `tests.rs`) are left out: they may build what they like.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod layers {
    pub(crate) mod source;
}

use std::fs;
use std::path::{Path, PathBuf};

use layers::source::{crate_modules, external_crates, shipped};

/// What a module of the crate may use of the crate; itself always.
const MODULES: &[(&str, &[&str])] = &[
    ("sync", &[]),
    ("exit", &[]),
    ("op", &[]),
    ("config", &[]),
    ("policy", &[]),
    ("record", &[]),
    ("sys", &["sync"]),
    ("error", &["sys"]),
    ("observe", &["op", "sync"]),
    ("survive", &["sync", "sys"]),
    ("loopback", &["policy", "survive", "sys", "error", "sync"]),
    ("lifecycle", &["config", "exit", "record", "sync", "sys"]),
    (
        "fuse",
        &[
            "loopback",
            "lifecycle",
            "observe",
            "op",
            "error",
            "config",
            "policy",
            "record",
            "survive",
            "sync",
            "sys",
        ],
    ),
    ("attach", &["config", "exit", "record", "sync", "sys"]),
    ("options", &["config", "exit"]),
    ("cli", &["config", "exit", "options", "sys"]),
    ("logging", &["config", "exit", "sync"]),
    ("service", &["attach", "exit", "lifecycle"]),
    ("guard", &["exit", "sys"]),
    ("figures", &[]),
    ("socket", &["figures", "sync", "sys"]),
    (
        "look",
        &[
            "attach",
            "config",
            "exit",
            "figures",
            "lifecycle",
            "observe",
            "socket",
            "sync",
            "sys",
        ],
    ),
    ("daemon", &["config", "exit", "logging", "sync", "sys"]),
    (
        "supervise",
        &[
            "attach",
            "config",
            "daemon",
            "exit",
            "fuse",
            "lifecycle",
            "record",
            "survive",
            "sync",
            "sys",
        ],
    ),
    // The composition root, and what stands above it.
    ("mount", ALL),
    ("lib", ALL),
    ("main", ALL),
    ("bin", ALL),
];

const ALL: &[&str] = &["*"];

/// Where a dependency may be named; a path ending in `/` is a folder.
const CRATES: &[(&str, &[&str])] = &[
    ("libc", &["sys/"]),
    // Wherever the system is spoken to, and where its errors are turned into ours.
    (
        "rustix",
        &[
            "sys/",
            "attach/",
            "lifecycle/",
            "daemon.rs",
            "guard.rs",
            "error.rs",
            "supervise/",
            "fuse/resume.rs",
            "socket/",
            "look/",
        ],
    ),
    ("fuser", &["fuse/"]),
    (
        "signal_hook",
        &["lifecycle/control.rs", "lifecycle/control/"],
    ),
    ("clap", &["cli.rs", "cli/", "options.rs", "bin/"]),
    ("sd_notify", &["service.rs"]),
    ("ratatui", &["look/top.rs", "look/top/"]),
    ("serde", &["figures.rs", "socket/protocol.rs", "look/"]),
    ("serde_json", &["socket/", "look/"]),
    ("clap_complete", &["cli/generate.rs", "bin/loopfs-gen.rs"]),
    ("clap_mangen", &["cli/generate.rs", "cli/generate/"]),
    ("strsim", &["options.rs", "cli.rs", "cli/"]),
    // The daemon's failures have exit codes (exit.rs); helper programs need none.
    ("anyhow", &["bin/"]),
    ("env_logger", &["logging.rs", "logging/"]),
    // Helper programs only: the daemon's signals are signal-hook's, and never two handlers of one signal.
    ("ctrlc", &["bin/"]),
    ("loom", &["sync.rs"]),
];

/// What loom has a model of.
const PRIMITIVES: &[&str] = &[
    "Mutex", "Condvar", "RwLock", "atomic", "Once", "OnceLock", "Barrier",
];

/// The one file outside of `sys` with `unsafe`: fuser takes the number of a backing file on trust.
const WRAP: &str = "fuse/wrap.rs";

/// `fuse` sees of `lifecycle` only this: requests in flight.
const FUSE_SEES_OF_LIFECYCLE: &str = "gate";

/// Everything in the file at `path` (below `src/`) that breaks a rule, a line for each.
fn violations(path: &str, text: &str) -> Vec<String> {
    let text = shipped(text);
    let layer = path
        .split('/')
        .next()
        .unwrap_or(path)
        .trim_end_matches(".rs");
    let mut found = Vec::new();
    match MODULES.iter().find(|(module, _)| *module == layer) {
        None => found.push(format!(
            "{path}: the module `{layer}` has no rule in tests/layers.rs"
        )),
        Some((_, allowed)) => {
            for used in crate_modules(path, &text) {
                let (module, inner) = used.split_once("::").unwrap_or((&used, ""));
                let known = MODULES.iter().any(|(name, _)| *name == module);
                let allowed = *allowed == ALL || allowed.contains(&module) || module == layer;
                if known && !allowed {
                    found.push(format!("{path}: `{layer}` may not use `{module}`"));
                }
                if layer == "fuse"
                    && module == "lifecycle"
                    && !inner.starts_with(FUSE_SEES_OF_LIFECYCLE)
                {
                    found.push(format!(
                        "{path}: `fuse` may use only `lifecycle::{FUSE_SEES_OF_LIFECYCLE}`"
                    ));
                }
            }
        }
    }
    for name in external_crates(&text) {
        if let Some((_, places)) = CRATES.iter().find(|(known, _)| *known == name) {
            let allowed = places
                .iter()
                .any(|place| path == *place || (place.ends_with('/') && path.starts_with(place)));
            if !allowed {
                found.push(format!(
                    "{path}: names `{name}`, which belongs in {}",
                    places.join(", ")
                ));
            }
        }
    }
    found.extend(words_out_of_place(path, &text));
    found.sort();
    found.dedup();
    found
}

/// Rules about single words: `unsafe`, std's locks, sleeping.
fn words_out_of_place(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let words: Vec<&str> = text
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|w| !w.is_empty())
        .collect();
    let may_promise = path.starts_with("sys/") || path == WRAP;
    if !may_promise
        && words
            .iter()
            .any(|word| matches!(*word, "unsafe" | "unsafe_code"))
    {
        found.push(format!("{path}: `unsafe` belongs in sys/"));
    }
    let helper = path.starts_with("bin/");
    for (at, _) in text.match_indices("std::sync::") {
        let statement = text[at..].split(';').next().unwrap_or_default();
        for word in statement.split(|c: char| !c.is_alphanumeric() && c != '_') {
            if PRIMITIVES.contains(&word) && path != "sync.rs" && !helper {
                found.push(format!(
                    "{path}: `{word}` comes from crate::sync, so that loom can check it"
                ));
            }
        }
    }
    if words.windows(2).any(|pair| pair == ["thread", "sleep"]) {
        found.push(format!(
            "{path}: nothing sleeps to wait; poll a condition with a time limit"
        ));
    }
    found
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("tests.rs")
        {
            found.push(path);
        }
    }
    found
}

/// The rules hold everywhere in `src/`.
#[test]
fn every_file_keeps_to_its_layer() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&top);
    assert!(
        files.len() > 20,
        "src/ was not found whole: {} files",
        files.len()
    );
    let mut broken = Vec::new();
    for file in files {
        let path = file.strip_prefix(&top).unwrap().to_str().unwrap();
        broken.extend(violations(path, &fs::read_to_string(&file).unwrap()));
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// No file has grown into two. Lines of code count; blank ones, comments and tests don't. The
/// adapter is left out: it is one `impl` with a method for each operation, which can't be divided.
#[test]
fn no_file_is_too_long() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lines = |file: &PathBuf| {
        let code = shipped(&fs::read_to_string(file).unwrap());
        code.lines().filter(|line| !line.trim().is_empty()).count()
    };
    let long: Vec<_> = sources(&top)
        .into_iter()
        .map(|file| (lines(&file), file))
        .filter(|(lines, file)| *lines > 500 && !file.ends_with("fuse/adapter.rs"))
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

/// Every dependency that Cargo.toml names has a rule here, or is one of those free to all.
#[test]
fn every_dependency_has_a_rule() {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let mut section = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let shipped = section.ends_with("dependencies]") && !section.contains("dev-");
        let name = line
            .split_once('=')
            .map(|(name, _)| name.trim().replace('-', "_"));
        if let Some(name) = name.filter(|name| shipped && !name.starts_with('#')) {
            let known = name == "log" || CRATES.iter().any(|(known, _)| *known == name);
            assert!(known, "`{name}` has no rule in tests/layers.rs");
        }
    }
}

/// A planted violation of each kind is found: a checker that finds nothing proves nothing.
#[test]
fn planted_violations_are_found() {
    let planted = [
        (
            "loopback/file.rs",
            "use crate::fuse::reply::Reply;",
            "may not use `fuse`",
        ),
        (
            "loopback/file.rs",
            "use crate::{error::Error, lifecycle};",
            "may not use `lifecycle`",
        ),
        (
            "loopback/file.rs",
            "use super::super::attach;",
            "may not use `attach`",
        ),
        (
            "loopback/file.rs",
            "fn f() { crate::mount::now() }",
            "may not use `mount`",
        ),
        (
            "policy/mod.rs",
            "use crate::error::Error;",
            "may not use `error`",
        ),
        (
            "lifecycle/mod.rs",
            "use crate::attach::Attachment;",
            "may not use `attach`",
        ),
        (
            "fuse/serve.rs",
            "use crate::lifecycle::state::step;",
            "only `lifecycle::gate`",
        ),
        (
            "fuse/serve.rs",
            "use crate::{lifecycle::{state::step}};",
            "only `lifecycle::gate`",
        ),
        ("new/mod.rs", "", "has no rule"),
        ("loopback/file.rs", "use fuser::FileAttr;", "names `fuser`"),
        ("loopback/file.rs", "let x = ::libc::EIO;", "names `libc`"),
        ("mount.rs", "use libc;", "names `libc`"),
        (
            "lifecycle/state.rs",
            "use signal_hook::consts::SIGINT;",
            "names `signal_hook`",
        ),
        ("main.rs", "ctrlc::set_handler(f);", "names `ctrlc`"),
        (
            "config.rs",
            "#[derive(clap::Parser)] struct A;",
            "names `clap`",
        ),
        (
            "loopback/file.rs",
            "fn f() { unsafe { g() } }",
            "belongs in sys/",
        ),
        ("fuse/mod.rs", "#![allow(unsafe_code)]", "belongs in sys/"),
        (
            "fuse/mod.rs",
            "use std::sync::Mutex;",
            "comes from crate::sync",
        ),
        (
            "fuse/mod.rs",
            "use std::sync::{Arc, atomic::AtomicU64};",
            "comes from crate::sync",
        ),
        ("mount.rs", "std::thread::sleep(second);", "nothing sleeps"),
    ];
    for (path, text, expected) in planted {
        let found = violations(path, text).join("\n");
        assert!(found.contains(expected), "{path}: {text:?} gave {found:?}");
    }
}

/// What is allowed, or is no use of anything, is not reported.
#[test]
fn innocent_text_is_left_alone() {
    let innocent = [
        (
            "loopback/file.rs",
            "use crate::sys::fs; use crate::{error::Error, policy, sync::Arc};",
        ),
        (
            "loopback/file.rs",
            "// libc::EIO and unsafe { } and crate::fuse\n/* fuser:: */ const A: &str = \"crate::mount unsafe\";",
        ),
        (
            "loopback/file.rs",
            "fn f() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests { use crate::fuse::X; fn g() { unsafe {} } }",
        ),
        (
            "loopback/file.rs",
            "#[cfg(test)]\nmod tests;\nfn f<'a>(a: &'a str) -> char { '\"' }",
        ),
        (
            "fuse/serve.rs",
            "use crate::lifecycle::gate::{Gate, Pass}; use fuser::Request;",
        ),
        (
            "sys/fs.rs",
            "#![allow(unsafe_code)]\nfn f() { unsafe { libc::sync() } }",
        ),
        (
            "bin/loopfs-churn.rs",
            "use std::sync::atomic::AtomicBool; fn f() { ctrlc::set_handler(g); }",
        ),
        ("mount.rs", "use crate::attach; use crate::fuse::Server;"),
    ];
    for (path, text) in innocent {
        assert_eq!(violations(path, text), Vec::<String>::new(), "{text}");
    }
}
