"""What training with LoRA takes beside training all weights: seconds of a step, memory, weights that are trained.

python benchmarks/lora.py                       # a GPT of GPT-2's shape (124 million weights), 2 rows of 128 tokens
python benchmarks/lora.py --backends torch --layers 6

Each runs in a process of its own. Memory is the peak during `fit`, weights included, above what the imports take (on
Linux).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

BACKENDS = ("jax", "tensorflow", "torch")
WAYS = ("all weights", "LoRA", "LoRA on int8", "LoRA on int4")
ROWS, LENGTH, RANK, STEPS, WARMUP = 2, 128, 16, 5, 2


def main(options):
    """Print the table."""
    print(
        "| backend | trained | weights trained | s a step | of all weights' | peak memory |\n|---|---|---|---|---|---|"
    )
    for backend in options.backends:
        first = None
        for way in options.ways:
            command = [sys.executable, __file__, "--way", way, "--layers", str(options.layers)]
            environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
            output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            count, seconds, peak = json.loads(output.splitlines()[-1])
            first = first or seconds
            cells = backend, way, f"{count / 1e6:.1f} million", f"{seconds:.2f}", f"{seconds / first:.2f}"
            print("|", " | ".join(cells), f"| {peak / 1e9:.2f} GB |", flush=True)


def train(way, layers):
    """In the child: print weights trained, seconds of a step, and bytes."""
    import keras
    import numpy as np

    import kerasllm
    from kerasllm.training import AdamW, TokenCrossentropy

    imports = memory("VmRSS")
    model = kerasllm.GPT(50257, layers, 12, 768, max_sequence_length=LENGTH, dropout=0.0)
    if way.endswith(("int8", "int4")):
        model.quantize(way[-4:], filters=[r"^(query|key|value|output|input)$"])
    if way != "all weights":
        kerasllm.add_lora(model, RANK, 2 * RANK)
    model.compile(AdamW(1e-4), TokenCrossentropy(chunk_size=256))
    ids = np.random.default_rng(0).integers(0, 50257, (ROWS, LENGTH + 1)).astype("int32")
    inputs = {"token_ids": ids[:, :-1], "padding_mask": np.ones((ROWS, LENGTH), bool)}
    seconds = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seconds.append(time.perf_counter())

    rows = {name: np.concatenate([value] * (STEPS + WARMUP)) for name, value in inputs.items()}
    labels = np.concatenate([ids[:, 1:]] * (STEPS + WARMUP))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    model.fit(rows, labels, batch_size=ROWS, verbose=0, callbacks=[Clock()])
    step = float(np.median(np.diff(seconds)[WARMUP - 1 :]))
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    print("\n" + json.dumps([count, step, memory("VmHWM") - imports]))


def memory(name):
    """Bytes of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What training with LoRA takes.")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    train(arguments.way, arguments.layers) if arguments.way else main(arguments)
