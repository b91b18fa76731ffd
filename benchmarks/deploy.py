"""The files that `export` writes beside Keras and transformers, in one table from one run.

python benchmarks/deploy.py                          # exports into build/deploy first: minutes, once
python benchmarks/deploy.py --folder FOLDER --backends torch

A GPT-2 of 124 million random weights continues 32 tokens by exactly 96, greedily, at batch 1, with two threads:
`decode` of a TFLite file called for each token through LiteRT's CompiledModel, whose buffers change places (no cache is
copied), and through its Interpreter; `generate`, the loop inside the file; `generate` of the SavedModel; `generate` of
Keras; transformers on torch in float32. Beside them the memory bound: each step reads every weight once.

The contestants are processes that take turns. A time is the median of its turns; a ratio is the median, over the turns,
of the peer's time divided by that of the row: above 1 the row is faster. Memory is the most that was resident in the
process, libraries included.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

import decode
import numpy as np
from turns import Contestant, ratio, take_turns

PROMPT, NEW, TINY_NEW, THREADS = 32, 96, 8, 2
WEIGHTS = {"float32": None, "dynamic_int8": "dynamic_int8"}
FUNCTIONS = ["prefill_32", "decode", "generate"]
PROGRAMS = ("decode", "decode_by_interpreter", "generate")  # of a TFLite file
PEER = "transformers"


def main(options):
    """Export, then print the table."""
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in (*WEIGHTS, *(["saved_model"] if "generate" in options.programs else [])):
        if not file(options, name).exists():
            start = time.perf_counter()
            run_child("tensorflow", "--export", name, *forwarded(options))
            print(f"exported {file(options, name)} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    bandwidth = decode.read_bandwidth(options)
    sizes = decode.TINY if options.tiny else decode.GPT2
    print("| program | weights | file MB | tokens/s | × transformers | peak GB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, part in (("float32", 1), ("int8", 1 / 4)):
        read = part * decode.bytes_per_step(**sizes)
        decode.print_row(f"memory bound, {bandwidth / 1e9:.1f} GB/s", name, "", f"{bandwidth / read:.1f}", "", "")
    rows = [(PEER, "torch", ""), *((f"keras on {backend}", backend, "") for backend in options.backends)]
    rows += [("generate of the SavedModel", "tensorflow", "saved_model")]
    rows += [(f"{program} of TFLite", "numpy", weights) for weights in WEIGHTS for program in PROGRAMS]
    contestants = {}
    for row in (row for row in rows if row[0].split()[0] in options.programs):
        program, backend, weights = row
        try:
            arguments = ["--contestant", program.split()[0], "--weights", weights, *forwarded(options)]
            contestants[row] = Contestant("torch" if backend == "numpy" else backend, __file__, *arguments)
        except RuntimeError as error:
            decode.print_row(program, weights, "", str(error).replace("|", "/"), "", "")
    for _ in range(options.turns):
        for contestant in contestants.values():
            contestant.turn()
    for (program, _, weights), contestant in contestants.items():
        new = TINY_NEW if options.tiny else NEW
        decode.print_row(
            program,
            weights if weights in WEIGHTS else "float32",
            f"{size(file(options, weights)) / 1e6:.0f}" if weights else "",
            f"{new / statistics.median(contestant.times):.1f}",
            f"{ratio(contestant, contestants[rows[0]]):.2f}" if rows[0] in contestants else "",
            f"{contestant.peak_memory() / 1e9:.2f}",
        )
        contestant.close()


def file(options, name):
    """The path of an exported file."""
    return options.folder / ("saved_model" if name == "saved_model" else f"{name}.tflite")


def size(path):
    """The bytes of a file or folder."""
    return sum(p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())


def forwarded(options):
    """The options that the children need."""
    return ["--folder", str(options.folder), *(["--tiny"] if options.tiny else [])]


def run_child(backend, *arguments):
    """Run this script in a process with a backend."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, __file__, *arguments], env=environment, check=True)


# What follows runs in the children.


def export(options):
    """Write a file."""
    from kerasllm import GPT

    model = GPT(**(decode.TINY if options.tiny else decode.GPT2))
    rng = np.random.default_rng(0)
    for v in model.weights:  # the converter would leave out biases of zeros
        v.assign(v + rng.normal(scale=0.01, size=v.shape).astype("float32"))
    new = TINY_NEW if options.tiny else NEW
    if options.export == "saved_model":
        model.export(file(options, options.export), signatures=["generate"])
    else:
        model.export(
            file(options, options.export),
            "litert",
            signatures=FUNCTIONS,
            quantize=WEIGHTS[options.export],
            min_agreement=0.0,  # random weights: all tokens are about as likely
            max_length=PROMPT + new,
            prefill_lengths=(PROMPT,),
        )


def build(options):
    """A function that does the work of a contestant once and says when it ended."""
    sizes, new = (decode.TINY, TINY_NEW) if options.tiny else (decode.GPT2, NEW)
    prompts = np.random.default_rng(0).integers(0, sizes["vocabulary_size"], (1, PROMPT)).astype("int32")
    if options.contestant == "transformers":
        work = decode.transformers(sizes, "greedy", prompts, new)
    elif options.contestant == "keras":
        work = decode.kerasllm(sizes, "greedy", prompts, new)
    elif options.weights == "saved_model":
        work = saved_model(file(options, "saved_model"), prompts, new)
    else:
        program = {"decode": compiled, "decode_by_interpreter": interpreted, "generate": generate}
        work = program[options.contestant](str(file(options, options.weights)), prompts, new)

    def run():
        work()
        return time.perf_counter()

    return run


def saved_model(path, prompts, new):
    """`generate` of a SavedModel."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    call = tf.saved_model.load(str(path)).signatures["generate"]
    inputs = {"token_ids": prompts, "padding_mask": np.ones_like(prompts, bool), **sampling(new)}
    inputs["num_return_sequences"] = np.array(1, "int32")
    inputs = {name: tf.constant(x) for name, x in inputs.items()}

    def work():
        check(call(**inputs)["lengths"].numpy(), new)

    return work


def sampling(new):
    """The inputs of `generate` beside the prompt: greedy."""
    integers = {"max_new_tokens": new, "top_k": 0, "seed": 0}
    floats = {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0}
    return {
        **{name: np.array(x, "int32") for name, x in integers.items()},
        **{name: np.array(x, "float32") for name, x in floats.items()},
        "stop_token_ids": np.array([-1], "int32"),
    }


def generate(path, prompts, new):
    """`generate` of a TFLite file."""
    from ai_edge_litert.interpreter import Interpreter

    call = Interpreter(path, num_threads=THREADS).get_signature_runner("generate")
    inputs = {"token_ids": prompts, **sampling(new), "row": np.array(0, "int32")}
    return lambda: check(call(**inputs)["lengths"], new)


def interpreted(path, prompts, new):
    """`prefill` and `decode` of a TFLite file, with caches of numpy."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=THREADS)
    prefill, step = (interpreter.get_signature_runner(name) for name in (f"prefill_{PROMPT}", "decode"))
    zeros = {name: np.zeros(x["shape"], x["dtype"]) for name, x in step.get_input_details().items()}

    def work():
        state = {name: x for name, x in zeros.items() if name not in ("tokens", "input_pos")}
        state = prefill(tokens=prompts, input_pos=np.arange(PROMPT, dtype="int32"), **state)
        token = prompts[:, -1:]
        for place in range(PROMPT - 1, PROMPT - 1 + new):
            outputs = step(tokens=token, input_pos=np.array([place], "int32"), **state)
            token = outputs.pop("logits")[:, -1].argmax(-1)[:, None].astype("int32")
            state = outputs

    return work


def compiled(path, prompts, new):
    """`prefill` and `decode` of a TFLite file by LiteRT's compiled model: new caches become the old ones uncopied."""
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator
    from ai_edge_litert.options import CpuOptions, Options

    from kerasllm.export.file_decoder import WEIGHT_CACHE

    cpu = CpuOptions(num_threads=THREADS, xnnpack_weight_cache_path=WEIGHT_CACHE)
    options = Options(HardwareAccelerator.CPU, cpu_options=cpu)
    model = CompiledModel.from_file(path, options=options)
    details = model.get_output_tensor_details("decode")
    caches = [name for name in details if name != "logits"]
    old, others = ({name: model.create_output_buffer_by_name("decode", name) for name in caches} for _ in range(2))
    logits = model.create_output_buffer_by_name("decode", "logits")
    zeros = {name: np.zeros(details[name]["shape"], "float32") for name in caches}
    vocabulary_size = details["logits"]["shape"][-1]
    own = {
        name: {key: model.create_input_buffer_by_name(name, key) for key in ("tokens", "input_pos")}
        for name in (f"prefill_{PROMPT}", "decode")
    }

    def run(name, tokens, places, old, new, outputs):
        own[name]["tokens"].write(tokens)
        own[name]["input_pos"].write(places)
        model.run_by_name(name, {**own[name], **old}, {**outputs, **new})
        return new, old

    def work():
        a, b = old, others
        for name in caches:
            a[name].write(zeros[name])
        a, b = run(f"prefill_{PROMPT}", prompts, np.arange(PROMPT, dtype="int32"), a, b, {})
        token = prompts[:, -1:]
        for place in range(PROMPT - 1, PROMPT - 1 + new):
            a, b = run("decode", token, np.array([place], "int32"), a, b, {"logits": logits})
            token = logits.read(vocabulary_size, np.float32).argmax().reshape(1, 1).astype("int32")

    return work


def check(lengths, new):
    """Raise unless the one prompt has got so many new tokens."""
    if list(lengths) != [new]:
        raise ValueError(f"lengths are {list(lengths)}, not {[new]}")


def read_options():
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backends", nargs="*", default=["jax", "tensorflow", "torch"], help="of Keras")
    parser.add_argument(
        "--programs", nargs="+", choices=[PEER, "keras", *PROGRAMS], default=[PEER, "keras", *PROGRAMS], help="rows"
    )
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("build/deploy"), help="of the files")
    parser.add_argument("--turns", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    for name in ("--export", "--contestant", "--weights"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    options = read_options()
    if options.export:
        export(options)
    elif options.contestant:
        take_turns(lambda: build(options))
    else:
        main(options)
