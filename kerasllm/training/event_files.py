"""TensorBoard's event files, written without TensorFlow."""

import itertools
import os

from keras import ops

from kerasllm.arguments import read_path
from kerasllm.constructors import reading
from kerasllm.extras import check_installed, required
from kerasllm.training.steps import EverySteps

SIDES = {"train": "", "validation": "val_"}  # folders, and how the names of their values begin
_NUMBERS = itertools.count()


class TensorBoardLog(EverySteps):
    """Writes the logs into event files for TensorBoard, as `keras.callbacks.TensorBoard` does, without TensorFlow.

    Keras's imports TensorFlow on every backend. This writes through tensorboardX; `pip install tensorboard` and
    `tensorboard --logdir runs` show the files. Folders and names are Keras's: `train/` and `validation/`, `epoch_loss`
    by the number of the epoch, `batch_loss` by that of the steps the optimizer has taken. kerasllm's models call
    `Throughput` and others that write into the logs first.

    Args:
        log_dir: path of the folder.
        every: "epoch", or a number of steps after which the values of the step are written as well.

    Raises:
        ImportError: `kerasllm[tensorboard]` is not installed.

    Example:
        >>> model.fit(dataset, callbacks=[Throughput(), TensorBoardLog("runs/first", every=10)])
    """

    @reading
    def __init__(self, log_dir, every="epoch"):
        super().__init__(every)
        check_installed(["tensorboardX"], "TensorBoardLog")
        self.log_dir = read_path("log_dir", log_dir)
        self._writers = {}

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._before = int(ops.convert_to_numpy(self.model.optimizer.iterations))

    def act(self, epoch, step, logs):
        if self.every != "epoch":
            self._write("batch_", logs, self._before + step)

    def on_epoch_end(self, epoch, logs=None):
        self._write("epoch_", logs, epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs=None):
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _write(self, prefix, logs, step):
        for name, value in logs.items():
            if not isinstance(value, float | int):
                continue
            folder = "validation" if name.startswith("val_") else "train"
            self._writer(folder).add_scalar(prefix + name.removeprefix(SIDES[folder]), value, step)

    def _writer(self, folder):
        if folder not in self._writers:
            # Its own suffix is the second, in which another writer may have begun.
            suffix = f".{os.getpid()}.{next(_NUMBERS)}"
            writer = required("tensorboardX", "TensorBoardLog").SummaryWriter
            self._writers[folder] = writer(str(self.log_dir / folder), filename_suffix=suffix)
        return self._writers[folder]
