"""Input feeding and shared tables of the recurrent encoder and decoder."""

import keras
import numpy as np
import pytest
from checks import check_layer, check_user_model
from keras import ops

from kerasllm import LSTMTranslator
from kerasllm.layers.embeddings import TiedHead
from kerasllm.layers.encoder_decoder import Bridge, RecurrentDecoder, RecurrentEncoder

B, T, S, V, U, E, M = 3, 4, 5, 9, 6, 5, 7
SOURCE_REAL = np.arange(S) < np.array([[5], [2], [4]])
TARGET_REAL = np.arange(T) < np.array([[4], [1], [3]])
CASES = {
    "additive": {"attention": "additive", "num_layers": 2},
    "general": {"attention": "general", "cell": "gru", "num_layers": 2, "tie_embeddings": True},
    "dot": {"attention": "dot", "cell": "simple"},
}
NUM_STATES = {"lstm": 2, "gru": 1, "simple": 1}


def make(case, **kwargs):
    arguments = {"num_layers": 1, "hidden_dim": U, "embedding_dim": E, **CASES[case], **kwargs}
    return RecurrentDecoder(V, **arguments, input_feeding=True)


def inputs_for(case):
    """Ids, first states and a memory for a decoder of a case."""
    rng = np.random.default_rng(0)
    options = {"cell": "lstm", "num_layers": 1, **CASES[case]}
    width = U if case == "dot" else M

    def normal(*shape):
        return rng.normal(size=shape).astype("float32")

    states = [[normal(B, U) for _ in range(NUM_STATES[options["cell"]])] for _ in range(options["num_layers"])]
    return {
        "token_ids": rng.integers(0, V, (B, T)).astype("int32"),
        "states": states,
        "memory": normal(B, S, width),
        "memory_padding_mask": SOURCE_REAL,
    }


def random_weights(layer):
    rng = np.random.default_rng(1)
    layer.set_weights([rng.normal(size=w.shape) * 0.5 for w in layer.get_weights()])
    return layer


def called(layer, inputs, **kwargs):
    inputs = {**inputs, **kwargs}
    return layer(inputs.pop("token_ids"), **inputs)


def built(case, **kwargs):
    layer = make(case, **kwargs)
    called(layer, inputs_for(case))
    return random_weights(layer)


def numbers(nest):
    return keras.tree.map_structure(lambda x: ops.convert_to_numpy(ops.cast(x, "float32")), nest)


def assert_close(actual, expected, tolerance=1e-5):
    for a, b in zip(keras.tree.flatten(numbers(actual)), keras.tree.flatten(numbers(expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def reference(layer, case, inputs):
    """The decoder as a plain torch loop over torch's own cells: outputs (B, T, D), last states, the weights' gradients.

    The loss is the mean of the squared outputs; gradients are in the order of `layer.weights`.
    """
    import torch

    options = {"cell": "lstm", **CASES[case]}
    weights = [torch.tensor(w, requires_grad=True) for w in layer.get_weights()]
    by_path = {v.path.partition("/")[2]: w for v, w in zip(layer.weights, weights, strict=True)}
    cell_class = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "simple": torch.nn.RNNCell}[options["cell"]]

    def gates(w):  # ours are z r n, torch's r z n
        if options["cell"] != "gru":
            return w
        z, r, n = w.chunk(3, -1)
        return torch.cat([r, z, n], -1)

    def run_cell(i, x, state):
        kernel, recurrent, bias = (
            gates(by_path[f"layer_{i}/cell/{name}"]) for name in ("kernel", "recurrent_kernel", "bias")
        )
        first, second = bias if options["cell"] == "gru" else (bias, torch.zeros_like(bias))
        cell = cell_class(x.shape[1], U)
        parameters = {"weight_ih": kernel.T, "weight_hh": recurrent.T, "bias_ih": first, "bias_hh": second}
        state = tuple(state) if options["cell"] == "lstm" else state[0]
        new = torch.func.functional_call(cell, parameters, (x, state))
        return list(new) if options["cell"] == "lstm" else [new]

    memory = torch.tensor(inputs["memory"])
    real = torch.tensor(SOURCE_REAL)

    def score(h):
        if options["attention"] == "dot":
            return torch.einsum("bu,bsu->bs", h, memory)
        if options["attention"] == "general":
            return torch.einsum("bu,bsm,mu->bs", h, memory, by_path["attention/key/kernel"])
        sums = (h @ by_path["attention/query/kernel"])[:, None] + memory @ by_path["attention/key/kernel"]
        return (torch.tanh(sums) @ by_path["attention/energy/kernel"])[..., 0]

    combine = by_path["combine/kernel"]
    states = [[torch.tensor(s) for s in state] for state in inputs["states"]]
    fed, outputs = torch.zeros(B, combine.shape[1]), []
    for t in range(T):
        embedded = by_path["embedding/embeddings"][torch.tensor(inputs["token_ids"][:, t]).long()]
        x = torch.cat([embedded, fed], -1)
        for i, state in enumerate(states):
            states[i] = run_cell(i, x, state)
            x = states[i][0]
        context = torch.einsum("bs,bsm->bm", torch.softmax(score(x).masked_fill(~real, -1e9), -1), memory)
        fed = torch.tanh(torch.cat([context, x], -1) @ combine)
        outputs.append(fed)
    outputs = torch.stack(outputs, 1)
    gradients = torch.autograd.grad((outputs**2).mean(), weights)
    return keras.tree.map_structure(lambda x: x.detach().cpu().numpy(), (outputs, [*states, [fed]], list(gradients)))


@pytest.mark.in_turn
@pytest.mark.parametrize("case", CASES)
def test_input_feeding_equals_a_plain_loop_over_the_cells_of_torch(case):
    pytest.importorskip("torch")
    layer, inputs = built(case), inputs_for(case)
    outputs, last, gradients = reference(layer, case, inputs)
    assert_close(called(layer, inputs), (outputs, last))

    symbols = keras.tree.map_structure(lambda x: keras.Input(x.shape[1:], dtype=str(x.dtype)), inputs)
    model = keras.Model(keras.tree.flatten(symbols), called(layer, symbols)[0])
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    before = layer.get_weights()
    model.fit(keras.tree.flatten(inputs), np.zeros_like(outputs), batch_size=B, verbose=0)
    moves = [a - b for a, b in zip(before, layer.get_weights(), strict=True)]
    assert_close(moves, gradients)


@pytest.mark.parametrize("case", CASES)
def test_single_steps_with_keys_projected_once_equal_the_walk(case):
    layer, inputs = built(case), inputs_for(case)
    outputs, last = called(layer, inputs)
    states, keys, steps = layer.first_states(B, inputs["states"]), layer.attention.project(inputs["memory"]), []
    for t in range(T):
        token_ids = inputs["token_ids"][:, t : t + 1]
        output, states = called(layer, inputs, token_ids=token_ids, states=states, keys=keys)
        steps.append(numbers(output))
    assert_close([np.concatenate(steps, axis=1), states], [outputs, last])


@pytest.mark.parametrize("case", CASES)
def test_padding_anywhere_in_the_target_keeps_states_and_what_is_fed(case):
    layer, inputs = built(case), inputs_for(case)
    outputs, last = numbers(called(layer, inputs))
    slots = [1, 2, 4, 6]
    padded, real = np.full((B, 8), 7, "int32"), np.zeros((B, 8), "int32")
    padded[:, slots], real[:, slots] = inputs["token_ids"], 1
    padded_outputs, padded_last = numbers(called(layer, inputs, token_ids=padded, padding_mask=real))
    assert_close([padded_outputs[:, slots], padded_last], [outputs, last])
    assert not padded_outputs[:, [0, 3, 5, 7]].any()


def test_padding_of_the_memory_changes_nothing():
    layer, inputs = built("additive"), inputs_for("additive")
    expected = called(layer, inputs)
    memory = np.pad(inputs["memory"], [(0, 0), (0, 2), (0, 0)], constant_values=9)
    mask = np.pad(SOURCE_REAL, [(0, 0), (0, 2)])
    assert_close(called(layer, inputs, memory=memory, memory_padding_mask=mask), expected)


@pytest.mark.in_turn
@pytest.mark.parametrize("case", CASES)
def test_a_decoder_with_input_feeding_keeps_the_layer_contract(case):
    inputs = {**inputs_for(case), "padding_mask": TARGET_REAL}
    check_layer(lambda **kwargs: make(case, **kwargs), inputs, lengths=(T, S))


def test_what_is_fed_is_the_result_with_its_dropout():
    """A step that drops almost all of its result feeds zeros, but for what is left of it."""
    layer, inputs = built("dot", dropout=0.5), inputs_for("dot")
    outputs, last = numbers(called(layer, inputs, training=True))
    assert_close(outputs[:, -1], last[-1][0], 0)
    assert 0.2 < (outputs == 0).mean() < 0.8
    assert np.abs(outputs[outputs != 0]).max() > 1  # scaled by 1 / (1 - rate)


def test_a_layer_without_dropout_computes_the_same_in_training():
    layer, inputs = built("additive"), inputs_for("additive")
    assert_close(called(layer, inputs, training=True), called(layer, inputs), 0)


def test_lora_and_quantized_weights_are_those_that_the_loop_uses():
    layer, inputs = built("additive"), inputs_for("additive")
    before = numbers(called(layer, inputs)[0])
    rng = np.random.default_rng(2)
    layer.combine.enable_lora(2)
    layer.attention.query.enable_lora(2)
    for factor in (*layer.combine.lora_factors, *layer.attention.query.lora_factors):
        factor.assign(rng.normal(size=factor.shape))
    adapted = numbers(called(layer, inputs)[0])
    assert np.abs(adapted - before).max() > 0.1
    layer.combine.quantize("int8")
    layer.attention.query.quantize("int8")
    assert_close(called(layer, inputs)[0], adapted, 0.1)


@pytest.mark.in_turn
@pytest.mark.parametrize("tie", [True, False])
def test_an_encoder_and_a_decoder_of_a_users_model_share_their_table(tie):
    source, target = (keras.Input((None,), dtype="int32") for _ in range(2))
    decoder = RecurrentDecoder(V, 1, U, attention="additive", tie_embeddings=tie, input_feeding=True)
    encoder = RecurrentEncoder(V, 1, U, token_embedding=decoder.embedding)
    memory, states = encoder(source)
    hidden, _ = decoder(target, Bridge(U)(states), memory=memory)
    model = keras.Model([source, target], TiedHead(decoder.embedding)(hidden) if tie else hidden)
    assert sum(v.shape == (V, U) for v in model.weights) == 1
    check_user_model(model, [np.ones((2, 3), "int32"), np.array([[1, 2], [3, 4]], "int32")])


@pytest.mark.parametrize("sizes", [((B, T), (B, None)), ((B, None), (B, S)), ((None, T), (None, None))])
def test_sizes_may_be_known_or_open(sizes):
    target, source = sizes
    layer, inputs = built("additive"), inputs_for("additive")
    token_ids, memory = keras.Input(batch_shape=target, dtype="int32"), keras.Input(batch_shape=(*source, M))
    model = keras.Model([token_ids, memory], layer(token_ids, memory=memory)[0])
    x = [inputs["token_ids"], inputs["memory"]]
    assert_close(model.predict(x, verbose=0), layer(x[0], memory=x[1])[0])


@pytest.mark.parametrize(
    "call, named",
    [
        (
            lambda: called(make("additive"), {**inputs_for("additive"), "states": [[np.zeros((B, U), "float32")]] * 2}),
            r"states must be, for each layer, lists of \[2, 2\] tensors, not of \[1, 1, 1\]",
        ),
        (lambda: RecurrentDecoder(V, 1, U, input_feeding=True), r"input_feeding \(True\).*attention \(None\)"),
        (lambda: RecurrentDecoder(V, 1, U, attention="dot", input_feeding=1), r"input_feeding \(1\)"),
        (
            lambda: RecurrentEncoder(V, 1, U, token_embedding=keras.layers.Embedding(8, U)),
            r"token_embedding has 8 symbols of width 6: vocabulary_size \(9\) and embedding_dim \(6\)",
        ),
        (
            lambda: RecurrentDecoder(V, 1, U, token_embedding=keras.layers.ReversibleEmbedding(V, E)),
            r"token_embedding has 9 symbols of width 5: vocabulary_size \(9\) and embedding_dim \(6\)",
        ),
    ],
)
def test_bad_arguments_raise_an_error_that_names_them(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize("tie, expected", [(False, 1.0), (True, 16**-0.25)])
def test_a_table_of_both_sides_begins_as_large_as_both_can_use(tie, expected):
    model = LSTMTranslator(300, 300, hidden_dim=16, tie_embeddings=tie, share_embeddings=True)
    (table,) = [v for v in model.weights if v.path.endswith("/embeddings")]
    assert table.path == "encoder/embedding/embeddings" and (300, 16) == table.shape
    assert sum(v.shape in ((300, 16), (16, 300)) for v in model.weights) == (1 if tie else 2)  # an output layer
    np.testing.assert_allclose(ops.convert_to_numpy(table.value).std(), expected, rtol=0.05)


@pytest.mark.once("torch")
def test_lora_and_int8_of_a_shared_table_are_saved_and_generate(tmp_path):
    model = LSTMTranslator(V, V, hidden_dim=8, tie_embeddings=True, share_embeddings=True, input_feeding=True)
    table = model.encoder.embedding
    table.enable_lora(2)
    table.lora_factors[1].assign(np.random.default_rng(0).normal(size=(2, 8)))
    sources, options = [[1, 2, 3], [4]], {"prompts": [[1], [1]], "max_new_tokens": 5, "num_beams": 2}
    for layer in (table, model.decoder.attention.query, model.decoder.combine):
        layer.quantize("int8")
    expected = model.generate(sources, **options, return_scores=True)
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    for copy in (keras.models.load_model(tmp_path / "model.keras"), LSTMTranslator.from_preset(tmp_path / "preset")):
        assert copy.encoder.embedding is copy.decoder.embedding is copy.head.embedding
        for got, row in zip(copy.generate(sources, **options, return_scores=True), expected, strict=True):
            assert got.token_ids.tolist() == row.token_ids.tolist()
            np.testing.assert_allclose(got.score, row.score, atol=1e-5)
