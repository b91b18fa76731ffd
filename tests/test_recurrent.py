"""The fast recurrent layer, its readable cells and Keras's own layers compute the same."""

import keras
import numpy as np
import pytest
from checks import check_layer
from keras import ops

from kerasllm import backend
from kerasllm.layers.recurrent import GRUCell, LSTMCell, Recurrent, SimpleRNNCell

BATCH, LENGTH, WIDTH, UNITS = 5, 6, 3, 4
CELLS = ["lstm", "gru", "simple"]
KERAS = {
    "lstm": (LSTMCell, keras.layers.LSTM),
    "gru": (GRUCell, keras.layers.GRU),
    "simple": (SimpleRNNCell, keras.layers.SimpleRNN),
}
MASKS = {
    "unmasked": None,
    "right-padded": np.arange(LENGTH) < np.array([[6], [1], [3], [5], [3]]),
    "left-padded": np.arange(LENGTH) >= np.array([[0], [5], [3], [1], [3]]),
    "with holes": np.array([[1, 0, 1, 1, 0, 1], [0] * 6, [1] * 6, [0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0]], "bool"),
    "all padding": np.zeros((BATCH, LENGTH), "bool"),
}


def rng():
    return np.random.default_rng(0)


def sequence():
    return rng().normal(size=(BATCH, LENGTH, WIDTH)).astype("float32")


def random_weights(layer):
    """Weights with nothing special about them, biases too."""
    layer.set_weights([rng().normal(size=w.shape) * 0.5 for w in layer.get_weights()])
    return layer


def make(cell, **kwargs):
    layer = Recurrent(UNITS, cell, **kwargs)
    layer.build((None, None, WIDTH))
    return random_weights(layer)


def states_for(cell):
    return [rng().normal(size=(BATCH, UNITS)).astype("float32") for _ in range(2 if cell == "lstm" else 1)]


def numbers(nest):
    return keras.tree.map_structure(ops.convert_to_numpy, nest)


def assert_close(actual, expected, tolerance=1e-5):
    """Two nests of tensors are equal up to rounding: cuDNN's kernels differ from single steps by up to 6e-6."""
    for a, b in zip(keras.tree.flatten(numbers(actual)), keras.tree.flatten(numbers(expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("mask", ["unmasked", "with holes"])
@pytest.mark.parametrize("cell", CELLS)
def test_cell_equals_keras_layer_with_the_same_weights(cell, mask):
    ours, theirs = KERAS[cell]
    options = {"return_sequences": True, "return_state": True}
    expected_layer = theirs(UNITS, **options)
    expected_layer.build((None, None, WIDTH))
    random_weights(expected_layer)
    layer = keras.layers.RNN(ours(UNITS), **options)
    layer.build((None, None, WIDTH))
    layer.cell.set_weights(expected_layer.get_weights())
    x, mask, states = sequence(), MASKS[mask], states_for(cell)
    assert_close(layer(x, initial_state=states, mask=mask), expected_layer(x, initial_state=states, mask=mask))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cell", CELLS)
def test_layer_equals_keras_rnn_of_its_cell(cell, mask, reverse):
    layer, x, mask, states = make(cell, reverse=reverse), sequence(), MASKS[mask], states_for(cell)
    outputs, last = layer(x, initial_state=states, padding_mask=mask)
    slow = keras.layers.RNN(
        layer.cell, return_sequences=True, return_state=True, go_backwards=reverse, zero_output_for_mask=True
    )
    expected, *expected_last = numbers(slow(x, initial_state=states, mask=mask))
    expected = expected[:, ::-1] if reverse else expected
    assert_close([outputs, last], [expected, expected_last])


@pytest.mark.in_turn
@pytest.mark.parametrize("mask, reverse", [("unmasked", False), ("with holes", True)])
@pytest.mark.parametrize("cell", CELLS)
def test_every_gradient_equals_that_of_keras_rnn(cell, mask, reverse):
    """A step of plain descent, as `fit` compiles it, moves both layers, and what lies before them, alike."""
    mask, states = MASKS[mask], states_for(cell)
    x, padding_mask = keras.Input((None, WIDTH)), keras.Input((None,), dtype="bool")
    first = [keras.Input((UNITS,)) for _ in states]
    real = None if mask is None else padding_mask
    options = {"return_sequences": True, "return_state": True, "zero_output_for_mask": True}
    fast = Recurrent(UNITS, cell, reverse=reverse)
    slow = keras.layers.RNN(KERAS[cell][0](UNITS), go_backwards=reverse, **options)
    # One layer before each, whose weights tell the gradients of x and of the states.
    before = [keras.layers.Dense(WIDTH) for _ in range(2)]
    bridge = [keras.layers.Dense(UNITS) for _ in range(2)]

    outputs, last = fast(before[0](x), initial_state=[bridge[0](s) for s in first], padding_mask=real)
    slow_outputs, *slow_last = slow(before[1](x), initial_state=[bridge[1](s) for s in first], mask=real)
    # Turning also takes off Keras's own mask, which the loss would apply.
    slow_outputs = ops.flip(slow_outputs, 1)
    outputs = outputs if reverse else ops.flip(outputs, 1)

    model = keras.Model([x, padding_mask, *first], [outputs, *last, slow_outputs, *slow_last])
    for layer in (*before, *bridge, fast, slow):
        random_weights(layer)
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    inputs = [sequence(), np.ones((BATCH, LENGTH), "bool") if mask is None else mask, *states]
    targets = [rng().normal(size=shape) for shape in [(BATCH, LENGTH, UNITS)] + [(BATCH, UNITS)] * len(states)]
    model.fit(inputs, targets * 2, batch_size=BATCH, verbose=0)
    assert_close(
        [before[0].get_weights(), bridge[0].get_weights(), fast.get_weights()],
        [before[1].get_weights(), bridge[1].get_weights(), slow.get_weights()],
    )


@pytest.mark.parametrize("cell", CELLS)
def test_single_steps_equal_the_walk(cell):
    layer, x = make(cell), sequence()
    outputs, last = layer(x)
    states, steps = None, []
    for t in range(LENGTH):
        output, states = layer(x[:, t : t + 1], initial_state=states)
        steps.append(numbers(output))
    assert_close([np.concatenate(steps, axis=1), states], [outputs, last])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_anywhere_changes_nothing(cell, reverse):
    layer, x = make(cell, reverse=reverse), sequence()
    outputs, last = numbers(layer(x))
    slots = [1, 2, 4, 5, 7, 9]
    padded, real = np.full((BATCH, 10, WIDTH), 7, "float32"), np.zeros((BATCH, 10), "int32")
    padded[:, slots], real[:, slots] = x, 1
    padded_outputs, padded_last = numbers(layer(padded, padding_mask=real))
    assert_close([padded_outputs[:, slots], padded_last], [outputs, last])
    assert not padded_outputs[:, [0, 3, 6, 8]].any()


def test_outputs_belong_to_their_inputs_in_both_directions():
    forward, backward, x = make("lstm"), make("lstm", reverse=True), sequence()
    assert_close(numbers(backward(x)[0])[:, ::-1], forward(x[:, ::-1])[0])


def test_new_weights_take_effect_at_the_next_call():
    layer, other, x = make("gru"), make("gru"), sequence()
    other.set_weights([w * 0.5 for w in layer.get_weights()])
    layer(x)
    layer.set_weights(other.get_weights())
    assert_close(layer(x), other(x), 0)


@pytest.mark.parametrize(
    "cell, mask",
    [("lstm", "unmasked"), ("lstm", "with holes"), ("gru", "with holes"), ("simple", "with holes")],
)
def test_layer_keeps_the_contract(cell, mask):
    inputs = {"x": sequence(), "initial_state": states_for(cell)}
    if MASKS[mask] is not None:
        inputs["padding_mask"] = MASKS[mask]
    check_layer(lambda **kwargs: Recurrent(UNITS, cell, **kwargs), inputs, lengths=(LENGTH,))


@pytest.mark.parametrize("cell", CELLS)
def test_cell_keeps_the_contract(cell):
    inputs = {"x": sequence()[:, 0], "states": states_for(cell)}
    check_layer(lambda **kwargs: KERAS[cell][0](UNITS, **kwargs), inputs)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_half_precision_stays_near_float32(cell, dtype):
    layer, mask = make(cell), MASKS["with holes"]
    half = make(cell, dtype=dtype)
    for reals in (None, mask):
        outputs, last = half(sequence(), padding_mask=reals)
        assert {keras.backend.standardize_dtype(y.dtype) for y in (outputs, *last)} == {half.compute_dtype}
        expected = layer(sequence(), padding_mask=reals)
        assert_close(keras.tree.map_structure(lambda y: ops.cast(y, "float32"), (outputs, last)), expected, 0.03)


def test_layer_infers_shapes_with_open_sizes():
    x, padding_mask = keras.Input((None, WIDTH)), keras.Input((None,), dtype="bool")
    outputs, last = Recurrent(UNITS, "lstm")(x, padding_mask=padding_mask)
    assert (outputs.shape, [s.shape for s in last]) == ((None, None, UNITS), [(None, UNITS)] * 2)


def test_layer_works_inside_a_layer_that_does_not_know_its_shapes():
    class Twice(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.second = Recurrent(UNITS), Recurrent(UNITS, reverse=True)

        def build(self, x_shape):
            self.first.build(x_shape)
            self.second.build((*x_shape[:-1], UNITS))

        def call(self, x, padding_mask=None):
            x, states = self.first(x, padding_mask=padding_mask)
            return self.second(x, initial_state=states, padding_mask=padding_mask)[0]

    x, padding_mask = keras.Input((None, WIDTH)), keras.Input((None,), dtype="bool")
    layer = Twice()
    model = keras.Model([x, padding_mask], layer(x, padding_mask=padding_mask))
    real = MASKS["with holes"]
    assert model.output_shape == (None, None, UNITS)
    assert_close(model.predict([sequence(), real], verbose=0), layer(sequence(), padding_mask=real))


def test_dropout_drops_entries_of_the_input_in_training_only():
    layer, plain, x = make("lstm", dropout=0.5), make("lstm"), sequence()
    assert_close(layer(x), plain(x), 0)
    assert np.abs(numbers(layer(x, training=True)[0]) - numbers(plain(x)[0])).max() > 0.01


def test_forget_gate_starts_with_bias_one_and_the_recurrent_kernel_orthogonal():
    cell = LSTMCell(UNITS)
    cell.build((None, WIDTH))
    bias = numbers(cell.bias.value).reshape(4, UNITS)
    assert bias.tolist() == [[0] * UNITS, [1] * UNITS, [0] * UNITS, [0] * UNITS]
    recurrent_kernel = numbers(cell.recurrent_kernel.value)
    assert_close(recurrent_kernel @ recurrent_kernel.T, np.eye(UNITS))


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"units": 0}, r"units \(0\)"),
        ({"units": -3}, r"units \(-3\)"),
        ({"units": 4, "cell": "elman"}, r"cell \('elman'\).*'lstm', 'gru', 'simple'"),
        ({"units": 4, "dropout": 1.0}, r"dropout \(1.0\)"),
        ({"units": 4, "dropout": -0.1}, r"dropout \(-0.1\)"),
    ],
)
def test_bad_arguments_raise_an_error_that_names_them(arguments, named):
    with pytest.raises(ValueError, match=named):
        Recurrent(**arguments)


def test_too_few_states_raise_an_error():
    with pytest.raises(ValueError, match="initial_state must be 2 tensors"):
        make("lstm")(sequence(), initial_state=states_for("gru"))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="graphs leave Keras from TensorFlow")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_dense_recurrence_runs_in_tflite_with_open_batch_and_length(cell, masked, reverse):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    import tensorflow as tf

    layer = make(cell, reverse=reverse)
    module = tf.Module()
    module.weights = [v.value for v in layer.variables]
    specs = {"x": tf.TensorSpec((None, None, WIDTH), tf.float32)}
    if masked:
        specs["padding_mask"] = tf.TensorSpec((None, None), tf.bool)

    @tf.function(autograph=False)
    def walk(**inputs):
        outputs, states = layer(inputs.pop("x"), **inputs)
        return {"outputs": outputs, "h": states[0], "last": states[-1]}

    with backend.dense_recurrence():
        graph = walk.get_concrete_function(**specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    run = interpreter.Interpreter(model_content=converter.convert()).get_signature_runner()
    for batch, length in [(1, 4), (3, 7)]:
        inputs = {"x": rng().normal(size=(batch, length, WIDTH)).astype("float32")}
        if masked:
            inputs["padding_mask"] = rng().random((batch, length)) > 0.4
        actual = run(**inputs)
        outputs, states = layer(inputs.pop("x"), **inputs)
        assert_close([actual["outputs"], actual["h"], actual["last"]], [outputs, states[0], states[-1]])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="graphs leave Keras from TensorFlow")
def test_keras_exports_a_users_recurrent_model_to_tflite(tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, make("lstm", reverse=True)(keras.layers.Masking()(x))[0])
    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    run = interpreter.Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()
    inputs = sequence()
    inputs[1, 2:] = 0
    (actual,) = run(**{next(iter(run.get_input_details())): inputs}).values()
    assert_close(actual, model(inputs))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="SavedModels come from TensorFlow")
@pytest.mark.parametrize("reverse", [False, True])
def test_saved_model_takes_any_batch_and_length(tmp_path, reverse):
    import tensorflow as tf

    layer = make("lstm", reverse=reverse)
    archive = keras.export.ExportArchive()
    archive.track(layer)
    specs = [tf.TensorSpec((None, None, WIDTH), tf.float32), tf.TensorSpec((None, None), tf.bool)]
    archive.add_endpoint("serve", lambda x, real: layer(x, padding_mask=real)[0], input_signature=specs)
    archive.write_out(str(tmp_path), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    for x, real in [(sequence(), MASKS["with holes"]), (sequence()[:2, :3], np.ones((2, 3), "bool"))]:
        assert_close(loaded.serve(x, real), layer(x, padding_mask=real)[0])
