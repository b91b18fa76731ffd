"""Attention over encoder states equals Keras's, masks padding, and takes keys computed beforehand."""

import keras
import numpy as np
import pytest
from checks import check_layer
from keras import ops

from kerasllm.layers.alignment import AdditiveAttention, DotAttention

BATCH, T, S, WIDTH, MEMORY_WIDTH = 3, 4, 6, 5, 5
REAL = np.arange(S) < np.array([[6], [2], [4]])
MAKERS = {
    "additive": lambda **kwargs: AdditiveAttention(7, **kwargs),
    "dot": lambda **kwargs: DotAttention("dot", **kwargs),
    "general": lambda **kwargs: DotAttention("general", **kwargs),
}


def arrays():
    rng = np.random.default_rng(0)
    return [rng.normal(size=s).astype("float32") for s in [(BATCH, T, WIDTH), (BATCH, S, MEMORY_WIDTH)]]


def assert_close(actual, expected, tolerance=1e-6):
    for a, b in zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(*(ops.convert_to_numpy(x) for x in (a, b)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("masked", [False, True])
def test_additive_attention_equals_that_of_keras_on_projected_inputs(masked):
    query, memory = arrays()
    layer = AdditiveAttention(7)
    actual = layer(query, memory, padding_mask=REAL if masked else None, return_attention_scores=True)
    theirs = keras.layers.AdditiveAttention()
    theirs.build([(None, T, 7), (None, S, MEMORY_WIDTH), (None, S, 7)])
    theirs.scale.assign(ops.reshape(layer.energy.kernel, (-1,)))
    expected = theirs(
        [layer.query(query), memory, layer.project(memory)],
        mask=[None, REAL if masked else None],
        return_attention_scores=True,
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("score", ["dot", "general"])
def test_dot_attention_equals_that_of_keras_on_projected_inputs(score, masked):
    query, memory = arrays()
    layer = DotAttention(score)
    actual = layer(query, memory, padding_mask=REAL if masked else None, return_attention_scores=True)
    keys = memory if score == "dot" else memory @ ops.convert_to_numpy(layer.key.kernel.value)
    expected = keras.layers.Attention()(
        [query, memory, keys], mask=[None, REAL if masked else None], return_attention_scores=True
    )
    assert_close(actual, expected)


def test_general_attention_takes_a_memory_of_another_width():
    query, memory = arrays()
    wide = np.concatenate([memory, memory], axis=-1)
    assert DotAttention("general")(query, wide).shape == (BATCH, T, 2 * MEMORY_WIDTH)


@pytest.mark.parametrize("kind", MAKERS)
def test_keys_projected_beforehand_change_nothing(kind):
    query, memory = arrays()
    layer = MAKERS[kind]()
    expected = layer(query, memory, padding_mask=REAL)
    assert_close(layer(query, memory, padding_mask=REAL, keys=layer.project(memory)), expected, 0)


@pytest.mark.parametrize("kind", MAKERS)
def test_padding_of_the_memory_changes_nothing(kind):
    query, memory = arrays()
    layer = MAKERS[kind]()
    padded = np.concatenate([memory, np.full_like(memory, 9)], axis=1)
    real = np.concatenate([np.ones((BATCH, S)), np.zeros((BATCH, S))], axis=1).astype("int32")
    context, weights = layer(query, padded, padding_mask=real, return_attention_scores=True)
    assert_close(context, layer(query, memory))
    assert not ops.convert_to_numpy(weights)[:, :, S:].any()


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_row_without_memory_sees_all_alike(kind, dtype):
    query, memory = arrays()
    none = np.zeros((BATCH, S), "bool")
    _, weights = MAKERS[kind](dtype=dtype)(query, memory, padding_mask=none, return_attention_scores=True)
    assert_close(ops.cast(weights, "float32"), np.full((BATCH, T, S), 1 / S), 1e-3)


@pytest.mark.parametrize("kind", MAKERS)
def test_layer_keeps_the_contract(kind):
    query, memory = arrays()
    inputs = {"query": query, "memory": memory, "padding_mask": REAL}
    check_layer(MAKERS[kind], inputs, arguments={"return_attention_scores": True}, lengths=(T, S))


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: AdditiveAttention(0), r"units \(0\)"),
        (lambda: DotAttention("cosine"), r"score \('cosine'\).*'dot', 'general'"),
        (lambda: DotAttention("dot")(np.ones((1, 2, 3)), np.ones((1, 2, 4))), "widths 3 and 4"),
    ],
)
def test_bad_arguments_raise_an_error_that_names_them(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="graphs leave Keras from TensorFlow")
@pytest.mark.parametrize("kind", MAKERS)
def test_attention_runs_in_tflite_with_open_sizes(kind):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    import tensorflow as tf

    query, memory = arrays()
    layer = MAKERS[kind]()
    layer(query, memory)
    module = tf.Module()
    module.weights = [v.value for v in layer.variables]

    @tf.function(autograph=False)
    def attend(query, memory, padding_mask):
        return {"context": layer(query, memory, padding_mask=padding_mask)}

    graph = attend.get_concrete_function(
        tf.TensorSpec((None, None, WIDTH), tf.float32),
        tf.TensorSpec((None, None, MEMORY_WIDTH), tf.float32),
        tf.TensorSpec((None, None), tf.bool),
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    run = interpreter.Interpreter(model_content=converter.convert()).get_signature_runner()
    for b, t, s in [(BATCH, T, S), (1, 1, 3)]:
        inputs = {"query": query[:b, :t], "memory": memory[:b, :s], "padding_mask": REAL[:b, :s]}
        assert_close(run(**inputs)["context"], layer(**inputs))
