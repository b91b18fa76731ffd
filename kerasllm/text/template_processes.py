"""Processes that fill in chat templates, so that what a stranger's template does ends in bounded time and memory.

A template may loop for years or fill the memory with one operator of Python, which nothing inside the process can stop.
So others do it: a few small ones, with limits, which live on between calls. An answer takes 30 microseconds more, and
some 80 where other programs keep all cores busy.
"""

import atexit
import contextlib
import marshal
import os
import signal
import subprocess
import sys
import threading

from kerasllm import extras
from kerasllm.text import template_worker
from kerasllm.text.template_worker import MOST_SECONDS, SPENT, TEXT

MOST_TEMPLATE = 2**20  # characters
MOST_PROCESSES = min(8, os.cpu_count() or 1)
# Of waiting for an answer, where a process cannot stop itself by the time that it has computed.
PATIENCE = None if hasattr(signal, "setitimer") else 2 * MOST_SECONDS


def ask(operation, template, *arguments):
    """Let a process do one of `template_worker.OPERATIONS`.

    Args:
        operation: its name.
        template: string, a jinja template.
        *arguments: its other arguments, of JSON's types.

    Returns:
        The text of the answer.

    Raises:
        ImportError: jinja2 is not installed.
        ValueError: there is no answer: the template fails, or needs too much time or memory.
    """
    if len(template) > MOST_TEMPLATE:
        raise ValueError(f"the chat template cannot be filled in: it is longer than {MOST_TEMPLATE} characters.")
    answer = _answer(operation, template, *arguments)
    text = answer[1:].decode("utf-8", "surrogatepass")
    if answer[:1] != TEXT:
        raise ValueError(f"the chat template cannot be filled in: {text}")
    return text


def _answer(*request):
    if _is_alone():
        extras.check_installed(["jinja2"], "A chat template")
        return template_worker.answer(*request)
    try:
        request = marshal.dumps(request)
    except ValueError as error:
        raise ValueError(f"messages nest too deeply: {error}") from error
    with _places:
        process = _idle.pop() if _idle else None
        if process and process.poll() is not None:  # ended by another
            _end(process)
            process = None
        process = process or _started()
        try:
            answer = _exchange(process, request)
        except BaseException:  # Ctrl-C too: the next one must not get the answer that comes
            _end(process)
            raise
        if answer[:1] == SPENT:
            _end(process)
        else:
            _idle.append(process)
    return answer


def _exchange(process, request):
    late = []
    with _patience(process, late):
        with contextlib.suppress(BrokenPipeError):
            template_worker.send(process.stdin.fileno(), request)
        answer = template_worker.receive(process.stdout.fileno())
    if not answer:
        code = process.wait()
        is_late = bool(late) or code == -getattr(signal, "SIGPROF", 0)
        reason = f"it takes longer than {MOST_SECONDS} s" if is_late else f"its process has ended ({code})"
        raise ValueError(f"the chat template cannot be filled in: {reason}.")
    return answer


@contextlib.contextmanager
def _patience(process, late):
    """End a process that cannot do so itself when its block takes too long, and note it in `late`."""
    if PATIENCE is None:
        yield
        return

    def end():
        late.append(True)
        process.kill()

    timer = threading.Timer(PATIENCE, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _started():
    extras.check_installed(["jinja2"], "A chat template")
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", template_worker.__file__, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # on Windows
        )
    except OSError as error:
        raise ValueError(f"the chat template cannot be filled in: no process can be started: {error}") from error


def _is_alone():
    """Whether this program cannot start Python: packed into one file, or in a browser. Its templates are its own."""
    return getattr(sys, "frozen", False) or not sys.executable or sys.platform in ("emscripten", "wasi", "ios")


def _end(process):
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()


def _forget():
    """Let a forked process start its own: two must not speak with one."""
    global _idle, _places
    for process in globals().get("_idle", ()):
        process.returncode = 0  # It is the other one's to wait for.
        process.stdin.close()
        process.stdout.close()
    _idle, _places = [], threading.BoundedSemaphore(MOST_PROCESSES)


def _end_all():
    while _idle:
        _end(_idle.pop())


_forget()
atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
