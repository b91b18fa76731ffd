"""What models of kerasllm have learnt after a number of steps, beside the same recipes in PyTorch.

python benchmarks/quality.py characters --text book.txt     # a GPT of nanoGPT's configuration for CPUs, and an LSTM
python benchmarks/quality.py translation                    # a Transformer and an LSTM, 30,000 sentences of Tatoeba
python benchmarks/quality.py embedder                       # MiniLM, three seeds, beside sentence-transformers
python benchmarks/quality.py characters --backends torch --steps 100

Each runs in a process of its own, one after the other.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

BACKENDS = ("jax", "tensorflow", "torch")
KINDS = {"characters": ("gpt", "lstm"), "translation": ("transformer", "lstm"), "embedder": ("0", "1", "2")}
PEERS = {"embedder": "sentence-transformers"}  # of the others it is a loop of PyTorch


def main(options):
    """Print the table."""
    module = importlib.import_module(f"contestants.{options.task}")
    steps = options.steps or module.STEPS
    print_row("model", "", *module.FIGURES, "weights", "minutes")
    print_row(*["---"] * (4 + len(module.FIGURES)))
    for kind in options.kinds or KINDS[options.task]:
        for function, backend in [("plain_torch", "torch"), *(("ours", backend) for backend in options.backends)]:
            *figures, weights, seconds = run(backend, options.task, function, kind, options.text or "", steps)
            name = f"ours on {backend}" if function == "ours" else PEERS.get(options.task, "plain PyTorch")
            cells = (f"{figure:.3f}" for figure in figures)
            print_row(kind, name, *cells, f"{weights:,}", f"{seconds / 60:.1f}")


def run(backend, *arguments):
    """What a contestant comes to, in a process of its own."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--contestant", *map(str, arguments)]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def contestant(task, function, kind, text, steps):
    """In the child: print its figures."""
    module = importlib.import_module(f"contestants.{task}")
    figures = getattr(module, function)(kind, module.read(text), int(steps))
    print("\n" + json.dumps([float(figure) if isinstance(figure, float) else int(figure) for figure in figures]))


def print_row(*cells):
    """A row of a table."""
    print("|", " | ".join(cells), "|", flush=True)


def options_of(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(description="What models learn, compared.")
    parser.add_argument("task", choices=KINDS)
    parser.add_argument("--text", type=Path, help="of characters: a text file; default: a part of WikiText-2")
    parser.add_argument("--kinds", nargs="+", choices=sorted({kind for kinds in KINDS.values() for kind in kinds}))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--steps", type=int, help="default: the task's")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        contestant(*sys.argv[2:])
    else:
        main(options_of(sys.argv[1:]))
