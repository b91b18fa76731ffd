"""Contestants: processes that take turns, so that a drift of the machine's speed meets all alike.

The parent makes `Contestant`s, each a script of its own arguments; the child calls `take_turns`.
"""

import os
import statistics
import subprocess
import sys
import time


class Contestant:
    """A process that runs when it is told to, and the seconds of its turns.

    Making one waits until it is warm. A process that fails raises a `RuntimeError` with its reason.
    """

    def __init__(self, backend, *command):
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.imported = 0
        self._read()  # warmed up
        self.times = []

    def turn(self):
        self.process.stdin.write("go\n")
        self.times.append(self._read())

    def peak_memory(self):
        """The most bytes that were resident until now, as Linux counts them."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

    def peak_over_imports(self):
        """The bytes of `peak_memory` that came after the child called `imported`."""
        return self.peak_memory() - self.imported

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def _read(self):
        while line := self.process.stdout.readline():
            if line.startswith("seconds "):
                return float(line.split()[1])
            if line.startswith("imported "):
                self.imported = int(line.split()[1])
            if line.startswith("failed "):
                self.close()
                raise RuntimeError(line.removeprefix("failed ").strip())
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")


def take_turns(build):
    """In the child: warm up, then run whenever a line comes in.

    Args:
        build: function that returns `run`, a function that does the work and returns `time.perf_counter()` at its end.
    """
    try:
        run = build()
        run()
        print("seconds 0", flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            print("seconds", run() - start, flush=True)
    except Exception as error:
        print("failed", f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        raise


def imported():
    """In the child, when all is imported: tell the parent what is resident then."""
    with open("/proc/self/status") as status:
        resident = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
    print("imported", resident, flush=True)


def ratio(ours, peer):
    """The median, over the turns, of the peer's time divided by ours: above 1 we are faster."""
    return statistics.median(b / a for a, b in zip(ours.times, peer.times, strict=True))
