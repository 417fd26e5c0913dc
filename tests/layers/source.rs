//! Just enough of Rust's syntax to see what a file uses: comments, literals and test modules taken
//! out, then paths that begin with `crate` or with the name of a dependency.

/// `text` without comments, literals and test modules.
pub(crate) fn shipped(text: &str) -> String {
    without_test_modules(&without_comments_and_literals(text))
}

fn without_comments_and_literals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest, &out) {
            length
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' {
            character(rest)
        } else {
            0
        };
        if skipped > 0 {
            out.push(' ');
            rest = &rest[skipped..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

// Block comments nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of a raw string at the start of `text`, if there is one there (and not a name that ends in r).
fn raw_string(text: &str, before: &str) -> Option<usize> {
    if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let body = text
        .strip_prefix("br")
        .or_else(|| text.strip_prefix("cr"))
        .or_else(|| text.strip_prefix('r'))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let inner = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = text.len() - inner.len();
    Some(
        inner
            .find(&end)
            .map_or(text.len(), |at| start + at + end.len()),
    )
}

/// Length of the literal at the start of `text`, up to and with the next `mark` that no backslash escapes.
fn quoted(text: &str, mark: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == mark => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of a character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => quoted(text, '\''),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

fn without_test_modules(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("#[cfg(") {
        let item = &rest[at..];
        let attribute = &item[..item.find(']').map_or(item.len(), |end| end + 1)];
        let body = item[attribute.len()..].trim_start();
        let body = skip_attributes(body);
        let is_test = attribute.contains("test") && !attribute.contains("not(test");
        if is_test && body.starts_with("mod ") {
            out.push_str(&rest[..at]);
            rest = &body[module(body)..];
        } else {
            out.push_str(&rest[..at + attribute.len()]);
            rest = &item[attribute.len()..];
        }
    }
    out.push_str(rest);
    out
}

fn skip_attributes(mut text: &str) -> &str {
    while text.starts_with("#[") {
        let Some(end) = text.find(']') else {
            return text;
        };
        text = text[end + 1..].trim_start();
    }
    text
}

/// Length of the module item at the start of `text`.
fn module(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    text.len()
}

/// Names and the punctuation that matters here: `::`, braces, commas.
fn tokens(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        found.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    found
}

/// The modules of the crate that `text` names, with one more component where there is one
/// (`lifecycle::gate`), once for each mention.
pub(crate) fn crate_modules(path: &str, text: &str) -> Vec<String> {
    let tokens = tokens(text);
    // From a file in a folder, two `super` lead to the root; from `x.rs` or `x/mod.rs`, one.
    let supers = if path.contains('/') && !path.ends_with("/mod.rs") {
        2
    } else {
        1
    };
    let mut found = Vec::new();
    for start in 0..tokens.len() {
        let root = match tokens[start] {
            "crate" | "loopfs" => start + 1,
            "super" if start == 0 || tokens[start - 1] != "::" => {
                let count = tokens[start..]
                    .chunks(2)
                    .take_while(|pair| pair[0] == "super")
                    .count();
                if count < supers {
                    continue;
                }
                start + supers * 2 - 1
            }
            _ => continue,
        };
        if tokens.get(root) == Some(&"::") {
            collect(&tokens[root + 1..], &mut found);
        }
    }
    found
}

/// What follows `crate::`: one path, or a group of them in braces.
fn collect(tokens: &[&str], found: &mut Vec<String>) {
    if tokens.first() != Some(&"{") {
        two_components(tokens, "", found);
        return;
    }
    let mut depth = 0;
    let mut start = 1;
    for (at, token) in tokens.iter().enumerate() {
        match *token {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && *token == ",") {
            two_components(&tokens[start..at], "", found);
            start = at + 1;
        }
        if depth == 0 {
            return;
        }
    }
}

fn two_components(tokens: &[&str], before: &str, found: &mut Vec<String>) {
    match tokens {
        [name, "::", "{", rest @ ..] if before.is_empty() => {
            // Each member of the inner group, at its top level.
            let mut depth = 1;
            let mut fresh = true;
            for token in rest {
                match *token {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    "," if depth == 1 => fresh = true,
                    _ if fresh => {
                        found.push(format!("{name}::{token}"));
                        fresh = false;
                    }
                    _ => {}
                }
                if depth == 0 {
                    return;
                }
            }
        }
        [name, "::", inner, ..] => found.push(format!("{name}::{inner}")),
        [name, ..] => found.push((*name).to_owned()),
        [] => {}
    }
}

/// Names that stand where a dependency's would: first in a path, or alone in a `use`.
pub(crate) fn external_crates(text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| tokens[before]);
        // `::libc` begins at the root; `a::libc` does not.
        let first = before != Some("::")
            || at
                .checked_sub(2)
                .is_none_or(|at| !tokens[at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
        let in_path = tokens.get(at + 1) == Some(&"::");
        if first && (in_path || before == Some("use")) {
            found.push((*token).to_owned());
        }
    }
    found
}
