"""Writing: whole or not at all, also when the writer is killed or the disk is full."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from kerasllm import writing

# A small process whose forks replace three entries of the folders argv[1]/0, argv[1]/1, ..., each killed at its step of
# that number, up to one that comes to its end.
KILLED = """
import itertools, os, signal, sys
from kerasllm import writing

def counted(function):
    def call(*args, **kwargs):
        global steps
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

for step in itertools.count():
    if not os.fork():
        steps = step
        for name in ("replace", "mkdir", "unlink", "rmdir", "link", "open"):
            setattr(os, name, counted(getattr(os, name)))
        writing._swapped = counted(writing._swapped)
        with writing.staged(f"{sys.argv[1]}/{step}", lambda name: name in ("gone", "file", "folder")) as new:
            (new / "file").write_text("new")
            (new / "folder").mkdir()
            (new / "folder" / "part").write_text("new")
            (new / "fresh").write_text("new")
        os._exit(0)
    if os.wait()[1] != signal.SIGKILL:
        break
print(step)
"""
OLD = {"file": "old", "folder/part": "old", "gone": "old", "mine": "mine"}
NEW = {"file": "new", "folder/part": "new", "fresh": "new", "mine": "mine"}


def write_old(folder):
    for name, text in OLD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
def test_a_kill_at_any_step_leaves_the_old_or_the_new(tmp_path):
    for step in range(100):
        write_old(tmp_path / str(step))
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=True)
    outcomes = []
    for step in range(int(result.stdout) + 1):
        folder = tmp_path / str(step)
        writing.settle(folder)
        with writing.staged(folder):  # the next writer takes away what the dead one left
            pass
        assert contents(folder) in (OLD, NEW), step
        outcomes.append(contents(folder) == NEW)
    assert outcomes == sorted(outcomes) and outcomes[-1] and len(outcomes) > 12  # the old up to some step, then the new


@pytest.mark.parametrize("swaps", [True, False])
def test_a_failure_at_any_step_leaves_the_old(swaps, tmp_path, monkeypatch):
    write_old(tmp_path)
    if not swaps:
        monkeypatch.setattr(writing, "_swapped", lambda a, b: False)
    replace, link = os.replace, os.link
    for steps in range(20):
        left = steps

        def failing(function):
            def call(source, target, **kwargs):
                nonlocal left
                left -= 1
                if left == -1:
                    raise OSError("no space left")
                return function(source, target, **kwargs)

            return call

        monkeypatch.setattr(os, "replace", failing(replace))
        monkeypatch.setattr(os, "link", failing(link))
        try:
            with writing.staged(tmp_path, goes="gone".__eq__) as new:
                for name in ("file", "fresh"):
                    (new / name).write_text("new")
                (new / "folder").mkdir()
                (new / "folder" / "part").write_text("new")
        except ValueError as error:
            assert "no space left" in str(error)
            assert contents(tmp_path) == OLD
        else:
            if left >= 0:
                break
            assert contents(tmp_path) == NEW  # a link that cannot be made is no failure
            write_old(tmp_path)
            (tmp_path / "fresh").unlink()
    assert contents(tmp_path) == NEW and steps > 4


def test_a_failed_or_interrupted_block_leaves_no_trace(tmp_path):
    write_old(tmp_path)
    for error, expected in ((OSError(28, "No space left on device"), ValueError), (KeyboardInterrupt(), None)):
        with pytest.raises(expected or type(error)), writing.staged(tmp_path) as new:
            (new / "file").write_text("new")
            raise error
        assert contents(tmp_path) == OLD and not list(tmp_path.glob(f"{writing.PREFIX}*"))


def test_a_living_writer_is_left_alone(tmp_path):
    with writing.staged(tmp_path) as first:
        (first / "file").write_text("first")
        with writing.staged(tmp_path) as second:
            (second / "file").write_text("second")
        writing.settle(tmp_path)
        assert contents(tmp_path)["file"] == "second"
    assert contents(tmp_path) == {"file": "first"}


def test_of_many_threads_each_writes_a_whole(tmp_path):
    failures = []

    def write(i):
        try:
            for _ in range(10):
                with writing.staged(tmp_path) as new:
                    for name in ("a", "b"):
                        (new / name).write_text(str(i))
                with writing._locked(tmp_path):
                    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and set(contents(tmp_path)) == {"a", "b"}


def test_a_file_too_large_for_the_disk_is_named(tmp_path):
    resource = pytest.importorskip("resource")
    (tmp_path / "file").write_text("old")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ValueError, match="filepath .*file.* cannot be written"):
            with writing.replacing(tmp_path / "file") as place:
                place.write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(tmp_path) == {"file": "old"}


def test_who_may_not_write_is_told_of_an_interrupted_writer(tmp_path, monkeypatch):
    (tmp_path / f"{writing.PREFIX}x").mkdir()
    (tmp_path / f"{writing.PREFIX}x" / "plan.json").write_text('{"comes": {}, "goes": {}}')

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(writing, "_exchange", refuse)
    with pytest.raises(ValueError, match="interrupted writer.*read-only"):
        writing.settle(tmp_path)


def test_a_file_takes_the_place_of_a_file_and_a_folder_that_of_a_folder(tmp_path):
    write_old(tmp_path)
    with pytest.raises(ValueError, match="folder.* cannot be written: .*folder is a folder"):
        with writing.replacing(tmp_path / "folder") as place:
            place.write_text("new")
    with pytest.raises(ValueError, match="file.* cannot be written: .*file is no folder"):
        with writing.replacing(tmp_path / "file") as place:
            place.mkdir()
    assert contents(tmp_path) == OLD


def test_links_are_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    (tmp_path / "nowhere").symlink_to(tmp_path / "later" / "file")
    (tmp_path / "folder").symlink_to(tmp_path / "there", target_is_directory=True)
    for name in ("link", "nowhere"):
        with writing.replacing(tmp_path / name) as place:
            place.write_text("new")
        assert (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == "new"
    with writing.staged(tmp_path / "folder") as new:
        (new / "file").write_text("newer")
    assert (tmp_path / "folder").is_symlink() and (tmp_path / "there" / "file").read_text() == "newer"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(ValueError, match="circle.* cannot be written"), writing.staged(tmp_path / "circle"):
        pass


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "file/below"])
def test_names_that_no_disk_takes_are_told(name, tmp_path):
    write_old(tmp_path)
    for path in (tmp_path / name, tmp_path / name / "more"):
        with pytest.raises(ValueError, match="cannot be written"), writing.replacing(path) as place:
            place.write_text("new")
    assert contents(tmp_path) == OLD


@pytest.mark.parametrize(
    "plan",
    [
        '{"comes": {"../secret": 1}, "goes": {}}',
        '{"comes": {}, "goes": {"../secret": 1}}',
        '{"comes": {"x": null}, "goes": {}}',
        '{"comes": {"x"',
        "[" * 100000,
        "1",
        "link",
    ],
)
def test_the_plan_of_a_stranger_moves_nothing(plan, tmp_path):
    (tmp_path / "secret").write_text("mine")
    own = tmp_path / "preset" / f"{writing.PREFIX}x"
    (own / "old").mkdir(parents=True)
    if plan == "link":
        (own / "new").symlink_to(tmp_path, target_is_directory=True)
        plan = '{"comes": {"secret": 1}, "goes": {}}'
    (own / "plan.json").write_text(plan.replace("1", str((tmp_path / "secret").lstat().st_ino)))
    with pytest.raises(ValueError, match="plan.json is no plan of a writer"):
        writing.settle(tmp_path / "preset")
    assert (tmp_path / "secret").read_text() == "mine"


def test_what_can_neither_be_put_there_nor_undone_is_kept_and_ended_later(tmp_path, monkeypatch):
    write_old(tmp_path)
    put = writing._put

    def broken(*_):
        raise OSError("broken")

    def put_one(*paths):
        put(*paths)
        monkeypatch.setattr(os, "replace", broken)

    monkeypatch.setattr(writing, "_put", put_one)
    with pytest.raises(ValueError, match="broken"), writing.staged(tmp_path, "gone".__eq__) as new:
        for name in ("file", "fresh"):
            (new / name).write_text("new")
    monkeypatch.undo()
    writing.settle(tmp_path)
    assert contents(tmp_path) == {"file": "new", "fresh": "new", "folder/part": "old", "mine": "mine"}


def test_one_file_takes_its_place_in_one_step(tmp_path, monkeypatch):
    write_old(tmp_path)
    monkeypatch.setattr(os, "link", None)
    monkeypatch.setattr(writing, "_exchange", None)
    with writing.replacing(tmp_path / "file") as place:
        place.write_text("new")
    assert contents(tmp_path) == {**OLD, "file": "new"}


def test_what_is_needed_for_a_while_goes_also_when_its_process_is_killed(tmp_path):
    if not os.fork():
        with writing.scratch(tmp_path) as folder:
            (folder / "part").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
    assert len(contents(tmp_path)) > 0
    with writing.scratch(tmp_path):
        assert not any(path.endswith("part") for path in contents(tmp_path))
    assert contents(tmp_path) == {}


def test_what_others_left_in_a_folder_of_all_is_left_alone(tmp_path):
    if os.getuid():
        pytest.skip("only root can give a folder away")
    tmp_path.chmod(0o1777)
    own = tmp_path / f"{writing.PREFIX}x"
    own.mkdir()
    (own / "plan.json").write_text('{"comes": {"../secret": 1}, "goes": {}}')
    os.chown(own, 12345, 12345)
    writing.settle(tmp_path)
    with writing.staged(tmp_path) as new:
        (new / "file").write_text("new")
    assert own.exists() and (tmp_path / "file").read_text() == "new"
