import json
import os
import struct
import subprocess
import sys

import keras
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from kerasllm.training import TensorBoardLog

X, Y = np.ones((6, 3), "float32"), np.ones((6, 2), "float32")
SCRIPT = """
import json, sys
from kerasllm.training import TensorBoardLog
log = TensorBoardLog(sys.argv[1])
log.on_epoch_end(3, {"loss": 0.5})
log.on_train_end()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def scalars(folder):
    """(name, step, value) of all event files of a folder."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + size :]
    return found


def fit(*callbacks, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    return model, model.fit(X, Y, batch_size=2, verbose=0, validation_data=(X, Y), callbacks=list(callbacks), **options)


def test_files_hold_the_logs_of_epochs_and_steps(tmp_path):
    callback = TensorBoardLog(tmp_path / "runs", every=2)
    model, history = fit(callback, epochs=2)
    train, validation = scalars(tmp_path / "runs/train"), scalars(tmp_path / "runs/validation")
    losses = [value for name, _, value in train if name == "epoch_loss"]
    assert losses == pytest.approx(history.history["loss"])
    assert [step for name, step, _ in train if name == "batch_loss"] == [2, 4, 6]
    assert validation == [("epoch_loss", i, pytest.approx(x)) for i, x in enumerate(history.history["val_loss"])]
    model.fit(X, Y, batch_size=2, verbose=0, callbacks=[callback], initial_epoch=2, epochs=3)
    assert [step for name, step, _ in scalars(tmp_path / "runs/train") if name == "batch_loss"] == [2, 4, 6, 8]


def test_by_epochs_no_step_is_written(tmp_path):
    fit(TensorBoardLog(tmp_path))
    assert {name for name, _, _ in scalars(tmp_path / "train")} == {"epoch_loss"}


@pytest.mark.once("torch")
def test_tensorflow_is_not_imported_by_another_backend(tmp_path):
    backend = keras.backend.backend()
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    packages = json.loads(done.stdout.splitlines()[-1])
    assert backend == "tensorflow" or "tensorflow" not in packages
    assert scalars(tmp_path / "train") == [("epoch_loss", 3, 0.5)]


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="TensorBoardLog needs tensorboardX: `pip install 'kerasllm.tensorboard.'`"):
        TensorBoardLog(tmp_path)
    with pytest.raises(ValueError, match="every .0. must be 'epoch' or"):
        TensorBoardLog(tmp_path, every=0)
