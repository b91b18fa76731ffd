"""One device, eight virtual ones, two replicas and two processes come to the same."""

import functools
import os
import pathlib
import pickle
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from distributed_run import run

PROGRAM = pathlib.Path(__file__).with_name("distributed_run.py")
BACKEND = keras.backend.backend()
BOTH = '{"data": 2, "model": 4}'


@functools.cache
def alone(case):
    """What a case comes to on one device."""
    return run(case)


def in_children(folder, cases, *meshes, count=1, **environment):
    """What the program comes to: dict mesh -> dict case -> dict, of the first process of `count`; what it prints."""
    environment = os.environ | {"CASES": "\n".join(cases), "OMP_NUM_THREADS": "1"} | environment
    command, ranked = [sys.executable, PROGRAM, folder / "found", *meshes], [{}]
    if BACKEND == "torch":
        torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={count}", f"--master-port={free_port()}"]
        command[1:1] = torchrun
    elif count > 1:
        keras_s = {"JOB_ADDRESSES": f"127.0.0.1:{free_port()}", "NUM_PROCESSES": str(count)}
        ranked = [keras_s | {"PROCESS_ID": str(rank)} for rank in range(count)]
        ranked = [
            {"RANK": own["PROCESS_ID"]} | {f"KERAS_DISTRIBUTION_{name}": value for name, value in own.items()}
            for own in ranked
        ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, env=environment | own, **pipes) for own in ranked]
    printed = [process.communicate(timeout=600)[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(printed)[-4000:]
    return pickle.loads(min(folder.glob("found*")).read_bytes()), printed[0]


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
        step = np.linalg.norm(weight - expected["before"][path])
        # What hardly moves has a gradient that is 0 but for rounding: of a key's bias softmax takes no notice.
        apart[path] = np.linalg.norm(found["weights"][path] - weight) / max(step, 1e-2 * np.linalg.norm(weight), 1e-3)
    return apart


def check_equal(found, expected):
    """Losses, metrics, what a fit has added to each variable, outputs and texts."""
    for name, values in expected["history"].items():
        np.testing.assert_allclose(found["history"][name], values, rtol=2e-6, err_msg=name)
    for name, value in expected["measured"].items():
        np.testing.assert_allclose(found["measured"][name], value, rtol=2e-6, err_msg=name)
    apart = steps_apart(found, expected)
    assert max(apart.values()) <= 1e-5, apart
    if "predicted" in expected:
        np.testing.assert_allclose(found["predicted"], expected["predicted"], atol=2e-5)
    for name in {"text", "beams"} & expected.keys():
        assert found[name] == expected[name], name


@pytest.mark.once("jax")
@pytest.mark.parametrize("mesh", [BOTH, *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("data", "fsdp"))])
def test_eight_devices_come_to_what_one_does(mesh, tmp_path):
    cases = ["gpt, chunks", "gpt, LoRA", "transformer, accumulation", "lstm", "classifier"]
    found, printed = in_children(tmp_path, cases, mesh, **devices(8))
    for case in cases:
        check_equal(found[mesh][case], alone(case))
    if mesh == BOTH:
        assert "attention/key/kernel x 2: its 2 heads do not divide by the 4 devices of 'model'" in printed


def test_two_processes_or_replicas_come_to_what_one_does(tmp_path):
    cases = {"jax": ["classifier"], "tensorflow": ["transformer"]}.get(
        BACKEND, ["transformer, accumulation", "classifier"]
    )
    found, _ = in_children(tmp_path, cases, "data", count=1 if BACKEND == "tensorflow" else 2, **devices(2))
    for case in cases:
        check_equal(found["data"][case], alone(case))


@pytest.mark.once("torch", "tensorflow")  # JAX has one mean over all, and none of means to go wrong
def test_means_of_means_are_told_apart(tmp_path):
    found, _ = in_children(tmp_path, ["transformer"], "data", count=1 if BACKEND == "tensorflow" else 2, WRONG="1")
    assert max(steps_apart(found["data"]["transformer"], alone("transformer")).values()) > 1e-2
