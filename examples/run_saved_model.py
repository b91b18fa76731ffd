"""Run an exported SavedModel, with TensorFlow alone: no Keras model, no kerasllm.

python examples/run_saved_model.py SAVED_MODEL INPUTS.npz OUTPUTS.npz
"""

import sys

import numpy as np
import tensorflow as tf

path, inputs, outputs = sys.argv[1:]
function = tf.saved_model.load(path).signatures["serving_default"]
results = function(**{name: tf.constant(array) for name, array in np.load(inputs).items()})
np.savez(outputs, **{name: array.numpy() for name, array in results.items()})
assert "kerasllm" not in sys.modules
