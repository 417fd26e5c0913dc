//! How things are shown: names in which nothing can break a line or a terminal, tables whose columns stand below each
//! other.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

/// A name as text, and back again by nobody's mistake: what is not UTF-8 is written `\xff`, control characters as
/// Rust writes them (`\n`, `\u{1b}`), and a backslash as two.
pub(super) fn name(name: impl AsRef<OsStr>) -> String {
    let mut text = String::new();
    for chunk in name.as_ref().as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || character == '\\' {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String can't fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Rows of cells below a heading.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self {
            rows: vec![heading.map(str::to_owned).to_vec()],
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines. The last column is as long as it likes.
    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_breaks_a_line() {
        assert_eq!(name("/a b/ü"), "/a b/ü");
        assert_eq!(
            name(OsStr::from_bytes(b"a\nb\x1b[1m\\\xff")),
            "a\\nb\\u{1b}[1m\\\\\\xff"
        );
    }

    #[test]
    fn columns_stand_below_each_other() {
        let mut table = Table::new(["A", "LONGER", "C"]);
        table.row(["üü".into(), "x".into(), String::new()]);
        table.row(["a".into(), "y".into(), "a long last one".into()]);
        assert_eq!(
            table.render(),
            "A   LONGER  C\nüü  x\na   y       a long last one\n"
        );
    }
}
