"""One device, eight virtual ones, two replicas and two processes come to the same."""

import functools
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
import time

import distributed_run
import keras
import numpy as np
import pytest

import kerasllm
from kerasllm import backend
from kerasllm.distribution.rules import split_axis
from kerasllm.distribution.setting import read_mesh

PROGRAM = pathlib.Path(__file__).with_name("distributed_run.py")
BACKEND = keras.backend.backend()
BOTH = '{"data": 2, "model": 4}'


@functools.cache
def alone(case):
    """What a case comes to on one device."""
    return distributed_run.run(case)


def in_children(folder, cases, *meshes, count=1, **environment):
    """What the program comes to: dict mesh -> dict case -> dict, of the first process of `count`; what it prints."""
    environment = os.environ | {"CASES": "\n".join(cases), "OMP_NUM_THREADS": "1"} | environment
    processes = started([folder / "found", *meshes], count, environment)
    printed = [process.communicate(timeout=600)[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(printed)[-4000:]
    return pickle.loads(min(folder.glob("found*")).read_bytes()), printed[0]


def started(arguments, count, environment):
    """The program in `count` processes, which know of one another: those that were started, of torchrun's one."""
    command, ranked = [sys.executable, PROGRAM, *arguments], [{}]
    if BACKEND == "torch":
        torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={count}", f"--master-port={free_port()}"]
        command[1:1] = torchrun
    elif count > 1:
        address = f"127.0.0.1:{free_port()}"
        ranked = [
            {
                "RANK": str(rank),
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
                "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
                "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
            }
            for rank in range(count)
        ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(command, env=environment | own, **pipes) for own in ranked]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def devices(count):
    """The environment of so many virtual devices of JAX."""
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"}


def steps_apart(found, expected):
    """How far what a fit has added to each variable is from what is expected, in parts of that: dict path -> float."""
    apart = {}
    for path, weight in expected["weights"].items():
        if path.endswith("key/bias"):  # its gradient is 0 but for rounding: softmax takes no notice of it
            continue
        step = np.linalg.norm(weight - expected["before"][path])
        apart[path] = np.linalg.norm(found["weights"][path] - weight) / max(step, 1e-2 * np.linalg.norm(weight), 1e-3)
    return apart


def check_equal(found, expected, tolerance=1e-5):
    """Losses, metrics, what a fit has added to each variable, outputs and texts."""
    for name, values in expected["history"].items():
        np.testing.assert_allclose(found["history"][name], values, rtol=2e-6, err_msg=name)
    for name, value in expected["measured"].items():
        np.testing.assert_allclose(found["measured"][name], value, rtol=2e-6, err_msg=name)
    apart = steps_apart(found, expected)
    assert max(apart.values()) <= tolerance, apart
    if "predicted" in expected:
        np.testing.assert_allclose(found["predicted"], expected["predicted"], atol=2e-5)
    for name in {"text", "beams"} & expected.keys():
        assert found[name] == expected[name], name


@pytest.mark.once("jax")
@pytest.mark.parametrize("mesh", [BOTH, *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("data", "fsdp"))])
def test_eight_devices_come_to_what_one_does(mesh, tmp_path):
    cases = [*(["gpt", "transformer, accumulation", "classifier"] if mesh != BOTH else []), "lstm", "gpt, LoRA"]
    found, printed = in_children(tmp_path, cases, mesh, **devices(8))
    for case in cases:
        check_equal(found[mesh][case], alone(case))
    # What is split is saved whole, and opened in parts or on one device.
    learnt = found[mesh][cases[-1]]
    for model in (keras.saving.load_model(tmp_path / "model.keras"), kerasllm.GPT.from_preset(tmp_path / "preset")):
        outputs = model.predict(distributed_run.gpt()[1][0], verbose=0)
        np.testing.assert_allclose(outputs, learnt["reopened"], atol=2e-5)
        np.testing.assert_allclose(outputs[:11], learnt["predicted"], atol=2e-5)
    if mesh == BOTH:
        assert "attention/key/kernel x 2: its 2 heads do not divide by the 4 devices of 'model'" in printed


def test_two_processes_or_replicas_come_to_what_one_does(tmp_path):
    cases = ["transformer, AdamW", *(["transformer, accumulation"] if BACKEND == "torch" else [])]
    found, _ = in_children(tmp_path, cases, "data", count=1 if BACKEND == "tensorflow" else 2, **devices(2))
    for case in cases:
        # Adam divides by what it has seen, so that rounding tells where gradients are small.
        check_equal(found["data"][case], alone(case), 1e-3 if "Adam" in case else 1e-5)
        np.testing.assert_allclose(found["data"][case]["scores"], alone(case)["scores"], rtol=1e-4)
        assert found["data"][case]["batches"] == (2 if BACKEND == "torch" else 3)  # of three; two processes share them


@pytest.mark.once("torch")
def test_what_fails_in_one_process_fails_in_all(monkeypatch):
    ranks_file = sys.modules["kerasllm.backend.ranks"]  # kerasllm.backend has a function of this name
    others = [([], "ValueError: no such word")]
    monkeypatch.setattr(ranks_file, "ranks", lambda: ranks_file.Ranks(0, 2))
    monkeypatch.setattr(ranks_file, "check_agreed", lambda facts: None)
    monkeypatch.setattr(ranks_file, "_gathered", lambda mine: [mine, *others])
    with pytest.raises(RuntimeError, match="Process 1 has failed: ValueError: no such word"):
        backend.shared(str, [1, 2, 3], [1, 2, 3])
    with pytest.raises(ZeroDivisionError):
        backend.shared(lambda batch: 1 / batch, [0, 1], [0, 1])
    assert backend.shared(str, [1], [1]) == ["1"]  # one batch is the work of each
    others[0] = (["2", "4"], None)
    assert backend.shared(str, [1, 2, 3, 4, 5], []) == ["1", "2", "3", "4", "5"]


@pytest.mark.once("torch", "tensorflow")  # JAX has one mean over all, and none of means to go wrong
def test_means_of_means_are_told_apart(tmp_path):
    found, _ = in_children(tmp_path, ["transformer"], "data", count=1 if BACKEND == "tensorflow" else 2, WRONG="1")
    assert max(steps_apart(found["data"]["transformer"], alone("transformer")).values()) > 1e-2


MODELS = {
    "gpt": lambda: kerasllm.GPT(40, **SMALL, gated=True, tie_embeddings=False),
    "t5": lambda: kerasllm.TransformerTranslator(40, 40, **SMALL, positions="relative", gated=True),
    "masked lm": lambda: kerasllm.BERTMaskedLM(40, **SMALL, embedding_dim=8),
    "tagger": lambda: kerasllm.BERTTokenClassifier(40, **SMALL, labels=["x", "y"]),
    "answerer": lambda: kerasllm.BERTQuestionAnswerer(40, **SMALL),
    "lstm": lambda: kerasllm.LSTMTranslator(40, 40, num_layers=2, hidden_dim=16, input_feeding=True),
    "rnn": lambda: kerasllm.RNNLanguageModel(40, hidden_dim=16, num_attention_heads=2),
}
SMALL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16}


@pytest.mark.once("torch")
@pytest.mark.parametrize("name", MODELS)
def test_a_rule_knows_every_matrix(name):
    model = MODELS[name]()
    if name == "gpt":
        kerasllm.add_lora(model, 4)
    for variable in model.variables:
        axis = split_axis(variable.path, tuple(variable.shape))
        assert axis is None or axis < len(variable.shape)
    if name == "gpt":
        found = {v.path.removeprefix("decoder/block_0/"): split_axis(v.path, v.shape) for v in model.variables}
        assert found["attention/query/kernel"] == 1 and found["attention/query/bias"] == 0
        assert found["attention/output/kernel"] == 0 and found["attention/output/bias"] is None
        assert found["attention/query/lora_kernel_a"] is None and found["attention/query/lora_kernel_b"] == 1
        assert found["feed_forward/output/lora_kernel_a"] == 0 and found["feed_forward/output/lora_kernel_b"] is None
        assert found["decoder/embeddings/token/embeddings"] == 0 and found["head/kernel"] == 1
    with pytest.raises(KeyError):
        split_axis("mine/attention/mystery/kernel", (4, 4))


@pytest.mark.once("torch")
def test_parts_of_batches_are_the_whole():
    words = distributed_run.tokenizer()
    pairs = list(zip(distributed_run.texts(1, 21), distributed_run.texts(2, 21), strict=True))
    whole = kerasllm.training.TranslationDataset(pairs, words, words, batch_size=8, multiple=4)
    parts = [kerasllm.training.TranslationDataset(pairs, words, words, batch_size=8, multiple=4) for _ in range(3)]
    for index, part in enumerate(parts):
        assert part.shard(index, 3) is part and len(part) == len(whole)
    for epoch in (0, 1):
        for dataset in (whole, *parts):
            dataset.epoch = epoch
        for i in range(len(whole)):
            together = keras.tree.map_structure(lambda *rows: np.concatenate(rows), *[part[i] for part in parts])
            keras.tree.map_structure(np.testing.assert_array_equal, together, whole[i])
    with pytest.raises(ValueError, match=r"index \(3\) must be below count \(3\)"):
        whole.shard(3, 3)


def test_what_is_wrong_is_named(monkeypatch):
    for mesh in ("all", {}, {"rows": 2}, {"data": 0}, {"data": "2"}, 8):
        with pytest.raises(ValueError, match=r"mesh \(.*\) must be 'data', 'fsdp', 'model' or a dict"):
            read_mesh(mesh)
    with pytest.raises(ValueError, match="must have one axis of -1 at most"):
        read_mesh({"data": -1, "model": -1})
    with pytest.raises(ValueError, match="shard_weights"):
        kerasllm.distribute("data", shard_weights="yes")
    with pytest.raises(ValueError, match=r"64"):
        kerasllm.distribute({"data": 64})
    if BACKEND != "jax":
        with pytest.raises(ValueError, match="must be 'data' on .*: JAX splits weights"):
            kerasllm.distribute("fsdp")
        model, (x, y), _ = distributed_run.gpt()
        monkeypatch.setattr(backend, "replicas", lambda: 2)
        for loss, error in (
            (kerasllm.training.DPOLoss(), r"loss \(DPOLoss\) compares rows of a batch with one another"),
            (kerasllm.training.TokenCrossentropy(reduction="sum"), r"reduction \('sum'\) must be a mean"),
        ):
            model.compile("sgd", loss)
            with pytest.raises(ValueError, match=error):
                model.fit(x, y)
        return
    before = distributed_run.gpt()[0]
    try:
        kerasllm.distribute("data")
        with pytest.raises(ValueError, match="was built without a mesh of devices, and now another is set"):
            before.generate([[1, 2]], max_new_tokens=2)
        during = distributed_run.gpt()[0]
        monkeypatch.setattr(backend.meshes.current(), "sizes", {"data": 4, "model": 1})
        x, y = distributed_run.gpt()[1]
        with pytest.raises(ValueError, match=r"batch_size \(6\) must be a multiple of the number of devices"):
            during.fit(x, y, batch_size=6)
        data = distributed_run.classifier()[1]
        data.batch_tokens = 100
        with pytest.raises(ValueError, match=r"batch_tokens \(100\) makes batches of any number of rows"):
            during.evaluate(data)
    finally:
        kerasllm.distribute(None)
    x, y = distributed_run.gpt()[1]
    with pytest.raises(ValueError, match="was built on a mesh of devices, and now none is set"):
        during.fit(x, y)
    before.evaluate(x, y, verbose=0)


@pytest.mark.once("torch")
def test_a_process_with_other_data_is_an_error_in_all(tmp_path):
    environment = os.environ | {"CASES": "transformer", "ODD": "1"}
    (torchrun,) = started([tmp_path / "found", "data"], 2, environment)
    printed, _ = torchrun.communicate(timeout=300)
    assert torchrun.returncode != 0 and not list(tmp_path.iterdir())
    assert "ValueError: x of process 1 is another than that of process 0." in printed
    assert "ValueError: x of process 0 is another than that of process 1." in printed


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "tensorflow", reason="replicas of TensorFlow are in one process")
def test_a_process_that_dies_ends_the_others_and_all_go_on(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "EPOCHS": "12"}

    def losses(folder, kills=False):
        first, *others = started([folder], 2, environment)
        lines = []
        for line in first.stdout:
            lines.append(line)
            if kills and line.startswith("loss of epoch 3"):
                victim = others[0].pid if others else last_child(first.pid)
                os.kill(victim, signal.SIGKILL)
                killed = time.monotonic()
        status = first.wait(timeout=120)
        if kills:
            assert status != 0 and time.monotonic() - killed < 60
            assert "heartbeat timeout" in "".join(lines) or "SIGKILL" in "".join(lines)
        else:
            assert status == 0, "".join(lines)[-3000:]
        for process in others:
            process.communicate(timeout=60)
        return [line for line in dict.fromkeys(lines) if line.startswith("loss of epoch")]

    whole = losses(tmp_path / "whole")
    begun = losses(tmp_path / "killed", kills=True)
    assert len(whole) == 12 > len(begun)
    rest = losses(tmp_path / "killed")
    assert whole[-len(rest) :] == rest and set(begun) | set(rest) == set(whole)


def last_child(pid):
    """The last process that another has started and that is a Python of ours: a worker of torchrun."""
    return int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1])
