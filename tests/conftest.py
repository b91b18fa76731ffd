"""Every test starts from the same seed; tests marked `gpu` run where the backend computes on one.

What is marked `once` or `in_turn` is slow on the backends that need not show it: `make test-all` runs it there.

Tolerances are those of float32, so a GPU computes float32 products in float32 and not in TF32.
"""

import collections
import gc
import os
import sys

# Threads of OpenMP wait for one another by spinning: where several processes share two cores, torch takes up to ten
# times as long as with one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# XLA's optimizations are spent in vain on toy models, and its newer code for fused loops takes three times as long to
# compile; child processes do without them too.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

sys.modules["sklearn"] = None  # Keras imports it wherever it is installed, which takes two seconds
import keras  # noqa: E402
import pytest  # noqa: E402

del sys.modules["sklearn"]

BACKENDS = ("jax", "tensorflow", "torch")
DEVICE = str(keras.ops.zeros(1).device).lower()


def pytest_report_header():
    return f"keras {keras.__version__} with {keras.backend.backend()} on {DEVICE}"


def pytest_collection_finish():
    gc.freeze()  # What the imports made stays, so that no collection walks over it again.


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    turns = collections.Counter()
    for item in items:
        once = item.get_closest_marker("once")
        if once and keras.backend.backend() not in once.args:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("in_turn"):
            turn = turns[item.function]
            turns[item.function] += 1
            if turn and keras.backend.backend() != BACKENDS[turn % len(BACKENDS)]:
                item.add_marker(pytest.mark.slow)
    if "gpu" not in DEVICE and "cuda" not in DEVICE:
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=f"{keras.backend.backend()} sees no GPU"))


def pytest_terminal_summary(terminalreporter):
    """Print what the tests of exports have recorded: a table of models and formats."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    cells = {tuple(x[:2]): x[2] for report in reports for name, x in report.user_properties if name == "export"}
    models, formats = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True)) if cells else ([], [])
    for model in [f"export from {keras.backend.backend()}", *models] if cells else []:
        row = [cells.get((model, format), "") for format in formats] if model in models else formats
        terminalreporter.write_line(f"| {' | '.join([model, *row])} |")


def pytest_configure():
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(False)
    else:
        import torch

        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def same_seed():
    keras.utils.set_random_seed(0)
