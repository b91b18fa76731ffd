"""A script that trains a small GPT, is killed and started again; tests/test_resuming.py runs it in other processes."""

import os
import pathlib
import random
import signal
import sys

import keras
import numpy as np

import kerasllm
from kerasllm.training import AdamW, LanguageModelDataset, ResumableTraining, TokenAccuracy, TokenCrossentropy
from kerasllm.training.checkpoints import Checkpoints

AUDITED = ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
EPOCHS = 3


class Killer(keras.callbacks.Callback):
    """Ends its process at the n-th writing of a checkpoint, somewhere in it, or in the n-th batch of a kind."""

    def __init__(self, kind, n):
        super().__init__()
        self.when, self.count = lambda: kind, Count(n)
        if kind == "write":
            write = Checkpoints.write
            Checkpoints.write = lambda *arguments: self.count.down() and self.arm() or write(*arguments)

    def arm(self):
        events = Count(random.SystemRandom().randrange(1, 25))
        sys.addaudithook(lambda event, _: event in AUDITED and events.down() and kill())

    def on_test_batch_end(self, batch, logs=None):
        if self.when() == "validation" and self.count.down():
            kill()

    def on_train_batch_end(self, batch, logs=None):
        if self.when() == "step" and self.count.down():
            kill()


class Count:
    def __init__(self, left):
        self.left = left

    def down(self):
        self.left -= 1
        return self.left == 0


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def train(folder, kind="", n=0):
    """One run; its logs and weights are left in the folder."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    tokenizer = kerasllm.Tokenizer.train_words(["a b c d e f g h"] * 2, 20)
    documents = [list(rng.integers(5, 10, n)) for n in rng.integers(5, 20, 12)]
    sizes = {"batch_size": 4, "sequence_length": 8}
    model = kerasllm.GPT(
        tokenizer.vocabulary_size, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=8, dropout=0.2
    )
    model.compile(AdamW(1e-2, gradient_accumulation_steps=2), TokenCrossentropy(), metrics=[TokenAccuracy()])
    folder.mkdir(exist_ok=True)
    history = model.fit(
        LanguageModelDataset(documents, tokenizer, **sizes),
        validation_data=LanguageModelDataset(documents[:8], tokenizer, **sizes),
        epochs=EPOCHS,
        verbose=2,
        callbacks=[
            ResumableTraining(folder / "run", every_steps=2),
            keras.callbacks.CSVLogger(folder / "log.csv"),
            keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True),
            Killer(kind, n),
        ],
    )
    (folder / "history").write_text(repr(history.history))
    variables = [*model.variables, *model.optimizer.variables]
    (folder / "weights").write_bytes(b"".join(np.asarray(keras.ops.convert_to_numpy(v)).tobytes() for v in variables))


def main(folder, what=""):
    """Train, or end on the way; a folder of its own name is trained a second time, beside it."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    folder = pathlib.Path(folder)
    kind, _, n = what.partition(" ")
    train(folder, kind, int(n or 0))
    if folder.name == "whole":
        again = folder.with_name("again")
        train(again)
        same = all((folder / name).read_bytes() == (again / name).read_bytes() for name in ("history", "weights"))
        print("equal" if same else "not equal")
