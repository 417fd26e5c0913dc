//! How it looks: a head with the state and the rates, a curve, the operations, and below them the busiest files and
//! processes. What there is no room for is left out, from the bottom.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};

use super::super::mounts::{HANGS, Mount};
use super::super::{list, text};
use super::Page;
use super::rates::Watched;
use crate::figures::Figures;

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const MARKED: Style = Style::new().add_modifier(Modifier::REVERSED);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);

pub(super) fn draw(frame: &mut Frame<'_>, page: &Page) {
    match page {
        Page::Choice { mounts, marked } => choice(frame, mounts, *marked),
        Page::One {
            watched,
            scrolled,
            others,
        } => one(frame, watched, *scrolled, *others),
    }
}

fn choice(frame: &mut Frame<'_>, mounts: &[Mount], marked: usize) {
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let title = format!("loopfs top: {} mounts", mounts.len());
    frame.render_widget(Paragraph::new(Line::styled(title, BOLD)), head);
    let lines = list::table(mounts).render();
    let first = marked.saturating_sub(usize::from(body.height).saturating_sub(2));
    let rows = lines
        .lines()
        .enumerate()
        .filter_map(|(number, line)| match number.checked_sub(1) {
            None => Some(Line::styled(line.to_owned(), FAINT)),
            Some(number) if number < first => None,
            Some(number) if number == marked => Some(Line::styled(line.to_owned(), MARKED)),
            Some(_) => Some(Line::raw(line.to_owned())),
        });
    frame.render_widget(Paragraph::new(rows.collect::<Vec<_>>()), body);
    frame.render_widget(keys("up down: choose   enter: look at it   q: quit"), foot);
}

fn keys(text: &str) -> Paragraph<'_> {
    Paragraph::new(Line::styled(text, FAINT))
}

fn one(frame: &mut Frame<'_>, watched: &Watched, scrolled: usize, others: bool) {
    let area = frame.area();
    let head = head(watched);
    // From the top as far as there is room: the head, the operations, the busiest, the curve.
    let curve = if area.height >= 22 { 3 } else { 0 };
    let busiest = if area.height >= 18 { 7 } else { 0 };
    let foot = u16::from(area.height >= 8);
    let lines = u16::try_from(head.len())
        .unwrap_or(u16::MAX)
        .min(area.height);
    let [top, curved, middle, bottom, last] = Layout::vertical([
        Constraint::Length(lines),
        Constraint::Length(curve),
        Constraint::Min(0),
        Constraint::Length(busiest),
        Constraint::Length(foot),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(head), top);
    draw_curve(frame, watched, curved);
    draw_operations(frame, watched, scrolled, middle);
    if let Some(figures) = &watched.mount().figures {
        let [left, right] =
            Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)])
                .areas(bottom);
        draw_files(frame, figures, left);
        draw_processes(frame, figures, right);
    }
    let words = if others {
        "up down: scroll   left: other mounts   q: quit"
    } else {
        "up down: scroll   q: quit"
    };
    frame.render_widget(keys(words), last);
}

/// The lines at the top.
fn head(watched: &Watched) -> Vec<Line<'static>> {
    let mount = watched.mount();
    let title = format!(
        "{} at {}",
        text::name(&mount.source.0),
        text::name(&mount.target.0)
    );
    let mut lines = vec![Line::styled(title, BOLD)];
    if watched.ended() {
        lines.push(Line::styled("the mount has ended", BOLD));
        return lines;
    }
    let pid = mount
        .pid
        .map_or_else(String::new, |pid| format!("   pid {pid}"));
    let Some(figures) = &mount.figures else {
        lines.push(Line::styled(format!("{}{pid}", list::state(mount)), BOLD));
        lines.push(Line::raw(mount.state.why_no_figures().unwrap_or_default()));
        return lines;
    };
    lines.push(Line::raw(format!(
        "{} for {}{pid}   {}   {}",
        list::state(mount),
        text::ago(figures.uptime_seconds),
        figures.io.mode,
        figures.cache.mode,
    )));
    lines.push(Line::styled(
        format!(
            "{} operations/s   {} errors/s   {} in flight   {} open",
            text::rate(watched.per_second()),
            text::rate(watched.errors_per_second()),
            figures.in_flight,
            figures.open_files,
        ),
        BOLD,
    ));
    lines.push(Line::raw(format!(
        "{} inodes   {} of memory   {} descriptors   {} threads",
        figures.inodes,
        text::size(figures.memory_bytes),
        figures.descriptors,
        figures.threads,
    )));
    if let Some(oldest) = figures
        .oldest_request
        .as_ref()
        .filter(|oldest| oldest.seconds >= HANGS)
    {
        let text = format!(
            "{} has been under way for {}: SRC hangs?",
            oldest.operation,
            text::ago(oldest.seconds)
        );
        lines.push(Line::styled(text, BOLD));
    }
    lines
}

fn draw_curve(frame: &mut Frame<'_>, watched: &Watched, area: Rect) {
    let width = usize::from(area.width);
    let history = watched.history();
    let shown: Vec<u64> = history
        .iter()
        .skip(history.len().saturating_sub(width))
        .copied()
        .collect();
    frame.render_widget(Sparkline::default().data(shown), area);
}

fn draw_operations(frame: &mut Frame<'_>, watched: &Watched, scrolled: usize, area: Rect) {
    let rows = watched.rows().iter().skip(scrolled).map(|row| {
        let quiet = row.per_second <= 0.0;
        let time = |seconds| {
            if quiet {
                "-".to_owned()
            } else {
                text::time(seconds)
            }
        };
        let cells = [
            row.name.clone(),
            right(&text::rate(row.per_second), 10),
            right(&text::rate(row.errors_per_second), 9),
            right(&time(row.p50), 8),
            right(&time(row.p99), 8),
            right(&text::time(row.longest), 8),
        ];
        Row::new(cells.map(Cell::from)).style(if quiet { FAINT } else { Style::new() })
    });
    let widths = [16, 10, 9, 8, 8, 8].map(Constraint::Length);
    let heading = [
        "OPERATION".to_owned(),
        right("A SECOND", 10),
        right("ERRORS", 9),
        right("P50", 8),
        right("P99", 8),
        right("MAX", 8),
    ];
    let block = Block::new().borders(Borders::TOP);
    let table = Table::new(rows, widths)
        .header(Row::new(heading).style(FAINT))
        .block(block);
    frame.render_widget(table, area);
}

fn right(text: &str, width: usize) -> String {
    format!("{text:>width$}")
}

fn draw_files(frame: &mut Frame<'_>, figures: &Figures, area: Rect) {
    let rows = figures.busiest_files.iter().map(|file| {
        let name = file.path.as_ref().map(|path| text::name(&path.0));
        let name = name.unwrap_or_else(|| format!("inode {}", file.inode));
        Row::new([right(&text::rate(file.requests_per_second), 8), name])
    });
    busy(frame, "busiest files, requests a second", rows, area);
}

fn draw_processes(frame: &mut Frame<'_>, figures: &Figures, area: Rect) {
    let rows = figures.busiest_processes.iter().map(|process| {
        let command = process
            .command
            .as_ref()
            .map(|command| text::name(&command.0));
        let command = command.unwrap_or_else(|| "(ended)".to_owned());
        Row::new([
            right(&text::rate(process.requests_per_second), 8),
            format!("{} ({})", command, process.pid),
        ])
    });
    busy(frame, "busiest processes", rows, area);
}

fn busy<'a>(
    frame: &mut Frame<'_>,
    title: &'a str,
    rows: impl Iterator<Item = Row<'a>>,
    area: Rect,
) {
    let block = Block::new().borders(Borders::TOP).title(title);
    let widths = [Constraint::Length(8), Constraint::Min(10)];
    frame.render_widget(Table::new(rows, widths).block(block), area);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::super::mounts::tests::mount;
    use super::*;
    use crate::figures::{BusyFile, Name, Operation};

    fn figures(requests: u64) -> Figures {
        Figures {
            operations: vec![Operation {
                name: "lookup".to_owned(),
                requests,
                ..Operation::default()
            }],
            busiest_files: vec![BusyFile {
                path: Some(Name::of("a\nb")),
                requests_per_second: 3.0,
                inode: 1,
            }],
            ..Figures::default()
        }
    }

    /// The text of a page on a terminal of that size.
    fn drawn(page: &Page, (width, height): (u16, u16)) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, page)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn it_fits_on_any_terminal() {
        let mut watched = Watched::new(mount("/mnt", Some(figures(1))));
        watched.update(Some(mount("/mnt", Some(figures(1000)))));
        let page = Page::One {
            watched: Box::new(watched),
            scrolled: 0,
            others: false,
        };
        for size in [(1, 1), (20, 4), (80, 24), (40, 100), (300, 10)] {
            drawn(&page, size);
        }
        let text = drawn(&page, (100, 30));
        assert!(
            text.contains("lookup") && text.contains("operations/s"),
            "{text}"
        );
        assert!(text.contains("a\\nb"), "{text}");
    }

    #[test]
    fn the_marked_mount_is_in_sight() {
        let mounts = (0..50)
            .map(|number| mount(&format!("/mnt/{number}"), None))
            .collect();
        let page = Page::Choice { mounts, marked: 40 };
        let text = drawn(&page, (80, 10));
        assert!(
            text.contains("/mnt/40") && !text.contains("/mnt/49"),
            "{text}"
        );
    }

    #[test]
    fn a_mount_that_has_no_figures_says_why() {
        let page = Page::one(mount("/mnt", None), false);
        let text = drawn(&page, (120, 24));
        assert!(
            text.contains("dead") && text.contains("loopfs unmount"),
            "{text}"
        );
    }
}
