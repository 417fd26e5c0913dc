#!/usr/bin/env python3
"""Prints a tree, one line for each name, to be compared with another: see scripts/programs.

    snapshot MODE IGNORE DIR

MODE is a list of: none (nothing at all), contents (type, mode, owner, links, size, target, extended attributes,
what is in it), times (mtime too, where a program has set it: one that is not of today), holes (where a file has
data); or exact: all of it, with inode numbers and ctime, for two views of the same tree. Names that match the regular
expression IGNORE, and what is below them, are left out.
"""

import hashlib
import os
import re
import stat
import sys
import time

KINDS = {
    stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
}


def holes(fd, size):
    """Where SEEK_DATA and SEEK_HOLE see data."""
    found, offset = [], 0
    while offset < size:
        try:
            begin = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            break
        offset = os.lseek(fd, begin, os.SEEK_HOLE)
        found.append(f"{begin}-{offset}")
    return ",".join(found)


def main():
    modes, ignore, top = set(sys.argv[1].split()), sys.argv[2], os.fsencode(sys.argv[3])
    if "none" in modes:
        return
    exact = "exact" in modes
    unknown = modes - {"contents", "times", "holes", "exact"}
    if unknown or not modes:
        sys.exit(f"snapshot: no such mode: {sys.argv[1]!r}")
    pattern = re.compile(ignore.encode()) if ignore else None
    first = {}

    def line(path, name):
        st = os.lstat(path)
        kind = stat.S_IFMT(st.st_mode)
        parts = [KINDS[kind], f"{stat.S_IMODE(st.st_mode):o}", f"{st.st_uid}:{st.st_gid}", f"nlink={st.st_nlink}"]
        if kind in (stat.S_IFREG, stat.S_IFLNK):
            parts.append(f"size={st.st_size}")
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            parts.append(f"rdev={os.major(st.st_rdev)}:{os.minor(st.st_rdev)}")
        if kind != stat.S_IFDIR and st.st_nlink > 1:
            same = first.setdefault((st.st_dev, st.st_ino), name)
            if same != name:
                parts.append(f"is={same!r}")
        if "times" in modes and abs(st.st_mtime - time.time()) < 86400:
            parts.append("mtime=today")
        elif "times" in modes or exact:
            parts.append(f"mtime={st.st_mtime_ns}")
        # The top of a mount is another inode to stat, by its own right: the numbers below it count.
        if exact and name:
            parts.append(f"ino={st.st_ino} ctime={st.st_ctime_ns}")
        if kind == stat.S_IFLNK:
            parts.append(f"to={os.readlink(path)!r}")
        for key in sorted(os.listxattr(path, follow_symlinks=False)):
            value = os.getxattr(path, key, follow_symlinks=False)
            # Handles of files, and random numbers: no two trees have the same.
            if not exact and key.endswith((".overlay.origin", ".overlay.upper", ".overlay.uuid")):
                value = len(value) if key.endswith("uuid") else "handle"
            parts.append(f"{key!r}={value!r}")
        if kind == stat.S_IFREG:
            fd = os.open(path, os.O_RDONLY)
            try:
                digest = hashlib.sha256()
                while block := os.read(fd, 1 << 20):
                    digest.update(block)
                parts.append(digest.hexdigest()[:32])
                if "holes" in modes or exact:
                    parts.append(f"data={holes(fd, st.st_size)}")
            finally:
                os.close(fd)
        print(f"{name.decode('utf-8', 'backslashreplace')!r}", *parts)
        return kind == stat.S_IFDIR

    def walk(path, name):
        if pattern and name and pattern.search(name):
            return
        if line(path, name):
            for entry in sorted(os.listdir(path)):
                walk(path + b"/" + entry, (name + b"/" if name else b"") + entry)

    walk(top, b"")


main()
