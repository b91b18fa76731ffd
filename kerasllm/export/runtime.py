"""Runs exported TFLite files from strings to strings: what an application ships beside them.

    runner = Runner("model.tflite")
    runner.generate("Once upon a time", max_new_tokens=40, temperature=0.8, seed=1)

It needs numpy and ai-edge-litert, tokenizers where texts are read or written, and jinja2 for chats; neither Keras nor
TensorFlow.
"""

import contextlib
import functools
import os
import threading

import numpy as np

from kerasllm import writing
from kerasllm.arguments import check_choice, check_positive, read_path
from kerasllm.checkpoints.generation_config import read_generation_config
from kerasllm.export import description
from kerasllm.export.file_decoder import FileDecoder
from kerasllm.export.messages import without_notes
from kerasllm.extras import required
from kerasllm.generation.config import GenerationConfig, named
from kerasllm.generation.sequences import Row, completion_limits, drawn_seed
from kerasllm.tasks.answering import Answering
from kerasllm.tasks.classification import Classification
from kerasllm.tasks.completing import (
    check_streamed,
    ends_and_writer,
    read_chats,
    read_prompts,
    read_sources,
    read_streamed,
    texts_of,
    with_text,
)
from kerasllm.tasks.embedding import Embedding
from kerasllm.tasks.mask_filling import MaskFilling
from kerasllm.tasks.tagging import Tagging

# What a call may say; the rest of a model's `generation_defaults` is a part of the file.
OPTIONS, SAMPLING, BEAMS = named("exported", "any"), named("exported", "text", "choice"), named("exported", "target")


class Runner:
    """A model that `model.export(path, format="litert")` has written.

    Its methods are those of the model, and give what they give: the same seed writes the same text. Those that the file
    has no functions for raise `ValueError`. Threads may share it: they compute in turns, each function call on all of
    `num_threads`; two texts that grow in turns are read anew at each turn, from where they differ.

    Args:
        path: of the `.tflite` file. `FILE.assets`, the folder that export wrote, must stand beside it.
        num_threads: how many threads compute. Default: as many as there are cores.

    Attributes:
        model: the name of the model's class.
        methods: the names of the methods that serve it.
        signatures: the file's functions, name -> {"inputs", "outputs"}, each name -> {"shape", "dtype"}; `run` calls
            one.
        settings: what else a program should know, such as `max_length`.
        generation_defaults: the `kerasllm.GenerationConfig` that decides what a call leaves open.
        end_token_ids: the ids that end a text, a set.

    Raises:
        ValueError: the file or its folder is missing or malformed, or the file is not what export wrote.
    """

    def __init__(self, path, num_threads=None):
        if num_threads is not None:
            check_positive("num_threads", num_threads)
        self.path, self.num_threads = read_path("path", path), int(num_threads or os.cpu_count() or 1)
        writing.settle(self.path.parent)
        if not self.path.is_file():
            raise ValueError(f"path ({str(path)!r}) must be a file.")
        self.folder = self.path.with_name(self.path.name + ".assets")
        self.model, self.settings, self.signatures = description.read(self.folder, self.path)
        values, end_ids = read_generation_config(self.folder)
        self.generation_defaults = GenerationConfig(**values)
        self.end_token_ids = {*self.settings.get("end_token_ids", ()), *(end_ids or ())}
        self.methods, self._tokenizers = self._methods(), {}
        self._lock = threading.RLock()  # LiteRT computes for one thread at a time

    def _methods(self):
        if "task" in self.settings:
            return (self.settings["task"],) if "forward" in self.signatures else ()
        if "start_token_id" in self.settings:
            return ("translate", "summarize") if {"translate", "translate_beams"} & set(self.signatures) else ()
        if "decode" in self.signatures:
            return ("generate", "chat", "stream")
        return ("generate", "chat") if "generate" in self.signatures else ()

    def run(self, function, **inputs):
        """Call one of the file's functions.

        Args:
            function: its name, one of `signatures`.
            **inputs: arrays, or what numpy makes arrays of.

        Returns:
            A dict of arrays.
        """
        described = self._described(function)["inputs"]
        if set(inputs) != set(described):
            raise ValueError(f"inputs ({', '.join(inputs)}) of {function} must be {', '.join(described)}.")
        arrays = {name: np.asarray(x, described[name]["dtype"]) for name, x in inputs.items()}
        for name, x in arrays.items():
            shape = described[name]["shape"]
            if x.ndim != len(shape) or any(size not in (None, n) for size, n in zip(shape, x.shape, strict=True)):
                raise ValueError(
                    f"{name} {x.shape} must have the shape {tuple(shape)} in {function}; None is any size."
                )
            if not x.size and name != "stop_token_ids":
                raise ValueError(f"{name} {x.shape} must not be empty.")
        with self._lock, contextlib.nullcontext() if "_interpreter" in vars(self) else without_notes():
            return self._interpreter.get_signature_runner(function)(**arrays)

    # Language models

    def generate(self, prompts, config=None, **overrides):
        """Continue prompts.

        Args:
            prompts: as for `LanguageModel.generate` of Keras: a string or a list of strings; lists of ids; an int array
                (B, P); or a mapping of `token_ids` and `padding_mask`.
            config: a `kerasllm.GenerationConfig`. What it leaves at its default, the model's own defaults decide.
            **overrides: fields of it: `max_new_tokens` or `max_length`, `temperature`, `top_k`, `top_p`,
                `repetition_penalty`, `stop`, `seed`, `num_return_sequences`, `strip_prompt`.

        Returns:
            As `LanguageModel.generate`: the prompts with their continuations, in the form they came in; with
            `num_return_sequences` n > 1 each is a list of n.
        """
        completer = self._completer("generate")
        config = self._merged(config, overrides, OPTIONS + SAMPLING)
        ids, results_of = read_prompts(completer, prompts, config.strip_prompt)
        return results_of(completer.complete(ids, config), config.num_return_sequences)

    def chat(self, messages, config=None, **overrides):
        """Answer a chat, a list of dicts with strings `role` and `content`, or a list of such lists.

        The rest is as for `generate`. Among `overrides` may be arguments of `Tokenizer.apply_chat_template`, such as
        `tools`, and variables of the template. What a chat has in common with the one before is not read again.
        """
        completer = self._completer("chat")
        overrides["strip_prompt"] = True
        ids, unlist = read_chats(completer, messages, overrides)
        config = self._merged(config, overrides, OPTIONS + SAMPLING)
        return unlist(texts_of(completer.complete(ids, config), config.num_return_sequences))

    def stream(self, prompt, config=None, **overrides):
        """Continue a prompt, a string, or answer a chat, and yield the text in pieces as it is made.

        A piece holds whole characters. Joined, the pieces are what `generate` returns with `strip_prompt=True`.
        """
        completer = self._completer("stream")
        ids = read_streamed(completer, prompt, overrides)
        return completer.stream_text(ids, self._merged(config, overrides, OPTIONS + SAMPLING))

    # Translators

    def translate(self, texts, config=None, **overrides):
        """Translate texts.

        Args:
            texts: a string or a list of strings.
            config: a `kerasllm.GenerationConfig`. What it leaves at its default, the model's own defaults decide.
            **overrides: fields of it: `max_new_tokens` or `max_length`, `length_penalty`, and `num_beams`, 1 or the
                number that the file was exported with.

        Returns:
            The translation, or a list of them.
        """
        completer = self._completer("translate", "target_")
        sources, unlist = read_sources(completer, "texts", texts)
        config = self._merged(config, overrides, OPTIONS + BEAMS)
        return unlist(texts_of(completer.translate(sources, config), 1))

    def summarize(self, texts, config=None, **overrides):
        """Summarise texts: `translate` by the word for models that were taught to."""
        return self.translate(texts, config, **overrides)

    # Heads of BERT

    def fill_mask(self, texts, top_k=5):
        """Propose tokens for the masks in texts, as `BERTMaskedLM.fill_mask`."""
        return self._head("fill_mask").fill_mask(texts, top_k, verbose=False)

    def classify(self, texts, pairs=None, top_k=1, truncate=False, stride=None):
        """Say which labels texts have, as `BERTClassifier.classify`."""
        return self._head("classify").classify(texts, pairs, top_k, truncate=truncate, verbose=False, stride=stride)

    def tag(self, texts, aggregation="simple", stride=None):
        """Find the entities in texts, as `BERTTokenClassifier.tag`."""
        return self._head("tag").tag(texts, aggregation, verbose=False, stride=stride)

    def answer(self, question, context, top_k=1, max_answer_length=30, stride=128, allow_no_answer=False):
        """Find the answer to a question in a context, as `BERTQuestionAnswerer.answer`."""
        options = (top_k, max_answer_length, stride, allow_no_answer)
        return self._head("answer").answer(question, context, *options, verbose=False)

    def embed(self, texts, truncate=False, stride=None):
        """The vectors of texts, as `BERTEmbedder.embed`."""
        return self._head("embed").embed(texts, truncate=truncate, verbose=False, stride=stride)

    def _head(self, method):
        self._check(method)
        return _Head(self)

    # What they share

    def _completer(self, method, prefix=""):
        self._check(method)
        return _Completer(self, prefix)

    @property
    def tokenizer(self):
        """The model's `kerasllm.Tokenizer`; `ValueError` where the folder has none."""
        return self._tokenizer("")

    def _tokenizer(self, prefix):
        if prefix not in self._tokenizers:
            from kerasllm.text.tokenizers import Tokenizer

            self._tokenizers[prefix] = Tokenizer.from_folder(self.folder, prefix)
        return self._tokenizers[prefix]

    @functools.cached_property
    def _interpreter(self):
        litert = required("ai_edge_litert.interpreter", "Runner")
        interpreter = litert.Interpreter(str(self.path), num_threads=self.num_threads)
        functions = interpreter.get_signature_list()
        for name in self.signatures:
            if name not in functions:
                raise ValueError(f"{self.path} has no function {name!r}, and {description.NAME} beside it has.")
        return interpreter

    @functools.cached_property
    def _steps(self):
        return FileDecoder(self.path, self.signatures, self.settings["max_length"], self.num_threads)

    def _check(self, method):
        if method not in self.methods:
            others = f"it can {', '.join(self.methods)}" if self.methods else "it has no function for a method"
            raise ValueError(
                f"{self.path.name}, a {self.model} with {', '.join(self.signatures)}, cannot {method}: {others}."
            )

    def _described(self, function):
        check_choice("function", function, self.signatures)
        return self.signatures[function]

    def _merged(self, config, overrides, accepted):
        """The `GenerationConfig` of a call, which says only what it may."""
        defaults = self.generation_defaults
        merged = GenerationConfig.merged(config, defaults=defaults, **overrides)
        inside = defaults.given()
        wrong = [name for name, value in merged.given().items() if name not in accepted and inside.get(name) != value]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot be chosen in an exported file; {', '.join(accepted)} can.")
        return merged


class _Completer:
    """A file as `kerasllm.tasks.completing` sees a model that writes.

    Args:
        runner: a `Runner`.
        prefix: of the files of the tokenizer that writes.
    """

    def __init__(self, runner, prefix):
        self.runner, self.settings, self.prefix = runner, runner.settings, prefix
        self.generation_defaults, self.end_token_ids = runner.generation_defaults, runner.end_token_ids

    @property
    def output_vocabulary_size(self):
        """The number of symbols that may be written, as far as the file says it."""
        return self.settings.get("vocabulary_size") or self.required_output_tokenizer().vocabulary_size

    @property
    def output_tokenizer(self):
        """The tokenizer, where a text has asked for it: ids alone need none."""
        return self.runner._tokenizers.get(self.prefix)

    def required_output_tokenizer(self):
        """The tokenizer that writes, or a `ValueError`."""
        return self.runner._tokenizer(self.prefix)

    def required_tokenizer(self, name="tokenizer"):
        """The tokenizer `name`, or a `ValueError`."""
        return self.runner._tokenizer(name.removesuffix("tokenizer"))

    def token_id(self, role):
        """The id of a role, or None."""
        return self.settings.get(f"{role}_token_id")

    def complete(self, prompts, config):
        """For each list of ids a list of `num_return_sequences` `Generation`s."""
        config = config.limited(max(map(len, prompts)), self.settings["max_length"])
        limits, seed = completion_limits(prompts, config), drawn_seed(config)
        *_, writer = ends_and_writer(self, config)
        results = []
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            results.append([])
            for number in range(config.num_return_sequences):
                *_, row = self._growth(Row(prompt, limit), config, _seed_of(seed, index), number)
                results[-1].append(with_text(row.generation(scores=False), writer, config.strip_prompt))
        return results

    def stream_text(self, prompt, config):
        """The text of the completion of a list of ids, in pieces."""
        check_streamed(config)
        config = config.limited(len(prompt), self.settings["max_length"])
        row = Row(prompt, completion_limits([prompt], config)[0])
        *_, writer = ends_and_writer(self, config)
        growth = self._growth(row, config, _seed_of(drawn_seed(config), 0), 0)
        return writer.pieces(prompt, ((row.ids, row.finish_reason is not None) for row in growth))

    def translate(self, sources, config):
        """For each list of source ids a list of one `Generation`."""
        config = config.limited(1, self.settings["max_length"])
        start = [self.settings["start_token_id"]]
        [limit] = completion_limits([start], config)
        function, options = "translate", {"max_new_tokens": limit}
        if config.num_beams > 1:
            function, options["length_penalty"] = "translate_beams", config.length_penalty
            if config.num_beams != self.settings["num_beams"]:
                raise ValueError(
                    f"num_beams ({config.num_beams}) must be 1 or what the file was exported with, "
                    f"{self.settings['num_beams']}."
                )
        end_ids, _, writer = ends_and_writer(self, config)
        results = []
        for source in sources:
            mask = np.ones((1, len(source)), bool)
            outputs = self.runner.run(function, source_token_ids=[source], source_padding_mask=mask, **options)
            row = Row(start, limit)
            row.extend(_completion(outputs), np.zeros(limit), end_ids, None)
            results.append([with_text(row.generation(scores=False), writer, config.strip_prompt)])
        return results

    def _growth(self, row, config, seed, number):
        """Yield a `Row`, sequence `number` of its prompt, as it grows."""
        end_ids, find_stop, _ = ends_and_writer(self, config)
        sampling = {**sampling_inputs(config), "seed": seed, "row": number}
        # Whatever else the model's defaults say is a part of `sample` and of `generate`.
        is_plain = set(self.generation_defaults.given()) <= {*OPTIONS, *SAMPLING}
        is_greedy = is_plain and sampling["temperature"] == 0 and sampling["repetition_penalty"] == 1
        if "decode" in self.runner.signatures and (is_greedy or "sample" in self.runner.signatures):
            chosen = self._steps(row, None if is_greedy else sampling)
        else:
            self.runner._described("generate")
            inputs = {"max_new_tokens": row.limit, "stop_token_ids": sorted(set(end_ids)), **sampling}
            chosen = [_completion(self.runner.run("generate", token_ids=[row.prompt], **inputs))]
        for ids in chosen:
            row.extend(ids, np.zeros(len(ids)), end_ids, find_stop)
            yield row

    def _steps(self, row, sampling):
        """Yield token after token (1,) of a `Row`, the most probable ones without `sampling`; -1 for logits of NaN."""
        while row.finish_reason is None:
            token_ids = row.prompt + row.ids
            with self.runner._lock:
                logits = self.runner._steps.after(token_ids)
            if np.isnan(logits).any():
                yield np.array([-1])
            elif sampling is None:
                yield np.array([logits.argmax()])
            else:
                history = np.full((1, self.settings["max_length"]), -1, "int32")
                history[0, : len(token_ids)] = token_ids
                inputs = {"logits": logits[None], "token_ids": history, "count": len(row.ids), **sampling}
                yield self.runner.run("sample", **inputs)["token_ids"]


class _Head(MaskFilling, Classification, Tagging, Answering, Embedding):
    """A file as `kerasllm.tasks` sees a model."""

    def __init__(self, runner):
        self.runner, self.tokenizer, settings = runner, runner.tokenizer, runner.settings
        self.input = runner.signatures["forward"]["inputs"]
        self.arguments = {
            "max_sequence_length": self.input["token_ids"]["shape"][1] or settings["max_length"],
            **({"vocabulary_size": self._num_scores()} if "fill_mask" in runner.methods else {}),
            **{name: settings.get(name) for name in ("labels", "problem_type", "truncate_at")},
            **{name: settings.get(name) for name in ("prompts", "default_prompt_name", "normalize")},
        }

    def _num_scores(self):
        return self.runner.signatures["forward"]["outputs"]["logits"]["shape"][-1]

    def required_tokenizer(self):
        """The tokenizer."""
        return self.tokenizer

    def outputs_function(self):
        """The function from arrays, the inputs of `forward`, to its outputs."""
        return self._outputs_of

    def each_batch(self, work, batches, rows):
        """What a function makes of each batch."""
        return [work(batch) for batch in batches]

    def _outputs_of(self, inputs):
        """The outputs of `forward`; where its sizes are fixed, inputs are filled up to them."""
        count, size = len(inputs["token_ids"]), self.input["token_ids"]["shape"][0] or len(inputs["token_ids"])
        parts = [self._predict({name: x[i : i + size] for name, x in inputs.items()}) for i in range(0, count, size)]
        outputs = {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
        return outputs["logits"] if set(outputs) == {"logits"} else outputs

    def _predict(self, inputs):
        for name, x in inputs.items():
            shape = [size or length for size, length in zip(self.input[name]["shape"], x.shape, strict=True)]
            inputs[name] = np.pad(x, [(0, size - length) for size, length in zip(shape, x.shape, strict=True)])
        return self.runner.run("forward", **inputs)


def sampling_inputs(config):
    """What a `GenerationConfig` says of how tokens are chosen, as inputs of a file's functions."""
    temperature = 1.0 if config.temperature is None else config.temperature
    return {
        "temperature": float(temperature) if config.sampling else 0.0,
        "top_k": config.top_k or 0,
        "top_p": 1.0 if config.top_p is None else float(config.top_p),
        "repetition_penalty": float(config.repetition_penalty or 1.0),
    }


def _completion(outputs):
    """The ids that a function has written."""
    return outputs["token_ids"][0, : outputs["lengths"][0]]


def _seed_of(seed, prompt_index):
    """The seed with which a file, to which each prompt is the first, draws what Keras draws for a later one."""
    bits = seed ^ (prompt_index * -1640531535 & 0xFFFFFFFF)  # as in kerasllm.generation.samplers.uniform
    return bits - 2**32 if bits >= 2**31 else bits
