//! What a lock protects is seen as it is, by programs on either side.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use super::agent::{Agent, quoted};
use crate::common::process::run;
use crate::{Forwarding, Mnt, Src};

/// Programs on both sides add up in one file, under a lock: nothing is lost, so each has read what the
/// others wrote, although the kernel has a cache of the file for the mount.
fn count_together(count: impl Fn(&str) -> String) {
    const TIMES: u32 = 150;
    let forwarding = Forwarding::start(&[]);
    for (number, lock) in ["flock", "posix", "ofd"].into_iter().enumerate() {
        let name = format!("count{number}");
        fs::write(forwarding.path(Src, &name), [0; 4096]).unwrap();
        let mut agents =
            [Mnt, Src, Mnt, Src].map(|side| Agent::with(&forwarding.path(side, &name)));
        for agent in &mut agents {
            agent.begin(&count(lock).replace("TIMES", &TIMES.to_string()));
        }
        for agent in &agents {
            assert_eq!(agent.hear(), "ok");
        }
        let found = fs::read(forwarding.path(Src, &name)).unwrap();
        let total = u64::from_ne_bytes(found[..8].try_into().unwrap());
        assert_eq!(total, 4 * u64::from(TIMES), "{lock}");
    }
    forwarding.0.finish();
}

#[test]
fn programs_on_both_sides_count_in_one_file() {
    count_together(|lock| format!("count('f', TIMES, {lock})"));
}

/// A signal that comes as the lock does must not leave it with nobody, or with two.
#[test]
fn programs_that_are_interrupted_count_as_well() {
    let forwarding = Forwarding::start(&[]);
    for lock in ["flock", "posix", "ofd"] {
        fs::write(forwarding.path(Src, lock), [0; 8]).unwrap();
        let mut agents = [Mnt, Mnt, Mnt, Src].map(|side| Agent::with(&forwarding.path(side, lock)));
        for (number, agent) in agents.iter_mut().enumerate() {
            // The second one's calls are begun again by the kernel.
            let again = if number == 1 { "True" } else { "False" };
            assert_eq!(agent.ask(&format!("handle(signal.SIGALRM, {again})")), "ok");
            let every = 0.003 + 0.009 * f64::from(u8::try_from(number).unwrap());
            agent.ask(&format!(
                "signal.setitimer(signal.ITIMER_REAL, {every}, {every})"
            ));
            agent.begin(&format!("count('f', 50, {lock})"));
        }
        for agent in &agents {
            assert_eq!(agent.hear(), "ok");
        }
        let found = fs::read(forwarding.path(Src, lock)).unwrap();
        assert_eq!(u64::from_ne_bytes(found.try_into().unwrap()), 200, "{lock}");
    }
    forwarding.0.finish();
}

/// With the lock on a byte that is no part of what it protects, as databases do.
#[test]
fn the_lock_may_be_anywhere_in_the_file() {
    count_together(|lock| format!("count('f', TIMES, {lock}, 1 << 30, 1)"));
}

#[test]
fn programs_on_both_sides_count_in_shared_memory() {
    count_together(|lock| format!("count_mapped('f', TIMES, {lock})"));
}

/// The size as well, when the kernel remembers another one.
#[test]
fn a_file_that_has_grown_under_the_lock() {
    let forwarding = Forwarding::start(&[]);
    let mut on_src = Agent::with(&forwarding.path(Src, "f"));
    let mut on_mnt = Agent::with(&forwarding.path(Mnt, "f"));
    let asked = Instant::now();
    for round in 1..=50 {
        for agent in [&mut on_src, &mut on_mnt] {
            assert_eq!(agent.ask("posix('f', 'ex', 0, 0, True)"), "ok");
            agent.ask("os.pwrite(files['f'], b'x', os.fstat(files['f']).st_size)");
            let size = agent.ask("os.fstat(files['f']).st_size");
            agent.ask("posix('f', 'un')");
            let expected = fs::metadata(forwarding.path(Src, "f")).unwrap().len();
            assert_eq!(size, expected.to_string(), "{round}");
        }
    }
    assert_eq!(fs::metadata(forwarding.path(Src, "f")).unwrap().len(), 100);
    assert!(asked.elapsed() < Duration::from_secs(20));
    drop((on_src, on_mnt));
    forwarding.0.finish();
}

/// A program on the mount that only reads, which gives the kernel no reason to look at the file again.
#[test]
fn a_reader_sees_what_was_written_under_the_lock() {
    let forwarding = Forwarding::start(&[]);
    fs::write(forwarding.path(Src, "f"), "00").unwrap();
    let mut writer = Agent::with(&forwarding.path(Src, "f"));
    let mut reader = Agent::with(&forwarding.path(Mnt, "f"));
    reader.ask("files.update(map=mmap.mmap(files['f'], 2, prot=mmap.PROT_READ))");
    for lock in ["flock", "posix", "ofd"] {
        for round in 10..60 {
            assert_eq!(writer.ask(&format!("{lock}('f', 'ex', 0, 0, True)")), "ok");
            writer.ask(&format!("os.pwrite(files['f'], b'{round}', 0)"));
            assert_eq!(writer.ask(&format!("{lock}('f', 'un')")), "ok");
            assert_eq!(reader.ask(&format!("{lock}('f', 'sh', 0, 0, True)")), "ok");
            let seen = reader.ask("os.pread(files['f'], 2, 0), files['map'][:2]");
            assert_eq!(seen, format!("(b'{round}', b'{round}')"), "{lock}");
            assert_eq!(reader.ask(&format!("{lock}('f', 'un')")), "ok");
        }
    }
    drop((writer, reader));
    forwarding.0.finish();
}

/// Two writers of one database on MNT and one on SRC, each transaction a read and a write, and a reader
/// on MNT that keeps it open.
#[test]
fn sqlite_on_both_sides() {
    const TIMES: usize = 60;
    let forwarding = Forwarding::start(&[]);
    let sqlite = |side, script: &str| {
        let mut command = Command::new("sqlite3");
        command
            .args(["-batch", "-bail", "-cmd", ".timeout 30000"])
            .arg(forwarding.path(side, "db"))
            .arg(script);
        command
    };
    let limit = Duration::from_secs(60);
    let create = "CREATE TABLE t (who, n); CREATE INDEX i ON t (n); CREATE TABLE later (n); INSERT INTO t VALUES ('start', 0);";
    run(&mut sqlite(Src, create), limit).success();
    let mut reader = Agent::new();
    reader.ask(&format!(
        "query({}, 'SELECT 1')",
        quoted(&forwarding.path(Mnt, "db"))
    ));
    let writes = |who: &str| {
        let one =
            format!("BEGIN IMMEDIATE; INSERT INTO t SELECT '{who}', max(n) + 1 FROM t; COMMIT;");
        one.repeat(TIMES)
    };
    std::thread::scope(|scope| {
        let writers = [Mnt, Src, Mnt].map(|side| {
            let mut command = sqlite(side, &writes(&format!("{side:?}")));
            scope.spawn(move || run(&mut command, limit).success())
        });
        for writer in writers {
            assert_eq!(writer.join().unwrap(), "");
        }
    });
    let seen = reader.ask("query(None, 'SELECT count(*) FROM t')");
    assert_eq!(seen, format!("[({},)]", 3 * TIMES + 1));
    for round in 1..=20 {
        let insert = format!("INSERT INTO later VALUES ({round})");
        run(&mut sqlite(Src, &insert), limit).success();
        let seen = reader.ask("query(None, 'SELECT max(n) FROM later')");
        assert_eq!(seen, format!("[({round},)]"));
    }
    drop(reader);
    for side in [Mnt, Src] {
        let check = "PRAGMA integrity_check; SELECT count(*), max(n), count(DISTINCT n) FROM t; \
            SELECT who, count(*) FROM t GROUP BY who ORDER BY who;";
        let found = run(&mut sqlite(side, check), limit).success();
        let all = 3 * TIMES;
        let expected = format!(
            "ok\n{}|{all}|{}\nMnt|{}\nSrc|{TIMES}\nstart|1\n",
            all + 1,
            all + 1,
            2 * TIMES
        );
        assert_eq!(found, expected, "{side:?}");
    }
    forwarding.0.finish();
}
