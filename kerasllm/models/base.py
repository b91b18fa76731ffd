"""What every model shares: its config, its tokenizers, presets, export."""

import functools
import inspect
import pathlib
from functools import partial

import keras

# Packages, whose files are imported when first used: `import kerasllm` brings in no tokenizers and no safetensors.
from kerasllm import backend, checkpoints, constructors, text, writing
from kerasllm.arguments import read_path, shown
from kerasllm.backend.interruption import whole
from kerasllm.backend.variables import built_with
from kerasllm.generation.sharing import changes_weights, with_same_weights
from kerasllm.layers import parts
from kerasllm.models import inspection, keras_files
from kerasllm.models.merged import merged_arrays
from kerasllm.models.trained import TrainedModel

# Each holds a vocabulary, and tells that a tokenizer is there.
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
TOKEN_ROLES = ("bos", "eos", "pad")


def carried_tokenizer(name, size):
    """A property that holds the tokenizer `name` of a model whose argument `size` is its vocabulary's size."""

    def get(model):
        return model.tokenizers.get(name)

    def set_(model, tokenizer):
        if tokenizer is None:
            model.tokenizers.pop(name, None)
            return
        if not hasattr(tokenizer, "encode_batch"):
            raise ValueError(f"{name} ({shown(tokenizer)}) must be a kerasllm.Tokenizer or None.")
        # Checkpoints may have more embeddings than symbols, to fill a kernel's tile.
        if tokenizer.vocabulary_size > model.arguments[size]:
            raise ValueError(
                f"{name} has {tokenizer.vocabulary_size} symbols, more than the model's {size} "
                f"({model.arguments[size]})."
            )
        model.tokenizers[name] = tokenizer
        if name != "source_tokenizer":
            model.adopt_token_ids(tokenizer)

    return property(get, set_, doc=f"The model's {name}, a `kerasllm.Tokenizer`, or None.")


class Model(TrainedModel):
    """A functional Keras model that remembers the arguments it was built from and carries its tokenizers.

    A subclass wires its layers, calls `super().__init__(inputs, outputs)` and keeps the layers it needs as attributes;
    `arguments` are then what its constructor was given, without name and tokenizers. `fit`, `evaluate`, `predict`,
    `summary` and `save` are Keras's; a `.keras` file holds the tokenizers as well.
    """

    tokenizer_prefixes = {"tokenizer": ""}
    """Names of the tokenizers, each with the prefix of its files."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            # A base's constructor takes inputs and outputs, a model's what it is made of.
            is_model = "dtype" in inspect.signature(cls.__init__).parameters
            cls.__init__ = constructors.reading(cls.__init__, _keep if is_model else None)
        constructors.document(cls)

    def __init__(self, inputs, outputs, **read):
        """Take the graph from inputs to outputs, and arguments that the constructor has `read` as something else."""
        given = self._given | {"dtype": resolved_dtype(self._given["dtype"])} | read
        super().__init__(inputs, outputs, name=given.pop("name"))
        arguments = {name: value for name, value in given.items() if name not in self.tokenizer_prefixes}
        # Keras gives functional models the global policy, and scales the loss of those whose own is "mixed_float16".
        self.dtype_policy = arguments["dtype"]
        self.arguments = arguments
        parts.remember([self])
        # Hidden from Keras's tracking, which would save the one and wrap the other.
        object.__setattr__(self, "mean_loss", keras.metrics.Mean("loss"))
        object.__setattr__(self, "tokenizers", {})
        object.__setattr__(self, "named_token_ids", None)
        for note in backend.notes_of(self):
            print(f"{self.name}: {note}")

    @changes_weights
    @functools.wraps(keras.Model.set_weights)
    def set_weights(self, weights):
        return super().set_weights(weights)

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Write a `.keras` file, as `keras.Model.save` does; a kill or a full disk leaves an older one whole.

        Args:
            filepath, overwrite, zipped, **kwargs: as for `keras.Model.save`.

        Raises:
            ValueError: `filepath` is no name of such a file, or cannot be written.
        """
        with backend.one_writer(self) as writes:
            if not writes or not keras_files.may_write(filepath, overwrite):
                return
            with keras_files.replacing(filepath, is_folder=zipped is False) as place:
                keras_files.check_room(place, self)
                super().save(place, True, zipped, **kwargs)

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
        """Write a `.weights.h5` file or shards, as `keras.Model.save_weights` does; older ones stay whole.

        Args:
            filepath, overwrite, max_shard_size: as for `keras.Model.save_weights`.

        Raises:
            ValueError: `filepath` is no name of such a file, or cannot be written.
        """
        with backend.one_writer(self) as writes:
            if not writes or not keras_files.may_write(filepath, overwrite):
                return
            with keras_files.replacing(filepath) as place:
                keras_files.check_room(place, self, max_shard_size)
                super().save_weights(place, True, max_shard_size)

    @changes_weights
    @functools.wraps(keras.Model.load_weights)
    def load_weights(self, filepath, *args, **kwargs):
        if read_path("filepath", filepath).suffix == ".json":  # of shards, which a dead writer may have left in part
            writing.settle(pathlib.Path(filepath).parent)
        super().load_weights(filepath, *args, **kwargs)

    def get_config(self):
        """The arguments the model was built from; `named_token_ids` of a preset; `parts` set since."""
        ids = {} if self.named_token_ids is None else {"named_token_ids": self.named_token_ids}
        changes = parts.changes(self)
        return {"name": self.name, **self.arguments, **ids, **({"parts": changes} if changes else {})}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The inverse of `get_config`."""
        config = dict(config)
        ids, changes = config.pop("named_token_ids", None), config.pop("parts", None)
        try:
            constructors.bound(cls.__init__, None, (), config)
        except TypeError as error:
            raise ValueError(f"config: {cls.__name__} {error}.") from None
        ids = None if ids is None else checkpoints.named_token_ids(ids, config)
        model = cls(**config)
        object.__setattr__(model, "named_token_ids", ids)
        if changes:
            parts.restore(model, changes)
        return model

    def get_compile_config(self):
        """What `compile` was given, with `auto_scale_loss`, which Keras forgets."""
        config = super().get_compile_config()
        if config:
            config["auto_scale_loss"] = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        return config

    def compile_from_config(self, config):
        """Compile as before saving; files that do not say so hold the state of an optimizer without a scale."""
        super().compile_from_config({"auto_scale_loss": False, **config})

    @classmethod
    def from_preset(cls, source, **arguments):
        """Build the model that a preset holds, with its weights and tokenizers.

        Args:
            source: path of a folder with `config.json`, `model.safetensors` and perhaps tokenizer files, written by
                `save_to_preset` on any backend, or by Hugging Face transformers (BERT, GPT-2, Llama and their
                relatives, Marian, BART, T5); or of a `.gguf` file (Llama), whose weights are dequantised.
                "hf://org/name", with "@revision" or not, is the model of this name on the Hugging Face Hub, kept in
                its cache; "kaggle://owner/model/framework/variation" one on Kaggle. An older `pytorch_model.bin` is
                read where there is no safetensors file, without running code of its own; it needs torch.
            **arguments: of the constructor, in place of the preset's own, for instance `dropout`, or `dtype`:
                "bfloat16" reads straight into half the memory, "mixed_bfloat16" keeps float32 weights. And
                `tokenizer`, or each of the model's by its name: a `Tokenizer` in place of the preset's, or None to
                open the model without.

        Raises:
            ImportError: a package that the source needs is not installed.
            ValueError: the folder or a file is missing or malformed; it holds another family; its config says
                something that this class does not know; a tensor is missing, left over or misshaped.
        """
        given = dict.fromkeys(cls.tokenizer_prefixes, arguments.pop("tokenizer")) if "tokenizer" in arguments else {}
        given |= {name: arguments.pop(name) for name in cls.tokenizer_prefixes if name in arguments}
        preset = checkpoints.read_preset(source, cls)
        config = {**preset.arguments, **arguments}

        def build():
            model = cls(**config)
            if preset.parts:
                preset.check_room(model.count_params())  # before layers compute what they quantise
                parts.restore(model, preset.parts)
            return model

        with checkpoints.errors_name(source):
            try:
                model = built_with(build, preset.read_weights)
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
                if arguments:  # which may be wrong themselves
                    raise
                raise ValueError(f"config.json: no {cls.__name__} is made of it: {error!r:.400}") from error
        with preset.folder() as folder:
            try:
                model.load_tokenizers(folder, given)
            except ValueError as error:
                hint = f"{cls.__name__}.from_preset(..., tokenizer=None) opens it without."
                raise ValueError(f"preset ({str(source)!r}): {error} {hint}") from error
            with checkpoints.errors_name(source):
                model.load_defaults(folder)
        object.__setattr__(model, "named_token_ids", preset.token_ids)
        for name, tokenizer in given.items():
            if tokenizer is not None and name != "source_tokenizer":
                model.adopt_token_ids(tokenizer)
        return model

    def save_to_preset(self, folder, max_shard_size="5GB"):
        """Write `config.json`, `model.safetensors` and the tokenizers into a folder: all of them, or none.

        BERT, GPT-2, Llama and their relatives, Marian, BART and T5 have the layout of Hugging Face transformers, which
        opens the folder; other models have our own, with variables named by their paths, and so has a model whose parts
        are quantised or compute something else than its arguments say. What `enable_lora` added is written as part of
        the weights it changes, unless they are quantised. Which parts are trained is left to `save`.

        Args:
            folder: its path; it is made if need be. Files of an older preset in it are replaced.
            max_shard_size: the most bytes of weights in a file, a number or a string such as "500MB". Where there are
                more, they are parted into `model-00001-of-00003.safetensors` and so on, with an index.

        Raises:
            ValueError: the folder cannot be written; what was there before is whole.
        """
        with backend.one_writer(self) as writes:
            if not writes:
                return
            ids, arrays, changes = self.special_token_ids(), merged_arrays(self), parts.computed(parts.changes(self))
            checkpoints.write_preset(
                folder, type(self).__name__, self.arguments, arrays, ids, self.save_assets, max_shard_size, changes
            )

    @with_same_weights
    def inspect(self, inputs):
        """The hidden states and attention weights of a pass without dropout, under the names of transformers.

        They are what the model computes: `model(inputs)` is their last hidden state through the head.

        Args:
            inputs: dict of the model's inputs, as for `predict`; its arrays are (B, T).

        Returns:
            A dict of lists of float32 arrays, in the order of the layers. Of BERT, its heads and GPT:

            hidden_states: (B, T, D), one more than there are blocks: what the first block reads, and what each gives;
                the last behind the final norm, where there is one.
            attentions: (B, N, T, T), of each block the weights of each head, which are 0 where a query does not look.

            Of translators and summarisers `encoder_hidden_states`, `encoder_attentions`, (B, S, D) and (B, N, S, S);
            `decoder_hidden_states`, `decoder_attentions`; and `cross_attentions`, (B, N, T, S).

            Of recurrent models hidden states are the embeddings and the outputs of each layer, (B, T, U), of both
            directions one behind the other; and where there is an attention or another layer behind them, what it
            gives. `last_states`, or `encoder_last_states`, are those of each layer at the end of the text: [h, c] or
            [h], (B, U). `cross_attentions` is the alignment, (B, 1, T, S).

            At padding they have no meaning.

        Raises:
            ValueError: an input is missing, or holds what the model cannot read.

        Example:
            >>> states = model.inspect({"token_ids": token_ids, "padding_mask": padding_mask})
            >>> states["attentions"][0].shape
            (8, 12, 64, 64)
        """
        inputs = inspection.read_inputs(self, inputs)
        with self._checked({"x": inputs}, needed=("x",)):
            return inspection.inspected(self, inputs)

    @changes_weights
    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """Quantise the weights, as `keras.Model.quantize` does; of "int8" the weights have 8 bits, the activations 12.

        A few channels of a Transformer's residual stream are tens of times as large as the others, which lose most of
        their digits where a token's channels share one scale of 8 bits. In SmolLM2-135M that costs 2.9 % of the
        perplexity; int8 weights alone cost nothing.

        Args:
            mode: "int8", "int4" or "float8".
            config: a `keras.quantizers.QuantizationConfig`. `Int8QuantizationConfig(activation_quantizer=...)` says
                otherwise: None computes in floats.
            filters: which layers: a regular expression of their names, a list of those, or a function of a layer.
            **kwargs: as for `keras.Model.quantize`.
        """
        if config.get_config() == keras.quantizers.Int8QuantizationConfig().get_config():  # what Keras makes of "int8"
            activations = keras.quantizers.AbsMaxQuantizer(axis=-1, value_range=(-2032, 2032), output_dtype="int32")
            config = keras.quantizers.Int8QuantizationConfig(activation_quantizer=activations)
        with parts.cheap_collections():
            whole(partial(super().quantize, mode, config=config, filters=filters, **kwargs))

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **options):
        """Write what the model does as a file that runs without kerasllm, from any backend.

        A file holds functions with names, which share the weights and compute in float32: `forward`, the model's
        outputs by their names (`logits`, where there is one), and those of its tasks, such as `generate`. Beside it
        (in `assets.extra/` of a SavedModel, else in a folder `FILE.assets`) stand the tokenizers, `signatures.json`
        (names, shapes, dtypes, the file's SHA-256), `generation_config.json` and `parity.json` (what was compared, and
        how it differs).

        Args:
            filepath: of a SavedModel folder, or of a file that ends in ".tflite", ".litertlm" or ".gguf". What is there
                is replaced when all has gone well.
            format: "tf_saved_model"; "litert", a TFLite file, which `kerasllm.export.runtime.Runner` runs;
                "litertlm", a GPT with its tokenizer for LiteRT-LM; "mediapipe", a TFLite file of a `BERTClassifier`
                with its vocabulary and labels, for MediaPipe's TextClassifier; "gguf", a Llama with its tokenizer for
                llama.cpp, Ollama and LM Studio. Other formats are left to Keras.
            verbose: whether to print a line at the end. Default: yes.
            input_signature: dict input name -> `keras.InputSpec`, to fix sizes of `forward`. Default: any batch size
                and length.
            signatures: names of the wanted functions. Default: all that the format can hold.
            quantize: for TFLite, how weights are kept. Default: float32. "dynamic_int8": of 8 bits, a quarter of the
                size, multiplied as whole numbers, several times as fast at batch 1; "int4": the matrices of layers of 4
                bits in blocks with a scale, tables of 8; "float16": half the size; "int8": all numbers of 8 bits, also
                those between layers, for devices that know no others, in functions without a loop alone. For GGUF:
                "float16", "bfloat16", "q8_0", "q4_0", "q4_1", "q5_0" or "q5_1", tables of 8 bits at least.
            min_agreement: the least part of choices (largest logits, chosen tokens) in which a quantised file must
                agree with the model, over all that is compared. Sound files are above 0.85, broken ones below 0.5.
            calibration_data: for quantised files, some dozens of texts, lists of ids or dicts of the model's inputs, as
                the model will meet them. "int8" needs them to find the range of each number; for all, the file is
                compared with the model on them too, and `parity.json` says how the perplexity changes.
            max_length: the most tokens of a sequence in a file whose sizes are fixed. Default: the model's
                `max_sequence_length`, or its `default_max_length`.
            prefill_lengths: numbers of tokens that the functions `prefill_N` of a TFLite file read in one call.
            batch_size: rows of each call in a file whose sizes are fixed.
            num_beams: the number of beams of a translator's `translate_beams`.
            strings: whether to add functions that take and give strings, which need TensorFlow alone; for a SavedModel.
            truncate: whether functions of strings of classifiers and embedders cut texts that are too long. Default:
                they are errors.
            default_signature: the name of the function that a SavedModel has as `serving_default` too, there without
                its options. Default: the one of texts, such as `generate_text`, where there are strings, else
                `forward`.
            verify: whether to run the file and compare it with the model.

        Raises:
            ImportError: `kerasllm[export]`, or what a format of Keras needs, is not installed.
            ValueError: the format or an option is unknown; an argument is out of range; the weights have 2 GiB or more
                in float32, for TFLite; `filepath` cannot be written; the model's class cannot be imported elsewhere;
                its outputs are not finite.
            RuntimeError: TensorFlow cannot write the model, or the file differs from it: whole numbers and strings at
                all, others by more than 1e-5 of the largest; or a quantised file in too many choices. What was at
                `filepath` before is whole.
        """
        from kerasllm.export import core, gguf

        core.check_request(filepath, format, options)
        if format == "gguf":
            return gguf.export_model(self, filepath, verbose, input_signature, **options)
        if format not in core.FORMATS:
            core.call_once(self)
            with writing.replacing(filepath) as place:
                super().export(str(place), format, False, input_signature, **options)
            if verbose is None or verbose:
                print(f"Saved {format} at {str(filepath)!r}.")
            return None
        return core.export_model(self, filepath, format, verbose, input_signature, **options)

    def save_assets(self, folder):
        """Write the tokenizers into the `.keras` file; Keras calls this."""
        self.save_tokenizers(folder)

    def save_tokenizers(self, folder):
        """Write the tokenizers into a folder, each with the prefix of its files."""
        for name, tokenizer in self.tokenizers.items():
            tokenizer.save(folder, self.tokenizer_prefixes[name])

    def load_assets(self, folder):
        """Read the tokenizers and the generation defaults of a `.keras` file; Keras calls this."""
        self.load_tokenizers(folder)
        self.load_defaults(folder)

    def load_defaults(self, folder):
        """Read what else a folder says about the model's use."""

    def load_tokenizers(self, folder, given=None):
        """Read the tokenizers that a folder holds, but those that are `given`: dict name -> `Tokenizer` or None."""
        named = self.named_token_ids
        for name, prefix in self.tokenizer_prefixes.items():
            if name in (given or {}):
                setattr(self, name, given[name])
                continue
            # Files without the prefix serve all of the model's tokenizers.
            names = {start + file for start in (prefix, "") for file in TOKENIZER_FILES}
            if any((pathlib.Path(folder) / file).exists() for file in names):
                setattr(self, name, text.Tokenizer.from_folder(folder, prefix))
        object.__setattr__(self, "named_token_ids", named)  # a folder's own tokenizer changes nothing of it

    def special_token_ids(self):
        """The ids of special tokens that a foreign config.json names, `bos_token_id` and so on; null for none.

        They are what the preset's config.json said, else the tokenizers' own. What a preset left open stays so, and
        transformers takes its family's own; a model that was made here has no such.
        """
        roles = [(role, tokenizer) for tokenizer in self.tokenizers.values() for role in TOKEN_ROLES]
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role, tokenizer in roles}
        ids = {name: i for name, i in ids.items() if i is not None}
        if self.named_token_ids is None:
            return dict.fromkeys(f"{role}_token_id" for role in TOKEN_ROLES) | ids
        return ids | {name: i for name, i in self.named_token_ids.items() if i is not None or name not in ids}

    def adopt_token_ids(self, tokenizer):
        """Let the special tokens of a tokenizer that is set later go before the ids that files have named."""
        if self.named_token_ids is not None:
            object.__setattr__(self, "named_token_ids", adopted(self.named_token_ids, tokenizer))

    def required_tokenizer(self, name="tokenizer"):
        """The tokenizer `name`, or a `ValueError` that says how to give the model one."""
        if name not in self.tokenizers:
            raise ValueError(f"{name} (None) must be set for text: `model.{name} = Tokenizer.from_folder(...)`.")
        return self.tokenizers[name]


def _keep(model, given):
    object.__setattr__(model, "_given", given)  # hidden from Keras's tracking, which would wrap the dict


def adopted(ids, tokenizer):
    """Ids by their names in config.json, a tokenizer's own in place of those that are others."""
    ids = dict(ids)
    for role in tokenizer.roles:
        name, own = f"{role}_token_id", getattr(tokenizer, f"{role}_id")
        named = ids.get(name)
        if named is not None and own not in (named if isinstance(named, list) else [named]):
            ids[name] = own
    return ids


def resolved_dtype(dtype):
    """The name of a dtype policy, so that a model's config says what `None` stood for when it was built."""
    try:
        policy = keras.config.dtype_policy() if dtype is None else keras.dtype_policies.get(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"dtype ({shown(dtype)}) must be a policy of floats, such as 'mixed_bfloat16'.") from error
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        raise ValueError(f"dtype ({policy}) must be one policy for all layers, such as 'mixed_bfloat16'.")
    if policy.quantization_mode:
        raise ValueError(
            f"dtype ({policy.name!r}) must be a policy of floats: `model.quantize({policy.quantization_mode!r})` makes "
            "whole numbers of the weights that are there."
        )
    if not all(map(keras.backend.is_float_dtype, (policy.compute_dtype, policy.variable_dtype))):
        raise ValueError(f"dtype ({policy.name!r}) must be a policy of floats, such as 'mixed_bfloat16'.")
    return policy.name
