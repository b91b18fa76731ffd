"""Writing so that a kill, a full disk or another writer spoils nothing: the old is there, whole, or the new is.

What is written lies beside its place until it is whole:

    FOLDER/.kerasllm-XXXX/lock       held by its writer for as long as that lives
                          new/       what comes
                          plan.json  there once `new` is whole: what comes, what goes
                          old/       what was there

A writer that dies before its plan is there has changed nothing. What one that dies later has begun, the next to write
or read there ends, from the plan: `settle`. One file, or one folder where the system can exchange two, takes its place
in one step and needs no plan.
"""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import stat
import sys
import tempfile
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: only threads wait for each other, and what the dead leave stays
    fcntl = None

PREFIX = ".kerasllm-"
# What libraries say in exceptions of their own; the last is Python's word for a name with a NUL.
REFUSALS = (*map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)), "embedded null")
_THREADS = threading.Lock()


@contextlib.contextmanager
def staged(folder, goes=None, described=None):
    """A new folder for the block to write to; at its end all that is in it takes its place in `folder`.

    If the block fails, or the process ends before it does, `folder` is as it was. Other entries of `folder` are left
    alone. A file takes the place of a file or link, a folder that of a folder.

    Args:
        folder: path, made if need be. A link to a folder is followed.
        goes: function of the name of an entry of `folder`: whether it is removed where the block has written none of
            its name. Default: none is.
        described: what the error calls it, such as "filepath ('x.keras')". Default: the folder.

    Raises:
        ValueError: something cannot be written.

    Example:
        >>> with staged("runs") as new:
        ...     (new / "notes.txt").write_text("whole")
    """
    with scratch(folder, described) as own:
        new, folder = own / "new", own.parent
        new.mkdir()
        (own / "old").mkdir()
        own.chmod(new.stat().st_mode)  # who may read `folder` must see that a writer was interrupted
        yield new
        with _locked(folder):
            plan = _plan(own, folder, goes)
            if not _in_one_step(new, folder, plan):
                _write_plan(own, plan)
                _exchange(own, folder, plan)


@contextlib.contextmanager
def scratch(folder=None, described=None):
    """A folder for what is needed in the block alone, inside `folder`. Default: inside that of temporary files.

    If the process ends before the block does, the next to write to `folder` takes it away.

    Raises:
        ValueError: something cannot be written.
    """
    own = None
    with contextlib.ExitStack() as held:
        try:
            folder = resolved(tempfile.gettempdir() if folder is None else folder, described or f"folder ({folder!r})")
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                _settle(folder)
                own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))  # on one disk: moving is renaming
                held.callback(_release, _take(own / "lock"))
            yield own
        except Exception as error:
            reason = _refusal(error)
            if reason is None:
                raise
            failure = ValueError(f"{described or f'folder ({str(folder)!r})'} cannot be written: {reason}")
            failure.refusal = reason
            raise failure from error
        finally:
            if own is not None and not (own / "plan.json").exists():
                shutil.rmtree(own, ignore_errors=True)


def _refusal(error):
    """What the system has said against writing, or None where an error is another's."""
    if isinstance(error, OSError):
        return str(error)
    return getattr(error, "refusal", None) or next((text for text in REFUSALS if text in str(error)), None)


@contextlib.contextmanager
def replacing(path, argument="filepath"):
    """A path beside `path` for the block to write a file or folder to, which takes its place as a whole.

    Where `path` is a link, what it leads to is replaced.

    Raises:
        ValueError: it cannot be written.
    """
    described = f"{argument} ({str(path)!r})"
    place = resolved(path, described)
    with staged(place.parent, described=described) as new:
        yield new / place.name


def resolved(path, described):
    """A path with the links in it followed.

    Raises:
        ValueError: no path may be such.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a NUL
        raise ValueError(f"{described} cannot be written: {error}") from error


def check_room(folder, sizes):
    """Raise `OSError` unless a folder has room for files of some sizes, a list of numbers of bytes."""
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        if shutil.disk_usage(folder).free < sum(sizes):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return
    with contextlib.ExitStack() as files:
        for size in sizes:
            file = files.enter_context(tempfile.TemporaryFile(dir=folder))
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a disk that cannot say
                    raise


def settle(folder):
    """End what writers that died while they put their files into a folder have begun; for those who read there.

    Raises:
        ValueError: there is such a thing, and this process may not write there.
    """
    if any((own / "plan.json").exists() for own in _left(folder)):
        try:
            with _locked(folder):
                _settle(folder)
        except OSError as error:
            raise ValueError(
                f"folder ({str(folder)!r}) holds half of what an interrupted writer put there; who may write there "
                f"completes it by opening it: {error}"
            ) from error


def _left(folder):
    """The folders of writers, dead or alive, in a folder; where all may write, as in /tmp, only this user's."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        shared = os.stat(folder).st_mode & stat.S_ISVTX
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    if not shared or entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                        found.append(Path(folder) / entry.name)
    return found


def _settle(folder):
    for own in _left(folder):
        lock = _take(own / "lock", create=False)
        if lock is None and (not fcntl or os.path.lexists(own / "lock")):
            continue  # its writer lives, or cannot be known to be dead
        try:
            if (own / "plan.json").exists():
                _exchange(own, Path(folder), _read_plan(own))
            shutil.rmtree(own, ignore_errors=True)
        finally:
            _release(lock)


def _plan(own, folder, goes):
    """What comes and what goes, each name with what tells its file from another of that name."""
    comes = {path.name: path.lstat().st_ino for path in (own / "new").iterdir()}
    for name in comes:
        if os.path.lexists(folder / name) and _is_folder(own / "new" / name) != _is_folder(folder / name):
            raise FileExistsError(f"{folder / name} is {'a' if _is_folder(folder / name) else 'no'} folder")
    old = {} if goes is None else {path.name: path.lstat().st_ino for path in folder.iterdir() if goes(path.name)}
    return {"comes": comes, "goes": {name: i for name, i in old.items() if name not in comes}}


def _write_plan(own, plan):
    (own / "plan").write_text(json.dumps(plan))
    os.replace(own / "plan", own / "plan.json")


def _read_plan(own):
    """The plan of a dead writer; it may have come with a folder that a stranger made."""
    try:
        plan = json.loads((own / "plan.json").read_text())
        entries = [*plan["comes"].items(), *plan["goes"].items()]
        if not all(Path(name).name == name and type(number) is int for name, number in entries):
            raise ValueError("it holds other than names and numbers")
        if any((own / name).is_symlink() for name in ("new", "old")):
            raise ValueError("its folders are links")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{own / 'plan.json'} is no plan of a writer: {error}; delete {own}.") from error
    return plan


def _in_one_step(new, folder, plan):
    """Whether all that a plan says has been done in one step, which leaves nothing to be ended."""
    if len(plan["comes"]) != 1 or plan["goes"]:
        return False
    [name] = plan["comes"]
    if _is_folder(folder / name):
        return _swapped(new / name, folder / name)
    os.replace(new / name, folder / name)
    return True


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
    elif _is_folder(source):
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


def _is_folder(path):
    return path.is_dir() and not path.is_symlink()


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


@contextlib.contextmanager
def held(path):
    """Hold a file against other threads and processes in the block, which is told whether it could be had."""
    descriptor = _take(path)
    try:
        yield descriptor is not None or not fcntl
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
