"""Python processes that do a part of the work: they end when the process that started them ends, however it does."""

import os
import sys

# Runs `-m MODULE` or `-c CODE` with the arguments behind it, as `python` does, once it is sure to end with its parent.
START = """
import ctypes, os, runpy, signal, sys, threading, time
parent, kind, what = int(sys.argv[1]), *sys.argv[2:4]

def watch():
    if os.name == "nt":
        kernel = ctypes.windll.kernel32
        kernel.OpenProcess.restype = ctypes.c_void_p
        kernel.WaitForSingleObject(ctypes.c_void_p(kernel.OpenProcess(0x100000, False, parent)), -1)  # SYNCHRONIZE
    while os.name != "nt" and os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, which holds for what takes its place by exec too
if os.name != "nt" and os.getppid() != parent:
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
sys.argv = [what if kind == "-m" else kind, *sys.argv[4:]]
if kind == "-m":
    runpy.run_module(what, run_name="__main__", alter_sys=True)
else:
    exec(what, {"__name__": "__main__"})
"""
REPLACE = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"


def python(*arguments):
    """The command of a Python process that ends with this one.

    On Linux the system ends it at once, elsewhere it looks for its parent twice a second.

    Args:
        *arguments: "-m" and a module, or "-c" and code; what stands behind are the program's own.

    Example:
        >>> subprocess.run(python("-m", "pip", "--version"))
    """
    return [sys.executable, "-c", START, str(os.getpid()), *arguments]


def command(*words):
    """The command of any process that ends with this one, where the system is Linux."""
    return python("-c", REPLACE, *words)
