//! One file, used in several ways and by several processes at once: cached, direct and mapped; and all
//! of them appending.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use super::content::read_write;
use super::raw::{Mapping, aligned};
use crate::common::process::wait_child;
use crate::common::tree::{checksum, pattern};
use crate::common::{LIMIT, run};

const SIZE: usize = 64 << 10;

fn direct(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.open(path).unwrap()
}

/// A program of its own, in Python.
fn python(script: &str, path: &Path) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(path).stdin(Stdio::null());
    command
}

fn finish(mut children: Vec<Child>) {
    for child in &mut children {
        assert!(wait_child(child, LIMIT).expect("it ends").success());
    }
}

cases! {
    /// What is written in one way is read in each of the others, at once.
    fn cached_direct_and_mapped_see_each_other(t) {
        let path = t.file("f", vec![0; SIZE]);
        let (cached, direct) = (read_write(&path), direct(&path));
        let mut map = Mapping::new(&cached, SIZE, true).unwrap();
        let mut buffer = vec![0; 3 * 4_096];
        for round in 1..30_u8 {
            let at = usize::from(round) * 1_111 / 4_096 * 4_096;
            let block = aligned(&mut buffer, 4_096);
            match round % 3 {
                0 => cached.write_all_at(&[round; 4_096], at as u64).unwrap(),
                1 => {
                    block.fill(round);
                    direct.write_all_at(block, at as u64).unwrap();
                }
                _ => {
                    map.bytes()[at..at + 4_096].fill(round);
                    map.sync().unwrap();
                }
            }
            let mut seen = [0; 4_096];
            cached.read_exact_at(&mut seen, at as u64).unwrap();
            assert!(seen == [round; 4_096], "cached, round {round}");
            block.fill(0);
            direct.read_exact_at(block, at as u64).unwrap();
            assert!(block == [round; 4_096], "direct, round {round}");
            assert!(map.bytes()[at..at + 4_096] == [round; 4_096], "mapped, round {round}");
        }
        // Not even msync lies between a mapped write and these reads.
        map.bytes()[4_096..8_192].fill(77);
        let mut seen = [0; 4_096];
        cached.read_exact_at(&mut seen, 4_096).unwrap();
        assert!(seen == [77; 4_096]);
        map.bytes()[8_192..12_288].fill(78);
        let block = aligned(&mut buffer, 4_096);
        direct.read_exact_at(block, 8_192).unwrap();
        assert!(block == [78; 4_096]);
        // A direct write beside what the mapping has not written yet.
        map.bytes()[20_480] = 79;
        block.fill(80);
        direct.write_all_at(block, 16_384).unwrap();
        t.see("both are there", (map.bytes()[16_384], map.bytes()[20_480]));
        drop((map, cached, direct));
        t.see("content", checksum(&fs::read(&path).unwrap()));
    }

    /// Direct reads and writes over the end, of nothing, and growing the file.
    fn direct_io_at_the_end_of_the_file(t) {
        let path = t.file("f", pattern(1, 10_000));
        let file = direct(&path);
        let mut buffer = vec![0; 5 * 4_096];
        let block = aligned(&mut buffer, 16_384);
        for at in [0, 4_096, 8_192, 12_288, 1 << 30] {
            t.try_see(&format!("read {at}"), file.read_at(block, at));
        }
        block.copy_from_slice(&pattern(2, 16_384));
        t.try_see("write over the end", file.write_at(block, 8_192));
        t.try_see("write beyond it", file.write_at(&block[..4_096], 65_536));
        t.try_see("size", file.metadata().map(|meta| meta.len()));
        t.try_see("truncate", file.set_len(70_000));
        t.try_see("read the end", file.read_at(block, 65_536));
        t.see("content", checksum(&fs::read(&path).unwrap()));
    }

    /// Writers of a direct, a cached and a mapped kind at the same time, each in blocks of its own.
    fn direct_cached_and_mapped_at_the_same_time(t) {
        let path = t.file("f", vec![0; SIZE]);
        thread::scope(|scope| {
            for kind in 0..3_usize {
                let path = &path;
                scope.spawn(move || {
                    let (cached, direct) = (read_write(path), direct(path));
                    let mut map = Mapping::new(&cached, SIZE, true).unwrap();
                    let mut buffer = vec![0; 2 * 4_096];
                    let block = aligned(&mut buffer, 4_096);
                    for round in 0..40_u8 {
                        for at in (kind * 4_096..SIZE).step_by(3 * 4_096) {
                            block.fill(round);
                            match kind {
                                0 => cached.write_all_at(block, at as u64).unwrap(),
                                1 => direct.write_all_at(block, at as u64).unwrap(),
                                _ => map.bytes()[at..at + 4_096].fill(round),
                            }
                        }
                    }
                    map.sync().unwrap();
                });
            }
        });
        let content = fs::read(&path).unwrap();
        assert!(content.iter().all(|byte| *byte == 39), "every writer's last round");
        t.see("content", checksum(&content));
    }

    /// Mappings of two processes are one memory: each sees at once what the other wrote.
    fn mappings_of_two_processes_are_one(t) {
        let path = t.file("f", vec![0; SIZE]);
        let file = read_write(&path);
        let mut map = Mapping::new(&file, SIZE, true).unwrap();
        map.bytes()[4_096..4_101].copy_from_slice(b"hello");
        let script = "import mmap, sys
f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 65536)
assert m[4096:4101] == b'hello', m[4096:4101]
m[8192:8197] = b'world'
f.close()";
        finish(vec![python(script, &path).spawn().unwrap()]);
        assert_eq!(&map.bytes()[8_192..8_197], b"world");
        t.try_see("msync", map.sync());
        t.see("content", checksum(&fs::read(&path).unwrap()));
    }

    /// Four processes append, in pieces of several sizes, one of them with O_DIRECT's or a mapping's help:
    /// nothing overwrites anything.
    fn many_processes_append(t) {
        let path = t.file("log", "");
        let script = "import os, sys
f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for i in range(150): assert os.write(f, (sys.argv[2] * (1 + i * 7 % 200) + '\\n').encode())";
        let children = ["a", "b", "c", "d"].map(|letter| python(script, &path).arg(letter).spawn().unwrap());
        finish(children.into());
        let text = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 600);
        assert!(lines.iter().all(|line| line.bytes().all(|byte| byte == line.as_bytes()[0])), "whole lines");
        lines.sort_unstable();
        t.see("lines", checksum(lines.join("\n").as_bytes()));
    }

    /// Appending while another process has the file mapped and writes there.
    fn appending_beside_a_mapping(t) {
        let path = t.file("f", vec![b'.'; 4_096]);
        let file = read_write(&path);
        let mut map = Mapping::new(&file, 4_096, true).unwrap();
        let script = "import os, sys
f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for i in range(200): os.write(f, b'0123456789')";
        let child = python(script, &path).spawn().unwrap();
        for round in 0..200 {
            map.bytes()[round] = b'#';
            map.sync().unwrap();
        }
        finish(vec![child]);
        drop(map);
        let content = fs::read(&path).unwrap();
        assert_eq!(content.len(), 4_096 + 2_000);
        t.see("content", checksum(&content));
    }

    /// A file that shrinks under a mapping: what is gone is SIGBUS, what is left is there.
    fn a_mapping_of_a_file_that_shrinks(t) {
        let path = t.file("f", vec![1; 16_384]);
        let script = "import mmap, os, sys
f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 16384)
m[100] = 5; f.truncate(5000); print(m[100], m[4999], m[5000], flush=True); m[12000]";
        let finished = run(&mut python(script, &path), LIMIT);
        t.see("printed", finished.stdout);
        t.see("how it ended", std::os::unix::process::ExitStatusExt::signal(&finished.status));
        t.see("content", checksum(&fs::read(&path).unwrap()));
    }
}
