//! `--prometheus`: the figures of a mount in the text format of Prometheus, for a textfile collector.

use std::fmt::Write as _;

use super::mounts::Mount;
use crate::figures::{Figures, Operation};

/// Everything, in the order of the table below.
pub(super) fn text(mount: &Mount) -> String {
    let labels = format!(
        "source=\"{}\",target=\"{}\"",
        escaped(&String::from(mount.source.clone())),
        escaped(&String::from(mount.target.clone()))
    );
    let mut page = Page {
        text: String::new(),
        labels,
    };
    let up = mount.figures.is_some();
    page.one(
        "up",
        "gauge",
        "Whether the daemon answers.",
        f64::from(u8::from(up)),
    );
    page.head("state", "gauge", "1 for the state of the mount.");
    page.sample(
        "state",
        &format!("state=\"{}\"", escaped(mount.state.word())),
        1.0,
    );
    if let Some(figures) = &mount.figures {
        page.figures(figures);
    }
    page.text
}

struct Page {
    text: String,
    /// Of every sample.
    labels: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String can't fail.
        let _ = writeln!(
            self.text,
            "# HELP loopfs_{name} {help}\n# TYPE loopfs_{name} {kind}"
        );
    }

    fn sample(&mut self, name: &str, more: &str, value: f64) {
        let comma = if more.is_empty() { "" } else { "," };
        let _ = writeln!(
            self.text,
            "loopfs_{name}{{{}{comma}{more}}} {value}",
            self.labels
        );
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.sample(name, "", value);
    }

    #[allow(clippy::cast_precision_loss)] // the format knows no other numbers
    fn figures(&mut self, figures: &Figures) {
        let gauges = [
            (
                "uptime_seconds",
                "For how long it has served.",
                figures.uptime_seconds,
            ),
            (
                "requests_in_flight",
                "Requests taken up and not answered.",
                figures.in_flight as f64,
            ),
            (
                "oldest_request_seconds",
                "For how long the oldest of them has been under way, waiting for locks left out.",
                figures
                    .oldest_request
                    .as_ref()
                    .map_or(0.0, |oldest| oldest.seconds),
            ),
            (
                "open_files",
                "Files and directories that are open.",
                figures.open_files as f64,
            ),
            (
                "inodes",
                "Inodes that the kernel remembers.",
                figures.inodes as f64,
            ),
            (
                "memory_bytes",
                "Resident memory of the daemon.",
                figures.memory_bytes as f64,
            ),
            (
                "descriptors",
                "Open descriptors of the daemon.",
                figures.descriptors as f64,
            ),
            (
                "descriptors_limit",
                "How many it may have open.",
                figures.descriptor_limit as f64,
            ),
            ("threads", "Threads of the daemon.", figures.threads as f64),
        ];
        for (name, help, value) in gauges {
            self.one(name, "gauge", help, value);
        }
        self.head("info", "gauge", "How the mount is served.");
        let words = [
            ("cache", &figures.cache.mode),
            ("io", &figures.io.mode),
            ("version", &figures.version),
        ];
        let words = words
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .join(",");
        self.sample("info", &words, 1.0);
        self.by_operation("requests_total", "Requests answered.", figures, |it| {
            it.requests
        });
        self.by_operation(
            "request_errors_total",
            "Requests answered with an error.",
            figures,
            |it| it.errors,
        );
        self.durations(figures);
    }

    #[allow(clippy::cast_precision_loss)] // as above
    fn by_operation(
        &mut self,
        name: &str,
        help: &str,
        figures: &Figures,
        of: impl Fn(&Operation) -> u64,
    ) {
        self.head(name, "counter", help);
        for operation in &figures.operations {
            self.sample(name, &label(operation), of(operation) as f64);
        }
    }

    #[allow(clippy::cast_precision_loss)] // as above
    fn durations(&mut self, figures: &Figures) {
        const NAME: &str = "request_duration_seconds";
        self.head(
            NAME,
            "summary",
            "How long requests took, since the mount was made.",
        );
        for operation in &figures.operations {
            let shares = [
                ("0.5", operation.p50_seconds),
                ("0.9", operation.p90_seconds),
                ("0.99", operation.p99_seconds),
            ];
            for (share, seconds) in shares {
                self.sample(
                    NAME,
                    &format!("{},quantile=\"{share}\"", label(operation)),
                    seconds,
                );
            }
            self.sample(
                &format!("{NAME}_sum"),
                &label(operation),
                operation.total_seconds,
            );
            self.sample(
                &format!("{NAME}_count"),
                &label(operation),
                operation.requests as f64,
            );
        }
    }
}

fn label(operation: &Operation) -> String {
    format!("operation=\"{}\"", escaped(&operation.name))
}

/// A label's value: backslash, quote and line feed are what the format has escapes for.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("a\\b\"c\nd"), "a\\\\b\\\"c\\nd");
    }

    #[test]
    fn every_sample_has_a_head_of_its_name() {
        let mut page = Page {
            text: String::new(),
            labels: "target=\"/m\"".to_owned(),
        };
        let operation = Operation {
            name: "lookup".to_owned(),
            requests: 3,
            ..Operation::default()
        };
        page.figures(&Figures {
            operations: vec![operation],
            ..Figures::default()
        });
        let mut typed = String::new();
        for line in page.text.lines() {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                typed = head.split(' ').next().unwrap_or_default().to_owned();
            } else if !line.starts_with('#') {
                assert!(line.starts_with(&typed), "{line} below {typed}");
                let value = line.rsplit(' ').next().unwrap_or_default();
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        let expected = "loopfs_requests_total{target=\"/m\",operation=\"lookup\"} 3\n";
        assert!(page.text.contains(expected), "{}", page.text);
    }
}
