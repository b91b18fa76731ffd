"""Muon: the paper's update on matrices of hidden layers, AdamW's on the rest."""

import keras
import numpy as np
import pytest
from keras import ops
from test_models import ENCODERS, LANGUAGE_MODELS, SMALL, TRANSLATORS, V

from kerasllm import BERTQuestionAnswerer, BERTTokenClassifier
from kerasllm.training import AdamW, Muon, WarmupCosine

RNG = np.random.default_rng(0)
SHAPES = {"wide": (4, 6), "high": (7, 3), "head/kernel": (4, 3), "embeddings": (5, 4), "vector": (5,)}
START = {name: RNG.normal(size=shape).astype("float32") for name, shape in SHAPES.items()}
GRADIENTS = [{name: RNG.normal(size=shape).astype("float32") for name, shape in SHAPES.items()} for _ in range(4)]
MATRICES = ("wide", "high")


def stepped(optimizer, names=tuple(SHAPES)):
    """The variables of START after a step with each of the gradients."""
    variables = []
    for name in names:
        with keras.name_scope("/".join(name.split("/")[:-1]) or "model"):
            variables.append(keras.Variable(START[name], name=name.split("/")[-1]))
    optimizer.build(variables)
    for gradient in GRADIENTS:
        optimizer.apply([ops.convert_to_tensor(gradient[name]) for name in names], variables)
    return {name: ops.convert_to_numpy(v.value) for name, v in zip(names, variables, strict=True)}


def orthogonal(g):
    """Five steps of Newton and Schulz with the coefficients of Jordan et al."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@pytest.mark.parametrize("accumulated", [False, True])
def test_matrices_move_as_in_the_paper_and_the_rest_as_with_adamw(accumulated):
    lr, decay, ratio, clip = 0.02, 0.3, 0.5, 1.0
    steps = {"gradient_accumulation_steps": 2} if accumulated else {}
    gradients = GRADIENTS
    if accumulated:
        gradients = [{n: (GRADIENTS[i][n] + GRADIENTS[i + 1][n]) / 2 for n in SHAPES} for i in (0, 2)]
    arguments = {"weight_decay": decay, "adam_weight_decay": decay, "adam_lr_ratio": ratio}
    actual = stepped(Muon(lr, global_clipnorm=clip, **arguments, **steps))
    for name in SHAPES:
        x, m, v = START[name].astype("float64"), 0.0, 0.0
        for t, gradient in enumerate(gradients, 1):
            norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in gradient.values()))
            g = gradient[name] * min(1, clip / norm)
            if name in MATRICES:
                m = 0.95 * m + g
                x = x * (1 - lr * decay) - lr * 0.2 * np.sqrt(max(x.shape)) * orthogonal(g + 0.95 * m)
            else:
                x = x * (1 - lr * ratio * decay) if name != "vector" else x
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                x = x - lr * ratio * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        np.testing.assert_allclose(actual[name], x, atol=1e-5, err_msg=name)


def test_the_other_side_is_our_adamw():
    names = ("head/kernel", "embeddings", "vector")
    ours = stepped(Muon(0.02, adam_weight_decay=0.3, no_decay="embeddings"), names)
    adamw = stepped(AdamW(0.02, weight_decay=0.3, no_decay="embeddings"), names)
    for name in names:
        np.testing.assert_allclose(ours[name], adamw[name], atol=1e-6, err_msg=name)


class Halved:
    def assign_sub(self, variable, value):
        super().assign_sub(variable, value / 2)


def test_what_a_subclass_changes_is_done():
    ours, theirs = (type("Halved", (Halved, cls), {}) for cls in (Muon, keras.optimizers.Muon))
    none = {"weight_decay": 0.0, "adam_weight_decay": 0.0}
    ours, theirs = stepped(ours(0.02, **none)), stepped(theirs(0.02, exclude_layers=["head"], **none))
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, err_msg=name)


def adamw_matrices(model, optimizer=None):
    """The paths of the matrices that have AdamW's step."""
    optimizer = optimizer or Muon()
    optimizer.build(model.trainable_variables)
    pairs = zip(model.trainable_variables, optimizer.adam_velocities, strict=True)
    on_adamw = {v.path for v, velocity in pairs if velocity is not None}
    assert on_adamw >= {v.path for v in model.trainable_variables if len(v.shape) != 2}
    return {v.path for v in model.trainable_variables if len(v.shape) == 2 and v.path in on_adamw}


@pytest.mark.parametrize(
    "make, expected",
    [
        (LANGUAGE_MODELS["gpt"], ["decoder/embeddings/token/embeddings", "decoder/embeddings/position/embeddings"]),
        (LANGUAGE_MODELS["gemma"], ["decoder/embeddings/token/embeddings", "head/kernel"]),
        (LANGUAGE_MODELS["gru"], ["decoder/embedding/embeddings", "decoder/layer_0/cell/bias"]),
        (
            TRANSLATORS["additive"],
            [
                "encoder/embedding/embeddings",
                "decoder/embedding/embeddings",
                "decoder/attention/energy/kernel",
                "head/kernel",
            ],
        ),
        (
            lambda: BERTQuestionAnswerer(V, **SMALL, max_sequence_length=8),
            [
                *(f"encoder/embeddings/{name}/embeddings" for name in ("token", "position", "segment")),
                "answer_span/kernel",
            ],
        ),
        (
            lambda: BERTTokenClassifier(V, **SMALL, labels=3, max_sequence_length=8),
            [
                *(f"encoder/embeddings/{name}/embeddings" for name in ("token", "position", "segment")),
                "classifier/kernel",
            ],
        ),
        (
            ENCODERS["masked_lm"],
            [f"encoder/embeddings/{name}/embeddings" for name in ("token", "position", "segment")],
        ),
    ],
)
def test_embeddings_and_heads_of_our_models_are_on_the_side_of_adamw(make, expected):
    assert adamw_matrices(make()) == set(expected)


def test_factors_of_lora_and_what_is_named_are_on_the_side_of_adamw():
    model = LANGUAGE_MODELS["gpt"]()
    embeddings = adamw_matrices(model)
    assert adamw_matrices(model, Muon(exclude_layers="query/")) == {
        *embeddings,
        "decoder/block_0/attention/query/kernel",
    }
    for layer in model._flatten_layers():
        if layer.name in ("query", "value"):
            layer.enable_lora(2)
    factors = {v.path for v in model.trainable_variables if "lora_kernel" in v.path}
    assert len(factors) == 4 and adamw_matrices(model) == embeddings | factors


def test_its_arguments_are_saved_and_checked():
    config = Muon(WarmupCosine(0.1, 1, 4), no_decay="embeddings", exclude_layers=["query"], ns_steps=3).get_config()
    assert Muon.from_config(dict(config)).get_config() == config
    with pytest.raises(ValueError, match=r"no_decay \('\('\) must be a regular expression"):
        Muon(no_decay="(")
    with pytest.raises(ValueError, match=r"exclude_layers \('\('\) must be a regular expression"):
        Muon(exclude_layers="(")
    with pytest.raises(ValueError, match="no_decay"):
        Muon().exclude_from_weight_decay(var_names=["bias"])
