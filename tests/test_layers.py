"""What holds of every layer: objects in its config, its place in a user's graph, Keras's masks."""

import json

import keras
import numpy as np
import pytest
from checks import check_keras_mask, check_user_model
from keras import ops

from kerasllm import GPT, BERTMaskedLM, LSTMTranslator, Summarizer, TransformerTranslator
from kerasllm.layers import (
    AdditiveAttention,
    DotAttention,
    FeedForward,
    GatedFeedForward,
    LearnedPositions,
    LSTMCell,
    MultiHeadAttention,
    Recurrent,
    RotaryPositions,
    SinusoidalPositions,
    TransformerBlock,
    TransformerDecoder,
    TransformerEncoder,
)
from kerasllm.layers.base import MethodCall
from kerasllm.layers.embeddings import TiedHead
from kerasllm.layers.encoder_decoder import Bridge, RecurrentDecoder, RecurrentEncoder
from kerasllm.layers.transformer import SharedEncoder

V = 11
SIZES = {"vocabulary_size": V, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}
IDS = np.random.default_rng(0).integers(1, V, (3, 5)).astype("int32")
REAL = np.arange(5) < np.array([[5], [3], [2]])
MODEL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 8, "dropout": 0.0}
PAIRS = {"source_token_ids": IDS, "source_padding_mask": REAL, "target_token_ids": IDS, "target_padding_mask": REAL}
register = keras.saving.register_keras_serializable("kerasllm_tests")


@register
def cube(x):
    return x * x * x


@register
def tenths(shape, dtype=None):
    return ops.ones(shape, dtype) / 10


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.once("torch")
def test_what_layers_share_in_a_users_graph_is_shared_after_load():
    ids = keras.Input((None,), dtype="int32")
    table = keras.layers.ReversibleEmbedding(V, 8, name="table")
    encoder = TransformerEncoder(**SIZES, token_embedding=table, name="encoder")
    decoder = TransformerDecoder(**SIZES, cross_attention=True, token_embedding=encoder.embeddings.token)
    decoder.build((None, None))
    memory = encoder(ids) + SharedEncoder(decoder)(ids) + decoder.encode(ids) + table(ids)
    hidden = decoder(ids, memory=memory)
    own = TransformerDecoder(**SIZES, name="own")
    logits = [decoder.logits(hidden), TiedHead(table, scale=0.5)(hidden), own.logits(own(ids))]
    model = keras.Model(ids, [*logits, own.embeddings.token(hidden, reverse=True)])
    assert sum(v.shape == (V, 8) for v in model.trainable_variables) == 2
    check_user_model(model, IDS)


@pytest.mark.once("torch")
def test_sublayers_and_methods_in_a_users_graph_belong_to_their_layer_after_load():
    ids = keras.Input((None,), dtype="int32")
    encoder, decoder = RecurrentEncoder(V, 1, 6), RecurrentDecoder(V, 1, 8, attention="additive", tie_embeddings=True)
    memory, states = encoder(ids)
    hidden, _ = decoder(ids, Bridge(8)(states), memory=memory)
    attention = MultiHeadAttention(2, name="attention")
    block = TransformerBlock(attention, FeedForward(7), MultiHeadAttention(2, name="cross"), name="block")
    other = TransformerBlock(attention, FeedForward(7), name="other")
    x = other(block(hidden, memory=memory, use_causal_mask=True))
    y = block(x, memory=block.project_memory(memory))
    additive, general = AdditiveAttention(5), DotAttention("general")
    contexts = [layer(y, memory) + layer(y, memory, keys=layer.project(memory)) for layer in (additive, general)]
    model = keras.Model(ids, [TiedHead(decoder.embedding)(y), *contexts])
    check_user_model(model, IDS)


@pytest.mark.once("torch")
def test_graphs_made_of_the_insides_of_our_models_are_saved_and_loaded():
    gpt, masked_lm = (model(V, **MODEL, initializer_range=0.5) for model in (GPT, BERTMaskedLM))
    softmax = keras.layers.Softmax()
    text = {"token_ids": IDS, "padding_mask": REAL}
    check_user_model(keras.Model(gpt.input, softmax(gpt.output)), text)
    masked = {**text, "segment_ids": IDS % 2, "masked_positions": IDS[:, :2] % 5}
    check_user_model(keras.Model(masked_lm.input, softmax(masked_lm.output)), masked, fit=False)
    for model in (
        TransformerTranslator(V, V, **MODEL, share_embeddings=True),
        LSTMTranslator(V, V, hidden_dim=8, embedding_dim=4, tie_embeddings=True),
        LSTMTranslator(V, V, hidden_dim=8, share_embeddings=True, input_feeding=True),
        Summarizer(V, **MODEL, share=True),
    ):
        check_user_model(keras.Model(model.input, softmax(model.output)), PAIRS, fit=False)
    inside = keras.Model(gpt.input, gpt.get_layer("decoder").output)
    check_user_model(inside, text, fit=False)


def test_clones_are_tied_where_keras_allows_it_and_say_so_where_not():
    gpt = GPT(V, **MODEL)
    clone = keras.models.clone_model(gpt)
    clone.set_weights(gpt.get_weights())
    x = {"token_ids": IDS, "padding_mask": REAL}
    np.testing.assert_allclose(*(ops.convert_to_numpy(model(x)) for model in (gpt, clone)), atol=1e-6)
    with pytest.warns(UserWarning, match="TiedHead 'head' shares weights with another layer"):
        keras.models.clone_model(TransformerTranslator(V, V, **MODEL))


POLICY = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
WITH_OBJECTS = {
    "policy": lambda: MultiHeadAttention(2, dtype=POLICY),
    "initializer": lambda: GatedFeedForward(4, kernel_initializer=keras.initializers.HeNormal(seed=3)),
    "functions": lambda: FeedForward(4, activation=cube, kernel_initializer=tenths, trainable=False, name="mine"),
    "layer as activation": lambda: FeedForward(4, activation=keras.layers.PReLU(shared_axes=[1])),
    "sublayers": lambda: TransformerBlock(
        MultiHeadAttention(2, dtype=POLICY), FeedForward(4, "relu", kernel_initializer="zeros"), dtype=POLICY
    ),
    "positions": lambda: LearnedPositions(8, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.3)),
    "recurrence": lambda: Recurrent(4, dtype=POLICY),
    "cell": lambda: keras.layers.RNN(LSTMCell(4, dtype=POLICY)),
    "rotary": lambda: RotaryPositions(scaling={"rope_type": "linear", "factor": 2.0}, dtype=POLICY),
    "stack": lambda: TransformerEncoder(
        **SIZES, activation=cube, dtype=POLICY, token_embedding=keras.layers.ReversibleEmbedding(V, 8, dtype=POLICY)
    ),
}


@pytest.mark.parametrize("kind", WITH_OBJECTS)
def test_a_config_holds_the_objects_that_a_layer_was_given(kind):
    layer = WITH_OBJECTS[kind]()
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == layer.get_config()
    assert copy.dtype_policy.name == layer.dtype_policy.name and copy.trainable == layer.trainable


def test_a_layer_as_activation_is_saved_with_its_weights():
    x = keras.Input((None, 8))
    model = keras.Model(x, GatedFeedForward(4, activation=keras.layers.PReLU(shared_axes=[1]))(x))
    check_user_model(model, normal(3, 5, 8), fit=False)


def test_one_initializer_object_gives_every_kernel_numbers_of_its_own():
    layer = MultiHeadAttention(2, kernel_initializer=keras.initializers.GlorotUniform())
    layer.build((None, None, 8))
    kernels = [ops.convert_to_numpy(v) for v in layer.weights if v.name == "kernel"]
    assert len(kernels) == 4 and not any(np.allclose(kernels[0], other) for other in kernels[1:])


def test_methods_in_a_graph_are_those_that_are_made_for_it():
    with pytest.raises(ValueError, match="attention must be built, by a call or `build`, before project"):
        AdditiveAttention(4, name="attention").project(keras.Input((None, 8)))
    with pytest.raises(ValueError, match=r"method \('save_own_variables'\)"):
        MethodCall(AdditiveAttention(4), "save_own_variables")


def make_embed():
    embedding = keras.layers.Embedding(V, 8, mask_zero=True, embeddings_initializer="glorot_normal")
    embedding.build()
    return embedding


@pytest.mark.once("tensorflow", "torch")
@pytest.mark.filterwarnings("error:.*does not support masking.*")
def test_layers_read_keras_masks_and_pass_them_on():
    embed = make_embed()
    attention = MultiHeadAttention(4, num_key_value_heads=2, query_key_norm=True)
    check_keras_mask(attention, embed)
    check_keras_mask(lambda x: attention(x, use_causal_mask=True), embed)
    tables = RotaryPositions().tables
    check_keras_mask(lambda x: attention(x, rotary=tables(np.arange(x.shape[1]), 2)), embed)
    for options in ({"norm": "rms"}, {"norm_first": False}):
        block = TransformerBlock(MultiHeadAttention(2), GatedFeedForward(7), MultiHeadAttention(2), **options)
        check_keras_mask(lambda x, block=block: block(x, memory=x, use_causal_mask=True), embed)
    for layer in (FeedForward(7), LearnedPositions(5), SinusoidalPositions()):
        check_keras_mask(layer, embed, left=False)
    for layer in (AdditiveAttention(5), DotAttention("dot")):
        check_keras_mask(lambda x, layer=layer: layer(x, x), embed)
    forward, backward = Recurrent(8), Recurrent(8, reverse=True)
    check_keras_mask(lambda x: keras.layers.Add()([forward(x)[0], backward(x, forward(x)[1])[0]]), embed)


@pytest.mark.filterwarnings("error:.*does not support masking.*")
@pytest.mark.parametrize("stack", [TransformerEncoder, TransformerDecoder])
def test_stacks_read_the_masks_of_their_token_embeddings_and_of_a_memory(stack):
    table = keras.layers.ReversibleEmbedding(V, 8, mask_zero=True)
    layer = stack(**SIZES, token_embedding=table, positions="rotary")
    check_keras_mask(layer, lambda ids: ids)
    check_keras_mask(lambda ids: layer(layer(ids), reverse=True), lambda ids: ids, left=False)


def test_explicit_masks_win_over_keras_masks():
    ids, embed = np.array([[3, 1, 4, 0, 0]]), make_embed()
    x = embed(ids)
    plain = ops.convert_to_tensor(ops.convert_to_numpy(x))
    attention, recurrent = MultiHeadAttention(2), Recurrent(8)
    block = TransformerBlock(MultiHeadAttention(2), FeedForward(7), MultiHeadAttention(2))
    everything, ones = np.ones((1, 1, 1, 5), bool), np.ones((1, 5), bool)
    masks = {"attention_mask": everything, "cross_attention_mask": everything}
    for explicit, expected in (
        (attention(x, attention_mask=everything), attention(plain)),
        (block(x, memory=x, **masks), block(plain, memory=plain)),
        (recurrent(x, padding_mask=ones)[0], recurrent(plain)[0]),
        (block(plain, mask=ids > 0), block(x)),
    ):
        np.testing.assert_allclose(ops.convert_to_numpy(explicit), ops.convert_to_numpy(expected), atol=1e-6)


def test_a_mask_fills_the_cache_it_begins_and_no_later_step():
    embed, layer, cache = make_embed(), MultiHeadAttention(2), (ops.zeros((1, 2, 8, 4)),) * 2
    x = embed(np.array([[0, 0, 3, 1, 4]]))
    expected = ops.convert_to_numpy(layer(x, use_causal_mask=True))
    begun, cache = layer(x, use_causal_mask=True, cache=cache)
    np.testing.assert_allclose(ops.convert_to_numpy(begun)[:, 2:], expected[:, 2:], atol=1e-6)
    with pytest.raises(ValueError, match=r"attention_mask \(None\) must be given to a step with a cache"):
        layer(x, cache=cache, index=5)


def test_losses_count_the_real_tokens_behind_our_layers():
    ids, y = np.array([[3, 1, 4, 0], [2, 0, 0, 0]]), normal(2, 4, 1)
    layers = [make_embed(), TransformerBlock(MultiHeadAttention(2), FeedForward(7)), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((None,), dtype="int32"), *layers])
    model.compile("sgd", "mse")
    loss = model.evaluate(ids, y, verbose=0)
    errors = (model.predict(ids, verbose=0) - y)[ids > 0]
    assert loss == pytest.approx((errors**2).mean(), rel=1e-5)
    padded = model.predict(np.pad(ids, [(0, 0), (0, 2)]), verbose=0)[:, :4]
    np.testing.assert_allclose((padded - y)[ids > 0], errors, atol=1e-5)
