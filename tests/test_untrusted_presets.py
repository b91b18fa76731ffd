"""Presets that lie: a file that was changed is refused by name, at once, or read, and the model does what it says.

Run as a script, it says how the changes ended: `python tests/test_untrusted_presets.py 5000`.
"""

import collections
import contextlib
import inspect
import io
import json
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import test_gguf
from test_untrusted import changed_bytes, changed_json

import kerasllm
from kerasllm.checkpoints import config_map, files
from kerasllm.generation.config import GenerationConfig
from kerasllm.models.generating import GeneratingModel

DATA = Path(__file__).parent / "data"
FOLDERS = {
    "bert": "BERT",
    "bert_classifier": "BERTClassifier",
    "roberta_masked_lm": "BERTMaskedLM",
    "distilbert_classifier": "BERTClassifier",
    "electra_generator": "BERTMaskedLM",
    "xlm_roberta_token_classifier": "BERTTokenClassifier",
    "bert_question_answerer": "BERTQuestionAnswerer",
    "gpt2": "GPT",
    "llama": "GPT",
    "llama3_tied": "GPT",
    "mistral": "GPT",
    "qwen2": "GPT",
    "gemma2": "GPT",
    "gpt_neox": "GPT",
    "marian": "TransformerTranslator",
    "bart": "TransformerTranslator",
    "t5": "TransformerTranslator",
    "keras_hub/bert": "BERT",
    "keras_hub/gpt2": "GPT",
    "keras_hub/llama": "GPT",
}
GENERATION = {
    "max_length": 8,
    "min_length": 1,
    "num_return_sequences": 2,
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 3,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[3, 4], [5]],
    "suppress_tokens": [6],
    "sequence_bias": [[[7], 1.0]],
    "exponential_decay_length_penalty": [3, 1.1],
    "eos_token_id": [1, 2],
    "decoder_start_token_id": 0,
    "seed": 1,
    "stop_strings": ["x"],
}
TEXTS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xef\xbb\xbf{}",
    b'{"a": "\xff"}',
    b"[" * 5000,
    b'{"a": 1, "a": 1}',
    b'{"a": NaN}',
]
# Fields that change nothing here, or that another file says again; and files that are not read.
IGNORED = re.compile(
    f"^/(config/)?({'|'.join(config_map.IRRELEVANT)}|summary_\\w+|(classif|classifier|qa|seq_classif)_dropout|label2id"
    "|[a-z]+_layerdrop|pretraining_tp|initializer_factor|sinusoidal_pos_embds|metadata|name|trainable|dtype|n_ctx"
    "|pooler_\\w+|directionality|module|registered_name|class_name|split|parts/.*/quantization"
    "|arguments/(prompts|similarity|pooling|include_prompt|dense|normalize|truncate_at|default_prompt_name))[ /]"
)
UNREAD = {"keras_hub_bert/metadata.json", "keras_hub_gpt2/metadata.json", "keras_hub_llama/metadata.json"} | {
    "keras_hub_gpt2/tokenizer.json"
}
# Keras says so of any layer's config; and it makes a layer before it sees how much the file holds of it.
IN_KERAS_WORDS = re.compile(
    "Error when deserializing class|could not be deserialized properly|quantization_mode|allocate memory"
)
MOST_SECONDS, MOST_BYTES = 1.0, 2**30
SIZES = {"vocabulary_size": 24, "hidden_dim": 8, "num_layers": 1}
ATTENTION = {"num_heads": 2, "intermediate_dim": 12, "max_sequence_length": 16}
BOTH = {"source_vocabulary_size": 24, "target_vocabulary_size": 24, "hidden_dim": 8, "num_layers": 1}


def quantized():
    model = kerasllm.GPT(**SIZES, **ATTENTION, norm="rms", positions="rotary", rope_base=100.0)
    model.quantize("int8")
    return model


MADE = {
    "own_gpt": lambda: kerasllm.GPT(
        **SIZES, **ATTENTION, positions="rotary", activation="tanh", sliding_window=4, head_dim=6,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
    ),
    "own_quantized": quantized,
    "own_rnn": lambda: kerasllm.RNNLanguageModel(**SIZES, num_attention_heads=2),
    "own_lstm": lambda: kerasllm.LSTMTranslator(**BOTH),
    "own_translator": lambda: kerasllm.TransformerTranslator(
        **BOTH, **ATTENTION, positions="relative", norm_first=True, attention_scale=0.5, num_buckets=8
    ),
    "own_summarizer": lambda: kerasllm.Summarizer(**SIZES, **ATTENTION, share=True),
    "own_classifier": lambda: kerasllm.BERTClassifier(**SIZES, **ATTENTION, activation="tanh", labels=["a", "b"]),
    "own_embedder": lambda: kerasllm.BERTEmbedder(**SIZES, **ATTENTION, activation="tanh", prompts={"q": "x"}),
    "embedder": lambda: kerasllm.BERTEmbedder(
        **SIZES, **ATTENTION, dense=[{"units": 4}], truncate_at=8, prompts={"q": "x"}, default_prompt_name="q"
    ),
    "sharded": lambda: kerasllm.GPT(**SIZES, **ATTENTION),
}  # fmt: skip


def with_parts():
    model = quantized()
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dense):
            layer.enable_lora(2)
    model.trainable = False
    return model


def around_layers():
    """A model of Keras with layers of ours, which stand in its config."""
    inputs = {"token_ids": keras.Input((None,), dtype="int32", name="token_ids")}
    x = kerasllm.layers.TransformerDecoder(**SIZES, **ATTENTION, dropout=0.1)(inputs["token_ids"])
    return keras.Model(inputs, kerasllm.layers.Recurrent(8, cell="gru")(x))


IN_KERAS = {
    "keras_gpt": MADE["own_gpt"],
    "keras_parts": with_parts,
    "keras_embedder": MADE["embedder"],
    "keras_llama": lambda: kerasllm.GPT.from_preset(DATA / "llama"),
    "keras_layers": around_layers,
}


def write_gguf(folder):
    tokenizer, metadata = test_gguf.byte_level()
    tensors = {"token_embd.weight": np.ones((tokenizer.vocabulary_size, 16), "float32"), "output.weight": None}
    return test_gguf.write(folder / "gguf.gguf", metadata, tensors)


def write_torch(folder):
    import torch

    shutil.copytree(DATA / "gpt2", folder / "torch")
    tensors = files.read_tensors(folder / "torch")
    (folder / "torch" / files.WEIGHTS).unlink()
    torch.save({name: torch.tensor(t) for name, t in tensors.items()}, folder / "torch" / files.TORCH_WEIGHTS)
    return folder / "torch"


def importable(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def presets(folder, choose):
    """The presets whose names are chosen, as (name, class name, source)."""
    for name, class_name in FOLDERS.items():
        if choose(name):
            target = folder / name.replace("/", "_")
            shutil.copytree(DATA / name, target, ignore=shutil.ignore_patterns("answers.npz"))
            yield target.name, class_name, target
    for name, make in MADE.items():
        if choose(name):
            model = make()
            model.save_to_preset(folder / name, **({"max_shard_size": 2000} if name == "sharded" else {}))
            yield name, type(model).__name__, folder / name
    for name, make in IN_KERAS.items():
        if choose(name):
            model = make()
            model.save(folder / f"{name}.keras")
            yield name, type(model).__name__, folder / f"{name}.keras"
    for name, write in {"gguf": write_gguf, "torch": write_torch}.items():
        if choose(name) and importable(name):
            yield name, "GPT", write(folder)


def structure(random, path, content):
    """Where a file says what it holds, from one byte to another; of weights, no numbers, which no reader can know."""
    if path.suffix == ".safetensors":
        return 0, 8 + int.from_bytes(content[:8], "little")
    if path.suffix == ".gguf":
        return 0, content.index(b"output_norm.weight") + 42
    if path.suffix == ".bin":  # a zip, whose list stands at the end
        parts = (0, content.index(b"/data/0") + 7), (content.index(b"PK\1\2"), len(content))
        return parts[random.integers(2)]
    return 0, min(len(content), 4000)


def changed_file(random, path):
    """What a file of a preset may hold instead."""
    content = path.read_bytes()
    if path.suffix == ".keras":
        return changed_archive(random, content)
    if path.suffix != ".json":
        start, end = structure(random, path, content)
        if path.suffix == ".safetensors" and random.random() < 0.7:
            header = json.dumps(changed_json(random, json.loads(content[8:end]))).encode()
            return len(header).to_bytes(8, "little") + header + content[end:]
        return content[:start] + bytes(changed_bytes(random, content[start:], end - start))
    if random.random() < 0.1:
        return TEXTS[random.integers(len(TEXTS))]
    value = json.loads(content)
    for _ in range(random.integers(1, 3)):
        value = changed_json(random, value)
    return json.dumps(value).encode()


def changed_archive(random, content):
    """A file of Keras's that says another thing of a model or a layer of ours, or in what stands beside the weights.

    What is around that, the archive and the HDF5 file in it, is Keras's and h5py's to read.
    """
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(new, "w") as file:
        names = [n for n in old.namelist() if n.startswith("assets/") and n.endswith(".json")]
        changed = names[random.integers(len(names))] if names and random.random() < 0.3 else "config.json"
        for name in old.namelist():
            value = old.read(name)
            if name == changed:
                value = json.loads(value)
                if name == "config.json":
                    ours = [part for part in dicts(value) if str(part.get("registered_name")).startswith("kerasllm")]
                    part = ours[random.integers(len(ours))]
                    made = changed_json(random, part["config"])
                    part["config"] = made if isinstance(made, dict) else {}  # Keras itself asks for one
                else:
                    value = changed_json(random, value)
                value = json.dumps(value)
            file.writestr(name, value)
    return new.getvalue()


def dicts(value):
    """All objects in a JSON value."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from dicts(part)


def inputs_of(model):
    ids = np.array([[1, 3, 2, 4]], "int32")
    values = {"padding_mask": np.ones((1, 4), "bool")}
    values |= dict.fromkeys(("segment_ids", "masked_positions"), np.zeros((1, 4), "int32"))
    return {name: values.get(name.removeprefix("source_").removeprefix("target_"), ids) for name in model.input}


def use(model, writes):
    """Compute, and write where the file is about that, which takes seconds."""
    outputs = keras.tree.flatten(model(inputs_of(model), training=False))
    if not all(np.isfinite(keras.ops.convert_to_numpy(output)).all() for output in outputs):
        raise ArithmeticError("outputs that are not finite")
    if writes and isinstance(model, GeneratingModel):
        config = GenerationConfig.merged(
            defaults=model.generation_defaults, max_new_tokens=2, stop=(), unsupported=None
        )
        if config.num_return_sequences <= 4 and config.num_beams <= 4:
            sources = {name: value for name, value in inputs_of(model).items() if name.startswith("source_")}
            read = {"read_inputs": lambda places: {n: np.repeat(v, len(places), 0) for n, v in sources.items()}}
            model.complete([[1]], config, **(read if sources else {}))


def value_of(content):
    """The JSON in a file of it, or in one of Keras's."""
    if content.startswith(b"PK") and b"config.json" in content:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            content = file.read("config.json")
    return json.loads(content)


def wrongly_read(old, new):
    """What a JSON file that was read should have been refused for, as far as that can be told."""
    try:
        return [place for place in retyped(value_of(old), value_of(new)) if not IGNORED.search(place)]
    except (ValueError, RecursionError):
        return ["it is no JSON"]


def retyped(old, new, path=""):
    """The places in a JSON value where there is another kind of value than in `old`."""
    kinds = [
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
        for value in (old, new)
    ]
    if kinds[0] != kinds[1] and None not in (old, new):
        yield f"{path} ({new!r:.40})"
    if kinds == ["dict"] * 2:
        for key in old.keys() & new.keys():
            yield from retyped(old[key], new[key], f"{path}/{key}")


@contextlib.contextmanager
def limited():
    """The block under a limit of memory beyond what is taken now, and stopped after 20 seconds."""

    def stop(*_):
        raise TimeoutError("20 seconds")

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES, before[1]))
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def opened(class_name, source):
    if source.suffix == ".keras":
        return keras.models.load_model(source)
    return getattr(kerasllm, class_name).from_preset(source)


def outcome(class_name, source, changed):
    """How opening and using a preset ends, in a word, and what was raised."""
    start = time.process_time()
    try:
        with limited():
            model = opened(class_name, source)
    except ValueError as error:
        named = str(source) in str(error) or changed in str(error) or source.suffix == ".keras"
        slow = time.process_time() - start > MOST_SECONDS
        return ("slow" if slow else "refused" if named else "unnamed"), error
    except (Exception, TimeoutError) as error:
        if source.suffix == ".keras" and IN_KERAS_WORDS.search(str(error)):
            return "refused", error
        return f"open: {type(error).__name__}", error
    if time.process_time() - start > 2 * MOST_SECONDS:
        return "slow to open", None
    try:
        with limited():
            use(model, changed == "generation_config.json")
    except Exception as error:
        if isinstance(error, ValueError) and "max_sequence_length" in str(error):  # by its own word
            return "opened", None
        return f"use: {type(error).__name__}", error
    return "opened", None


def run(trials, folder, seed=0, choose=lambda name: True):
    """Count how so many changes end; examples of each end that is no good one."""
    random, counts, examples = np.random.default_rng(seed), collections.Counter(), {}
    places = list(presets(folder, choose))
    for _, class_name, source in places:
        cls = getattr(kerasllm, class_name, object)
        if source.is_dir() and "keras_hub" not in source.name and issubclass(cls, GeneratingModel):
            files.write_json(source / "generation_config.json", GENERATION)
        warm = outcome(class_name, source, "")
        assert warm[0] in ("opened", "slow to open"), (source, warm)
    for trial in range(trials):
        name, class_name, source = places[trial % len(places)]
        paths = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        if random.random() < 0.4 and source.is_dir():
            paths = [source / "config.json"]
        path = paths[random.integers(len(paths))]
        content = path.read_bytes()
        changed = changed_file(random, path)
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            end, error = outcome(class_name, source, path.name)
        path.write_bytes(content)
        if end == "opened" and path.suffix in (".json", ".keras") and f"{name}/{path.name}" not in UNREAD:
            error = wrongly_read(content, changed)
            end = "opened, and wrong" if error else end
        counts[end] += 1
        if end not in ("refused", "opened") and len(examples.setdefault(end, [])) < 8:
            frames = traceback.extract_tb(error.__traceback__) if isinstance(error, Exception) else ()
            where = next((f"{f.filename[-40:]}:{f.lineno}" for f in reversed(frames) if "/kerasllm/" in f.filename), "")
            examples[end].append(f"{name}/{path.name} {difference(content, changed)} -> {str(error)[:200]} {where}")
    return counts, examples


def difference(old, new):
    """What was changed in a JSON file."""
    try:
        before, after = value_of(old), value_of(new)
        while isinstance(before, dict) and isinstance(after, dict):
            keys = [k for k in {*before, *after} if before.get(k) != after.get(k)]
            if len(keys) != 1 or not isinstance(before.get(keys[0]), dict) or not isinstance(after.get(keys[0]), dict):
                return str({k: after.get(k, "(gone)") for k in keys})[:200]
            before, after = before[keys[0]], after[keys[0]]
    except (ValueError, RecursionError):
        pass
    return repr(new[:80])


SWITCHES, POSITIVE = ("false", 1, [], None), ("x", -1, 0, True, [], float("nan"), 1e39)
COUNTS, RATES = ("x", -1, 0, 1.5, True, [], {}), ("x", -0.1, 1, True, [], None, float("nan"))
FRACTIONS = ("x", -0.1, 0, 1.1, True, [], None, float("nan"))
WRONG = {
    "GPT": {
        **dict.fromkeys(("vocabulary_size", "num_layers", "num_heads", "hidden_dim"), (*COUNTS, None)),
        **dict.fromkeys(("intermediate_dim", "max_sequence_length", "num_key_value_heads", "head_dim"), COUNTS),
        "sliding_window": COUNTS,
        "dropout": RATES,
        **dict.fromkeys(("norm_epsilon", "rope_base"), (*POSITIVE, None)),
        "initializer_range": POSITIVE,
        **dict.fromkeys(("gated", "use_bias", "query_key_norm", "tie_embeddings"), SWITCHES),
        "use_qkv_bias": SWITCHES[:-1],
        "activation": ("x", 5, [], {"class_name": "Dense", "module": "keras.layers", "config": {"units": 2}}),
        "norm": ("x", None, [], True),
        "positions": ("x", [], True),
        "residual": ("x", None, [], 1),
        "rotary_fraction": FRACTIONS,
        **dict.fromkeys(("attention_softcap", "logit_softcap"), POSITIVE),
        "rope_scaling": ("x", [], {}, {"rope_type": "linear", "factor": -2}, {"rope_type": "linear", "factor": "x"}),
        "dtype": ("x", 5, "int32", "bool", []),
    },
    "RNNLanguageModel": {
        **dict.fromkeys(("vocabulary_size", "num_layers", "hidden_dim"), (*COUNTS, None)),
        **dict.fromkeys(("embedding_dim", "num_attention_heads"), COUNTS),
        "cell": ("x", None, []),
        "tie_embeddings": SWITCHES,
    },
    "LSTMTranslator": {
        "bidirectional": SWITCHES,
        "input_feeding": SWITCHES,
        "attention": ("x", [], True),
        "target_vocabulary_size": COUNTS,
    },
    "TransformerTranslator": {
        "source_vocabulary_size": (*COUNTS, None),
        **dict.fromkeys(("num_decoder_layers", "num_decoder_heads", "decoder_intermediate_dim"), COUNTS),
        "attention_scale": POSITIVE,
        **dict.fromkeys(("num_buckets", "max_distance"), (*COUNTS, None)),
        **dict.fromkeys(("norm_first", "scale_embeddings", "norm_embeddings", "use_bias", "use_head_bias"), SWITCHES),
        **dict.fromkeys(("scale_head", "share_embeddings", "tie_embeddings", "gated"), SWITCHES),
    },
    "Summarizer": {"share": SWITCHES},
    "BERT": {
        "pooler": SWITCHES,
        "embedding_dim": COUNTS,
        "num_segments": ("x", -1, 1.5, True, []),
        "family": ("x", []),
    },
    "BERTClassifier": {
        "labels": ("x", -1, 0, 10**9, True, [1], ["a", "a"], {}, None),
        "problem_type": ("x", [], 1),
        "pooler_activation": ("x", 5, {}),
    },
    "BERTEmbedder": {
        "pooling": ("x", 5, [], [[]], {}, None),
        "normalize": SWITCHES,
        "include_prompt": SWITCHES,
        "truncate_at": (*COUNTS, 10**6),
        "dense": ("x", 5, {}, [{}], [{"units": 0}], [{"units": 2, "use_bias": "x"}], [{"units": 2, "activation": []}]),
        "prompts": ("x", 5, ["a"], {"a": 1}),
        "default_prompt_name": ("x", 5, []),
        "similarity": ("x", None, []),
    },
}


def test_a_constructor_refuses_what_a_config_may_not_say():
    attention = {"num_heads": 2, "max_sequence_length": 16, "positions": "rotary"}
    accepted = []
    for class_name, arguments in WRONG.items():
        cls = getattr(kerasllm, class_name)
        known = inspect.signature(cls).parameters
        sizes = SIZES | attention | {"source_vocabulary_size": 24, "target_vocabulary_size": 24}
        sizes = {name: value for name, value in sizes.items() if name in known}
        for name, values in arguments.items():
            for value in values:
                try:
                    cls(**sizes | {name: value})
                    accepted.append(f"{class_name}: {name} ({value!r})")
                except ValueError as error:
                    words = re.findall(r"[\w.]+", str(error))  # of a decoder's argument, its name in any stack
                    if not any(name.endswith(word) for word in words[:2]) or len(str(error)) > 400:
                        accepted.append(f"{class_name}: {name} ({value!r}): {error}")
                except Exception as error:
                    accepted.append(f"{class_name}: {name} ({value!r}): {error!r}")
    assert not accepted, "\n".join(accepted)


@pytest.mark.parametrize("value", FRACTIONS)
def test_the_fraction_that_rotates_is_checked_where_nothing_does_too(value):
    with pytest.raises(ValueError, match=r"rotary_fraction .* must be a number in \(0, 1\]"):
        kerasllm.BERT(**SIZES, num_heads=2, rotary_fraction=value)


def check(counts, examples):
    assert set(counts) <= {"refused", "opened"}, "\n".join(sum(examples.values(), [str(counts)]))
    assert counts["refused"] > counts["opened"]


def test_sizes_that_lie_are_refused_before_anything_is_drawn_or_allocated(tmp_path):
    for number, model in enumerate((quantized(), MADE["own_rnn"](), MADE["own_gpt"]())):
        model.save_to_preset(tmp_path / str(number))
        config = files.read_json(tmp_path / str(number) / "config.json")
        values = sum(tensor.size for tensor in files.read_tensors(tmp_path / str(number)).values())
        for name in ("hidden_dim", "vocabulary_size", "num_layers", "intermediate_dim"):
            for value in (values, 20_000, 2**31, 2**62) if name in config["arguments"] else ():
                changed = config | {"arguments": config["arguments"] | {name: value}}
                files.write_json(tmp_path / str(number) / "config.json", changed)
                end, error = outcome(type(model).__name__, tmp_path / str(number), "config.json")
                assert end == "refused", (type(model).__name__, name, value, end, error)


@pytest.mark.once("torch")
def test_a_changed_file_is_refused_by_name_or_read_as_it_says(tmp_path):
    check(*run(40, tmp_path, choose=lambda name: name in ("own_gpt", "bert_classifier", "embedder")))


@pytest.mark.slow
def test_five_thousand_changed_files(tmp_path):
    check(*run(5000, tmp_path))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        counts, examples = run(int(sys.argv[1]), Path(folder), *map(int, sys.argv[2:]))
    for end, lines in examples.items():
        print(f"== {end}", *lines, sep="\n  ")
    print(keras.backend.backend(), dict(counts))
