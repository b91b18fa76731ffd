"""What an evaluation has found: measures with intervals, as a table and as JSON."""

import dataclasses
from pathlib import Path

from kerasllm import writing
from kerasllm.json_files import write_json


@dataclasses.dataclass(frozen=True)
class Measure:
    """A figure of merit.

    Attributes:
        value: the figure.
        low, high: its 95 % interval by the bootstrap over rows, or None.
        note: how it was computed, such as sacrebleu's signature, or "".
    """

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """What `kerasllm.evaluate` has found.

    Attributes:
        task: its name.
        num_rows: the number of rows.
        measures: dict name -> `Measure`. `report["accuracy"]` is the value of one.
        details: dict of what else there is, such as the scores of each label and the confusion matrix.
        notes: what must be known to read the figures, a tuple of strings.
    """

    task: str
    num_rows: int
    measures: dict
    details: dict = dataclasses.field(default_factory=dict)
    notes: tuple = ()

    def __getitem__(self, name):
        """The value of a measure."""
        return self.measures[name].value

    def as_dict(self):
        """All of it in plain dicts, lists, strings and numbers, as `save` writes it."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}

    def save(self, path):
        """Write it as a JSON file: all of it, or none.

        Raises:
            ValueError: `path` cannot be written.
        """
        with writing.replacing(Path(path), "path") as new:
            write_json(new, self.as_dict())

    def __str__(self):
        """A table of the measures, those of each label, and the confusion matrix where it is small."""
        lines = [f"{self.task}, {self.num_rows:,} row{'s' * (self.num_rows > 1)}", ""]
        rows = [["", "value", "95 % interval", ""]]
        for name, x in self.measures.items():
            interval = "" if x.low is None else f"{_number(x.low)} .. {_number(x.high)}"
            rows.append([name, _number(x.value), interval, x.note])
        lines += _aligned(rows)
        per_label = self.details.get("labels")
        for scores in filter(None, (self.details.get("types"), per_label)):
            heads = list(next(iter(scores.values())))
            lines += ["", *_aligned([["", *heads], *([k, *map(_number, v.values())] for k, v in scores.items())])]
        matrix = self.details.get("confusion_matrix")
        if matrix and len(matrix) <= 20:
            names = list(per_label)
            heads = ["given \\ predicted", *names]
            table = [heads, *([name, *map(str, row)] for name, row in zip(names, matrix, strict=True))]
            lines += ["", *_aligned(table)]
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])


def _number(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.6g}"


def _aligned(rows):
    """Lines of a table: the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        if row[0:1]:
            cells[0] = row[0].ljust(widths[0])
        if len(row) == 4 and rows[0][1] == "value":  # a note
            cells[-1] = row[-1]
        return "  ".join(cells).rstrip()

    return list(map(line, rows))
