"""The folder of a run: whole checkpoints with numbers, of which the last and the best are kept."""

import re
from pathlib import Path

from kerasllm import backend, writing
from kerasllm.training import state_files

NAME = re.compile(r"checkpoint-(\d{6,})")


class Checkpoints:
    """The checkpoints of a run. A kill leaves an older one whole, and none in part.

    Args:
        folder: its path.
        keep: so many of the last are kept.
    """

    def __init__(self, folder, keep):
        self.folder, self.keep = Path(folder), keep

    def numbers(self):
        """Those that are there, the oldest first."""
        if not self.folder.is_dir():
            return []
        writing.settle(self.folder)
        names = map(NAME.fullmatch, (path.name for path in self.folder.iterdir()))
        return sorted(int(match[1]) for match in names if match)

    def path(self, number):
        """The folder of a checkpoint."""
        return self.folder / f"checkpoint-{number:06d}"

    def read(self, number):
        """The state that a checkpoint holds."""
        return state_files.read(self.path(number))

    def write(self, number, state, also=()):
        """Add a checkpoint, in one of several processes; the oldest go, but for those that are kept `also`."""
        if backend.ranks().index:
            return
        last = [n for n in self.numbers() if n < number and n not in also][-(self.keep - 1) :] if self.keep > 1 else []
        stay = {*last, *also, number}

        def goes(name):
            match = NAME.fullmatch(name)
            return bool(match) and int(match[1]) not in stay

        with writing.staged(self.folder, goes) as new:
            place = new / self.path(number).name
            place.mkdir()
            state_files.write(place, state)
