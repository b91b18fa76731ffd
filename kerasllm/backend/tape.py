"""Gradients that are written out, on TensorFlow."""


def on_tape(forward, inputs):
    """Call a function whose gradient is its own, as far as a `tf.GradientTape` is asked for it.

    `tf.custom_gradient` keeps all of a graph that it was called in for good (TensorFlow 2.21, `RegisterGradient` in
    https://github.com/tensorflow/tensorflow/blob/v2.21.0/tensorflow/python/ops/custom_gradient.py): tens of megabytes
    for each model that is compiled. Where no tape is in the same graph, TensorFlow differentiates what it finds.

    Args:
        forward: takes tensors, returns a list of results; the function from their gradients to those of the tensors,
            None where there is none; and others that have no gradient.
        inputs: list of the tensors.

    Returns:
        The results and the others.
    """
    import tensorflow as tf
    from tensorflow.python.eager import record

    with record.stop_recording():
        results, backward, others = forward(*inputs)
    record.record_operation("KerasLLM", results, list(inputs), backward)
    return results, tf.nest.map_structure(tf.stop_gradient, others)
