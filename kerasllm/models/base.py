"""What every model shares: its config, its tokenizers, presets, export; and text generation for those that generate."""

import pathlib

import keras
import numpy as np

# Packages, whose files are imported when first used: `import kerasllm` brings in no tokenizers and no safetensors.
from kerasllm import checkpoints, text
from kerasllm.arguments import check_positive
from kerasllm.generation.config import GenerationConfig
from kerasllm.generation.generator import generate
from kerasllm.text import batches

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
TOKEN_ROLES = ("bos", "eos", "pad")


def carried_tokenizer(name, size):
    """A property that holds the tokenizer `name` of a model whose argument `size` is its vocabulary's size."""

    def get(model):
        return model.tokenizers.get(name)

    def set_(model, tokenizer):
        if tokenizer is None:
            model.tokenizers.pop(name, None)
            return
        if tokenizer.vocabulary_size != model.arguments[size]:
            raise ValueError(
                f"{name} has {tokenizer.vocabulary_size} symbols, the model's {size} is {model.arguments[size]}: "
                "they must be equal."
            )
        model.tokenizers[name] = tokenizer

    return property(get, set_, doc=f"The model's {name}, a `kerasllm.Tokenizer`, or None.")


class Model(keras.Model):
    """A functional Keras model that remembers the arguments it was built from and carries its tokenizers.

    A subclass wires its layers, calls `super().__init__(inputs, outputs, arguments, name)` and keeps the layers it
    needs as attributes. `fit`, `evaluate`, `predict`, `summary` and `save` are Keras's; a `.keras` file holds the
    tokenizers as well.
    """

    tokenizer_prefixes = {"tokenizer": ""}
    """Names of the tokenizers, each with the prefix of its files."""

    def __init__(self, inputs, outputs, arguments, name):
        super().__init__(inputs, outputs, name=name)
        self.arguments = arguments
        # Hidden from Keras's tracking, which would wrap the dict.
        object.__setattr__(self, "tokenizers", {})

    def get_config(self):
        """The arguments the model was built from."""
        return {"name": self.name, **self.arguments}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The inverse of `get_config`."""
        return cls(**config)

    @classmethod
    def from_preset(cls, folder, **arguments):
        """Build the model that a preset folder holds, with its weights and tokenizers.

        Args:
            folder: path of a folder with `config.json`, `model.safetensors` and perhaps tokenizer files, written by
                `save_to_preset` on any backend, or by Hugging Face transformers (BERT, GPT-2).
            **arguments: of the constructor, in place of the preset's own, for instance `dropout` or `dtype`.

        Raises:
            ValueError: the folder or a file is missing or malformed; it holds another family; its config says
                something that this class does not know; a tensor is missing, left over or misshaped.
        """
        preset = checkpoints.read_preset(folder, cls)
        model = cls(**{**preset.arguments, **arguments})
        arrays = preset.read_weights({v.path: tuple(v.shape) for v in model.weights})
        for variable in model.weights:
            variable.assign(arrays[variable.path])
        model.load_assets(folder)
        return model

    def save_to_preset(self, folder):
        """Write `config.json`, `model.safetensors` and the tokenizers into a folder: all of them, or none.

        BERT and GPT-2 models have the layout of Hugging Face transformers, which opens the folder; other models have
        our own, with variables named by their paths.

        Raises:
            ValueError: the folder cannot be written; what was there before is whole.
        """
        ids = {f"{role}_token_id": getattr(t, f"{role}_id") for t in self.tokenizers.values() for role in TOKEN_ROLES}
        arrays = {v.path: keras.ops.convert_to_numpy(v.value) for v in self.weights}
        checkpoints.write_preset(folder, type(self).__name__, self.arguments, arrays, ids, self.save_assets)

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, *, verify=True, **options):
        """Write the model's forward pass as a file that runs without kerasllm, from any backend.

        The file's signature `serving_default` has the model's inputs and outputs by their names (`logits`, where
        there is one output), and computes in float32.

        Args:
            filepath: of a SavedModel folder, or of a file that ends in ".tflite". What is there is replaced when all
                has gone well.
            format: "tf_saved_model" or "litert"; other formats are left to Keras.
            verbose: whether to print a line at the end. Default: yes.
            input_signature: dict input name -> `keras.InputSpec`, to fix sizes. Default: any batch size and length.
            verify: whether to run the file and compare it with the model.
            **options: of the formats left to Keras.

        Raises:
            ImportError: `kerasllm[export]` is not installed.
            ValueError: an argument is out of range, or `filepath` cannot be written.
            RuntimeError: the file cannot be made, or differs from the model by more than 1e-5 of the largest output.
        """
        from kerasllm.export import core

        if format not in core.FORMATS:
            return super().export(filepath, format, verbose, input_signature, **options)
        return core.export_model(self, filepath, format, verbose, input_signature, verify, **options)

    def save_assets(self, folder):
        """Write the tokenizers into the `.keras` file; Keras calls this."""
        for name, tokenizer in self.tokenizers.items():
            tokenizer.save(folder, self.tokenizer_prefixes[name])

    def load_assets(self, folder):
        """Read the tokenizers that a folder holds; Keras calls this for a `.keras` file."""
        for name, prefix in self.tokenizer_prefixes.items():
            if any((pathlib.Path(folder) / f"{prefix}{file}").exists() for file in TOKENIZER_FILES):
                setattr(self, name, text.Tokenizer.from_folder(folder, prefix))

    def required_tokenizer(self, name="tokenizer"):
        """The tokenizer `name`, or a `ValueError` that says how to give the model one."""
        if name not in self.tokenizers:
            raise ValueError(f"{name} (None) must be set for text: `model.{name} = Tokenizer.from_folder(...)`.")
        return self.tokenizers[name]


class GeneratingModel(Model):
    """A model that writes token after token.

    A subclass offers the three methods that `kerasllm.generation` knows:

        start_decoding(inputs, prompt, capacity) -> state
        decode_step(token_ids (B, T), state, index) -> (logits (B, T, V), state)
        grow(state, capacity) -> state
    """

    default_max_length = 256
    """Tokens that a sequence may have where neither the model nor the call limits it."""

    @property
    def max_sequence_length(self):
        """The longest sequence the model can hold, or None."""
        return self.arguments.get("max_sequence_length")

    def start_decoding(self, inputs, prompt, capacity):
        """The state after all but the last token of the prompts.

        Args:
            inputs: dict of tensors, batch axis first: what the text is conditioned on, for instance a source.
            prompt: dict of `token_ids` (B, P) int32 and `padding_mask` (B, P) bool, padded on the left.
            capacity: number of slots, at least P.

        Returns:
            A nest of tensors with the batch axis first.
        """
        raise NotImplementedError

    def decode_step(self, token_ids, state, index):
        """Read tokens (B, T) into the slots from scalar `index` on: logits (B, T, V) and the new state."""
        raise NotImplementedError

    def grow(self, state, capacity):
        """The same state with room for `capacity` slots."""
        return state

    def complete(self, prompts, config, tokenizer, batch_size, read_inputs=lambda rows: {}):
        """Check prompts and lengths, then run the loop, some prompts at a time.

        Args:
            prompts: non-empty lists of ids.
            config: a `GenerationConfig`.
            tokenizer: whose end token ends a sequence, or None.
            batch_size: the most prompts at a time.
            read_inputs: takes a list of places in `prompts` and returns what `start_decoding` reads beside them, a
                dict of arrays with one row for each.

        Returns:
            For each prompt a list of `num_return_sequences` `Generation`s.
        """
        check_positive("batch_size", batch_size)
        config = self._limited(config, max(map(len, prompts)))
        end_ids = () if tokenizer is None or tokenizer.eos_id is None else (tokenizer.eos_id,)
        results = []
        for start in range(0, len(prompts), batch_size):
            places = list(range(start, min(start + batch_size, len(prompts))))
            # The last batch is filled up with copies: a smaller one would be compiled anew.
            filled = places if start == 0 else places + [places[-1]] * (batch_size - len(places))
            rows = [prompts[i] for i in filled]
            batch = generate(self, read_inputs(filled), rows, config, end_ids=end_ids, first_index=start)
            results += batch[: len(places)]
        return results

    def _limited(self, config, longest):
        """`config` with a length, checked against the model's positions and the longest prompt."""
        limit = self.max_sequence_length
        if limit and longest > limit:
            raise ValueError(f"prompts: one of {longest} tokens is longer than max_sequence_length ({limit}).")
        if config.max_length is None and config.max_new_tokens is None:
            return GenerationConfig.merged(config, max_length=limit or max(self.default_max_length, 2 * longest))
        name = "max_new_tokens" if config.max_length is None else "max_length"
        length = config.max_length or config.max_new_tokens + longest
        if limit and length > limit:
            raise ValueError(
                f"{name} ({getattr(config, name)}) after a prompt of {longest} tokens exceeds the model's "
                f"max_sequence_length ({limit})."
            )
        return config


class LanguageModel(GeneratingModel):
    """A model that continues text: `generate` on strings, lists of ids or arrays."""

    tokenizer = carried_tokenizer("tokenizer", "vocabulary_size")

    def generate(self, prompts, config=None, batch_size=32, **overrides):
        """Continue prompts.

        Args:
            prompts: a string or a list of strings (with a tokenizer); a list of lists of ids; or an int array (B, P).
                An empty string stands for the tokenizer's start token.
            config: a `GenerationConfig`.
            batch_size: number of prompts continued at a time. It does not change the texts.
            **overrides: fields of `GenerationConfig` that replace `config`'s. Without `max_length` and
                `max_new_tokens` a text grows up to the model's `max_sequence_length`, or 256 tokens where it has none.

        Returns:
            Prompts with their continuations, in the form they came in: a string for a string, a list of strings for
            a list, lists of ids for lists of ids, and for an array an int32 array (B, L) whose shorter rows are
            filled up with the padding id (0 without one). With `num_return_sequences` n > 1 each is a list (for
            arrays an axis: (B, n, L)) of n.

        Raises:
            ValueError: an argument is out of range; the prompts are empty, too long or hold unknown ids; strings
                without a tokenizer; an empty prompt without a start token.

        Example:
            >>> model.generate("I enjoy walking with my cute dog", max_new_tokens=40, temperature=0.7, seed=1)
        """
        config = GenerationConfig.merged(config, **overrides)
        ids, rebuild = self._read_prompts(prompts)
        results = self.complete(ids, config, self.tokenizer, batch_size)
        return rebuild([[g.token_ids for g in row] for row in results], config.num_return_sequences)

    def _read_prompts(self, prompts):
        """Prompts in any form -> lists of ids, and the function that gives results the same form."""
        if isinstance(prompts, str):
            ids, rebuild = self._read_prompts([prompts])
            return ids, lambda rows, n: rebuild(rows, n)[0]
        if prompts is None or isinstance(prompts, dict) or not hasattr(prompts, "__len__") or len(prompts) == 0:
            raise ValueError(f"prompts ({prompts!r}) must be a string, a list of strings or ids, or an int array.")
        if all(isinstance(p, str) for p in prompts):
            tokenizer = self.required_tokenizer()
            ids = [tokenizer.encode(text) or self._start(tokenizer) for text in prompts]
            return ids, lambda rows, n: _unnested([[tokenizer.decode(r) for r in row] for row in rows], n)
        ids = read_token_ids("prompts", prompts, self.arguments["vocabulary_size"])
        if isinstance(prompts, list | tuple):
            return ids, lambda rows, n: _unnested([[[int(i) for i in r] for r in row] for row in rows], n)
        pad_id = self.tokenizer.pad_id if self.tokenizer and self.tokenizer.pad_id is not None else 0

        def rebuild(rows, n):
            flat, _ = batches.pad([r for row in rows for r in row], value=pad_id)
            return flat if n == 1 else flat.reshape(len(rows), n, -1)

        return ids, rebuild

    def _start(self, tokenizer):
        if tokenizer.bos_id is None:
            raise ValueError("prompts: an empty prompt needs a tokenizer with a start token (bos), and this has none.")
        return [tokenizer.bos_id]


def read_token_ids(name, rows, vocabulary_size):
    """Lists of ids, or an int array (B, T), as checked lists of Python ints.

    Raises:
        ValueError: no rows, an empty row, or ids that are no whole numbers in [0, vocabulary_size).
    """
    lists = []
    for i, row in enumerate(rows):
        row = keras.ops.convert_to_numpy(row) if not isinstance(row, list | tuple | str) else row
        array = np.asarray(row)
        if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
            raise ValueError(f"{name}[{i}] ({row!r}) must be a non-empty list of token ids.")
        lists.append(array.tolist())
    if not lists:
        raise ValueError(f"{name} ({rows!r}) must not be empty.")
    batches.check_ids(np.concatenate(lists), vocabulary_size, name)
    return lists


def read_texts(name, texts):
    """A string or a list of strings as a checked list, and the function that undoes it on the results.

    Raises:
        ValueError: `texts` is no string and no non-empty list of strings, or a text is empty.
    """
    if isinstance(texts, str):
        if not texts.strip():
            raise ValueError(f"{name} ({texts!r}) must not be empty.")
        return [texts], lambda results: results[0]
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"{name} ({texts!r}) must be a string or a non-empty list of strings.")
    blank = next((i for i, t in enumerate(texts) if not t.strip()), None)
    if blank is not None:
        raise ValueError(f"{name}[{blank}] ({texts[blank]!r}) must not be empty.")
    return list(texts), lambda results: results


def _unnested(rows, n):
    return rows if n > 1 else [row[0] for row in rows]


def resolved_dtype(dtype):
    """The name of a dtype policy, so that a model's config says what `None` stood for when it was built."""
    policy = keras.config.dtype_policy() if dtype is None else keras.dtype_policies.get(dtype)
    return policy.name
