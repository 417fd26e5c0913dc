"""One mount with --supervise, programs at work on it, and kills. See scripts/stress-restart.sh."""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import kills
import work

# Generous: the machine may be loaded. Every wait ends with its condition.
LIMIT = 120


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--loopfs", required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--upgrades", type=int, default=0, help="so many times `loopfs upgrade`, beside the kills")
    parser.add_argument("--other-loopfs", help="another build, to upgrade to and back (default: a copy of the same)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--io", default="auto")
    parser.add_argument("--size", type=int, default=1 << 20, help="bytes of a write")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--apart", type=float, default=0.25, help="seconds between kills, on average")
    parser.add_argument("--option", action="append", default=[], help="a further option of loopfs")
    parser.add_argument("--logs", help="keep what the daemon said in runs that failed")
    return parser.parse_args()


def wait_for(what, condition):
    """Looks again and again, for what no descriptor reports."""
    end = time.monotonic() + LIMIT
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.005)
    return found


class Mount:
    def __init__(self, options, directory):
        self.source, self.target = f"{directory}/src", f"{directory}/mnt"
        self.log_path = f"{directory}/log"
        os.mkdir(self.source)
        os.mkdir(self.target)
        # Where it is installed, and may be replaced.
        self.program = f"{directory}/loopfs"
        self.install(options.loopfs)
        command = [self.program, "-f", "--supervise=require", "--restart-limit", "never", "--threads", str(options.threads),
                   "--io", options.io, *options.option, self.source, self.target]
        log = open(self.log_path, "wb")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                        env={**os.environ, "RUST_LOG": "warn,loopfs=debug,fuser::reply=off"})
        wait_for("the mount", lambda: self.process.poll() is not None or "is served by process" in self.log())
        if self.process.poll() is not None:
            sys.exit(f"loopfs did not start: {self.log()}")

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def child(self):
        children = kills.children_of(self.process.pid)
        return children[-1] if children else None

    def install(self, build):
        """Puts a build in the program's place, as a package does."""
        shutil.copy(build, f"{self.program}.new")
        os.rename(f"{self.program}.new", self.program)

    def runs(self, pid):
        """What a process runs: whether it is what lies in the program's place, and the digest of it."""
        path = f"/proc/{pid}/exe"
        with open(path, "rb") as program:
            digest = hashlib.file_digest(program, "sha256").hexdigest()
        return os.readlink(path) == self.program, digest

    def descriptors(self, pid):
        return len(os.listdir(f"/proc/{pid}/fd"))

    def memory(self, pid):
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])


def probe(target, stop, results):
    """How long an answer takes, again and again: the longest are those that had to wait for a restart."""
    took = []
    while not stop.is_set():
        begun = time.monotonic()
        try:
            os.statvfs(target)
        except OSError as error:
            results.put(("probe", 0, 0, f"statvfs: {error!r}", "[]"))
            return
        took.append(time.monotonic() - begun)
        time.sleep(0.001)
    results.put(("probe", len(took), 0, None, json.dumps(sorted(took)[-5000:])))


class Upgrader(threading.Thread):
    """Has one build after the other go on with the mount, and looks whether it does."""

    def __init__(self, mount, options, killer):
        super().__init__()
        self.mount, self.killer, self.count, self.apart = mount, killer, options.upgrades, options.apart
        self.builds = [options.other_loopfs or options.loopfs, options.loopfs]
        self.done, self.refused, self.wrong, self.stop = 0, 0, [], threading.Event()
        self.start()

    def run(self):
        try:
            while self.done < self.count and not self.stop.wait(random.expovariate(1 / self.apart)):
                self.upgrade(self.builds[self.done % 2])
                self.done += 1
        except (OSError, TimeoutError, subprocess.SubprocessError) as error:
            self.wrong.append(f"upgrade {self.done + 1}: {error}")

    def upgrade(self, build):
        mount = self.mount
        mount.install(build)
        with open(build, "rb") as program:
            digest = hashlib.file_digest(program, "sha256").hexdigest()
        while True:
            kills_before = self.killer.kills
            said = subprocess.run([mount.program, "upgrade", mount.target], capture_output=True, text=True, timeout=LIMIT, check=False)
            if said.returncode == 0:
                break
            # One that was getting ready may have been killed.
            if self.killer.kills == kills_before:
                raise subprocess.SubprocessError(said.stderr.strip())
            self.refused += 1
        # Who serves is said to have become the new one; the supervisor does right after that.
        served_by = int(re.search(r"process (\d+)", said.stdout)[1])
        try:
            if mount.runs(served_by) != (True, digest):
                self.wrong.append(f"upgrade {self.done + 1}: {said.stdout.strip()}, which is not the new one")
        except (FileNotFoundError, ProcessLookupError):
            pass  # killed since
        wait_for("the supervisor to be the new one", lambda: mount.runs(mount.process.pid) == (True, digest))

        def is_new():
            try:
                return mount.runs(mount.child()) == (True, digest)
            except (FileNotFoundError, ProcessLookupError):
                return False
        wait_for("who serves to be the new one", is_new)


def compare(source, number, files):
    wrong = []
    directory = f"{source}/w{number}"
    found = sorted(os.listdir(directory))
    if found != sorted(files):
        wrong.append(f"w{number} holds {found}, not {sorted(files)}")
    for name, expected in files.items():
        try:
            with open(f"{directory}/{name}", "rb") as file:
                data = file.read()
        except OSError as error:
            wrong.append(f"w{number}/{name}: {error}")
            continue
        if data != bytes.fromhex(expected):
            expected = bytes.fromhex(expected)
            at = next((i for i, (a, b) in enumerate(zip(data, expected)) if a != b), min(len(data), len(expected)))
            wrong.append(f"w{number}/{name}: {len(data)} bytes, expected {len(expected)}, differs at {at}")
    return wrong


def stress(options, mount):
    stop, results = multiprocessing.Event(), multiprocessing.Queue()
    shared = f"{mount.target}/shared"
    with open(shared, "wb") as file:
        file.write(b"0")
    before = mount.descriptors(mount.process.pid)
    tasks = [multiprocessing.Process(target=work.run, args=(f"{mount.target}/w{n}", shared, n, options.size, options.seed,
                                                           stop, results)) for n in range(options.workers)]
    tasks.append(multiprocessing.Process(target=probe, args=(mount.target, stop, results)))
    for task in tasks:
        task.start()
    killer = kills.Killer(mount.process.pid)
    upgrader = Upgrader(mount, options, killer)
    chance = random.Random(options.seed)

    def goes_on():
        return mount.process.poll() is None and all(task.is_alive() for task in tasks)
    while killer.kills < options.kills and goes_on():
        # A delay here is what is being tried: some are shorter than a restart takes.
        time.sleep(chance.expovariate(1 / options.apart) if chance.random() < 0.9 else chance.uniform(0, 0.01))
        killer.kill()
    while upgrader.is_alive() and goes_on():
        upgrader.join(0.1)
    upgrader.stop.set()
    stop.set()
    upgrader.join()
    told, wrong, pauses, rounds, counted = [], upgrader.wrong, [], 0, 0
    for _ in tasks:
        try:
            told.append(results.get(timeout=LIMIT))
        except Exception:  # nothing came: somebody hangs
            wrong.append("a program hangs")
            break
    for number, times, count, error, files in told:
        if error:
            wrong.append(f"program {number}: {error}")
        elif number == "probe":
            pauses = json.loads(files)
        else:
            rounds += times
            counted += count
    for task in tasks:
        task.join(1 if wrong else LIMIT)
        if task.is_alive():
            task.kill()
    if wrong:
        return wrong, killer.kills, upgrader.done, rounds, pauses
    for number, _, _, _, files in told:
        if number != "probe":
            wrong += compare(mount.source, number, json.loads(files))
    with open(f"{mount.source}/shared", "rb") as file:
        number = int(file.read())
    if number != counted:
        wrong.append(f"the shared number is {number}, not {counted}: a lock did not exclude")
    # What is closed is given back. The kernel tells of closed files a little later.
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as caches:
        caches.write("2")
    # Of what was forgotten in the moment of a kill the kernel is asked some seconds later, and again. A search that had begun
    # before does not count, unless nothing is left for another one.
    begun = len(mount.log())

    def searched():
        log = mount.log()
        found = re.findall(r"did not get to note; (\d+) others", log[log.rfind("is served again"):])
        since = log.count("did not get to note", begun)
        return found and (found[-1] == "0" or since > 1)
    try:
        wait_for("the search", searched)
    except TimeoutError:
        wrong.append("what was forgotten in the moment of a kill is not searched for")
    try:
        wait_for("descriptors", lambda: mount.descriptors(mount.process.pid) <= before)
    except TimeoutError:
        wrong.append(f"the supervisor has {mount.descriptors(mount.process.pid)} descriptors open, {before} at the start")
    pid = wait_for("a child", mount.child)
    print(f"  the child: {mount.descriptors(pid)} descriptors, {mount.memory(pid)} KiB; the supervisor: "
          f"{mount.descriptors(mount.process.pid)} descriptors, {mount.memory(mount.process.pid)} KiB")
    return wrong, killer.kills, upgrader.done, rounds, pauses


def end(mount):
    """The orderly end, and what is wrong with it."""
    wrong = []
    mount.process.send_signal(signal.SIGTERM)
    try:
        status = mount.process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        mount.process.kill()
        return ["the daemon does not end"]
    if status != 0:
        wrong.append(f"the daemon ended with {status}")
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        if f" {mount.target} " in table.read():
            wrong.append("the mount stays")
    log = mount.log()
    left = re.findall(r"(\d+) inodes and (\d+) handles left", log)
    if not left or left[-1] != ("0", "0"):
        wrong.append(f"inodes and handles left: {left}")
    wrong += [line for line in log.splitlines() if " ERROR " in line or "panicked" in line or "did not survive" in line
              or "that it did not have" in line or re.search(r"was killed by signal (?!9;)|ended with status", line)]
    return wrong


def main():
    options = arguments()
    directory = os.path.realpath(tempfile.mkdtemp(prefix="loopfs-restart."))
    mount = Mount(options, directory)
    begun = time.monotonic()
    wrong, killed, upgraded, rounds, pauses = stress(options, mount)
    wrong += end(mount)
    served = [int(ms) for ms in re.findall(r"is served again, (\d+) ms after", mount.log())]
    longest = [1000 * pause for pause in pauses[-max(len(served), 1):]]
    print(f"--threads {options.threads} --io {options.io} --size {options.size} --seed {options.seed}: {killed} kills"
          f"{f' and {upgraded} upgrades' if options.upgrades else ''} in {time.monotonic() - begun:.0f} s, {rounds} rounds; a restart took {statistics.median(served or [0]):.0f} ms "
          f"(median), {max(served or [0])} ms (worst); the longest answers {statistics.median(longest or [0]):.0f} ms (median), "
          f"{max(longest or [0]):.0f} ms (worst): {'ok' if not wrong else 'FAILED'}", flush=True)
    for line in wrong[:20]:
        print("  " + line.replace("\n", "\n    "))
    if wrong or killed < options.kills or upgraded < options.upgrades:
        if options.logs:
            os.makedirs(options.logs, exist_ok=True)
            shutil.copy(mount.log_path, f"{options.logs}/{os.path.basename(directory)}.log")
        print(f"  kept: {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
