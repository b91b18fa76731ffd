"""What every layer shares: a config of all that it is made of, and methods that work in a user's graph."""

import functools
import inspect
import types
import warnings

import keras

from kerasllm import constructors
from kerasllm.layers import parts


class Layer(keras.layers.Layer):
    """A layer whose config is what its constructor was given: numbers, names, and objects that Keras can serialise.

    Objects are layers, initializers, registered functions. A layer that two layers hold is one again after
    `load_model`; `from_config` and `clone_model`, which make their layers one by one, cannot know that. What was set on
    its parts since stands under "parts" (`kerasllm.layers.parts`).
    """

    shared_argument = None
    """The argument that is another's layer, where the use of a layer is to share its weights."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = constructors.reading(cls.__init__)
        constructors.document(cls)

    def __new__(cls, *args, **kwargs):
        layer = super().__new__(cls, *args, **kwargs)
        given = constructors.bound(cls.__init__, layer, args, kwargs)
        given.pop("name", None)
        # No dict, in which Keras would look for layers.
        object.__setattr__(layer, "_given", types.MappingProxyType(given))
        return layer

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if isinstance(value, keras.layers.Layer | list):
            parts.remember(part for part in keras.tree.flatten(value) if isinstance(part, keras.layers.Layer))

    def _post_build(self):  # Keras calls it when `build` is done
        super()._post_build()
        parts.remember([self])
        pending = self.__dict__.pop("_pending_parts", {})
        if pending or not self.trainable:  # nor is then what `build` has made
            parts.restore(self, pending)

    def get_config(self):
        """The constructor's arguments, and `parts`, if any was changed."""
        given = {name: serialized(value, built=name == self.shared_argument) for name, value in self._given.items()}
        changes = self.__dict__.get("_pending_parts") or parts.changes(self, self.trainable)
        return {**given, **super().get_config(), **({"parts": changes} if changes else {})}

    @classmethod
    def from_config(cls, config):
        """The inverse of `get_config`; parts get what was set on them when the layer is built."""
        restored = {name: _restored(value) if name != "dtype" else value for name, value in config.items()}
        changes = restored.pop("parts", None)
        if isinstance(restored.get(cls.shared_argument), keras.layers.Layer):
            if "shared_object_id" not in config[cls.shared_argument]:
                warnings.warn(
                    f"{cls.__name__} {config.get('name')!r} shares weights with another layer, and this copy of it has "
                    "weights of its own: clone_model and from_config copy each layer for itself. A model that is saved "
                    "and loaded keeps what it shares.",
                    stacklevel=2,
                )
        layer = super().from_config(restored)
        if changes:
            object.__setattr__(layer, "_pending_parts", changes)  # hidden from Keras's tracking
        return layer


def serialized(value, built=False):
    """An argument as Keras writes it into a config; a layer to be `built` at once or by the layer that holds it."""
    config = keras.saving.serialize_keras_object(value)
    if isinstance(value, keras.layers.Layer):
        # While a model is saved, Keras numbers what it sees for the second time, and loads one number as one layer.
        config = keras.saving.serialize_keras_object(value)
        if not built:
            config.pop("build_config", None)  # or the paths of its variables would not begin with its holder's name
    return config


def _restored(value):
    is_object = isinstance(value, dict) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if is_object else value


def with_token_embedding(config, token_embedding):
    """A layer's config, while a model is saved with the token embeddings it made itself: another may share them."""
    if config["token_embedding"] is not None:
        return config
    written = serialized(token_embedding)
    return {**config, "token_embedding": written if "shared_object_id" in written else None}


def method_of_graph(method):
    """Make a method of a layer one that takes symbolic tensors too, and is then a node of a functional model.

    Else Keras would record the operations and sublayers that the method uses, apart from the layer they belong to, and
    a model that is saved and loaded would have their weights twice.
    """

    @functools.wraps(method)
    def call(self, first, *args, **kwargs):
        if not isinstance(first, keras.KerasTensor):
            return method(self, first, *args, **kwargs)
        if not self.built:
            raise ValueError(f"{self.name} must be built, by a call or `build`, before {method.__name__}(...).")
        name, *names = list(inspect.signature(method).parameters)[1:]
        return MethodCall(self, method.__name__, dtype=self.dtype_policy)(
            first, **dict(zip(names, args, strict=False)), **kwargs
        )

    call.is_method_of_graph = True
    return call


@keras.saving.register_keras_serializable("kerasllm")
class MethodCall(Layer):
    """A call of a layer's method in a functional model, such as `attention.project(memory)`.

    Args:
        layer: the layer.
        method: the name of a method that `method_of_graph` marks.

    Call arguments: the method's.

    Returns:
        What the method returns.
    """

    shared_argument = "layer"

    def __init__(self, layer, method, **kwargs):
        super().__init__(**kwargs)
        if not hasattr(getattr(type(layer), method, None), "is_method_of_graph"):
            raise ValueError(f"method ({method!r}) must be one of {type(layer).__name__} that a graph may call.")
        self.layer, self.method = layer, method

    def call(self, first, training=None, **kwargs):
        """Call the method."""
        method = getattr(self.layer, self.method)
        if "training" in inspect.signature(method).parameters:
            kwargs["training"] = training
        return method(first, **kwargs)


def new_initializer(identifier):
    """The initializer that Keras knows by this name or config, or a copy of one: one object fills all kernels alike."""
    initializer = keras.initializers.get(identifier)
    return initializer.clone() if isinstance(initializer, keras.initializers.Initializer) else initializer


def build_once(layer, *shapes):
    """Build a layer that another one may hold as well, and have built."""
    if not layer.built:
        layer.build(*shapes)


def first_given(*values):
    """The first of `values` that is not None, or None."""
    return next((value for value in values if value is not None), None)
