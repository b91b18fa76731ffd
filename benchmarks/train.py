"""Training steps of kerasllm beside plain Keras layers, plain PyTorch and transformers, in tables from one run.

python benchmarks/train.py                                  # all of it
python benchmarks/train.py --backends jax --tasks gpt2      # some
python benchmarks/train.py --turns 1 --steps 2              # whether all runs

The contestants are processes that take turns, so that a drift of the machine's speed meets all alike. A time is the
median of its turns; a ratio is the median, over the turns, of the peer's time divided by ours: above 1 we are faster.
Memory is the most that was resident, less what was when all was imported.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from contestants import gpt2, large_vocabulary
from turns import Contestant, ratio, take_turns

BACKENDS = ("jax", "tensorflow", "torch")


@dataclass(frozen=True)
class Task:
    """What is compared.

    Args:
        ours: "module.function" of `contestants`.
        steps: in a turn.
        peers: the same of the others -> the backend it runs on; None is that of ours.
    """

    ours: str
    steps: int
    peers: dict


TASKS = {
    "small_gpt": Task("small_gpt.ours", 60, {"small_gpt.plain_torch": "torch", "small_gpt.plain_keras": None}),
    "gpt2": Task("gpt2.ours", 3, {"gpt2.transformers_loop": "torch"}),
    "gpt2_bfloat16": Task("gpt2.ours_bfloat16", 3, {"gpt2.ours": None}),
    "translator": Task("translator.ours", 10, {"translator.plain_torch": "torch"}),
    "lstm": Task("lstm.ours", 12, {"lstm.plain_torch": "torch", "lstm.plain_keras": None}),
    "lstm_padded": Task("lstm.ours_padded", 12, {"lstm.plain_torch": "torch"}),
    "bert": Task("masked_lm.ours", 3, {"masked_lm.transformers_loop": "torch"}),
    "callbacks": Task(
        "small_gpt.ours",
        60,
        {
            f"small_gpt.ours_{kind}": None
            for kind in ("looked_at", "with_throughput", "guarded", "with_tensorboard", "resumable")
        },
    ),
    "large_vocabulary": Task(
        "large_vocabulary.ours_in_chunks",
        4,
        {"large_vocabulary.ours": None, "large_vocabulary.ours_of_few_symbols": None},
    ),
}


def main(options):
    """Print the tables."""
    tasks = [name for name in options.tasks if name in TASKS]
    if tasks:
        print_row("task", "backend", "ms/step", "MB", "peer", "ms/step", "MB", "peer / ours")
        print_row(*["---"] * 8)
    for name in tasks:
        for backend in options.backends:
            compare(name, backend, options)
    if "gpt2" in tasks:
        print(f"\nBound of the memory of gpt2 in float32: {megabytes(gpt2.bound())} MB.")
    if "first_step" in options.tasks:
        print_row("gpt2", "seconds from the start of Python to the end of the first step")
        print_row("---", "---")
        for backend in options.backends:
            print_row(backend, f"{statistics.median(first_step(backend) for _ in range(options.turns)):.1f}")


def compare(name, backend, options):
    """Print a row for each peer of a task: names, milliseconds a step, megabytes, ratio."""
    task = TASKS[name]
    steps = options.steps or task.steps
    ours, *others = (
        Contestant(fixed or backend, __file__, "--contestant", function, steps)
        for function, fixed in {task.ours: None, **task.peers}.items()
    )
    for _ in range(options.turns):
        for contestant in (ours, *others):
            contestant.turn()
    peaks = [contestant.peak_over_imports() for contestant in (ours, *others)]
    for contestant in (ours, *others):
        contestant.close()
    for peer, other, peak in zip(task.peers, others, peaks[1:], strict=True):
        (own_time, peer_time), speed = (
            (statistics.median(c.times) / steps * 1e3 for c in (ours, other)),
            ratio(ours, other),
        )
        print_row(
            name,
            backend,
            f"{own_time:.0f}",
            megabytes(peaks[0]),
            peer,
            f"{peer_time:.0f}",
            megabytes(peak),
            f"{speed:.2f}",
        )
    if name == "large_vocabulary":
        chunks, plain = (peak - peaks[2] - large_vocabulary.vocabulary_bytes() for peak in peaks[:2])
        print_row(
            name,
            backend,
            "",
            f"of the logits: {megabytes(chunks)}",
            "",
            "",
            megabytes(plain),
            f"-{1 - chunks / plain:.0%}",
        )


def first_step(backend):
    """Seconds that a process takes from its start to the end of a step of GPT-2, imports and compilation with it."""
    start = time.perf_counter()
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--first-step"]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1]) - start


def print_row(*cells):
    """A row of a table."""
    print("|", " | ".join(cells), "|", flush=True)


def megabytes(number):
    """Bytes in megabytes, as text."""
    return f"{number / 1e6:.0f}"


def build(name, steps):
    """In the child: a function that trains `steps` steps."""
    module, function = name.split(".")
    run = getattr(importlib.import_module(f"contestants.{module}"), function)(steps)
    run(min(2, steps))
    return lambda: run(steps)


def options_of(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(description="Training steps, compared.")
    names = [*TASKS, "first_step"]
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--tasks", nargs="+", choices=names, default=names)
    parser.add_argument("--turns", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--steps", type=int, help="steps in a turn; default: the task's")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        take_turns(lambda: build(sys.argv[2], int(sys.argv[3])))
    elif sys.argv[1:2] == ["--first-step"]:
        print(gpt2.ours(1)(1))  # `time.perf_counter` counts from one moment for all processes of Linux
    else:
        main(options_of(sys.argv[1:]))
