"""Decoding step by step with an exported TFLite file, whose state stays where LiteRT has it."""

import os
import weakref

import numpy as np

from kerasllm.export import description
from kerasllm.export.messages import end_in_silence, without_notes
from kerasllm.extras import required

# One copy of the weights in the order that kernels want serves all functions, instead of a copy for each: a path that
# stands for memory. https://github.com/google-ai-edge/LiteRT/blob/main/tflite/delegates/xnnpack/xnnpack_delegate.h
WEIGHT_CACHE = ":memory" if hasattr(os, "memfd_create") else ""


class FileDecoder:
    """The functions `prefill_N` and `decode` of a language model's file, for one thread at a time.

    The state is written into one set of LiteRT's buffers and read from another, which then change places: it is never
    copied to numpy, which would take as long as a step.

    Args:
        path: of the file.
        signatures: its functions, as `signatures.json` describes them.
        max_length: the slots of its caches.
        num_threads: how many threads compute.

    Raises:
        ValueError: the file was exported for more than one row.
    """

    def __init__(self, path, signatures, max_length, num_threads):
        litert = required("ai_edge_litert.compiled_model", "Runner")
        inputs, outputs = signatures["decode"]["inputs"], signatures["decode"]["outputs"]
        rows = inputs["tokens"]["shape"][0]
        if rows != 1:
            raise ValueError(f"batch_size ({rows}) of {path.name} must be 1 for text to be generated.")
        cpu = litert.CpuOptions(num_threads=num_threads, xnnpack_weight_cache_path=WEIGHT_CACHE)
        options = litert.Options(litert.HardwareAccelerator.CPU, cpu_options=cpu)
        self.max_length = max_length
        self.shapes = {name: tuple(x["shape"]) for name, x in inputs.items() if name not in ("tokens", "input_pos")}
        # Old slots of caches are not looked at before they are written anew; a recurrent state has no slots.
        self.rewinds = all(name.startswith("kv_cache_") for name in self.shapes)
        self.prefill_lengths = sorted(int(name[8:]) for name in signatures if name.startswith("prefill_"))
        self.vocabulary_size = outputs["logits"]["shape"][-1]
        self.inputs, self.token_ids, self.is_whole = {}, [], True
        with without_notes():
            self.model = litert.CompiledModel.from_file(str(path), options=options)
            for name in ["decode", *(f"prefill_{n}" for n in self.prefill_lengths)]:
                found = self.model.get_input_tensor_details(name)
                description.compare(path, name, signatures[name], {key: x["shape"] for key, x in found.items()})
            makers = (self.model.create_input_buffer_by_name, self.model.create_output_buffer_by_name)
            self.states = [{name: make("decode", name) for name in self.shapes} for make in makers]  # read, written
            self.logits = self.model.create_output_buffer_by_name("decode", "logits")
            self.logits.read(self.vocabulary_size, np.float32)  # LiteRT makes the last of what it needs
            end_in_silence()
        weakref.finalize(self, _let_go, vars(self))

    def after(self, token_ids):
        """The logits (V,) of what follows a list of ids.

        What it has in common with the list of the call before is not read again.
        """
        # A call that is interrupted, by Ctrl-C too, leaves a state that may be of other tokens than it says.
        is_whole, self.is_whole = self.is_whole, False
        known = min(_common(token_ids, self.token_ids), len(token_ids) - 1) if is_whole else 0
        if known < len(self.token_ids) and not self.rewinds:
            known = 0
        if known == 0:
            for name, shape in self.shapes.items():
                self.states[0][name].write(np.zeros(shape, "float32"))
        del self.token_ids[known:]
        while (rest := len(token_ids) - 1 - len(self.token_ids)) > 0:
            length = self._prefill_length(rest)
            chunk = token_ids[len(self.token_ids) :][: min(length or 1, rest)]
            self._run(f"prefill_{length}" if length else "decode", chunk, length or 1)
        self._run("decode", token_ids[-1:], 1)
        self.is_whole = True
        return self.logits.read(self.vocabulary_size, np.float32)

    def _prefill_length(self, rest):
        """How many tokens to read at once of `rest`, or None for one token.

        The least that holds all, unless half of it would be empty; else the most that they fill.
        """
        fitting = [n for n in self.prefill_lengths if len(self.token_ids) + n <= self.max_length]
        whole = [n for n in fitting if n >= rest and (n < 2 * rest or n == fitting[0])]
        return min(whole, default=max((n for n in fitting if n <= rest), default=None))

    def _run(self, function, token_ids, length):
        """Read tokens, filled up to `length`."""
        start = len(self.token_ids)
        if function not in self.inputs:
            names = ("tokens", "input_pos")
            self.inputs[function] = {n: self.model.create_input_buffer_by_name(function, n) for n in names}
        inputs = self.inputs[function]
        inputs["tokens"].write(np.pad(np.array(token_ids, "int32"), (0, length - len(token_ids))))
        inputs["input_pos"].write(np.arange(start, start + length, dtype="int32"))
        logits = {"logits": self.logits} if function == "decode" else {}
        state, next_state = self.states
        self.model.run_by_name(function, {**inputs, **state}, {**logits, **next_state})
        self.states = [next_state, state]
        self.token_ids += token_ids


def _let_go(attributes):
    """Give up what LiteRT has made, of which it writes too."""
    with without_notes():
        attributes.clear()


def _common(one, other):
    """How many ids two lists begin with alike."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])
