//! The man page and the completions under `man/` are what the program's definition gives.

use std::fs;
use std::path::Path;

use loopfs::cli::generate::generated;

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
