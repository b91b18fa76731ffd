"""How the functions of a SavedModel are called: in rows, with few inputs, with other dtypes.

TensorFlow Serving has two formats. In columns ("inputs") each input has its value; in rows ("instances") each row has
one of each input, which are stacked, options too. A function with one input takes rows that are its values alone.
"""

import inspect
import itertools

import tensorflow as tf

from kerasllm.export import verification

# What ids and masks may be where a function is called as an attribute of a loaded object.
DTYPES = {"int32": ("int32", "int64"), "bool": ("bool", "int32", "int64")}


def specs(signature):
    """What a function is traced with: dict name -> `tf.TensorSpec`, for options of any rank."""
    return {
        name: tf.TensorSpec(None if name in signature.defaults else shape, tf.as_dtype(dtype), name=name)
        for name, (shape, dtype) in signature.inputs.items()
    }


def checked(signature):
    """The function of a `Signature`, of whose options each row may have the same value; nothing may be empty."""

    def function(**inputs):
        data = {name: x for name, x in inputs.items() if name not in signature.defaults}
        first, checks = next(iter(data)), []
        lengths = {}  # of each axis, and whose it is
        for name, x in data.items():
            checks.append(tf.debugging.assert_positive(tf.size(x), f"{name} must not be empty"))
            same = f"{name} must have as many rows as {first}"
            checks.append(tf.debugging.assert_equal(tf.shape(x)[0], tf.shape(data[first])[0], same))
            if x.shape.rank == 2:
                other, length = lengths.setdefault(verification.axes_of(name)[1], (name, tf.shape(x)[1]))
                same = f"{name} must have rows as long as {other}"
                checks.append(tf.debugging.assert_equal(tf.shape(x)[1], length, same))
        if signature.limit is not None:
            message = f"a row has more tokens than max_sequence_length ({signature.limit})"
            checks += [tf.debugging.assert_less_equal(n, signature.limit, message) for _, n in lengths.values()]
        with tf.control_dependencies(checks):
            data = {name: tf.identity(x) for name, x in data.items()}
        options = {name: _single(name, inputs[name], len(signature.inputs[name][0])) for name in signature.defaults}
        return signature.function(**data, **options)

    return function


def _single(name, value, rank):
    """The one value of an option: of rank 0 or 1, or so many equal ones."""
    shape = tf.concat([tf.ones(tf.maximum(rank - tf.rank(value), 0), tf.int32), tf.shape(value)], axis=0)
    size = tf.reduce_prod(shape[tf.size(shape) - rank :])
    rows = tf.reshape(value, tf.stack([tf.reduce_prod(shape[: tf.size(shape) - rank]), size]))
    checks = [
        tf.debugging.assert_positive(tf.shape(rows)[0], f"{name} must not be empty"),
        tf.debugging.Assert(tf.reduce_all(rows == rows[:1]), [f"{name} must be the same in all rows of a call"]),
    ]
    with tf.control_dependencies(checks):
        return tf.reshape(rows[0], [-1] if rank else [])


def without_options(signature, function):
    """A concrete function that takes what a function has no default for."""
    needed = {name: spec for name, spec in specs(signature).items() if name not in signature.defaults}
    return tf.function(
        lambda **data: function(**data, **_filled(signature, {})), autograph=False
    ).get_concrete_function(**needed)


def restorable(signature, function):
    """A `tf.function` whose options have defaults, for ids and masks of several dtypes.

    A loaded SavedModel has what is traced here, and chooses by the arguments.
    """
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=signature.defaults.get(name, inspect.Parameter.empty),
        )
        for name in signature.inputs
    ]
    header = inspect.Signature(parameters)

    def call(*args, **kwargs):
        given = header.bind(*args, **kwargs).arguments
        given = {name: x for name, x in given.items() if x is not None}
        return function(**_filled(signature, {name: _cast(x, signature.inputs[name][1]) for name, x in given.items()}))

    call.__signature__ = header
    polymorphic, traced = tf.function(call, autograph=False), specs(signature)
    data = [name for name in signature.inputs if name not in signature.defaults]
    drawn = [name for name, default in signature.defaults.items() if default is None]
    present = {signature.inputs[name][1] for name in data} & set(DTYPES)
    for dtypes in itertools.product(*(DTYPES[dtype] for dtype in present)):
        of = dict(zip(present, dtypes, strict=True))
        others = {
            name: tf.TensorSpec(traced[name].shape, of.get(signature.inputs[name][1], traced[name].dtype), name=name)
            for name in data
        }
        polymorphic.get_concrete_function(**{**traced, **others})
        if drawn:
            polymorphic.get_concrete_function(**{**traced, **others, **dict.fromkeys(drawn)})
    return polymorphic


def _filled(signature, given):
    """Inputs, with the defaults of options in place of what is not given."""
    filled = dict(given)
    for name, default in signature.defaults.items():
        if name not in given:
            dtype = tf.as_dtype(signature.inputs[name][1])
            drawn = default is None
            filled[name] = tf.random.uniform([], dtype.min, dtype.max, dtype) if drawn else tf.constant(default, dtype)
    return filled


def _cast(x, dtype):
    return x if dtype == "string" else tf.cast(x, dtype)
