# A program that takes locks as it is told: one Python expression a line, its value or the name of the
# error as the answer. The calls are made through ctypes, because Python's own begin again after EINTR.
import ctypes, errno, fcntl, mmap, os, signal, struct, sys, threading

libc = ctypes.CDLL(None, use_errno=True)
FLOCK = "hhqqi4x"  # struct flock
KINDS = {"sh": fcntl.F_RDLCK, "ex": fcntl.F_WRLCK, "un": fcntl.F_UNLCK}
COMMANDS = {("posix", False): 6, ("posix", True): 7, ("ofd", False): 37, ("ofd", True): 38}
files = {}


def call(function, *arguments):
    if function(*arguments) == -1:
        number = ctypes.get_errno()
        return "EDEADLK" if number == errno.EDEADLK else errno.errorcode.get(number, str(number))
    return "ok"


def open_(name, path, flags=os.O_RDWR):
    files[name] = os.open(path, flags | os.O_CREAT, 0o666)
    return "ok"


def dup(name, copy):
    files[copy] = os.dup(files[name])
    return "ok"


def close(name):
    os.close(files.pop(name))
    return "ok"


def record(style, name, kind, start=0, length=0, wait=False):
    lock = ctypes.create_string_buffer(struct.pack(FLOCK, KINDS[kind], 0, start, length, 0))
    return call(libc.fcntl, files[name], COMMANDS[style, wait], lock)


def posix(name, kind, start=0, length=0, wait=False):
    return record("posix", name, kind, start, length, wait)


def ofd(name, kind, start=0, length=0, wait=False):
    return record("ofd", name, kind, start, length, wait)


# The range only has the same place as in the others.
def flock(name, kind, start=0, length=0, wait=False):
    operation = {"sh": fcntl.LOCK_SH, "ex": fcntl.LOCK_EX, "un": fcntl.LOCK_UN}[kind]
    return call(libc.flock, files[name], operation | (0 if wait else fcntl.LOCK_NB))


# Who is in the way: kind, start, length, process.
def getlk(style, name, kind, start=0, length=0):
    lock = ctypes.create_string_buffer(struct.pack(FLOCK, KINDS[kind], 0, start, length, 0), 32)
    answer = call(libc.fcntl, files[name], 5 if style == "posix" else 36, lock)
    if answer != "ok":
        return answer
    kind, _, start, length, process = struct.unpack(FLOCK, lock.raw)
    return "free" if kind == fcntl.F_UNLCK else (kind == fcntl.F_WRLCK and "ex" or "sh", start, length, process)


# A child that has everything open that we have, until it is told to end.
def fork():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    files["child"] = writer
    return child


def end_child(child):
    close("child")
    os.waitpid(child, 0)
    return "ok"


# What a child of ours gets, which has what we have open.
def in_child(what):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, str(what()).encode())
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 100).decode()
    os.close(reader)
    os.wait()
    return answer


# The signal is handled, by a handler that notes it; a call that it interrupts is begun again, or not.
noted = []
def handle(number, again=False):
    signal.signal(number, lambda number, frame: noted.append(number))
    signal.siginterrupt(number, not again)
    return "ok"


def ignore(number):
    signal.signal(number, signal.SIG_IGN)
    return "ok"


def block(number):
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    return "ok"


# The answer of `what`, done by another thread: `joined` waits for it.
def thread(what, before=lambda: None):
    def work():
        before()
        answer.append(threading.get_native_id())
        started.set()
        answer.append(what())
    answer, started = [], threading.Event()
    files["thread"] = threading.Thread(target=work)
    files["answer"] = answer
    files["thread"].start()
    started.wait()
    return answer[0]


def joined():
    files["thread"].join()
    # It is about to end, and would take a signal meanwhile.
    while len(os.listdir("/proc/self/task")) > 1:
        os.sched_yield()
    return files["answer"][1]


# Adds one, `times` times, to the number at the begin of the file, under the lock, whatever interrupts it.
def count(name, times, lock=flock, start=0, length=0):
    for _ in range(times):
        while (answer := lock(name, "ex", start, length, True)) == "EINTR":
            pass
        assert answer == "ok", answer
        (number,) = struct.unpack("q", os.pread(files[name], 8, 0))
        os.pwrite(files[name], struct.pack("q", number + 1), 0)
        assert lock(name, "un", start, length) == "ok"
    return "ok"


# The same through a shared mapping, whose changes are put into the file before the unlocking.
def count_mapped(name, times, lock=flock):
    with mmap.mmap(files[name], 4096) as memory:
        for _ in range(times):
            assert lock(name, "ex", wait=True) == "ok"
            memory[:8] = struct.pack("q", struct.unpack("q", memory[:8])[0] + 1)
            memory.flush()
            assert lock(name, "un") == "ok"
    return "ok"


# What a database says, which stays open.
def query(path, text):
    import sqlite3
    if path:
        files["database"] = sqlite3.connect(path, timeout=30, isolation_level=None)
    return files["database"].execute(text).fetchall()


print("ready", flush=True)
for line in sys.stdin:
    try:
        answer = eval(line)
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(answer, flush=True)
os._exit(0)
