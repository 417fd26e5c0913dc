"""What is timed. Each workload is given a place and returns seconds; what it needs it makes before the clock runs."""

import os
import random
import shutil
import subprocess
import sys
import time

import places

FILES = 2000
SOURCES = 600


class Skipped(Exception):
    """The workload can't be run here; the text says why."""


class Context:
    """What the workloads share."""

    def __init__(self, ops, scale, target):
        self.ops = ops
        self.scale = scale
        self.target = target
        self.postgresql = None

    def count(self, number):
        """A number, less in a quick run."""
        return max(10, int(number * self.scale))


def timed(command, directory, **more):
    """Seconds that a command takes; it has to end well."""
    begin = time.monotonic()
    done = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, timeout=1800, check=False, **more)
    seconds = time.monotonic() - begin
    if done.returncode != 0:
        raise places.Failure(f"{command[0]}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return seconds


def ops(context, place, workload, count, threads=1):
    """One of loopfs-ops' workloads."""
    done = subprocess.run([context.ops, workload, place.top, "--count", str(count), "--threads", str(threads)],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=1800, check=False)
    if done.returncode != 0:
        raise places.Failure(f"{workload}: {done.stderr.strip()[-300:]}")
    return float(done.stdout)


def fresh(place):
    """Begins with an empty directory, nothing of which is in a cache of the kernel's: mounted anew."""
    for name in os.listdir(place.top):
        path = os.path.join(place.top, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    cold(place)


def cold(place):
    """Everything that the kernel remembers of the place goes: it is unmounted, the disk below too."""
    place.stop()
    place.start()


def make_sources(top, number):
    """A tree of small C sources, in ten directories, each of them compiled by itself."""
    content = random.Random(1)
    for index in range(number):
        directory = os.path.join(top, f"module-{index % 10}")
        os.makedirs(directory, exist_ok=True)
        body = "".join(f"    s += a * {content.randrange(1000)} ^ {content.randrange(1000)};\n"
                       for _ in range(content.randrange(20, 120)))
        with open(os.path.join(directory, f"source-{index}.c"), "w", encoding="ascii") as file:
            file.write(f"int function_{index}(int a)\n{{\n    int s = {index};\n{body}    return s;\n}}\n")


def sources(context, place):
    """The path of that tree in the place, made if it is not there."""
    tree = os.path.join(place.top, "sources")
    if not os.path.isdir(tree):
        make_sources(tree, context.count(SOURCES))
    return tree


def repository(context, place):
    """The path of a repository of that tree."""
    tree = os.path.join(place.top, "repository")
    if not os.path.isdir(tree):
        make_sources(tree, context.count(SOURCES))
        git(tree, "init", "-q")
        git(tree, "add", ".")
        git(tree, "commit", "-q", "-m", "all")
    return tree


GIT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
       "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "HOME": "/nonexistent"}


def git(directory, *arguments):
    """Seconds that git takes."""
    return timed(["git", *arguments], directory, env=dict(os.environ, **GIT))


def timeouts_pass(_place):
    """The usual timeout of attributes is a second: that they have run out is what is measured."""
    time.sleep(1.1)


def phase(workload, number, before=None, threads=1):
    """A row that is one of loopfs-ops' workloads, so many times, after what has to come before."""
    def timed_phase(context, place):
        if before is not None:
            before(place)
        return ops(context, place, workload, context.count(number), threads)
    return timed_phase


LARGE = 256  # MiB
BLOCKS = 20000  # of 4 KiB


def random_write_2(context, place):
    ops(context, place, "write-out", context.count(LARGE) // 4, 2)
    return ops(context, place, "random-write", context.count(BLOCKS), 2)


def fio(context, place, *arguments):
    """Seconds of a job of fio; it verifies nothing, the other scripts do."""
    if places.installed("fio", "fio") is None:
        raise Skipped("there is no fio")
    size = context.count(64)
    common = ["fio", "--name=job", f"--directory={place.top}", f"--size={size}M", "--group_reporting", "--minimal",
              "--fallocate=none"]
    timed([*common, "--rw=write", "--bs=1M", "--create_only=1"], "/")
    return timed([*common, *arguments], "/")


def fio_mapped(context, place):
    return fio(context, place, "--ioengine=mmap", "--rw=randread", "--bs=4k")


def fio_direct(context, place):
    return fio(context, place, "--ioengine=psync", "--direct=1", "--rw=randwrite", "--bs=4k")


# Programs.

def list_cold(context, place):
    tree = sources(context, place)
    cold(place)
    return timed(["ls", "-lR", "."], tree)


def list_warm(context, place):
    return timed(["ls", "-lR", "."], sources(context, place))


def find(context, place):
    return timed(["find", ".", "-size", "+1k", "-newer", "."], sources(context, place))


def tar_cold(context, place):
    tree = sources(context, place)
    cold(place)
    return timed(["tar", "-cf", "-", "."], tree)


def tar_warm(context, place):
    return timed(["sh", "-c", "tar -cf - . | cat"], sources(context, place))


def copy(context, place):
    tree = sources(context, place)
    shutil.rmtree(tree + ".copy", ignore_errors=True)
    return timed(["cp", "-a", tree, tree + ".copy"], "/")


def extract(context, place):
    tree = sources(context, place)
    archive, copy_of_it = tree + ".tar", tree + ".extracted"
    timed(["tar", "-cf", archive, "-C", tree, "."], "/")
    shutil.rmtree(copy_of_it, ignore_errors=True)
    os.mkdir(copy_of_it)
    return timed(["tar", "-xf", archive, "-C", copy_of_it], "/")


def remove(context, place):
    tree = sources(context, place) + ".copy"
    if not os.path.isdir(tree):
        timed(["cp", "-a", sources(context, place), tree], "/")
    return timed(["rm", "-rf", tree], "/")


def git_add(context, place):
    tree = sources(context, place)
    shutil.rmtree(os.path.join(tree, ".git"), ignore_errors=True)
    return git(tree, "init", "-q") + git(tree, "add", ".")


def git_status(context, place):
    tree = repository(context, place)
    git(tree, "status")
    return git(tree, "status")


def git_clone(context, place):
    tree = repository(context, place)
    shutil.rmtree(tree + ".clone", ignore_errors=True)
    return git("/", "clone", "-q", "--no-hardlinks", tree, tree + ".clone")


def compile_some(context, place):
    if shutil.which("cc") is None:
        raise Skipped("there is no C compiler")
    tree = sources(context, place)
    some = os.path.join(place.top, "objects")
    shutil.rmtree(some, ignore_errors=True)
    os.mkdir(some)
    script = f'for f in module-0/*.c module-1/*.c; do cc -O1 -c "$f" -o "{some}/$(basename "$f").o"; done'
    return timed(["sh", "-c", script], tree)


def sqlite(context, place):
    """Inserts, each in a transaction of its own, without waiting for the disk, which is the same for all."""
    database = os.path.join(place.top, "database")
    for name in ("", "-journal", "-wal"):
        if os.path.exists(database + name):
            os.unlink(database + name)
    script = ("import sqlite3, sys\n"
              "d = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
              "d.execute('pragma synchronous=off')\n"
              "d.execute('create table t (a integer primary key, b text)')\n"
              f"for i in range({context.count(500)}): d.execute('insert into t (b) values (?)', ('x' * 100,))\n")
    return timed([sys.executable, "-c", script, database], "/")


def pgbench(context, place):
    """Transactions of one client, each on the disk when it is done. The server runs as a user of its own."""
    context.postgresql = context.postgresql or places.postgresql(context.target)
    if context.postgresql is None:
        raise Skipped("PostgreSQL can't be had")
    programs, environment = context.postgresql
    nobody = {"user": "nobody", "group": "nogroup", "extra_groups": [], "env": environment}

    def program(name, *arguments):
        return timed([os.path.join(programs, name), *arguments], "/", **nobody)

    def with_server(top, act):
        sockets = os.path.join(os.path.dirname(place.disk), "sockets")
        os.makedirs(sockets, exist_ok=True)
        shutil.chown(sockets, "nobody", "nogroup")
        options = f"-c listen_addresses= -c unix_socket_directories={sockets}"
        log = os.path.join(sockets, "log")
        program("pg_ctl", "-D", os.path.join(top, "cluster"), "-l", log, "-o", options, "-w", "-s", "start")
        try:
            return act("-h", sockets, "-U", "nobody", "postgres")
        finally:
            program("pg_ctl", "-D", os.path.join(top, "cluster"), "-m", "fast", "-w", "-s", "stop")

    if not os.path.isdir(os.path.join(place.source, "cluster")):
        # Behind the daemon's back: some of the others make everything as root.
        place.stop()
        place.make_disk(place.name, place.disk)
        cluster = os.path.join(place.source, "cluster")
        os.mkdir(cluster, 0o700)
        shutil.chown(cluster, "nobody", "nogroup")
        program("initdb", "-D", cluster, "-A", "trust", "-U", "nobody", "--no-locale", "-E", "UTF8")
        with_server(place.source, lambda *where: program("pgbench", "-i", "-q", *where))
    cold(place)
    transactions = str(context.count(500))
    return with_server(place.top, lambda *where: program("pgbench", "-n", "-t", transactions, *where))


# The rows of the table, in the order in which they run in one place. Those of the first two groups use what the ones
# before them in the group have made; the others make it themselves.
SMALL = [
    ("create 4k", phase("create", FILES, fresh)), ("first stat", phase("stat", FILES, cold)),
    ("stat again", phase("stat", FILES)), ("stat after 1.1 s", phase("stat", FILES, timeouts_pass)),
    ("open+read cold", phase("read", FILES, cold)), ("open+read warm", phase("read", FILES)),
    ("rename", phase("rename", FILES)), ("lookup ENOENT", phase("missing", FILES)), ("mkdir+rmdir", phase("mkdir", FILES)),
    ("churn 1", phase("churn", FILES)), ("churn 2", phase("churn", FILES, threads=2)), ("unlink", phase("unlink", FILES)),
]
LARGE_FILE = [
    ("write in order", phase("write-out", LARGE, fresh)), ("read in order, cold", phase("read-in", LARGE, cold)),
    ("read in order", phase("read-in", LARGE)), ("randread", phase("random-read", BLOCKS)),
    ("randwrite 1", phase("random-write", BLOCKS)), ("randwrite 2", random_write_2),
    ("fio mapped randread", fio_mapped), ("fio direct randwrite", fio_direct),
]
PROGRAMS = [
    ("ls -lR cold", list_cold), ("ls -lR warm", list_warm), ("find", find), ("tar c cold", tar_cold), ("tar c warm", tar_warm),
    ("cp -a", copy), ("tar x", extract), ("rm -rf", remove), ("git init+add", git_add), ("git status", git_status), ("git clone", git_clone),
    ("compile", compile_some), ("sqlite insert", sqlite), ("pgbench", pgbench),
]
WORKLOADS = SMALL + LARGE_FILE + PROGRAMS


def with_what_they_need(chosen):
    """Some of the workloads, and those before them that they build on."""
    result = []
    for group in (SMALL, LARGE_FILE):
        last = max((index for index, row in enumerate(group) if row in chosen), default=-1)
        result += group[:last + 1]
    return result + [row for row in PROGRAMS if row in chosen]
