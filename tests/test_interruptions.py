"""What is interrupted at any line, by Ctrl-C or another exception, gives right results when it is called again."""

import random
import string
import sys

import keras
import numpy as np
import pytest
import tokenizers

import kerasllm

# An exception at any of its lines has to leave all whole. That of others, such as a backend's compiler, is theirs.
TRACED = ("kerasllm/", "keras/src/trainers", "keras/src/backend", "keras/src/optimizers", "keras/src/models")
LEAVING = ("__enter__", "__exit__")  # where a scope is left, which nobody can do twice
LETTERS = string.ascii_lowercase
IDS = np.random.default_rng(0).integers(1, len(LETTERS), (8, 7)).astype("int32")
X, Y = {"token_ids": IDS[:, :-1], "padding_mask": np.ones((8, 6), "int32")}, IDS[:, 1:]


class Lines:
    """Note the lines that code runs through, each when it comes first; or raise KeyboardInterrupt at one of them.

    Args:
        stop: the line, (path, number). Default: none.
    """

    def __init__(self, stop=None):
        self.stop, self.seen = stop, {}

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *exception):
        sys.settrace(None)

    def trace(self, frame, event, argument):
        path = frame.f_code.co_filename
        if frame.f_code.co_name in LEAVING or not any(part in path for part in TRACED):
            return None
        if event == "line":
            line = (path, frame.f_lineno)
            if line == self.stop:
                raise KeyboardInterrupt
            self.seen.setdefault(line)
        return self.trace


def make_model():
    keras.utils.set_random_seed(0)
    model = kerasllm.GPT(len(LETTERS), num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=128, dropout=0.0)
    model.compile(kerasllm.training.AdamW(0.01), loss=kerasllm.training.TokenCrossentropy())
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, "a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.tokenizer = kerasllm.Tokenizer(words, unk="a")
    return model


def fit(model, folder):
    model.set_weights(model.start)
    model.compile(kerasllm.training.AdamW(0.01), loss=kerasllm.training.TokenCrossentropy())
    return fit_on(model, folder)


def fit_on(model, folder):
    losses = model.fit(X, Y, batch_size=4, verbose=0, shuffle=False, validation_data=(X, Y)).history
    return list(losses.values())


def streamed(model, folder):
    """The text of a stream, beside another that is left alone half-way and a third that is closed."""
    streams = [model.stream("b c d", max_new_tokens=6) for _ in range(3)]
    pieces = [next(stream) for stream in streams]
    streams[2].close()
    next(streams[1])
    return [LETTERS.index(letter) for letter in "".join([pieces[0], *streams[0]]).split()]


def saved(model, folder):
    model.save(folder / "model.keras")
    model.save_to_preset(folder / "preset")
    again = [
        keras.saving.load_model(folder / "model.keras", compile=False),
        kerasllm.GPT.from_preset(folder / "preset"),
    ]
    return [np.sum(w) for m in again for w in m.get_weights()]


ACTIONS = {
    "predict": lambda model, folder: model.predict(X, batch_size=4, verbose=0),
    "evaluate": lambda model, folder: model.evaluate(X, Y, batch_size=4, verbose=0),
    "fit": fit,
    "generate": lambda model, folder: model.generate([[3, 4, 5], [6]], max_new_tokens=4),
    "beams": lambda model, folder: model.generate([[3, 4, 5]], max_new_tokens=3, num_beams=2),
    "sampled": lambda model, folder: model.generate([[3, 4]], max_new_tokens=4, temperature=0.7, seed=3),
    "stream": streamed,
    "score": lambda model, folder: [score.log_probability for score in model.score([[3, 4, 5], [6, 7]])],
    "save": saved,
}


def numbers(nest):
    return np.concatenate([np.ravel(x).astype("float64") for x in keras.tree.flatten(nest)])


class Driver:
    """Interrupts a model's actions, each at a line that it runs through, and calls them again."""

    def __init__(self, folder, names):
        self.folder = folder
        self.renew()
        self.outputs, self.lines = {}, {}
        for name in names:
            self.forget()
            with Lines() as lines:
                self.outputs[name] = self.run(name)
            self.lines[name] = list(lines.seen)
        self.outputs.setdefault("predict", self.run("predict"))

    def renew(self):
        self.model = make_model()
        object.__setattr__(self.model, "start", self.model.get_weights())

    def forget(self):
        """Let the next call compile and build anew."""
        self.model._generation_programs = None
        self.model.train_function = self.model.test_function = self.model.predict_function = None

    def run(self, name):
        values = numbers(ACTIONS[name](self.model, self.folder))
        self.model.set_weights(self.model.start)
        return values

    def check(self, name, line, is_cold):
        """What is wrong after an action was interrupted at a line; None where nothing is."""
        if is_cold:
            self.forget()
        try:
            with Lines(line):
                ACTIONS[name](self.model, self.folder)
        except BaseException:
            pass
        try:
            if name == "fit":
                fit_on(self.model, self.folder)  # with the optimizer that is there
                self.model.set_weights(self.model.start)
            for again in {name, "predict"}:
                np.testing.assert_allclose(self.run(again), self.outputs[again], rtol=1e-4, atol=1e-5)
        except BaseException as error:
            self.renew()
            return f"{name} at {line[0]}:{line[1]}: {type(error).__name__} {str(error)[:200]}"
        return None

    def wrong(self, seed, times):
        """What is wrong after so many interruptions of each action."""
        draw = random.Random(seed)
        lines = [(name, line) for name, lines in self.lines.items() for line in draw.sample(lines, times)]
        results = [self.check(name, line, is_cold=i % 2 == 0) for i, (name, line) in enumerate(lines)]
        return [message for message in results if message]


def test_after_an_interruption_a_call_gives_what_it_gave(tmp_path):
    assert Driver(tmp_path, ["predict", "stream"]).wrong(seed=0, times=2) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIONS)
def test_after_many_interruptions_a_call_gives_what_it_gave(name, tmp_path):
    assert Driver(tmp_path, [name]).wrong(seed=1, times=60) == []
