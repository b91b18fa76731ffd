"""What `export` takes: seconds, memory, and the size of what it writes, in one table.

python benchmarks/export.py
python benchmarks/export.py --backends torch --formats litert

A GPT-2 of 124 million random weights is exported by each backend in a process of its own, with all functions of the
format, compared with the model before it is kept. Memory is the most that is resident at once in that process and in
the one with TensorFlow that it starts, without mapped files and less what their imports take, as a multiple of the
weights in float32.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import decode
from deploy import size

FORMATS = {
    "tf_saved_model": ("tf_saved_model", {}),
    "litert": ("litert", {}),
    "litert dynamic_int8": ("litert", {"quantize": "dynamic_int8", "min_agreement": 0.0}),
}
IMPORTS = "import keras, kerasllm, kerasllm.export.core, kerasllm.export.child"
TENSORFLOW = f"{IMPORTS}, tensorflow"


def main(options):
    """Print the table."""
    print("| backend | format | seconds | peak memory / weights | size / weights |")
    print("| --- | --- | --- | --- | --- |")
    for backend in options.backends:
        imports = resident_after(backend, IMPORTS if backend != "tensorflow" else TENSORFLOW)
        if backend != "tensorflow":
            imports += resident_after("tensorflow", TENSORFLOW)
        for name in options.formats:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / ("model" if name == "tf_saved_model" else "model.tflite")
                command = [__file__, "--export", name, "--path", str(path), *(["--tiny"] if options.tiny else [])]
                (seconds, weights), peak = watched(backend, command)
                over = f"{(peak - imports) / weights:.1f}"
                decode.print_row(backend, name, f"{seconds:.0f}", over, f"{size(path) / weights:.3f}")


def environment(backend):
    """The environment of a process with a backend."""
    return {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}


def resident_after(backend, statement):
    """The bytes resident in a process after a statement."""
    code = f"{statement}\nprint(next(line.split()[1] for line in open('/proc/self/status') if 'RssAnon' in line))"
    result = subprocess.run([sys.executable, "-c", code], env=environment(backend), stdout=subprocess.PIPE, check=True)
    return 1024 * int(result.stdout)


def watched(backend, command):
    """The numbers that a process prints last, and the most bytes resident in it and those that it starts."""
    process = subprocess.Popen([sys.executable, *command], env=environment(backend), stdout=subprocess.PIPE, text=True)
    peak = 0

    def watch():
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, sum(map(resident, tree(process.pid))))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return [float(number) for number in output.splitlines()[-1].split()], peak


def tree(pid):
    """A process and those that it started."""
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(p for child in children for p in tree(int(child)))]


def resident(pid):
    """The bytes of a process that are resident and its own: not pages of files, which the system can take back."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def export(options):
    """In the child: export, and print the seconds and the bytes of the weights."""
    import numpy as np

    from kerasllm import GPT

    model = GPT(**(decode.TINY if options.tiny else decode.GPT2))
    rng = np.random.default_rng(0)
    for v in model.weights:  # the converter would leave out biases of zeros
        v.assign(v + rng.normal(scale=0.01, size=v.shape).astype("float32"))
    format, given = FORMATS[options.export]
    start = time.perf_counter()
    model.export(options.path, format, verbose=False, **given)
    print(time.perf_counter() - start, 4 * model.count_params())


def read_options():
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"], help="of Keras")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="rows")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    for name in ("--export", "--path"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    options = read_options()
    export(options) if options.export else main(options)
