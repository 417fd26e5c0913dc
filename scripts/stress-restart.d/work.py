"""A program that works in a directory of its own, knows what must be in it, and looks whether it is.

Every error ends it, with the account of what it was doing. It stops when told to, after a whole round, and says then what
the directory has to hold: that is looked for in SRC, where no cache is in between.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import stat

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


def renameat2(old, new, flags):
    if LIBC.renameat2(AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), old)


class Worker:
    def __init__(self, directory, shared, number, size, seed):
        self.directory, self.shared, self.size = directory, shared, size
        self.random = random.Random(f"{seed} {number}")
        self.number = number
        self.files = {}  # name -> contents
        self.made = 0
        self.appended = 0
        self.counted = 0
        self.doing = "nothing"
        os.mkdir(directory)
        self.log = os.open(f"{directory}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        self.held = os.open(f"{directory}/held", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self.held_content = bytearray()

    def name(self):
        self.made += 1
        return f"f{self.made}"

    def path(self, name):
        return f"{self.directory}/{name}"

    def fill(self, length):
        part = self.random.randbytes(61)
        return (part * (length // 61 + 1))[:length]

    def some(self):
        return self.random.choice(sorted(self.files)) if self.files else None

    # What programs do. Each leaves `files` as the directory has to be.

    def create(self):
        name, data = self.name(), self.fill(self.random.choice([0, 1, 4096, self.size, self.size + 1]))
        fd = os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        written = 0
        while written < len(data):
            count = os.write(fd, data[written:written + self.size])
            assert count > 0
            written += count
        if self.random.random() < 0.2:
            os.fsync(fd)
        self.files[name] = data
        assert os.pread(fd, len(data) + 1, 0) == data, "what was written is not there"
        os.close(fd)

    def append(self):
        for _ in range(self.random.randrange(1, 8)):
            record = b"%09d\n" % self.appended
            assert os.write(self.log, record) == len(record)
            self.appended += 1

    def overwrite(self):
        data = self.fill(self.random.choice([10, 4096, self.size]))
        at = self.random.randrange(0, len(self.held_content) + 1) if self.held_content else 0
        at = min(at, 4 << 20)
        assert os.pwrite(self.held, data, at) == len(data)
        self.held_content[at:at + len(data)] = data
        length = len(self.held_content)
        assert os.pread(self.held, length + 1, 0) == bytes(self.held_content), "an open file has changed"

    def read(self):
        name = self.some()
        if name:
            with open(self.path(name), "rb") as file:
                assert file.read() == self.files[name], f"{name} is not what it was"

    def rename(self):
        name = self.some()
        if name:
            new = self.name()
            os.rename(self.path(name), self.path(new))
            self.files[new] = self.files.pop(name)

    def rename_carefully(self):
        name = self.some()
        if name:
            new = self.name()
            renameat2(self.path(name), self.path(new), RENAME_NOREPLACE)
            self.files[new] = self.files.pop(name)

    def exchange(self):
        one, other = self.some(), self.some()
        if one and other and one != other:
            renameat2(self.path(one), self.path(other), RENAME_EXCHANGE)
            self.files[one], self.files[other] = self.files[other], self.files[one]

    def replace(self):
        one, other = self.some(), self.some()
        if one and other and one != other:
            os.rename(self.path(one), self.path(other))
            self.files[other] = self.files.pop(one)

    def link(self):
        name = self.some()
        if name:
            new = self.name()
            os.link(self.path(name), self.path(new))
            assert os.stat(self.path(name)).st_nlink >= 2
            os.unlink(self.path(name))
            self.files[new] = self.files.pop(name)

    def symlink(self):
        link = self.path("symlink")
        os.symlink("somewhere", link)
        assert os.readlink(link) == "somewhere"
        os.unlink(link)

    def directory_within(self):
        inner = self.path(f"d{self.made}")
        os.mkdir(inner)
        with open(f"{inner}/x", "wb") as file:
            file.write(b"x")
        assert os.listdir(inner) == ["x"]
        os.unlink(f"{inner}/x")
        os.rmdir(inner)
        assert not os.path.exists(inner)

    def node(self):
        path = self.path("fifo")
        os.mkfifo(path, 0o600)
        assert stat.S_ISFIFO(os.lstat(path).st_mode)
        os.unlink(path)

    def unlink(self):
        if len(self.files) > 20 or self.random.random() < 0.3:
            name = self.some()
            if name:
                os.unlink(self.path(name))
                del self.files[name]

    def unlink_open(self):
        """What has no name any more works until it is closed."""
        path = self.path("unlinked")
        data = self.fill(5000)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, data)
        os.unlink(path)
        for _ in range(self.random.randrange(1, 10)):
            assert os.pread(fd, 6000, 0) == data, "what was unlinked has changed"
            assert os.fstat(fd).st_nlink == 0
        os.close(fd)

    def list(self):
        expected = sorted([*self.files, "log", "held"])
        assert sorted(os.listdir(self.directory)) == expected, "a listing is wrong"

    def attributes(self):
        name = self.some()
        if name:
            mode = self.random.choice([0o600, 0o644, 0o755])
            os.chmod(self.path(name), mode)
            os.utime(self.path(name), ns=(10**18, 10**18 + 7))
            found = os.stat(self.path(name))
            assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (mode, 10**18 + 7)

    def truncate(self):
        name = self.some()
        if name:
            length = len(self.files[name]) // 2
            os.truncate(self.path(name), length)
            self.files[name] = self.files[name][:length]

    def xattr(self):
        name = self.some()
        if name:
            path = self.path(name)
            os.setxattr(path, "user.one", b"value", os.XATTR_CREATE)
            assert os.getxattr(path, "user.one") == b"value"
            os.removexattr(path, "user.one")
            assert "user.one" not in os.listxattr(path)

    def map(self):
        name = self.some()
        if name and len(self.files[name]) >= 10:
            with open(self.path(name), "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
                assert mapped[:] == self.files[name], "a mapping shows something else"
                mapped[5:10] = b"MAPPE"
                mapped.flush()
            data = bytearray(self.files[name])
            data[5:10] = b"MAPPE"
            self.files[name] = bytes(data)

    def count(self):
        """A number that all of them count up, one at a time."""
        with open(self.shared, "r+b", buffering=0) as file:
            lock = self.random.choice([fcntl.flock, fcntl.lockf])
            # Both, in this order: who takes one only would not exclude the other.
            fcntl.flock(file, fcntl.LOCK_EX)
            if lock is fcntl.lockf:
                fcntl.lockf(file, fcntl.LOCK_EX)
            number = int(os.pread(file.fileno(), 20, 0) or b"0")
            os.pwrite(file.fileno(), b"%d" % (number + 1), 0)
            self.counted += 1

    def round(self):
        steps = [
            self.create, self.append, self.append, self.overwrite, self.read, self.read, self.rename, self.rename_carefully,
            self.exchange, self.replace, self.link, self.symlink, self.directory_within, self.node, self.unlink,
            self.unlink_open, self.list, self.attributes, self.truncate, self.xattr, self.map, self.count,
        ]
        self.random.shuffle(steps)
        for step in steps:
            self.doing = step.__name__
            step()


def run(directory, shared, number, size, seed, stop, results):
    """Works until `stop` is set, and tells `results` what must be there or what went wrong."""
    worker, rounds = None, 0
    try:
        worker = Worker(directory, shared, number, size, seed)
        while not stop.is_set():
            worker.round()
            rounds += 1
        os.close(worker.log)
        os.close(worker.held)
        files = {name: data.hex() for name, data in worker.files.items()}
        files["log"] = b"".join(b"%09d\n" % number for number in range(worker.appended)).hex()
        files["held"] = bytes(worker.held_content).hex()
        results.put((number, rounds, worker.counted, None, json.dumps(files)))
    except BaseException as error:  # an interruption is told too
        code = errno.errorcode.get(getattr(error, "errno", None) or 0, "")
        doing = worker.doing if worker else "starting"
        import traceback
        results.put((number, rounds, 0, f"{doing}: {code} {error!r}\n{traceback.format_exc()}", "{}"))
