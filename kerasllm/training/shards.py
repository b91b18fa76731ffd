"""A process's rows of each batch, where several processes train one model."""

import dataclasses

import keras
import numpy as np

from kerasllm import backend
from kerasllm.training.accumulation import SHARE, WEIGHT, parted


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which rows of a batch a process takes: the batches and their number are the same for all processes.

    Attributes:
        index, count: which process this is of how many.
        multiple: None, and each takes as many rows as the others or one less; or a number of which the rows of a batch
            must be a multiple to be divided, else every process has them all, as `backend.Whole`.
        num_counted: function (labels, sample weights or None) -> what the mean of a batch's loss is divided by. With it
            a batch carries the share that its loss has in the mean of all processes; without rows of its own a process
            has the first with the share 0.
    """

    index: int
    count: int
    multiple: int | None = None
    num_counted: object = None

    def of(self, batch):
        """This process's part of a batch, (inputs, labels) or (inputs, labels, sample weights)."""
        rows = len(keras.tree.flatten(batch)[0])
        if self.multiple is not None and rows % self.multiple:
            return keras.tree.map_structure(lambda x: None if x is None else np.asarray(x).view(backend.Whole), batch)
        mine = np.array_split(np.arange(rows), self.count)[self.index]
        if self.num_counted is None:
            return _rows(batch, mine)
        part = _rows(batch, mine if len(mine) else np.arange(1))
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part)
        weight, share = parted(sample_weight)
        _, all_labels, all_weights = keras.utils.unpack_x_y_sample_weight(batch)
        counted = self.num_counted(y, weight) if len(mine) else 0.0
        factor = self.count * counted / max(self.num_counted(all_labels, parted(all_weights)[0]), 1e-30)
        share = np.ones(max(len(mine), 1), "float32") if share is None else share
        weights = {} if weight is None else {WEIGHT: weight}
        return x, y, {**weights, SHARE: (factor * share).astype("float32")}


def _rows(batch, indices):
    return keras.tree.map_structure(lambda x: None if x is None else np.asarray(x)[indices], batch)
