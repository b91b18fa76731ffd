"""What LiteRT and TensorFlow's converter write to the standard error, without what is no news.

They write in C++, past Python's `sys.stderr`, and LiteRT has no way to ask for less.
"""

import contextlib
import ctypes
import functools
import os
import re
import sys
import tempfile
import threading

# What they note on the way; and what LiteRT misses of accelerators that nobody asks for, with the line below it.
NO_NEWS = re.compile(
    rb"(INFO: |I\d{4} |WARNING: \[(npu_registry|compiler_plugin)\.cc|\xe2\x94\x94 Could not load shared library"
    rb"|W\d{4} .*\] Ignored (output_format|drop_control_dependency)\.)"
)
LOCK = threading.RLock()
ROOT = ctypes.c_char_p(b"/")


@contextlib.contextmanager
def without_notes():
    """Inside it what goes to the standard error waits; then it is written, without notes unless there is an error.

    That holds for other threads too, whose lines come late but come; so it should be left soon.
    """
    with LOCK, contextlib.ExitStack() as stack:
        try:
            terminal = os.dup(2)
        except OSError:  # closed: nobody reads
            terminal = None
        if terminal is None:
            yield
            return
        stack.callback(os.close, terminal)
        file = stack.enter_context(tempfile.TemporaryFile())
        is_whole = True
        try:
            _flush()
            os.dup2(file.fileno(), 2)
            yield
            is_whole = False
        finally:
            try:
                _flush()
            finally:
                os.dup2(terminal, 2)
            file.seek(0)
            lines = [line for line in file if is_whole or not NO_NEWS.match(line)]
            with contextlib.suppress(OSError), open(terminal, "wb", closefd=False) as stream:
                stream.writelines(lines)


@functools.cache
def end_in_silence():
    """Let what C++ writes at the very end, when Python has ended, go nowhere: LiteRT then notes what it gives up.

    It is to be called when LiteRT has made all of it: what is registered last is done first.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # elsewhere than on Linux and macOS
        libc = ctypes.CDLL(None)
        # A folder takes the number of the standard error, so that no file gets it. Both functions take one argument.
        for function, argument in ((libc.opendir, ROOT), (libc.close, ctypes.c_void_p(2))):
            libc.__cxa_atexit(function, argument, None)


def _flush():
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no standard error in a window's program
        sys.stderr.flush()
