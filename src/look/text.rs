//! How things are shown: names in which nothing can break a line or a terminal, tables whose columns stand below each
//! other, sizes and times for people.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use serde::Serialize;

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

/// JSON for programs, a line that ends.
pub(super) fn json(value: &impl Serialize) -> String {
    // It can't fail: no map has keys that are not text, and nothing is written but to memory.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// Bytes: `24.1 MB`.
#[allow(clippy::cast_precision_loss)] // one digit behind the point is shown
pub(super) fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB"].into_iter().peekable();
    while size >= 999.5 && units.len() > 1 {
        size /= 1000.0;
        units.next();
    }
    let unit = units.peek().copied().unwrap_or_default();
    if unit == "B" || size >= 99.95 {
        format!("{size:.0} {unit}")
    } else {
        format!("{size:.1} {unit}")
    }
}

/// A short time: `12 us`, `3.4 ms`, `2.1 s`.
pub(super) fn time(seconds: f64) -> String {
    let digits = |value: f64, unit| {
        if value < 9.95 {
            format!("{value:.1} {unit}")
        } else {
            format!("{value:.0} {unit}")
        }
    };
    match seconds {
        seconds if seconds < 0.000_999_5 => digits(seconds * 1e6, "us"),
        seconds if seconds < 0.999_5 => digits(seconds * 1e3, "ms"),
        seconds => digits(seconds, "s"),
    }
}

/// A long time: `12 s`, `3 min 4 s`, `2 h 5 min`, `9 d 3 h`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // the time that a machine runs
pub(super) fn ago(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// How often in a second: `1234`, `12`, `0.3`.
pub(super) fn rate(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.0}")
    }
}

/// Rows of cells below a heading.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    pub(super) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self {
            rows: vec![heading.map(str::to_owned).to_vec()],
            right: Vec::new(),
        }
    }

    pub(super) fn without_heading() -> Self {
        Self {
            rows: Vec::new(),
            right: Vec::new(),
        }
    }

    /// These columns are numbers: they end below each other.
    pub(super) fn right(&mut self, columns: &[usize]) {
        self.right = columns.to_vec();
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
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Writing to a String can't fail.
                let _ = if self.right.contains(&column) {
                    write!(line, "{cell:>width$}  ")
                } else {
                    write!(line, "{cell:width$}  ")
                };
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
        table.right(&[1]);
        table.row(["üü".into(), "x".into(), String::new()]);
        table.row(["a".into(), "y".into(), "a long last one".into()]);
        assert_eq!(
            table.render(),
            "A   LONGER  C\nüü       x\na        y  a long last one\n"
        );
    }

    #[test]
    fn sizes_and_times_are_readable() {
        let sizes = [0, 999, 1_000, 24_123_456, 999_600, 123_400_000].map(size);
        assert_eq!(
            sizes,
            ["0 B", "999 B", "1.0 kB", "24.1 MB", "1.0 MB", "123 MB"]
        );
        let times = [0.0, 12e-6, 999.9e-6, 0.0034, 0.9999, 2.13, 77.0].map(time);
        assert_eq!(
            times,
            [
                "0.0 us", "12 us", "1.0 ms", "3.4 ms", "1.0 s", "2.1 s", "77 s"
            ]
        );
        let ages = [0.9, 184.0, 7_500.0, 788_400.0].map(ago);
        assert_eq!(ages, ["0 s", "3 min 4 s", "2 h 5 min", "9 d 3 h"]);
        assert_eq!([0.0, 0.25, 12.3].map(rate), ["0", "0.2", "12"]);
    }
}
