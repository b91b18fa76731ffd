"""Run an exported TFLite file, with LiteRT alone: no TensorFlow, no Keras, no kerasllm.

python examples/run_tflite.py MODEL.tflite INPUTS.npz OUTPUTS.npz
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter

path, inputs, outputs = sys.argv[1:]
function = Interpreter(path).get_signature_runner("forward")
np.savez(outputs, **function(**np.load(inputs)))
assert not {"tensorflow", "keras", "kerasllm"} & set(sys.modules)
