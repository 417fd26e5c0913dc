"""Where a workload runs: a plain directory, a bind mount of one, loopfs in its modes, and other daemons."""

import os
import re
import shutil
import signal
import subprocess
import time

LIMIT = 30  # seconds for a mount to appear or to go


class Failure(Exception):
    """The place can't be had; the text says why."""


def run(*command, **more):
    """Runs a command to its end; its output, or Failure with what it said."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", timeout=600, check=False, **more)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command[:3])}: {done.stdout.strip()[-300:] or done.returncode}")
    return done.stdout


def is_mounted(path):
    """Whether something is mounted there, without touching it."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return any(line.split(" ")[4] == path for line in table)


def wait_for(condition, what):
    """Waits until condition() is true."""
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            raise Failure(f"{what}: not within {LIMIT} s")
        # The kernel wakes whoever polls the mount table when it changes.
        subprocess.run(["findmnt", "--poll", "--timeout", "200"], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=False)


class Place:
    """A plain directory on a file system of its own; the base of the others."""

    daemon = False

    def __init__(self, name, directory, make_disk):
        self.name = name
        self.disk = os.path.join(directory, name, "disk")
        self.mnt = self.disk
        self.make_disk = make_disk
        self.cpu = 0.0

    def prepare(self):
        """Makes its file system, once."""
        os.makedirs(self.disk)
        self.make_disk(self.name, self.disk)

    @property
    def top(self):
        """The directory to work in."""
        return os.path.join(self.mnt, "work") if self.mnt == self.disk else self.mnt

    @property
    def source(self):
        """The directory behind it."""
        return os.path.join(self.disk, "work")

    def start(self):
        """Makes it usable."""
        if not is_mounted(self.disk):
            self.make_disk(self.name, self.disk)
        os.makedirs(self.source, exist_ok=True)
        self.attach()

    def attach(self):
        """Mounts what there is to mount."""

    def detach(self):
        """Takes that away."""

    def stop(self):
        """Takes everything away; what is in it stays on its disk."""
        self.detach()
        if is_mounted(self.disk):
            run("umount", self.disk)

    def cpu_time(self):
        """The seconds of CPU that its daemon has taken."""
        return self.cpu


class Bind(Place):
    """A bind mount: what the machine's noise alone does to a ratio."""

    def __init__(self, name, directory, make_disk):
        super().__init__(name, directory, make_disk)
        self.mnt = os.path.join(directory, name, "mnt")

    def attach(self):
        os.makedirs(self.mnt, exist_ok=True)
        run("mount", "--bind", self.source, self.mnt)

    def detach(self):
        if is_mounted(self.mnt):
            run("umount", self.mnt)


class Daemon(Place):
    """A FUSE daemon that stays in the foreground; command gets SRC and MNT."""

    daemon = True

    def __init__(self, name, directory, make_disk, command):
        super().__init__(name, directory, make_disk)
        self.mnt = os.path.join(directory, name, "mnt")
        self.log = os.path.join(directory, name, "log")
        self.command = command
        self.process = None

    def attach(self):
        os.makedirs(self.mnt, exist_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command(self.source, self.mnt), stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, cwd="/")

        def ready():
            if self.process.poll() is not None:
                with open(self.log, encoding="utf-8", errors="replace") as log:
                    raise Failure(f"{self.name} does not start: {log.read().strip()[-300:]}")
            return is_mounted(self.mnt)

        wait_for(ready, self.name)

    def running_time(self):
        """The seconds of CPU of the process that runs now: proc_pid_stat(5)."""
        try:
            with open(f"/proc/{self.process.pid}/stat", encoding="utf-8") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def detach(self):
        if self.process is None:
            return
        self.cpu += self.running_time()
        if is_mounted(self.mnt):
            run("umount", self.mnt)
        try:
            self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self.process = None

    def cpu_time(self):
        return self.cpu + (self.running_time() if self.process else 0.0)


def apt(package):
    """Installs a package, if it can be had."""
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
        subprocess.run(["apt-get", "-qq", *command], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=False)


def installed(program, package):
    """The program, installed with apt if it is not there; None if it can't be had."""
    if shutil.which(program) is None:
        apt(package)
    return shutil.which(program)


def example(name, target):
    """One of libfuse's own examples, built from the source package of the distribution; None if it can't be."""
    directory = os.path.join(target, "bench")
    built = os.path.join(directory, name)
    if os.path.exists(built):
        return built
    os.makedirs(directory, exist_ok=True)
    common = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "programs.d", "common.sh")
    script = ('. "$0"; source_package fuse3 && tar -C "$INPUT" -xf "$INPUT"/fuse3_*.orig.tar.[gx]z --strip-components=1 '
              "--wildcards '*/example/*'")
    environment = dict(os.environ, INPUT=directory, DEBIAN_FRONTEND="noninteractive")
    done = subprocess.run(["bash", "-c", script, common], env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    top = os.path.join(directory, "example")
    source = next((path for path in (os.path.join(top, name + end) for end in (".c", ".cc")) if os.path.exists(path)), None)
    for program, package in (("pkg-config", "pkg-config"), ("cc", "gcc"), ("g++", "g++")):
        installed(program, package)
    if subprocess.run(["pkg-config", "fuse3"], check=False).returncode != 0:
        apt("libfuse3-dev")
    if done.returncode == 0 and source is not None:
        flags = run("pkg-config", "--cflags", "--libs", "fuse3").split()
        compiler = ["g++", "-std=c++17"] if source.endswith(".cc") else ["cc"]
        done = subprocess.run([*compiler, "-O2", "-w", "-D_FILE_OFFSET_BITS=64", "-DFUSE_USE_VERSION=35", "-I", top, "-o", built,
                               source, *flags, "-lpthread"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode == 0:
            return built
    print(f"bench: {name} can't be built: {done.stdout.decode(errors='replace').strip()[-300:]}", flush=True)
    return None


def postgresql(target):
    """Where PostgreSQL's programs are, with the environment that they need: those of the distribution's packages, unpacked and
    not installed, so that no cluster is set up; None if they can't be had."""
    directory = os.path.join(target, "bench", "postgresql")
    common = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "programs.d", "common.sh")
    script = ('set -e; . "$0"; version=$(apt-cache depends postgresql | sed -n "s/ *Depends: postgresql-\\([0-9]*\\)$/\\1/p"); '
              'unpack_packages "postgresql-$version" "postgresql-client-$version" libpq5; use_unpacked; '
              'echo "$LD_LIBRARY_PATH"; ls -d "$INPUT"/root/usr/lib/postgresql/*/bin')
    environment = dict(os.environ, INPUT=directory, DEBIAN_FRONTEND="noninteractive")
    os.makedirs(directory, exist_ok=True)
    done = subprocess.run(["bash", "-c", script, common], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True, check=False)
    if done.returncode != 0:
        return None
    libraries, programs = done.stdout.splitlines()[-2:]
    return programs, {"LD_LIBRARY_PATH": libraries, "PATH": f"{programs}:/usr/bin:/bin", "LC_ALL": "C"}


def all_places(wanted, directory, make_disk, loopfs, target):
    """The places of those names, in the order of the table; those that can't be had are left out, and named."""
    def daemon(name, command):
        return lambda: Daemon(name, directory, make_disk, command)

    def peer(name, find, command):
        def build():
            program = find()
            if program is None:
                raise Failure("it can't be installed or built here")
            return Daemon(name, directory, make_disk, lambda src, mnt: command(program, src, mnt))
        return build

    known = {
        "native": lambda: Place("native", directory, make_disk),
        "bind": lambda: Bind("bind", directory, make_disk),
        "loopfs": daemon("loopfs", lambda src, mnt: [loopfs, "-f", src, mnt]),
        "loopfs-ttl": daemon("loopfs-ttl", lambda src, mnt: [loopfs, "-f", "--cache", "ttl", src, mnt]),
        **{f"loopfs-{n}": daemon(f"loopfs-{n}", lambda src, mnt, n=n: [loopfs, "-f", "--threads", str(n), src, mnt])
           for n in (1, 2, 4, 8)},
        # On one CPU, whichever the callers are on.
        "loopfs-pinned": daemon("loopfs-pinned", lambda src, mnt: ["taskset", "-c", "0", loopfs, "-f", "--threads", "1", src, mnt]),
        "loopfs-cached": daemon("loopfs-cached", lambda src, mnt: [loopfs, "-f", "--io", "cached", src, mnt]),
        "loopfs-direct": daemon("loopfs-direct", lambda src, mnt: [loopfs, "-f", "--io", "direct", src, mnt]),
        "loopfs-awake": daemon("loopfs-awake", lambda src, mnt: [loopfs, "-f", "--low-latency", src, mnt]),
        "bindfs": peer("bindfs", lambda: installed("bindfs", "bindfs"),
                       lambda program, src, mnt: [program, "-f", src, mnt]),
        "mergerfs": peer("mergerfs", lambda: installed("mergerfs", "mergerfs"),
                         lambda program, src, mnt: [program, "-f", "-o", "minfreespace=0,allow_other", src, mnt]),
        "hp": peer("hp", lambda: example("passthrough_hp", target),
                   lambda program, src, mnt: [program, "--foreground", src, mnt]),
        "ll": peer("ll", lambda: example("passthrough_ll", target),
                   lambda program, src, mnt: [program, "-f", "-o", f"source={src},cache=auto", mnt]),
        # As it comes ll lets everybody do what root may; the others have the kernel check, which asks for the
        # attributes of a directory after each change of it.
        "ll-checked": peer("ll-checked", lambda: example("passthrough_ll", target),
                           lambda program, src, mnt: [program, "-f", "-o", f"source={src},cache=auto,default_permissions", mnt]),
    }
    places = []
    for name in wanted or known:
        if name not in known:
            raise Failure(f"there is no place '{name}': there are {', '.join(known)}")
        try:
            places.append(known[name]())
        except Failure as failure:
            print(f"bench: without {name}: {failure}", flush=True)
    return places


def kernel_and_machine():
    """The machine in a line."""
    with open("/proc/cpuinfo", encoding="utf-8") as text:
        model = re.search(r"model name\s*: (.*)", text.read())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = os.uname()
    return (f"{os.cpu_count()} CPUs ({model.group(1).strip() if model else system.machine}), {memory:.0f} GiB, "
            f"Linux {system.release}")
