"""What all tasks do with rows: answer them some at a time, and say which one is wrong; and the intervals."""

import dataclasses
from collections.abc import Callable
from typing import Any

from kerasllm.evaluation.report import Measure
from kerasllm.metrics.intervals import bootstrap_interval

CHUNK = 8  # batches of rows that are answered in one call, which sorts them by length


@dataclasses.dataclass(frozen=True)
class Run:
    """An evaluation: the model, its rows, and how they are answered.

    Args:
        model: a model that can do the task.
        rows: list of `Row`s.
        batch_size: the most rows at a time.
        resamples: number of draws of the bootstrap; 0 for no intervals.
        seed: of the draws, and of what the model draws.
        progress: function (rows that are done, all of them).
    """

    model: Any
    rows: list
    batch_size: int
    resamples: int
    seed: int
    progress: Callable

    def values(self, name):
        """The values of a column, of all rows."""
        return [row.values[name] for row in self.rows]

    def has(self, name):
        """Whether the rows have a column."""
        return name in self.rows[0].values

    def outputs(self, answer, chunk=CHUNK):
        """The outputs for all rows.

        Args:
            answer: function (list of `Row`s, place of the first) -> list of as many outputs.
            chunk: number of batches in one call.

        Raises:
            ValueError or FloatingPointError: what `answer` raises, with the place of the row.
        """
        outputs = []
        for start in range(0, len(self.rows), chunk * self.batch_size):
            outputs += _answered(answer, self.rows[start : start + chunk * self.batch_size], start)
            self.progress(len(outputs), len(self.rows))
        return outputs

    @property
    def has_intervals(self):
        """Whether there are intervals: one row says nothing of others."""
        return self.resamples > 0 and len(self.rows) > 1

    def measured(self, values, measure, rows, notes=None, counts=None):
        """`Measure`s by their names.

        Args:
            values: dict name -> value.
            measure: as for `bootstrap_interval`, a function to a dict of some of the names.
            rows, counts: as for `bootstrap_interval`.
            notes: dict name -> note.
        """
        intervals = {}
        if self.has_intervals:
            intervals = bootstrap_interval(measure, rows, self.resamples, self.seed, counts)
        notes = notes or {}
        return {n: Measure(x, *intervals.get(n, (None, None)), notes.get(n, "")) for n, x in values.items()}


def _answered(answer, rows, first):
    try:
        return answer(rows, first)
    except (ValueError, FloatingPointError) as error:
        if len(rows) == 1:
            raise type(error)(f"{rows[0].place}: {error}") from error
    half = len(rows) // 2
    return _answered(answer, rows[:half], first) + _answered(answer, rows[half:], first + half)
