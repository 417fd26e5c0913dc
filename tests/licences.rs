//! Every crate that ends up in the build, or in the tests, may be used in an MIT-licensed program:
//! its licence expression can be met with licences of the list below.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use serde_json::Value;

/// Licences that ask for no more than their notice: what an MIT program may contain.
const ALLOWED: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "0BSD",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "CC0-1.0",
    "BSL-1.0",
];

/// Whether an SPDX expression can be met with [`ALLOWED`]: `OR` needs one side, `AND` both.
fn acceptable(expression: &str) -> bool {
    // Cargo still accepts the old form with a slash for OR.
    let expression = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = expression.split_whitespace().collect();
    let mut at = 0;
    let result = any(&words, &mut at);
    result && at == words.len()
}

fn any(words: &[&str], at: &mut usize) -> bool {
    let mut result = all(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        // Both sides are always read: `at` must move over them.
        result |= all(words, at);
    }
    result
}

fn all(words: &[&str], at: &mut usize) -> bool {
    let mut result = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        result &= one(words, at);
    }
    result
}

fn one(words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else {
        return false;
    };
    *at += 1;
    if *word == "(" {
        let result = any(words, at);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return result && closed;
    }
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        *at += 2;
        return ALLOWED.contains(&format!("{word} WITH {exception}").as_str())
            || ALLOWED.contains(word);
    }
    ALLOWED.contains(word)
}

/// All of them, tests' and helpers' included.
#[test]
fn every_dependency_may_be_used() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--manifest-path",
        ])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo metadata");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 10, "only {} packages", packages.len());
    let refused: Vec<_> = packages
        .iter()
        .map(|package| {
            let text = |key: &str| package[key].as_str().unwrap_or("none").to_owned();
            (text("name"), text("version"), text("license"))
        })
        .filter(|(_, _, licence)| !acceptable(licence))
        .collect();
    assert!(refused.is_empty(), "licences to look at: {refused:#?}");
}

/// The reader of expressions itself.
#[test]
fn expressions_are_read_as_spdx_means_them() {
    for good in [
        "MIT",
        "MIT/Apache-2.0",
        "MIT OR GPL-3.0",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR MIT",
    ] {
        assert!(acceptable(good), "{good}");
    }
    for bad in [
        "",
        "none",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "GPL-2.0 OR LGPL-3.0",
        "(MIT",
        "MIT Apache-2.0",
        "AGPL-3.0 OR (MIT AND SSPL-1.0)",
    ] {
        assert!(!acceptable(bad), "{bad}");
    }
}
