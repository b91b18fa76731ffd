"""Updates of several batches: what each has to say in the gradient of the mean over all of their tokens."""

import keras
import numpy as np

SHARE, WEIGHT = "share", "weight"  # entries of the sample weights of a batch that is part of an update


class Accumulation:
    """Shares of batches in the updates of an optimizer with `gradient_accumulation_steps` N.

    Keras averages the gradients of N batches. Those of batches that count n_1 ... n_N tokens are the gradient of the
    mean over all tokens where batch i has the share N n_i / (n_1 + ... + n_N), by which its loss is multiplied.

    Args:
        num_steps: N.
        count: function (labels, sample_weight or None) -> what the mean of a batch's loss is divided by.
        class_weight: dict label -> weight of a row, as of `fit`, or None.
    """

    def __init__(self, num_steps, count, class_weight=None):
        self.num_steps, self.count, self.class_weight = num_steps, count, class_weight
        self.num_before = 0  # batches that the first update of the epoch has had before
        self._counts = {}

    def begin(self, optimizer):
        """Begin an epoch with an optimizer, which may be in the middle of an update."""
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        # `iterations` says how many updates were made, its variable how many batches were seen.
        self.num_before = int(keras.ops.convert_to_numpy(optimizer.variables[0])) % self.num_steps

    def go_on(self, index):
        """Say at which index an epoch begins that goes on."""
        self.num_before = (self.num_before - index) % self.num_steps

    def weighed(self, dataset, batch, index):
        """The batch with its share, (B,) float32, as an entry of its sample weights."""
        first = index - (self.num_before + index) % self.num_steps
        counts = [self._counted(dataset, i) for i in range(first, first + self.num_steps)]
        share = self.num_steps * counts[index - first] / max(sum(counts), 1e-30)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        if self.class_weight is not None:
            weight = np.vectorize(lambda label: self.class_weight.get(label, 1.0), otypes=["float32"])(y)
            sample_weight = weight if sample_weight is None else weight * sample_weight
        weights = {} if sample_weight is None else {WEIGHT: sample_weight}
        rows = len(keras.tree.flatten(x)[0])
        return x, y, {**weights, SHARE: np.full(rows, share, "float32")}

    def _counted(self, dataset, index):
        """What the batch at an index counts, that may lie in another epoch."""
        epochs, index = divmod(index, len(dataset))
        place = dataset.epoch + (epochs if dataset.shuffle else 0), index
        if place not in self._counts:
            if len(self._counts) > 4 * self.num_steps:
                self._counts.clear()
            _, y, sample_weight = keras.utils.unpack_x_y_sample_weight(dataset.batch_of(*place))
            self._counts[place] = self.count(y, sample_weight)
        return self._counts[place]


def parted(sample_weight):
    """Sample weights, and the share of the batch that they came with; None for what is not there."""
    if isinstance(sample_weight, dict) and SHARE in sample_weight:
        return sample_weight.get(WEIGHT), sample_weight[SHARE]
    return sample_weight, None
