//! The man page and the completions under `man/` are what the program's definition gives.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use loopfs::cli::generate::generated;
use loopfs::sys::features::WORDS;

#[test]
fn what_is_checked_in_is_what_is_generated() {
    let man = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let stale: Vec<&str> = generated()
        .into_iter()
        .filter(|file| fs::read_to_string(man.join(file.path)).ok().as_ref() != Some(&file.content))
        .map(|file| file.path)
        .collect();
    assert!(
        stale.is_empty(),
        "{stale:?} differ: run `cargo run --bin loopfs-gen man` and commit the result"
    );
}

/// Every word by which something can be switched off, wherever it is asked for.
#[test]
fn features_that_can_be_switched_off_are_in_the_man_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let man = fs::read_to_string(root.join("man/loopfs.1")).unwrap();
    let words: BTreeSet<String> = sources(&root.join("src"))
        .iter()
        .flat_map(|text| {
            let asked = text.split("features::is_off(\"").skip(1);
            let words = asked.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()));
            words.collect::<Vec<_>>()
        })
        .collect();
    assert!(words.len() > 8, "{words:?}");
    // A word that is none of these is warned of.
    let known: BTreeSet<String> = WORDS.map(str::to_owned).into();
    assert_eq!(words, known);
    let missing: Vec<_> = words
        .iter()
        .filter(|word| !man.contains(&format!("\\fB{}\\fR", word.replace('-', "\\-"))))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn sources(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                sources(&path)
            } else {
                vec![fs::read_to_string(path).unwrap()]
            }
        })
        .collect()
}
