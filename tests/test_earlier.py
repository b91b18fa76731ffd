"""Files, configs and calls of kerasllm 0.1.0 go on working; `data/earlier/make_earlier.py` says what the files hold."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm import layers
from kerasllm.backend.variables import built_with
from kerasllm.layers.transformer import TransformerStack

DATA = Path(__file__).parent / "data" / "earlier"
CONFIGS = json.loads((DATA / "configs.json").read_text())
SIGNATURES = json.loads((DATA / "signatures.json").read_text())
ANSWERS = dict(np.load(DATA / "answers.npz"))
FILES = sorted({key.partition("/")[0] for key in ANSWERS})
PRESETS = sorted(path.parent.name for path in DATA.glob("*/config.json"))


def answers_of(name, kind):
    start = f"{name}/{kind}/"
    return {key.removeprefix(start): value for key, value in ANSWERS.items() if key.startswith(start)}


def variables(thing):
    return [[v.path, list(v.shape), v.trainable] for v in thing.weights]


def unfilled(build):
    """What `build` makes, all its weights 0: drawing them takes longer than all else."""
    return built_with(
        build, lambda shapes: {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
    )


def check_outputs(model, name, kind="outputs"):
    outputs = keras.tree.flatten(model(answers_of(name, "inputs"), training=False))
    for y, expected in zip(outputs, answers_of(name, kind).values(), strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(y), expected, rtol=0, atol=1e-5)


@pytest.mark.once("torch")
@pytest.mark.parametrize("name", FILES)
def test_a_keras_file_computes_and_generates_as_it_did(name):
    model = keras.models.load_model(DATA / f"{name}.keras")
    assert variables(model) == CONFIGS[name]["variables"]
    check_outputs(model, name)
    if f"{name}/ids" in ANSWERS:
        starts = {} if "token_ids" in model.input else {"prompts": [[2], [2]]}
        rows = model.generate([[3, 1, 4, 1], [5, 9]], **starts, max_new_tokens=6, num_beams=1, no_repeat_ngram_size=1)
        assert [list(row) for row in rows] == [[i for i in row if i >= 0] for row in ANSWERS[f"{name}/ids"]]
    if f"{name}/labels" in ANSWERS:  # the next step needs the optimizer's state, each value at its variable
        if (
            keras.backend.backend() == "jax"
        ):  # which is slow at a step that is not compiled, as the others at one that is
            model.run_eagerly, model.jit_compile = False, True
        model.train_on_batch(answers_of(name, "inputs"), ANSWERS[f"{name}/labels"])
        check_outputs(model, name, "trained")


@pytest.mark.in_turn
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_computes_as_it_did(name):
    check_outputs(kerasllm.load(None, DATA / name), name)


@pytest.mark.once("torch")
@pytest.mark.parametrize("name", [name for name in CONFIGS if "object" in CONFIGS[name]])
def test_a_config_makes_the_same_variables(name):
    written = CONFIGS[name]

    def make():
        made = keras.saving.deserialize_keras_object(written["object"])
        if "shapes" in written:
            made.build(*written["shapes"])
        return made

    assert variables(unfilled(make)) == written["variables"]


TOKENIZER = kerasllm.Tokenizer.train_words(["a cat sat"], 10, pad="<pad>", bos="<s>", eos="</s>")
LINEAR = {"rope_type": "linear", "factor": 2.0}
# No two numbers of one class are equal, so that arguments which change places change the config.
VALUES = {
    "vocabulary_size": 30,
    "source_vocabulary_size": 30,
    "target_vocabulary_size": 31,
    "num_layers": 1,
    "num_heads": 4,
    "hidden_dim": 8,
    "intermediate_dim": 10,
    "max_sequence_length": 12,
    "num_segments": 3,
    "embedding_dim": 7,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "sliding_window": 5,
    "num_buckets": 9,
    "max_distance": 40,
    "num_decoder_layers": 2,
    "num_decoder_heads": 3,
    "decoder_intermediate_dim": 11,
    "num_attention_heads": 2,
    "truncate_at": 11,
    "units": 5,
    "dropout": 0.25,
    "norm_epsilon": 0.001,
    "initializer_range": 0.5,
    "attention_scale": 0.75,
    "scale": 0.75,
    "rope_base": 50.0,
    "base": 50.0,
    "max_wavelength": 50.0,
    "rope_scaling": LINEAR,
    "scaling": LINEAR,
    "activation": "silu",
    "norm": "rms",
    "positions": "rotary",
    "cell": "gru",
    "score": "general",
    "family": "electra",
    "problem_type": "multi_label",
    "pooler_activation": "relu",
    "pooling": "max",
    "similarity": "dot",
    "kernel_initializer": "he_normal",
    "embeddings_initializer": "ones",
    "labels": ["bad", "good"],
    "dense": [{"units": 3}],
    "prompts": {"query": "a: "},
    "default_prompt_name": "query",
    "dtype": "mixed_bfloat16",
    "tokenizer": TOKENIZER,
    "source_tokenizer": TOKENIZER,
    "target_tokenizer": kerasllm.Tokenizer(TOKENIZER.backend, bos="<s>"),
    "token_embedding": keras.layers.ReversibleEmbedding(30, 7),
    "name": "renamed",
}
OTHER_VALUES = {
    "TransformerStack": {"sliding_window": None},  # for decoders only
    "TransformerEncoder": {"sliding_window": None},
    "TransformerBlock": {
        "attention": layers.MultiHeadAttention(2),
        "feed_forward": layers.FeedForward(9),
        "cross_attention": layers.MultiHeadAttention(3),
    },
    "LSTMTranslator": {"attention": "general"},
}


def calls(name):
    """Values for all arguments of a class, in order: as many dicts as it takes to tell the booleans apart.

    Booleans are numbered in alphabetic order, by which none has `scale_head` without `tie_embeddings`; call i gives
    each the i-th bit of its number.
    """
    names = [argument for argument, *_ in SIGNATURES[name]]
    booleans = sorted(argument for argument, *default in SIGNATURES[name] if isinstance(*default or [0], bool))
    booleans += [argument for argument in names if argument == "use_qkv_bias"]
    for i in range(max(1, (len(booleans) - 1).bit_length())):
        bits = {argument: bool(number >> i & 1) for number, argument in enumerate(booleans)}
        values = {**VALUES, **OTHER_VALUES.get(name, {}), **bits}
        if values.get("share_embeddings"):
            values["target_vocabulary_size"] = values["source_vocabulary_size"]
        yield {argument: values[argument] for argument in names}


def constructor(name):
    if name == "TransformerStack":
        return TransformerStack
    return getattr(layers if name in layers.__all__ else kerasllm, name)


def config_of(cls, /, *args, **kwargs):
    """The config of an object, with the roles of its tokenizers; of layers, whose names are counted, with one name."""
    if not issubclass(cls, keras.Model):
        kwargs["name"] = "renamed"
    made = unfilled(lambda: cls(*args, **kwargs))
    return {**made.get_config(), **{key: t.roles for key, t in getattr(made, "tokenizers", {}).items()}}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_are_taken_by_place_and_by_name(name):
    cls = constructor(name)
    for values in calls(name):
        assert config_of(cls, *values.values()) == config_of(cls, **values)


@pytest.mark.parametrize("name", SIGNATURES)
def test_defaults_are_what_they_were(name):
    needed = {argument: value for argument, value in next(calls(name)).items() if [argument] in SIGNATURES[name]}
    defaults = {argument: default[0] for argument, *default in SIGNATURES[name] if default}
    cls = constructor(name)
    assert config_of(cls, **needed) == config_of(cls, **needed, **defaults)
