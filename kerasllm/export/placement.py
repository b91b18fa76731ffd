"""Putting what was written in its place: all of it, or nothing."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


@contextlib.contextmanager
def replacing(*paths):
    """Paths beside `paths`, in a folder of their own, for the block to write to; at its end they take their places.

    If the block fails or is interrupted, `paths` stay as they were and nothing is left beside them. One that the block
    does not write is removed.

    Args:
        *paths: of files or folders, in one folder.

    Raises:
        ValueError: the paths cannot be written.
    """
    try:
        # On the same disk as the targets, so that moving is renaming.
        folder = Path(tempfile.mkdtemp(prefix=".exporting-", dir=paths[0].parent))
    except OSError as error:
        raise ValueError(f"filepath ({str(paths[0])!r}) cannot be written: {error}") from error
    new, old = folder / "new", folder / "old"
    new.mkdir()
    old.mkdir()
    try:
        yield [new / path.name for path in paths]
        _exchange(paths, new, old)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _exchange(paths, new, old):
    """Move what is at `paths` to `old` and what is in `new` to `paths`, or change nothing."""
    done = []
    try:
        for path in paths:
            for source, target in ((path, old / path.name), (new / path.name, path)):
                if source.exists():
                    os.replace(source, target)
                    done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            os.replace(target, source)
        raise
