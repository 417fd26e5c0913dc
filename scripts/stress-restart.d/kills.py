"""Kills the process that serves a mount with --supervise, again and again.

As a program, beside others that work on the mount: `kills.py SUPERVISOR` goes on until it is ended, or the supervisor is gone, and
writes a line for each kill.
"""

import argparse
import collections
import os
import random
import signal
import time


def children_of(supervisor):
    """The processes under it, the oldest first. One that is dead may not have died quite yet; the last may be getting ready for an upgrade."""
    try:
        with open(f"/proc/{supervisor}/task/{supervisor}/children", encoding="ascii") as children:
            return [int(pid) for pid in children.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Killer:
    """Kills each process at most once."""

    def __init__(self, supervisor):
        self.supervisor = supervisor
        self.kills = 0
        # By number, which will be another one's at some time.
        self.killed = collections.deque(maxlen=10)

    def kill(self):
        """Kills one of them; its number, or None if there was none to be killed."""
        alive = [pid for pid in children_of(self.supervisor) if pid not in self.killed]
        if not alive:
            return None
        pid = random.choice(alive)
        try:
            life = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        try:
            # Held now; whether it is who was meant can be said only now.
            if pid not in children_of(self.supervisor):
                return None
            signal.pidfd_send_signal(life, signal.SIGKILL)
        except ProcessLookupError:
            return None
        finally:
            os.close(life)
        self.killed.append(pid)
        self.kills += 1
        return pid


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("supervisor", type=int)
    parser.add_argument("--apart", type=float, nargs=2, default=(0.1, 0.3), help="seconds between kills, from and to")
    options = parser.parse_args()
    killer = Killer(options.supervisor)
    while os.path.exists(f"/proc/{options.supervisor}"):
        time.sleep(random.uniform(*options.apart))
        if pid := killer.kill():
            print(pid, flush=True)


if __name__ == "__main__":
    main()
