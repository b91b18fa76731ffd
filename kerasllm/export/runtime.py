"""Runs exported TFLite files from strings to strings: what an application ships beside them.

    runner = Runner("model.tflite")
    runner.generate("Once upon a time", max_new_tokens=40, temperature=0.8, seed=1)

It needs numpy and ai-edge-litert, tokenizers where texts are read or written, and jinja2 for chats; neither Keras nor
TensorFlow.
"""

import contextlib
import dataclasses
import functools
import os
import threading

import numpy as np

from kerasllm import writing
from kerasllm.arguments import NAN_REASON, check_choice, check_positive, check_text, read_path, read_texts, shown
from kerasllm.checkpoints.generation_config import read_generation_config
from kerasllm.export import description
from kerasllm.export.messages import without_notes
from kerasllm.export.steps import Steps
from kerasllm.extras import required
from kerasllm.generation.config import GenerationConfig
from kerasllm.tasks.answering import Answering
from kerasllm.tasks.classification import Classification
from kerasllm.tasks.embedding import Embedding
from kerasllm.tasks.mask_filling import MaskFilling
from kerasllm.tasks.tagging import Tagging
from kerasllm.text import batches
from kerasllm.text.completions import CompletionWriter

# What a call may say; the rest of a model's `generation_defaults` is a part of the file.
OPTIONS = ("max_length", "max_new_tokens", "strip_prompt")
SAMPLING = ("num_return_sequences", "temperature", "top_k", "top_p", "repetition_penalty", "stop", "seed")
BEAMS = ("num_beams", "length_penalty")


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
            prompts: a string, a list of strings, or a list of lists of ids.
            config: a `kerasllm.GenerationConfig`. What it leaves at its default, the model's own defaults decide.
            **overrides: fields of it: `max_new_tokens` or `max_length`, `temperature`, `top_k`, `top_p`,
                `repetition_penalty`, `stop`, `seed`, `num_return_sequences`, `strip_prompt`.

        Returns:
            As `LanguageModel.generate` of Keras: the prompts with their continuations, in the form they came in; with
            `num_return_sequences` n > 1 each is a list of n.
        """
        self._check("generate")
        config = self._merged(config, overrides, OPTIONS + SAMPLING)
        rows, texts, unlist = self._read_prompts(prompts)
        return unlist(self._complete(rows, config, texts))

    def chat(self, messages, config=None, **overrides):
        """Answer a chat: a list of dicts with strings `role` and `content`. The rest is as for `generate`.

        Among `overrides` may be arguments of `Tokenizer.apply_chat_template`, such as `tools`, and variables of the
        template. What the chat has in common with the one before is not read again.
        """
        self._check("chat")
        template = self.tokenizer.take_chat_arguments(overrides, GenerationConfig.__dataclass_fields__)
        config = self._merged(config, overrides | {"strip_prompt": True}, OPTIONS + SAMPLING)
        return self._complete([self.tokenizer.encode_chat(messages, **template)], config, True)[0]

    def stream(self, prompt, config=None, **overrides):
        """Continue a prompt, a string, or answer a chat, and yield the text in pieces as it is made.

        A piece holds whole characters. Joined, the pieces are what `generate` returns with `strip_prompt=True`.
        """
        self._check("stream")
        is_chat = isinstance(prompt, list | tuple) and prompt and all(isinstance(m, dict) for m in prompt)
        if is_chat:
            template = self.tokenizer.take_chat_arguments(overrides, GenerationConfig.__dataclass_fields__)
        config = self._merged(config, overrides, OPTIONS + SAMPLING)
        if config.num_return_sequences > 1:
            raise ValueError(f"num_return_sequences ({config.num_return_sequences}) must be 1 in a stream.")
        if not isinstance(prompt, str) and not is_chat:
            raise ValueError(f"prompt ({shown(prompt)}) must be a string or the messages of a chat.")
        ids = self.tokenizer.encode_chat(prompt, **template) if is_chat else self._read_prompts(prompt)[0][0]
        config = config.limited(len(ids), self.settings["max_length"])
        end_ids, writer = self._ends(config, self.tokenizer)
        growth = self._grow(ids, config, end_ids, writer, 0, 0)
        return writer.pieces(ids, ((_without_end(completion, end_ids), done) for completion, done in growth))

    def _complete(self, prompts, config, as_texts):
        """For each list of ids a list of completions, or one."""
        config = config.limited(max(map(len, prompts)), self.settings["max_length"])
        if config.seed is None:
            # As Keras draws it.
            config = dataclasses.replace(config, seed=int(np.random.randint(2**32, dtype="uint32")))
        has_strings = any(isinstance(stop, str) for stop in config.stop)
        end_ids, writer = self._ends(config, self.tokenizer if as_texts or has_strings else None)
        results = []
        for index, prompt in enumerate(prompts):
            if config.max_length is not None and len(prompt) >= config.max_length:
                raise ValueError(
                    f"max_length ({config.max_length}) must be greater than prompts[{index}]'s {len(prompt)}."
                )
            completions = []
            for row in range(config.num_return_sequences):
                *_, (ids, _) = self._grow(prompt, config, end_ids, writer, index, row)
                if as_texts:
                    before = "" if config.strip_prompt else writer.write_prompt(prompt)
                    completions.append(before + writer.write(prompt, _without_end(ids, end_ids)))
                else:
                    completions.append(ids if config.strip_prompt else prompt + ids)
            results.append(completions if config.num_return_sequences > 1 else completions[0])
        return results

    def _grow(self, prompt, config, end_ids, writer, prompt_index, row):
        """Yield the ids of a completion while it grows, and whether it is finished."""
        limit = config.max_new_tokens or config.max_length - len(prompt)
        sampling = self._sampling(config, prompt_index, row)
        # Whatever else the model's defaults say is a part of `sample` and of `generate`.
        is_plain = set(self.generation_defaults.given()) <= {*OPTIONS, *SAMPLING}
        is_greedy = is_plain and sampling["temperature"] == 0 and sampling["repetition_penalty"] == 1
        ids = []
        if "decode" in self.signatures and (is_greedy or "sample" in self.signatures):
            chosen = self._steps_taken(prompt, ids, limit, None if is_greedy else sampling)
        else:
            self._described("generate")
            inputs = {"token_ids": [prompt], "max_new_tokens": limit, "stop_token_ids": sorted(end_ids), **sampling}
            outputs = self.run("generate", **inputs)
            chosen = outputs["token_ids"][0, : outputs["lengths"][0]].tolist()
        for token in chosen:
            if token < 0:
                raise FloatingPointError(
                    f"The model's logits are NaN after {len(prompt) + len(ids)} tokens: {NAN_REASON}."
                )
            ids.append(token)
            length = writer and writer.stop and writer.find_stop(prompt, ids, len(ids) - 1)
            done = bool(length) or token in end_ids or len(ids) == limit
            yield ids[: length or None], done
            if done:
                return

    def _steps_taken(self, prompt, ids, limit, sampling):
        """Yield token after token, the most probable ones without `sampling`; `ids` are those that were taken."""
        while len(ids) < limit:
            with self._lock:
                logits = self._steps.after(prompt + ids)
            if np.isnan(logits).any():
                yield -1
            elif sampling is None:
                yield int(logits.argmax())
            else:
                history = np.full((1, self.settings["max_length"]), -1, "int32")
                history[0, : len(prompt) + len(ids)] = prompt + ids
                inputs = {"logits": logits[None], "token_ids": history, "count": len(ids), **sampling}
                yield int(self.run("sample", **inputs)["token_ids"][0])

    def _sampling(self, config, prompt_index, row):
        """The inputs of `generate` and `sample` that say how to choose."""
        return {**sampling_inputs(config), "seed": _seed_of(config.seed or 0, prompt_index), "row": row}

    def _read_prompts(self, prompts):
        """Prompts as lists of ids, whether they are texts, and the function that undoes the list."""
        if isinstance(prompts, str):
            return self._read_prompts([prompts])[0], True, lambda results: results[0]
        if not isinstance(prompts, list | tuple) or not prompts:
            raise ValueError(f"prompts ({shown(prompts)}) must be a string, or a list of strings or of lists of ids.")
        if all(isinstance(prompt, str) for prompt in prompts):
            for i, prompt in enumerate(prompts):
                check_text(f"prompts[{i}]", prompt)
            rows = [self.tokenizer.encode(text) or self._start() for text in prompts]
            return rows, True, lambda results: results
        rows = [np.asarray(prompt) for prompt in prompts]
        for i, row in enumerate(rows):
            if row.ndim != 1 or not row.size or row.dtype.kind not in "iu":
                raise ValueError(f"prompts[{i}] ({shown(prompts[i])}) must be a non-empty list of token ids.")
            batches.check_ids(row, self.settings["vocabulary_size"], f"prompts[{i}]")
        return [row.tolist() for row in rows], False, lambda results: results

    def _start(self):
        if self.tokenizer.bos_id is None:
            raise ValueError("prompts: an empty prompt needs a tokenizer with a start token (bos), and this has none.")
        return [self.tokenizer.bos_id]

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
        self._check("translate")
        texts, unlist = read_texts("texts", texts)
        config = self._merged(config, overrides, OPTIONS + BEAMS).limited(1, self.settings["max_length"])
        function, options = "translate", {"max_new_tokens": config.max_new_tokens or config.max_length - 1}
        if config.num_beams > 1:
            function, options["length_penalty"] = "translate_beams", config.length_penalty
            if config.num_beams != self.settings["num_beams"]:
                raise ValueError(
                    f"num_beams ({config.num_beams}) must be 1 or what the file was exported with, "
                    f"{self.settings['num_beams']}."
                )
        rows = self._tokenizer("source_").encode_batch(texts)
        start, (end_ids, writer) = [self.settings["start_token_id"]], self._ends(config, self._tokenizer("target_"))
        results = []
        for row in rows:
            mask = np.ones((1, len(row)), bool)
            outputs = self.run(function, source_token_ids=[row], source_padding_mask=mask, **options)
            completion = outputs["token_ids"][0, : outputs["lengths"][0]].tolist()
            if min(completion, default=0) < 0:
                raise FloatingPointError(f"The model's logits are NaN: {NAN_REASON}.")
            before = "" if config.strip_prompt else writer.write_prompt(start)
            results.append(before + writer.write(start, _without_end(completion, end_ids)))
        return unlist(results)

    def summarize(self, texts, config=None, **overrides):
        """Summarise texts: `translate` by the word for models that were taught to."""
        return self.translate(texts, config, **overrides)

    # Heads of BERT

    def fill_mask(self, texts, top_k=5):
        """Propose tokens for the masks in texts, as `BERTMaskedLM.fill_mask`."""
        return self._head("fill_mask").fill_mask(texts, top_k, verbose=False)

    def classify(self, texts, pairs=None, top_k=1, truncate=False):
        """Say which labels texts have, as `BERTClassifier.classify`."""
        return self._head("classify").classify(texts, pairs, top_k, truncate=truncate, verbose=False)

    def tag(self, texts, aggregation="simple"):
        """Find the entities in texts, as `BERTTokenClassifier.tag`."""
        return self._head("tag").tag(texts, aggregation, verbose=False)

    def answer(self, question, context, top_k=1, max_answer_length=30, stride=128, allow_no_answer=False):
        """Find the answer to a question in a context, as `BERTQuestionAnswerer.answer`."""
        options = (top_k, max_answer_length, stride, allow_no_answer)
        return self._head("answer").answer(question, context, *options, verbose=False)

    def embed(self, texts, truncate=False):
        """The vectors of texts, as `BERTEmbedder.embed`."""
        return self._head("embed").embed(texts, truncate=truncate, verbose=False)

    def _head(self, method):
        self._check(method)
        return _Head(self)

    # What they share

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
        return Steps(self.path, self.signatures, self.settings["max_length"], self.num_threads)

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

    def _ends(self, config, tokenizer):
        """The ids that end a text, and its `CompletionWriter`, or None."""
        strings = [stop for stop in config.stop if isinstance(stop, str)]
        ids = [stop for stop in config.stop if not isinstance(stop, str)]
        size = self.settings.get("vocabulary_size") or tokenizer.vocabulary_size
        batches.check_ids(np.array(ids, "int64"), size, "stop")
        writer = tokenizer and CompletionWriter(tokenizer, strings, config.min_new_tokens or 0)
        return {*self.end_token_ids, *ids}, writer


class _Head(MaskFilling, Classification, Tagging, Answering, Embedding):
    """A file as `kerasllm.tasks` sees a model."""

    def __init__(self, runner):
        self.runner, self.tokenizer, settings = runner, runner.tokenizer, runner.settings
        self.input = runner.signatures["forward"]["inputs"]
        self.arguments = {
            "max_sequence_length": self.input["token_ids"]["shape"][1] or settings["max_length"],
            **({"vocabulary_size": self._num_scores()} if "fill_mask" in runner.methods else {}),
            **{name: settings.get(name) for name in ("labels", "problem_type", "truncate_at")},
            **{name: settings.get(name) for name in ("prompts", "default_prompt_name")},
        }

    def _num_scores(self):
        return self.runner.signatures["forward"]["outputs"]["logits"]["shape"][-1]

    def required_tokenizer(self):
        """The tokenizer."""
        return self.tokenizer

    def outputs_function(self):
        """The function from arrays, the inputs of `forward`, to its outputs."""
        return self._outputs_of

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


def _without_end(completion, end_ids):
    return completion[:-1] if completion and completion[-1] in end_ids else completion


def _seed_of(seed, prompt_index):
    """The seed with which a file, to which each prompt is the first, draws what Keras draws for a later one."""
    bits = seed ^ (prompt_index * -1640531535 & 0xFFFFFFFF)  # as in kerasllm.generation.samplers.uniform
    return bits - 2**32 if bits >= 2**31 else bits
