"""Writing so that a kill, a full disk or another writer spoils nothing: the old is there, whole, or the new is.

What is written lies beside its place until it is whole:

    FOLDER/.kerasllm-XXXX/lock       held by its writer for as long as that lives
                          new/       what comes
                          plan.json  there once `new` is whole: what comes, what goes
                          old/       what was there

A writer that dies before its plan is there has changed nothing. What one that dies later has begun, the next to write
or read there ends, from the plan: `settle`.
"""

import contextlib
import ctypes
import json
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: only threads wait for each other, and what the dead leave stays
    fcntl = None

PREFIX = ".kerasllm-"
_THREADS = threading.Lock()


@contextlib.contextmanager
def staged(folder, goes=None, described=None):
    """A new folder for the block to write to; at its end all that is in it takes its place in `folder`.

    If the block fails, or the process ends before it does, `folder` is as it was. Other entries of `folder` are left
    alone.

    Args:
        folder: path, made if need be.
        goes: function of the name of an entry of `folder`: whether it is removed where the block has written none of
            its name. Default: none is.
        described: what the error calls it, such as "filepath ('x.keras')". Default: the folder.

    Raises:
        ValueError: something cannot be written.

    Example:
        >>> with staged("runs") as new:
        ...     (new / "notes.txt").write_text("whole")
    """
    folder, own = Path(folder).absolute(), None
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                _settle(folder)
                own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))  # on one disk: moving is renaming
                held.callback(_release, _take(own / "lock"))
            new = own / "new"
            new.mkdir()
            (own / "old").mkdir()
            yield new
            with _locked(folder):
                _exchange(own, folder, _write_plan(own, folder, goes))
        except OSError as error:
            raise ValueError(f"{described or f'folder ({str(folder)!r})'} cannot be written: {error}") from error
        finally:
            if own is not None:
                shutil.rmtree(own, ignore_errors=True)


@contextlib.contextmanager
def replacing(path, argument="filepath"):
    """A path beside `path` for the block to write a file or folder to, which takes its place as a whole.

    Raises:
        ValueError: it cannot be written.
    """
    path = Path(path).absolute()
    with staged(path.parent, described=f"{argument} ({str(path)!r})") as new:
        yield new / path.name


def settle(folder):
    """End what writers that died while they put their files into a folder have begun; for those who read there.

    Raises:
        ValueError: there is such a thing, and this process may not write there.
    """
    if any(Path(folder).glob(f"{PREFIX}*/plan.json")):
        try:
            with _locked(folder):
                _settle(Path(folder))
        except OSError as error:
            raise ValueError(
                f"folder ({str(folder)!r}) holds half of what an interrupted writer put there; who may write there "
                f"completes it by opening it: {error}"
            ) from error


def _settle(folder):
    for own in folder.glob(f"{PREFIX}*"):
        lock = _take(own / "lock", create=False)
        if lock is None and (not fcntl or (own / "lock").exists()):
            continue  # its writer lives, or cannot be known to be dead
        try:
            if (own / "plan.json").exists():
                _exchange(own, folder, json.loads((own / "plan.json").read_text()))
            shutil.rmtree(own, ignore_errors=True)
        finally:
            _release(lock)


def _write_plan(own, folder, goes):
    """What comes and what goes, each name with what tells its file from another of that name."""
    comes = {path.name: path.lstat().st_ino for path in (own / "new").iterdir()}
    old = {} if goes is None else {path.name: path.lstat().st_ino for path in folder.iterdir() if goes(path.name)}
    plan = {"comes": comes, "goes": {name: i for name, i in old.items() if name not in comes}}
    (own / "plan").write_text(json.dumps(plan))
    os.replace(own / "plan", own / "plan.json")
    return plan


def _exchange(own, folder, plan):
    """Do what a plan says, or what is left to do of it; undo it if that fails."""
    new, old = own / "new", own / "old"
    try:
        for name, number in plan["comes"].items():
            if _number(new / name) == number:
                _put(new / name, folder / name, old / name)
        for name, number in plan["goes"].items():
            if _number(folder / name) == number:
                os.replace(folder / name, old / name)
    except BaseException:
        for name, number in plan["comes"].items():
            if _number(folder / name) == number and not _swapped(folder / name, new / name):
                os.replace(folder / name, new / name)
        for path in old.iterdir():
            os.replace(path, folder / path.name)
        (own / "plan.json").unlink()
        raise
    (own / "plan.json").unlink()


def _put(source, target, old):
    """Put a file or folder in its place; what was there is kept at `old`."""
    if not os.path.lexists(target):
        os.replace(source, target)
    elif source.is_dir() or (target.is_dir() and not target.is_symlink()):
        if _swapped(source, target):
            os.replace(source, old)
        else:
            os.replace(target, old)
            os.replace(source, target)
    else:
        try:
            os.link(target, old, follow_symlinks=False)
        except (OSError, NotImplementedError):  # a disk without links
            os.replace(target, old)
        os.replace(source, target)


def _swapped(a, b):
    """Whether two paths have been exchanged in one step, as Linux and macOS can."""
    call, here = {"linux": ("renameat2", -100), "darwin": ("renameatx_np", -2)}.get(sys.platform, (None, None))
    function = call and getattr(ctypes.CDLL(None), call, None)
    return bool(function) and function(here, os.fsencode(a), here, os.fsencode(b), ctypes.c_uint(2)) == 0


def _number(path):
    """What tells a file from another that has had its name, or None where there is none."""
    return path.lstat().st_ino if os.path.lexists(path) else None


@contextlib.contextmanager
def _locked(folder):
    """Let one writer at a time, of all threads and processes, put files into a folder."""
    with _THREADS:
        descriptor = None
        if fcntl:
            descriptor = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            _release(descriptor)


def _take(path, create=True):
    """The descriptor that holds a lock, or None where another holds it, or it is not there, or cannot be had."""
    if not fcntl:
        return None
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _release(descriptor)
        return None
    return descriptor


def _release(descriptor):
    if descriptor is not None:
        os.close(descriptor)
