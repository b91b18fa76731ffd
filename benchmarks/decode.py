"""Generation with kerasllm beside KerasHub and transformers, in one table from one run.

python benchmarks/decode.py                                        # every backend, everything
python benchmarks/decode.py torch jax --batch 1 --methods greedy   # some

A GPT-2 of 124 million random weights in float32 continues 32 tokens by exactly 128: nothing ends early. Beside it the
memory bound: each step reads every weight once, so no program is faster than the machine reads them. Beams, the
translators, streams and int8 weights are ours only; beams, streams and int8 stand beside transformers in float32.

The contestants of a group are processes that take turns. A time is the median of its turns; a ratio is the median, over
the turns, of the peer's time divided by that of the row: above 1 the row is faster. Memory is the most that was
resident in the process, libraries and compilation included.
"""

import argparse
import statistics
import time

import numpy as np
from turns import Contestant, ratio, take_turns

GPT2 = {"vocabulary_size": 50257, "num_layers": 12, "num_heads": 12, "hidden_dim": 768, "max_sequence_length": 1024}
TINY = {"vocabulary_size": 500, "num_layers": 2, "num_heads": 2, "hidden_dim": 64, "max_sequence_length": 1024}
PROMPT, NEW, TINY_NEW = 32, 128, 8
TOP_P, TEMPERATURE, BEAMS = 0.9, 0.8, 4
READ_BYTES = 512 * 2**20
# The translators: symbols a side, width, source tokens, new tokens, sentences.
SYMBOLS, WIDTH, SOURCE, TARGET, SENTENCES = 3000, 256, 12, 12, 32

# Method: its peers.
METHODS = {
    "greedy": ("transformers", "keras_hub"),
    "top_p": ("transformers", "keras_hub"),
    "stream": ("transformers",),
    "beam": ("transformers",),
    "int8": ("transformers",),
    "lstm_translator": (),
    "transformer_translator": (),
}
BACKENDS = ("jax", "tensorflow", "torch")


def main(options):
    """Print the table."""
    print("| method | batch | program | backend | tokens/s | × transformers | × KerasHub | peak GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    bandwidth = read_bandwidth(options)
    weights = bytes_per_step(**(TINY if options.tiny else GPT2))
    for batch in options.batch:
        limit = f"{weights / 1e9:.3f} GB at {bandwidth / 1e9:.1f} GB/s"
        print_row("any", batch, "memory bound", limit, f"{batch * bandwidth / weights:.1f}", "", "", "")
    for method, batch in groups(options):
        for backend in ["torch"] if method == "int8" else options.backends:
            for row in compare(method, batch, backend, options):
                print_row(*row)


def groups(options):
    """The pairs of method and batch."""
    for method in options.methods:
        if method in ("greedy", "top_p"):
            yield from ((method, batch) for batch in options.batch)
        elif method != "int8" or "torch" in options.backends:
            yield method, SENTENCES if method.endswith("translator") else 1


def compare(method, batch, backend, options):
    """One row for each contestant."""
    contestants, reasons = {}, {}
    for name in ("kerasllm", *METHODS[method]):
        fixed = "torch" if name == "transformers" else backend
        try:
            contestants[name] = fixed, start(fixed, name, method, batch, options)
        except RuntimeError as error:
            reasons[name] = fixed, str(error).replace("|", "/")
    for _ in range(options.turns):
        for _, contestant in contestants.values():
            contestant.turn()
    memory = {name: contestant.peak_memory() for name, (_, contestant) in contestants.items()}
    for _, contestant in contestants.values():
        contestant.close()
    for name, (fixed, contestant) in contestants.items():
        ratios = [
            f"{ratio(contestant, contestants[peer][1]):.2f}" if peer in contestants and peer != name else ""
            for peer in ("transformers", "keras_hub")
        ]
        speed = speed_of(method, batch, statistics.median(contestant.times), options)
        yield [method, batch, name, fixed, speed, *ratios, f"{memory[name] / 1e9:.2f}"]
    for name, (fixed, reason) in reasons.items():
        yield [method, batch, name, fixed, reason, "", "", ""]


def speed_of(method, batch, seconds, options):
    """What is done in a second, as the table says it."""
    if method.endswith("translator"):
        return f"{batch / seconds:.0f} sentences/s"
    return f"{batch * (TINY_NEW if options.tiny else NEW) / seconds:.1f}"


def start(backend, name, method, batch, options):
    """A `Contestant`: this script in a process of its own."""
    tiny = ["--tiny"] if options.tiny else []
    return Contestant(backend, __file__, "--contestant", name, "--methods", method, "--batch", batch, *tiny)


def read_bandwidth(options):
    """Bytes a second, the best of 20 turns."""
    contestant = start("torch", "bandwidth", "greedy", 1, options)
    for _ in range(20):
        contestant.turn()
    contestant.close()
    return READ_BYTES / min(contestant.times)


def bytes_per_step(vocabulary_size, num_layers, num_heads, hidden_dim, max_sequence_length):
    """Bytes of float32 weights that one step reads: all but the positions, of which it reads one."""
    d = hidden_dim
    block = 12 * d * d + 13 * d  # four matrices with biases, two norms
    return 4 * (vocabulary_size * d + d + num_layers * block + 2 * d)


def print_row(*cells):
    """Print a row of a Markdown table."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


# What follows runs in the children: each function returns one that does the work once.


def build(name, method, batch, tiny):
    """A function that does the work of a contestant once and says when it ended."""
    sizes, new = (TINY, TINY_NEW) if tiny else (GPT2, NEW)
    prompts = np.random.default_rng(0).integers(0, sizes["vocabulary_size"], (batch, PROMPT)).astype("int32")
    if name == "bandwidth":
        work = bandwidth()
    elif method.endswith("translator"):
        work = translator(method, batch)
    else:
        program = {"kerasllm": kerasllm, "keras_hub": keras_hub, "transformers": transformers}[name]
        work = program(sizes, method, prompts, new)

    def run():
        work()
        return time.perf_counter()

    return run


def kerasllm(sizes, method, prompts, new):
    """Our GPT by a method."""
    from kerasllm import GPT

    model = GPT.from_size("small", **sizes, dropout=0.0)
    if method == "int8":
        model.quantize("int8")
    arguments = {
        "top_p": {"top_p": TOP_P, "temperature": TEMPERATURE, "seed": 1},
        "beam": {"num_beams": BEAMS},
    }.get(method, {})

    def work():
        check_length(model.generate(prompts, max_new_tokens=new, **arguments), prompts, new)

    def stream():
        pieces = model.stream(prompt, max_new_tokens=new)
        check_length(np.array([f"{prompt} {''.join(pieces)}".split()]), prompts, new)

    if method != "stream":
        return work
    model.tokenizer = number_tokenizer(sizes["vocabulary_size"])
    prompt = model.tokenizer.decode(prompts[0])
    return stream


def number_tokenizer(vocabulary_size):
    """The ids, written as numbers."""
    import tokenizers

    from kerasllm.text import Tokenizer

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(vocabulary_size)}, "0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(words)


def keras_hub(sizes, method, prompts, new):
    """KerasHub's GPT-2."""
    from keras_hub import models, samplers

    backbone = models.GPT2Backbone(**sizes, intermediate_dim=4 * sizes["hidden_dim"], dropout=0.0)
    model = models.GPT2CausalLM(backbone=backbone, preprocessor=None)
    model.compile(
        sampler="greedy" if method == "greedy" else samplers.TopPSampler(TOP_P, seed=1, temperature=TEMPERATURE)
    )
    # Without a preprocessor the inputs have the length of the outputs.
    room = ((0, 0), (0, new))
    inputs = {"token_ids": np.pad(prompts, room), "padding_mask": np.pad(np.ones_like(prompts), room)}

    def work():
        check_length(model.generate(inputs, stop_token_ids=None)["token_ids"], prompts, new)

    return work


def transformers(sizes, method, prompts, new):
    """Hugging Face's GPT-2."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=sizes["vocabulary_size"],
        n_positions=sizes["max_sequence_length"],
        n_embd=sizes["hidden_dim"],
        n_layer=sizes["num_layers"],
        n_head=sizes["num_heads"],
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    arguments = {
        "top_p": {"do_sample": True, "top_p": TOP_P, "top_k": 0, "temperature": TEMPERATURE},
        "beam": {"do_sample": False, "num_beams": BEAMS},
    }.get(method, {"do_sample": False})
    token_ids = torch.tensor(prompts).long()
    inputs = {"input_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}

    def work():
        with torch.inference_mode():
            check_length(model.generate(**inputs, max_new_tokens=new, **arguments), prompts, new)

    return work


def translator(method, batch):
    """Our translators."""
    from kerasllm import LSTMTranslator, TransformerTranslator

    if method == "lstm_translator":
        model = LSTMTranslator(SYMBOLS, SYMBOLS, hidden_dim=WIDTH)
    else:
        model = TransformerTranslator(SYMBOLS, SYMBOLS, num_layers=3, num_heads=4, hidden_dim=WIDTH)
    sources = np.random.default_rng(0).integers(1, SYMBOLS, (batch, SOURCE)).tolist()
    prompts = [[1]] * batch

    def work():
        check_length(
            np.array(model.generate(sources, prompts=prompts, max_new_tokens=TARGET)), np.array(prompts), TARGET
        )

    return work


def bandwidth():
    """A sum of numbers, which reads them once."""
    import torch

    numbers = torch.ones(READ_BYTES // 4)
    return numbers.sum


def check_length(outputs, prompts, new):
    """Raise unless each prompt has got so many new tokens."""
    expected = (prompts.shape[0], prompts.shape[1] + new)
    if tuple(outputs.shape) != expected:
        raise ValueError(f"outputs are {tuple(outputs.shape)}, not {expected}")


def read_options():
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("backends", nargs="*", default=list(BACKENDS), help="of jax, tensorflow, torch")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="batch sizes of greedy and top_p")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what is timed")
    parser.add_argument("--turns", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.backends) - set(BACKENDS):
        parser.error(f"unknown backends: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    options = read_options()
    if options.contestant:
        take_turns(lambda: build(options.contestant, options.methods[0], options.batch[0], options.tiny))
    else:
        main(options)
