"""Training steps of kerasllm beside plain Keras layers and plain PyTorch, in one table from one run.

python benchmarks/train.py              # every backend
python benchmarks/train.py torch jax    # some

The contestants are processes that take turns, so that a drift of the machine's speed meets all alike. A time is the
median of its turns; a ratio is the median, over the turns, of the peer's time divided by ours: above 1 we are faster.
"""

import os
import statistics
import subprocess
import sys
import time

import contestants

TURNS = 7
# Task: steps in a turn, and the peers: contestant, and the backends it runs on (None: the one of ours).
TASKS = {
    "gpt_kerasllm": (60, {"gpt_torch": "torch", "gpt_keras": None}),
    "lstm_kerasllm": (12, {"lstm_torch": "torch", "lstm_keras": None}),
    "lstm_kerasllm_padded": (12, {"lstm_torch": "torch"}),
}


class Contestant:
    """A process that trains when it is told to."""

    def __init__(self, name, backend, steps):
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "--contestant", name, str(steps)]
        self.steps = steps
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._read()  # warmed up
        self.times = []

    def turn(self):
        self.process.stdin.write("go\n")
        self.times.append(self._read() / self.steps)

    def _read(self):
        while line := self.process.stdout.readline():
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def take_turns(name, steps):
    """In the child: warm up, then train whenever a line comes in."""
    run = getattr(contestants, name)(steps)
    run(2)
    run(steps)
    print("seconds 0", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        print("seconds", run(steps) - start, flush=True)


def compare(task, backend):
    """One row for each peer of a task: names, milliseconds a step, ratio."""
    steps, peers = TASKS[task]
    ours = Contestant(task, backend, steps)
    others = {name: Contestant(name, fixed or backend, steps) for name, fixed in peers.items()}
    for _ in range(TURNS):
        for contestant in (ours, *others.values()):
            contestant.turn()
    for contestant in (ours, *others.values()):
        contestant.close()
    for name, other in others.items():
        ratio = statistics.median(b / a for a, b in zip(ours.times, other.times, strict=True))
        milliseconds = [f"{statistics.median(c.times) * 1e3:.0f}" for c in (ours, other)]
        yield [task, backend, milliseconds[0], name, milliseconds[1], f"{ratio:.2f}"]


def main(backends):
    print("| ours | backend | ms/step | peer | ms/step | peer / ours |\n| --- | --- | --- | --- | --- | --- |")
    for task in TASKS:
        for backend in backends:
            for row in compare(task, backend):
                print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        take_turns(sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1:] or ["jax", "tensorflow", "torch"])
