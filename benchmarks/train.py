"""Training steps of kerasllm beside plain Keras layers and plain PyTorch, in one table from one run.

python benchmarks/train.py              # every backend
python benchmarks/train.py torch jax    # some

The contestants are processes that take turns, so that a drift of the machine's speed meets all alike. A time is the
median of its turns; a ratio is the median, over the turns, of the peer's time divided by ours: above 1 we are faster.
"""

import statistics
import sys

import contestants
from turns import Contestant, ratio, take_turns

TURNS = 7
# Task: steps in a turn, and the peers: contestant, and the backends it runs on (None: the one of ours).
TASKS = {
    "gpt_kerasllm": (60, {"gpt_torch": "torch", "gpt_keras": None}),
    "lstm_kerasllm": (12, {"lstm_torch": "torch", "lstm_keras": None}),
    "lstm_kerasllm_padded": (12, {"lstm_torch": "torch"}),
}


def build(name, steps):
    """In the child: a function that trains `steps` steps."""
    run = getattr(contestants, name)(steps)
    run(2)
    return lambda: run(steps)


def compare(task, backend):
    """One row for each peer of a task: names, milliseconds a step, ratio."""
    steps, peers = TASKS[task]
    ours = Contestant(backend, __file__, "--contestant", task, steps)
    others = {
        name: Contestant(fixed or backend, __file__, "--contestant", name, steps) for name, fixed in peers.items()
    }
    for _ in range(TURNS):
        for contestant in (ours, *others.values()):
            contestant.turn()
    for contestant in (ours, *others.values()):
        contestant.close()
    for name, other in others.items():
        milliseconds = [f"{statistics.median(c.times) / steps * 1e3:.0f}" for c in (ours, other)]
        yield [task, backend, milliseconds[0], name, milliseconds[1], f"{ratio(ours, other):.2f}"]


def main(backends):
    """Print the table."""
    print("| ours | backend | ms/step | peer | ms/step | peer / ours |\n| --- | --- | --- | --- | --- | --- |")
    for task in TASKS:
        for backend in backends:
            for row in compare(task, backend):
                print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        take_turns(lambda: build(sys.argv[2], int(sys.argv[3])))
    else:
        main(sys.argv[1:] or ["jax", "tensorflow", "torch"])
