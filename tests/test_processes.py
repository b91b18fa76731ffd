"""Processes that end with the one that started them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kerasllm import processes

PARENT = """
import subprocess, sys, time
from kerasllm import processes
child = processes.python("-c", "import time; print('begun', flush=True); time.sleep(60)")
if sys.argv[1] == "command":
    child = processes.command("sleep", "60")
process = subprocess.Popen(child)
print(process.pid, flush=True)
time.sleep(60)
"""


def runs(pid):
    """Whether a process is there, other than as a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("kind, wait", [("python", 0), ("python", 0.3), ("command", 0.3)])
def test_a_process_ends_with_its_parent_however_early_that_is_killed(kind, wait):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, kind], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    time.sleep(wait)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        if not runs(pid):
            break
        time.sleep(0.05)
    assert not runs(pid)
    parent.stdout.close()


def test_arguments_input_and_exit_codes_are_those_of_python():
    code = "import sys; print(sys.argv, input(), __name__); sys.exit(3)"
    result = subprocess.run(processes.python("-c", code, "a", "b"), input="text", capture_output=True, text=True)
    assert (result.stdout.strip(), result.returncode) == ("['-c', 'a', 'b'] text __main__", 3)
    result = subprocess.run(processes.python("-m", "json.tool", "-"), input="[1]", capture_output=True, text=True)
    assert result.stdout.split() == ["[", "1", "]"]
