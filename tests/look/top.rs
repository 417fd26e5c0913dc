//! `loopfs top` on a terminal that script(1) makes, and without one.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use crate::common::process::{Watched, processes_naming, wait_child};
use crate::common::{LIMIT, Mount, Signal};

/// A program on a terminal of its own.
struct Screen {
    child: Child,
    keys: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    text: String,
}

impl Screen {
    fn start(mount: &Mount, terminal: &str, (rows, columns): (u16, u16), words: &str) -> Self {
        let program = mount.public_binary();
        let line = format!(
            "stty rows {rows} cols {columns}; exec {} {words}",
            program.display()
        );
        let mut child = Command::new("script")
            .args(["-q", "-e", "-c", &line, "/dev/null"])
            .env("TERM", terminal)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script(1)");
        let mut stdout = child.stdout.take().unwrap();
        let (tell, output) = channel();
        thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut part) {
                if tell.send(part[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        let keys = child.stdin.take();
        Self {
            child,
            keys,
            output,
            text: String::new(),
        }
    }

    /// Waits until `text` is on the screen; on one that is not drawn, until it was printed.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        let end = Instant::now() + LIMIT;
        while !self.text.contains(text) && !shown(&self.text).contains(text) {
            let left = end.saturating_duration_since(Instant::now());
            let part = self.output.recv_timeout(left);
            let part = part.unwrap_or_else(|_| panic!("{text:?} does not come: {:?}", self.text));
            self.text.push_str(&String::from_utf8_lossy(&part));
        }
    }

    fn press(&mut self, keys: &str) {
        let stdin = self.keys.as_mut().unwrap();
        stdin.write_all(keys.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// It has ended with status 0, and the terminal is as it was: the other screen is left, the cursor shown.
    #[track_caller]
    fn ended(mut self) {
        let status = wait_child(&mut self.child, LIMIT).expect("it ends");
        assert!(status.success(), "{status}: {:?}", self.text);
        self.shows("\x1b[?1049l");
        self.shows("\x1b[?25h");
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is on the screen after all of `output`: the sequences that place the cursor and clear are followed, those for
/// colours are passed over.
fn shown(output: &str) -> String {
    let mut lines: Vec<Vec<char>> = vec![Vec::new(); 100];
    let (mut row, mut column) = (0, 0);
    let mut rest = output;
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        if character != '\x1b' {
            if !character.is_control() {
                let line = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = character;
                column += 1;
            }
            continue;
        }
        let inside = rest.strip_prefix('[').unwrap_or_default();
        let Some(end) = inside.find(|it: char| it.is_ascii_alphabetic()) else {
            break; // the rest of it is still to come
        };
        let (numbers, command) = (&inside[..end], &inside[end..=end]);
        let mut numbers = numbers
            .split(';')
            .map(|it| it.parse::<usize>().unwrap_or(1));
        match command {
            "H" => {
                row = numbers.next().map_or(0, |it| it.saturating_sub(1)).min(99);
                column = numbers.next().map_or(0, |it| it.saturating_sub(1));
            }
            "J" => lines.iter_mut().for_each(Vec::clear),
            _ => {}
        }
        rest = &inside[end + 1..];
    }
    let lines = lines.iter().map(|line| line.iter().collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}

fn work(mount: &Mount) {
    fs::write(mount.source("f"), "x").unwrap();
    for _ in 0..500 {
        fs::metadata(mount.path("f")).unwrap();
    }
}

#[test]
fn a_mount_is_watched_and_left_with_a_key() {
    let mount = Mount::start(&["--cache", "none"]);
    let words = format!("top {}", mount.mnt().display());
    let mut screen = Screen::start(&mount, "xterm", (30, 100), &words);
    screen.shows("operations/s");
    work(&mount);
    screen.shows("lookup");
    screen.shows("busiest files");
    screen.press("\x1b[B\x1b[A");
    screen.press("q");
    screen.ended();
    mount.finish();
}

#[test]
fn a_signal_and_ctrl_c_leave_the_terminal_as_it_was() {
    let mount = Mount::start(&[]);
    let words = format!("top {}", mount.mnt().display());
    let mut screen = Screen::start(&mount, "xterm", (24, 80), &words);
    screen.shows("in flight");
    screen.press("\x03");
    screen.ended();
    let mut screen = Screen::start(&mount, "xterm", (24, 80), &words);
    screen.shows("in flight");
    process_of_top(&mount).signal(Signal::TERM);
    screen.ended();
    mount.finish();
}

/// The one that is not the daemon.
fn process_of_top(mount: &Mount) -> Watched {
    let own = mount.pid();
    let is_top = |process: &Watched| {
        let line = fs::read(format!("/proc/{}/cmdline", process.pid.as_raw_nonzero()));
        process.pid != own
            && line.is_ok_and(|line| {
                line.starts_with(mount.public_binary().as_os_str().as_encoded_bytes())
            })
    };
    let processes = processes_naming(mount.root());
    processes.into_iter().find(is_top).expect("loopfs top")
}

/// The terminal goes, as when its window is closed: nothing is left that draws.
#[test]
fn it_ends_with_its_terminal() {
    let mount = Mount::start(&[]);
    let words = format!("top {}", mount.mnt().display());
    let mut screen = Screen::start(&mount, "xterm", (24, 80), &words);
    screen.shows("in flight");
    let top = process_of_top(&mount);
    screen.child.kill().unwrap();
    assert!(top.wait_end(LIMIT), "it goes on without a terminal");
    mount.finish();
}

/// Several mounts: one is chosen, and others may be looked at afterwards. On a terminal of four lines, too.
#[test]
fn one_of_several_is_chosen() {
    let (first, second) = (Mount::start(&[]), Mount::start(&[]));
    let mut screen = Screen::start(&first, "xterm", (40, 200), "top");
    screen.shows("mounts");
    screen.shows(first.mnt().to_str().unwrap());
    screen.shows(second.mnt().to_str().unwrap());
    screen.press("\x1b[B\r");
    screen.shows("other mounts");
    screen.press("\x1b[D");
    screen.shows("look at it");
    screen.press("q");
    screen.ended();
    let words = format!("top {}", first.mnt().display());
    let mut screen = Screen::start(&first, "xterm", (4, 20), &words);
    screen.shows("serving");
    screen.press("q");
    screen.ended();
    second.finish();
    first.finish();
}

/// Lines where nothing can be drawn, until the mount ends.
#[test]
fn without_a_terminal() {
    let mount = Mount::start(&["--cache", "none"]);
    let words = format!("top {}", mount.mnt().display());
    let mut dumb = Screen::start(&mount, "dumb", (24, 80), &words);
    dumb.shows("IN FLIGHT");
    work(&mount);
    dumb.shows("serving ");
    assert!(!dumb.text.contains('\x1b'), "{:?}", dumb.text);
    let root = mount.root().to_owned();
    let left = mount.mnt();
    mount.signal(Signal::TERM);
    dumb.shows("the mount has ended");
    let status = wait_child(&mut dumb.child, LIMIT).expect("it ends");
    assert!(status.success(), "{status}");
    drop(dumb);
    assert!(Path::new(&left).starts_with(root));
    mount.ended();
}
