"""Every writer, killed again and again while it replaces what another model has left: the old is there or the new.

A fork of this process writes, or a process of its own where a fork would hang, and is killed, after a random time or at
a random one of what Python tells its auditors: files it opens, renames, links, removes.
"""

import contextlib
import functools
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from functools import partial
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras.src.saving import saving_lib  # where it makes temporary folders

from kerasllm import EmbeddingIndex, Tokenizer, cli, packages, processes, writing
from kerasllm.export import child, description
from kerasllm.export.runtime import Runner
from kerasllm.json_files import read_json
from kerasllm.models.embedder import BERTEmbedder
from kerasllm.models.gpt import GPT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16, "dropout": 0.0}
# What presets of other kinds and other tools leave, all of which a reader would find.
LEFT = ("generation_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.txt")
LEFT += ("vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "modules.json", "1_Pooling/config.json")
AUDITED = ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


class Writer:
    """What writes one of two contents to a place, and what reads it there as a user does."""

    LEAVES = ()  # beginnings of names in the folder of temporary files

    def __init__(self, folder):
        self.folder = folder  # of the places
        self.place = folder / self.NAME

    def prepare(self):
        """Put there what is replaced besides."""

    def read(self):
        """Open what is there."""

    def run(self, i, kill_after=None, **how):
        """Let another process write; returns its exit status, 0 if it came to its end."""
        return forked(partial(self.attempt, i, **how), kill_after)

    def attempt(self, i, kill_at=None, limit=None):
        """Write, in that process: killed at an audited event, or where no file may have more than `limit` bytes."""
        killer.left = kill_at
        if limit is None:
            self.write(i)
        else:
            with limited(limit):
                try:
                    self.write(i)
                except ValueError as error:
                    assert str(self.place) in str(error) and "cannot be written: " in str(error), str(error)
                    assert "File too large" in str(error), str(error)
        killer.left = None

    def close(self):
        """End what runs."""


@contextlib.contextmanager
def limited(size):
    """Let no file grow above a size."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Killer:
    """An auditor that kills its process at one of the events to come."""

    left = None

    def __call__(self, event, _):
        if self.left is not None and event in AUDITED:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


killer = Killer()


def tokenizer(i):
    made = Tokenizer.train_words(["a b c d e", "one two three four five six"][i : i + 1] * 2, 10 + i)
    made.config["chat_template"] = f"{i}{{{{ messages }}}}"
    return made


def model(i, cls=GPT, **arguments):
    made = cls(12 + i, **SIZES, **arguments, name="model")
    made.tokenizer = tokenizer(i)
    for variable in made.weights:
        variable.assign(np.full(variable.shape, i + 1, "float32"))
    return made


class Preset(Writer):
    NAME, SHARDS = "preset", (None, None)

    def __init__(self, folder):
        super().__init__(folder)
        self.models = [model(i) for i in range(2)]
        self.models[1].generation_defaults = self.models[1].generation_defaults.__class__(temperature=0.5)

    def prepare(self):
        for name in LEFT:
            (self.place / name).parent.mkdir(parents=True, exist_ok=True)
            (self.place / name).write_text("{}")

    def write(self, i):
        self.models[i].save_to_preset(self.place, max_shard_size=self.SHARDS[i])

    def read(self):
        GPT.from_preset(self.place)


class ShardedOverSharded(Preset):
    SHARDS = (1000, 400)


class ShardedOverWhole(Preset):
    SHARDS = (None, 1000)


class Embedder(Preset):
    def __init__(self, folder):
        Writer.__init__(self, folder)
        dense = [{"units": 4, "activation": "tanh", "use_bias": True}]
        self.models = [model(0, BERTEmbedder, dense=dense), model(1, BERTEmbedder)]

    def read(self):
        BERTEmbedder.from_preset(self.place)


class Converted(Preset):
    def __init__(self, folder):
        super().__init__(folder)
        for i in range(2):
            self.models[i].save_to_preset(folder / f"source{i}")

    def write(self, i):
        assert cli.main(["convert", "--force", str(self.folder / f"source{i}"), str(self.place)]) == 0


class SavedTokenizer(Writer):
    NAME = "tokenizer"

    def write(self, i):
        tokenizer(i).save(self.place)

    def read(self):
        Tokenizer.from_folder(self.place)


class KerasFile(Writer):
    NAME, LEAVES = "model.keras", ("keras-",)  # where Keras keeps the tokenizers for a moment, see `make`

    def __init__(self, folder):
        super().__init__(folder)
        self.models = [model(i) for i in range(2)]
        for made in self.models:
            made.compile("adam", "mse")
        self.models[0].save(folder / "first.keras")  # Keras imports TensorFlow then, which takes longer than writing
        (folder / "first.keras").unlink()

    def write(self, i):
        self.models[i].save(self.place)

    def read(self):
        keras.models.load_model(self.place)


class KerasFolder(KerasFile):
    NAME = "model"

    def write(self, i):
        self.models[i].save(self.place, zipped=False)


class Weights(Writer):
    NAME, SIZES = "model.weights.h5", (None, None)

    def __init__(self, folder):
        super().__init__(folder)
        self.models = [model(0), model(0)]
        for variable in self.models[1].weights:
            variable.assign(np.full(variable.shape, 2, "float32"))

    def write(self, i):
        self.models[i].save_weights(self.place, max_shard_size=self.SIZES[i])

    def read(self):
        self.models[0].load_weights(self.place)
        assert len({float(np.ravel(keras.ops.convert_to_numpy(v))[0]) for v in self.models[0].weights}) == 1
        for variable in self.models[0].weights:
            variable.assign(np.full(variable.shape, 1, "float32"))


class ShardedWeights(Weights):
    NAME, SIZES = "model.weights.json", (2e-6, 1e-6)


class Checkpoint(KerasFile):
    def write(self, i):
        callback = keras.callbacks.ModelCheckpoint(self.place)
        callback.set_model(self.models[i])
        callback.on_epoch_end(i, {})


class Backup(Weights):
    NAME = "backup/latest.weights.h5"

    def write(self, i):
        self.place.parent.mkdir(exist_ok=True)  # Keras looks for it, then makes it: threads get in each other's way
        callback = keras.callbacks.BackupAndRestore(self.place.parent)
        callback.set_model(self.models[i])
        callback._current_epoch = 1  # of both: the weights and this number are two files of Keras's
        callback._save_model()


class Index(Writer):
    NAME = "index"

    def write(self, i):
        EmbeddingIndex([f"text {i}"] * (2000 + i), np.full((2000 + i, 8), i, "float32")).save(self.place)

    def read(self):
        EmbeddingIndex.load(self.place)


class Cached(Writer):
    NAME = "data"

    def write(self, i):
        packages.write_whole(self.place, bytes([i]) * 2_000_000)


class ExportedFiles(Writer):
    """The files of an export, put there as `Model.export` does, without a model."""

    NAME = "model.tflite"

    def write(self, i):
        assets = self.folder / f"{self.NAME}.assets"
        with writing.staged(self.folder, {self.NAME, assets.name}.__contains__, str(self.place)) as new:
            (new / self.NAME).write_bytes(bytes([i]) * 1000)
            (new / assets.name).mkdir()
            signatures = {"forward": {"inputs": {}, "outputs": {}}}
            described = {"model": f"Model{i}", "settings": {}, "signatures": signatures}
            description.write(new / assets.name, new / self.NAME, described)
            (new / assets.name / "parity.json").write_text("{}")

    def read(self):
        runner = Runner(self.place)  # which compares the file with what stands beside it
        assert self.place.read_bytes()[0] == int(runner.model[-1])


class Exported(Writer):
    """`Model.export` in a process of its own, for a fork of jax's process hangs in it."""

    NAME, FORMAT, IS_REAL = "model.tflite", "litert", False

    def __init__(self, folder):
        super().__init__(folder)
        self.process = None

    @functools.cached_property
    def models(self):
        return [model(i) for i in range(2)]

    def write(self, i):
        def write(writer, model, path, options, calls):
            if self.FORMAT == "litert":
                path.write_bytes(bytes([i]) * 100_000)
            else:
                (path / "variables").mkdir(parents=True)
                for name in ("saved_model.pb", "variables/variables.index"):
                    (path / name).write_bytes(bytes([i]) * 1000)
            return {"forward": {"inputs": {}, "outputs": {}}}, []

        if not self.IS_REAL:
            child.write_here = child.write_in_child = write  # TensorFlow's own time is not our writing
        self.models[i].export(self.place, self.FORMAT, signatures=["forward"], verify=False, verbose=False)

    def read(self):
        Runner(self.place)

    def run(self, i, kill_at=None, kill_after=None, limit=None):
        if self.process is None:
            self.process = subprocess.Popen(
                processes.python("-c", EXPORTER, type(self).__name__, str(self.folder)),
                env={**os.environ, "PYTHONPATH": PATH, "TMPDIR": tempfile.gettempdir()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            assert self.process.stdout.readline() == "ready\n"
        self.process.stdin.write(f"{i, kill_at, limit}\n")
        if kill_after is not None:
            time.sleep(kill_after)
            self.process.kill()
        assert select.select([self.process.stdout], [], [], 120)[0], "a writer hangs"
        if self.process.stdout.readline() == "done\n" and kill_after is None:
            return 0
        status = abs(self.process.wait())
        self.close()
        return status

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


class ExportedFolder(Exported):
    NAME, FORMAT = "model", "tf_saved_model"

    def read(self):
        pass


UNLIKE = ("saved_model.pb", "fingerprint.pb")  # which TensorFlow writes anew each time


class ReallyExported(Exported):
    IS_REAL = True


class ReallyExportedFolder(ExportedFolder):
    IS_REAL = True


EXPORTER = """
import ast, pathlib, sys
import test_kills
writer = getattr(test_kills, sys.argv[1])(pathlib.Path(sys.argv[2]))
writer.models
sys.addaudithook(test_kills.killer)
print("ready", flush=True)
for line in sys.stdin:
    writer.attempt(*ast.literal_eval(line))
    print("done", flush=True)
"""
PATH = os.pathsep.join([os.path.dirname(__file__), *sys.path])

WRITERS = (Preset, ShardedOverSharded, ShardedOverWhole, Embedder, Converted, SavedTokenizer, KerasFile, KerasFolder)
WRITERS += (Weights, ShardedWeights, Checkpoint, Backup, Index, Cached, ExportedFiles, Exported, ExportedFolder)


def contents(folder):
    """All that is seen below a folder, but for dates and for what tells one writing from another."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if "/." in f"/{name}":
            continue
        data = path.read_bytes()
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as file:
                found |= {f"{name}/{member}": file.read(member) for member in file.namelist()}
        elif path.suffix == ".h5":
            with h5py.File(path) as file:
                keys = []
                file.visit(keys.append)
                found |= {f"{name}/{key}": file[key][()].tobytes() for key in keys if hasattr(file[key], "shape")}
        else:
            found[name] = re.sub(rb'(writing_id": ")\w+', rb"\1", data)
    return {name: data for name, data in found.items() if not name.endswith(("metadata.json", "parity.json"))}


def begun(function):
    """Run a function in a fork, whose exit status is 0 if it comes to its end; returns its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jax warns of forks
        pid = os.fork()
    if not pid:
        status = 1
        try:
            with open(os.devnull, "w") as sink:
                os.dup2(sink.fileno(), 1)
                sys.addaudithook(killer)
                function()
                status = 0
        finally:
            os._exit(status)
    return pid


def forked(function, kill_after=None):
    """Run a function in a fork, which is killed after some seconds; returns its exit status.

    A fork of a process with threads may have been given a lock that one of them held, and hangs: another is begun.
    """
    for _ in range(3):
        pid = begun(function)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        for _ in range(3000):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    raise AssertionError("three forks hang")


def kill(writer, temporary, times):
    """Kill a writer some times; returns what was wrong after it: a list of strings, and the number of new contents."""
    writer.prepare()
    wrong, expected, chosen = [], [], random.Random(0)
    for i in (0, 1, 0):
        start = time.perf_counter()
        assert writer.run(i) == 0
        seconds = time.perf_counter() - start
        expected.append(contents(writer.folder))
    expected = expected[2:0:-1]
    events, now, num_new = 8, 0, 0
    for turn in range(times):
        writer.prepare()
        before = contents(writer.folder)
        how = {"kill_after": chosen.uniform(0, 1.1 * seconds)} if turn % 2 else {"kill_at": chosen.randrange(events)}
        if writer.run(1 - now, **how) not in (0, signal.SIGKILL):
            wrong.append(f"{how}: the writer failed")
        elif "kill_at" in how:
            events = max(events, 2 * how["kill_at"] + 2)
        error = None
        try:
            writer.read()
        except Exception as failure:
            error = failure
        visible = contents(writer.folder)
        if error and visible != before:  # what stood there before may be nothing to read
            wrong.append(f"{how}: {type(error).__name__}: {error}"[:300])
        if visible == expected[1 - now]:
            num_new += 1
        elif visible != before:
            names = [n for n in {*visible, *before} if visible.get(n) not in (before.get(n), expected[1 - now].get(n))]
            wrong.append(f"{how}: mixed, {names[:5]}")
        now = 1 - now if turn % 3 else now
        if writer.run(now) != 0:
            wrong.append(f"{how}: the next writer failed")
        if contents(writer.folder) != expected[now]:
            names = sorted(set(contents(writer.folder)) ^ set(expected[now]))
            wrong.append(f"{how}: after the next writer there is {names[:5] or 'other content'}")
        left = [p for p in writer.folder.rglob("*") if p.name.startswith((".", "tmp"))]
        left += [p for p in temporary.iterdir() if not p.name.startswith(writer.LEAVES)]
        if left:
            wrong.append(f"{how}: left {[str(p) for p in left[:3]]}")
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
    return wrong, num_new


@contextlib.contextmanager
def made(cls, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "places").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    # Told from what others leave: it is Keras's, in the folder that is the system's to clean.
    monkeypatch.setattr(saving_lib, "get_temp_dir", partial(tempfile.mkdtemp, prefix="keras-"))
    with contextlib.closing(cls(tmp_path / "places")) as writer:
        yield writer


def check_kills(cls, tmp_path, monkeypatch, times):
    with made(cls, tmp_path, monkeypatch) as writer:
        wrong, num_new = kill(writer, tmp_path / "temporary", times)
    print(f"{cls.__name__}: {times} kills, {num_new} left the new, {len(wrong)} wrong")
    assert not wrong, "\n".join([f"{len(wrong)} of {times} kills", *wrong[:12]])


@pytest.mark.once("torch")
@pytest.mark.parametrize("cls", [ShardedOverSharded, KerasFile, ShardedWeights, Index, ExportedFiles])
def test_a_killed_writer_leaves_the_old_or_the_new(cls, tmp_path, monkeypatch):
    check_kills(cls, tmp_path, monkeypatch, 2)


@pytest.mark.slow
@pytest.mark.parametrize("cls", WRITERS)
def test_a_writer_killed_often_leaves_the_old_or_the_new(cls, tmp_path, monkeypatch):
    check_kills(cls, tmp_path, monkeypatch, 40)


def check_full_disk(cls, tmp_path, monkeypatch, limits):
    """Write where files may have no more than some bytes: an error that names the place, and what was there."""
    wrong = []
    with made(cls, tmp_path, monkeypatch) as writer:
        writer.prepare()
        assert writer.run(0) == 0
        before = contents(tmp_path)
        for limit in limits:
            if status := writer.run(1, limit=limit):
                wrong.append(f"{limit}: status {status}")
            elif contents(tmp_path) != before:  # it has found room for all
                found = contents(tmp_path)
                assert writer.run(1) == 0
                again = contents(tmp_path)
                if again.keys() != found.keys() or any(
                    again[name] != found[name] for name in found if not name.endswith(UNLIKE)
                ):
                    wrong.append(f"{limit}: neither the old nor the new")
                break
            if left := [p for p in tmp_path.rglob("*") if p.name.startswith((".", "tmp", "keras-"))]:
                wrong.append(f"{limit}: left {left[:3]}")
        else:
            wrong.append("none of them is enough")
    assert not wrong, wrong


@pytest.mark.once("torch")
@pytest.mark.parametrize("cls", [Preset, ShardedWeights])
def test_on_a_full_disk_the_old_stays_and_the_place_is_named(cls, tmp_path, monkeypatch):
    check_full_disk(cls, tmp_path, monkeypatch, [1000, 10**7])


@pytest.mark.slow
@pytest.mark.parametrize("cls", [cls for cls in WRITERS if cls is not Converted])
def test_wherever_a_disk_is_full_the_old_stays_and_the_place_is_named(cls, tmp_path, monkeypatch):
    limits = [
        0,
        1,
        100,
        500,
        700,
        1000,
        1500,
        2000,
        3000,
        5000,
        7000,
        10000,
        15000,
        20000,
        25000,
        30000,
        40000,
        10**6,
        10**7,
    ]
    check_full_disk(cls, tmp_path, monkeypatch, limits)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [ReallyExported, ReallyExportedFolder])
def test_wherever_a_disk_is_full_an_older_export_stays(cls, tmp_path, monkeypatch):
    check_full_disk(cls, tmp_path, monkeypatch, [0, 500, 1500, 3000, 6000, 10000, 20000, 40000, 10**6, 10**7])


def together(functions):
    """Run functions in a thread each; returns the errors."""
    errors = []

    def run(function):
        try:
            function()
        except BaseException as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("cls", [Preset, ShardedWeights, SavedTokenizer])
def test_of_writers_at_one_time_none_fails_and_one_wins_whole(cls, tmp_path, monkeypatch):
    check_threads(cls, tmp_path, monkeypatch, 1)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [cls for cls in WRITERS if not issubclass(cls, Exported | Converted)])
def test_of_many_writers_at_one_time_none_fails_and_one_wins_whole(cls, tmp_path, monkeypatch):
    check_threads(cls, tmp_path, monkeypatch, 10)


def check_threads(cls, tmp_path, monkeypatch, times):
    """Eight threads and two processes write to a place where nothing is yet, and on."""
    with made(cls, tmp_path, monkeypatch) as writer:
        expected = []
        for i in range(2):
            writer.write(i)
            expected.append({name: data for name, data in contents(tmp_path).items() if cls.NAME.split("/")[0] in name})
            shutil.rmtree(writer.folder / cls.NAME.split("/")[0], ignore_errors=True)
            for path in writer.folder.glob("model*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for turn in range(times):
            forks = [begun(partial(writer.write, 1)) for _ in range(2)] if turn % 2 else []
            assert not together([partial(writer.write, i % 2) for i in range(8)])
            assert [os.waitpid(pid, 0)[1] for pid in forks] == [0] * len(forks)
            found = {name: data for name, data in contents(tmp_path).items() if cls.NAME.split("/")[0] in name}
            assert found in expected
            assert not [p for p in tmp_path.rglob("*") if p.name.startswith((".", "tmp", "keras-"))]


EXPORTS = """
import sys
from test_kills import exported
folder, name = sys.argv[1:3]
options = eval(sys.argv[3])
models = [exported(i, options["format"]) for i in range(2)]
i = 1
while True:
    i = 1 - i
    print("ready", flush=True)
    models[i].export(f"{folder}/{name}", **options, verify=i == 1, verbose=False)
"""


def exported(i, format):
    if format != "litertlm":
        return model(i)
    tokenizer = Tokenizer.train_bpe(["one two three four five six"] * 2, 260 + 4 * i)
    tokenizer.config["chat_template"] = "{{ messages[0]['content'] }}"
    return GPT(tokenizer.vocabulary_size, **SIZES, tokenizer=tokenizer)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    "name, options",
    [
        ("model.tflite", {"format": "litert", "signatures": ["forward"]}),
        ("model.tflite", {"format": "litert", "signatures": ["forward"], "quantize": "dynamic_int8"}),
        ("model", {"format": "tf_saved_model", "signatures": ["forward"]}),
        ("model.litertlm", {"format": "litertlm", "prefill_lengths": [8]}),
    ],
)
def test_a_killed_export_leaves_the_old_or_the_new_and_no_process(name, options, tmp_path):
    """Exports by TensorFlow itself, killed with all of their process's memory; 12 kills, for each takes ten seconds."""
    chosen, found, ready, folder, temporary = random.Random(0), [], [], tmp_path / "places", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    function = "decode" if name.endswith("lm") else "forward"
    command = [sys.executable, "-c", EXPORTS, str(folder), name, repr(options)]
    environment = {**os.environ, "PYTHONPATH": PATH, "TMPDIR": str(temporary)}
    for turn in range(13):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(1 if turn else 3):  # at first two whole exports, and no more: the second is there for certain
            assert process.stdout.readline() == "ready\n"
            ready.append(time.perf_counter())
        time.sleep(chosen.uniform(0, 1.3 * (ready[2] - ready[0])) if turn else 0)  # of two exports, and into a third
        process.kill()
        process.wait()
        process.stdout.close()
        time.sleep(0.3)
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert not [line for line in lines if str(folder).encode() in line]
        writing.settle(folder)
        if name.endswith(".tflite"):
            Runner(folder / name)
        assert len([p for p in folder.iterdir() if p.name.startswith(".")]) <= 1  # of the last
        # TensorFlow's own source files of AutoGraph stay, of a few kB each.
        ours = [p.name for p in temporary.iterdir() if not p.name.startswith("__autograph_generated_file")]
        assert not [name for name in ours if not name.startswith(writing.PREFIX)]
        assets = folder / (f"{name}/assets.extra" if name == "model" else f"{name}.assets")
        described, tokenizer = read_json(assets / "signatures.json"), Tokenizer.from_folder(assets)
        found.append((described["signatures"][function]["outputs"]["logits"]["shape"][-1], tokenizer.vocabulary_size))
    models = [exported(i, options["format"]) for i in range(2)]
    assert set(found) == {(m.output.shape[-1], m.tokenizer.vocabulary_size) for m in models}, found
