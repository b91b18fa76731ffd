"""Each contract of checks.py is broken on purpose once, so that we know it can fail."""

import keras
import numpy as np
import pytest
from checks import check_layer, check_model, check_padding_changes_nothing
from keras import ops

register = keras.saving.register_keras_serializable("kerasllm_tests")


@register
class Good(keras.layers.Layer):
    """Two dense layers over masked features: enough for every contract to have something to look at."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inner = keras.layers.Dense(8, activation="tanh", name="inner", dtype=self.dtype_policy)
        self.dropout = keras.layers.Dropout(0.1, name="dropout", dtype=self.dtype_policy)
        self.outer = keras.layers.Dense(units, name="outer", dtype=self.dtype_policy)

    def build(self, x_shape, padding_mask_shape=None):
        self.inner.build(x_shape)
        self.outer.build((*x_shape[:-1], 8))

    def call(self, x, padding_mask=None, training=False):
        x = self.outer(self.dropout(self.inner(x), training=training))
        return x if padding_mask is None else ops.where(padding_mask[:, :, None], x, 0)


@register
class WrongSymbolicShape(Good):
    def compute_output_shape(self, x_shape, padding_mask_shape=None):
        return (*x_shape[:-1], self.units + 1)


@register
class NeedsAFixedLength(Good):
    def build(self, x_shape, padding_mask_shape=None):
        super().build(x_shape)
        self.length = x_shape[1]

    def call(self, x, padding_mask=None, training=False):
        return ops.reshape(super().call(x), (-1, self.length, self.units))


@register
class ForgetsItsConfig(Good):
    def get_config(self):
        return keras.layers.Layer.get_config(self)

    @classmethod
    def from_config(cls, config):
        return cls(4, **config)


class NotRegistered(Good):
    pass


@register
class ForgetsAVariable(Good):
    def build(self, x_shape, padding_mask_shape=None):
        super().build(x_shape)
        self.scale = self.add_weight(shape=(), initializer="normal", name="scale")

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass

    def call(self, x, padding_mask=None, training=False):
        return super().call(x, padding_mask, training) * self.scale


@register
class StopsTheGradient(Good):
    def call(self, x, padding_mask=None, training=False):
        return self.outer(ops.stop_gradient(self.inner(x)))


@register
class ComputesInFloat32(Good):
    def call(self, x, padding_mask=None, training=False):
        return ops.cast(super().call(x, padding_mask, training), "float32")


@register
class ForgetsThePolicy(Good):
    def __init__(self, units=4, **kwargs):
        super().__init__(units, **kwargs)
        self.inner = keras.layers.Dense(8, name="inner", dtype="float32")


@register
class NamesNothing(Good):
    def __init__(self, units=4, **kwargs):
        super().__init__(units, **kwargs)
        self.inner = keras.layers.Dense(8)


@register
class NamesTwoTheSame(Good):
    def __init__(self, units=4, **kwargs):
        super().__init__(units, **kwargs)
        self.outer = keras.layers.Dense(units, name="inner", dtype=self.dtype_policy)


@register
class DividesByZero(Good):
    def call(self, x, padding_mask=None, training=False):
        return super().call(x, padding_mask, training) / ops.zeros_like(x[..., :1])


@register
class LosesHalfPrecision(Good):
    def call(self, x, padding_mask=None, training=False):
        return (super().call(x, padding_mask, training) + 4096) - 4096


@register
class NeverTheSameTwice(Good):
    def __init__(self, units=4, **kwargs):
        super().__init__(units, **kwargs)
        self.calls = 0

    def call(self, x, padding_mask=None, training=False):
        self.calls += 1
        return super().call(x, padding_mask, training) + self.calls


def inputs():
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    return {"x": x, "padding_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)}


def test_a_good_layer_passes():
    check_layer(lambda **kwargs: Good(4, **kwargs), inputs(), lengths=(5,))
    check_layer(lambda **kwargs: Good(6, **kwargs), inputs()["x"])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (WrongSymbolicShape, "the symbolic call says shape"),
        (ForgetsItsConfig, "should be compatible|shape|get_config is not"),
        (NotRegistered, "Could not locate class"),
        (ForgetsAVariable, "after save and load"),
        (StopsTheGradient, "no gradient reaches checked/inner/kernel"),
        (ComputesInFloat32, "an output is float32 under"),
        (ForgetsThePolicy, "inner/kernel is float32 under bfloat16"),
        (NamesNothing, "variable paths change"),
        (NamesTwoTheSame, "two variables share a path"),
        (DividesByZero, "not finite"),
        (LosesHalfPrecision, "far from float32"),
        (NeverTheSameTwice, "the outputs differ"),
    ],
)
def test_a_broken_layer_fails(broken, message):
    with pytest.raises((AssertionError, TypeError, ValueError), match=message):
        check_layer(lambda **kwargs: broken(6, **kwargs), inputs(), lengths=(5,))


def test_a_layer_of_fixed_length_fails_only_where_lengths_are_open():
    check_layer(lambda **kwargs: NeedsAFixedLength(4, **kwargs), inputs()["x"])
    with pytest.raises(Exception, match="shape|size"):  # each backend has an exception of its own
        check_layer(lambda **kwargs: NeedsAFixedLength(4, **kwargs), inputs()["x"], lengths=(5,))


def test_unreached_variables_can_be_named():
    check_layer(lambda **kwargs: StopsTheGradient(**kwargs), inputs()["x"], unreached=("inner/kernel", "inner/bias"))


@register
class GoodModel(keras.Model):
    """Counts the words of a bag: a mean over real tokens, then a classifier."""

    mixes_rows = pays_attention_to_padding = False

    def __init__(self, vocabulary_size=7, dtype=None, **kwargs):
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input((None,), dtype="bool", name="padding_mask")
        x = keras.layers.Embedding(vocabulary_size, 4, name="embedding", dtype=dtype)(token_ids)
        weights = None if self.pays_attention_to_padding else padding_mask
        x = keras.layers.GlobalAveragePooling1D(name="mean")(x, mask=weights)
        if self.mixes_rows:
            x = keras.layers.Lambda(lambda x: ops.cumsum(x, axis=0), name="mix")(x)
        x = keras.layers.Dense(3, name="head", dtype=dtype)(x)
        super().__init__({"token_ids": token_ids, "padding_mask": padding_mask}, x, **kwargs)
        self.vocabulary_size = vocabulary_size

    def get_config(self):
        return {"vocabulary_size": self.vocabulary_size, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@register
class MixesRows(GoodModel):
    mixes_rows = True


@register
class PaysAttentionToPadding(GoodModel):
    pays_attention_to_padding = True


@register
class OverridesCompile(GoodModel):
    def compile(self, optimizer="adam", loss=None, **kwargs):
        super().compile(optimizer, loss, **kwargs)


@register
class LearnsNothing(GoodModel):
    def compile(self, optimizer, loss=None, **kwargs):
        optimizer.learning_rate = 0.0
        super().compile(optimizer, loss, **kwargs)


def batch():
    token_ids = np.array([[1, 2, 3, 4], [5, 6, 1, 0], [3, 3, 2, 1]], "int32")
    return {"token_ids": token_ids, "padding_mask": token_ids > 0}, np.array([0, 1, 2])


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_a_good_model_passes():
    check_model(lambda **kwargs: GoodModel(7, **kwargs), batch(), loss=loss())
    check_padding_changes_nothing(GoodModel(7), batch()[0])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (MixesRows, "with the batch in another order"),
        (OverridesCompile, "the saved file loses the optimizer"),
        (LearnsNothing, "the loss goes from"),
    ],
)
def test_a_broken_model_fails(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_model(lambda **kwargs: broken(7, **kwargs), batch(), loss=loss())


def test_a_model_that_looks_at_padding_fails():
    with pytest.raises(AssertionError, match="with longer padding"):
        check_padding_changes_nothing(PaysAttentionToPadding(7), batch()[0])
