"""Exported files as other programs run them: in a process without Keras, and for TFLite without TensorFlow too."""

import os
import pickle
import subprocess
import sys

RUN = """
import pickle, sys
from pathlib import Path
folder, *hidden = sys.argv[1:]
sys.modules.update(dict.fromkeys(hidden))  # so that importing one of them fails

def open_tflite(path):
    from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(path)
    operations = [operation["op_name"] for operation in interpreter._get_ops_details()]
    assert not [name for name in operations if "Flex" in name or "CUSTOM" in name.upper()], operations
    def call(name, inputs, state):
        function = interpreter.get_signature_runner(name)
        names = function.get_input_details()
        return function(**{name: inputs[name] if name in inputs else state[name] for name in names})
    return call

def open_saved_model(path):
    import tensorflow as tf
    module = tf.saved_model.load(path)
    def call(name, inputs, state):
        try:
            if name == "POST":
                return post(inputs)
            function = getattr(module, name[1:]) if name.startswith(".") else module.signatures[name]
            outputs = function(**{name: tf.constant(x) for name, x in inputs.items()})
        except tf.errors.InvalidArgumentError as error:
            return {"error": error.message}
        return {name: y.numpy() for name, y in outputs.items()}
    def post(request):  # as TensorFlow Serving reads it: tensorflow.org/tfx/serving/api_rest
        function = module.signatures[request.get("signature_name", "serving_default")]
        specs = function.structured_input_signature[1]
        if "instances" in request:
            rows = request["instances"]
            rows = [row if isinstance(row, dict) else {name: row for name in specs} for row in rows]
            assert len(specs) == 1 or all(set(row) == set(specs) for row in rows)
            columns = {name: [row[name] for row in rows] for name in specs}
        else:
            columns = request["inputs"]
            columns = columns if isinstance(columns, dict) else {name: columns for name in specs}
        outputs = function(**{name: tf.constant(columns[name], spec.dtype) for name, spec in specs.items()})
        outputs = {name: y.numpy() for name, y in outputs.items()}
        if "inputs" in request:
            return outputs
        assert len({len(y) for y in outputs.values()}) == 1  # what it makes rows of
        return {"predictions": [dict(zip(outputs, row)) for row in zip(*outputs.values())]}
    return call

opened, outputs = {}, [{}]
for path, name, inputs in pickle.loads(Path(folder, "calls").read_bytes()):
    if path not in opened:
        opened[path] = (open_tflite if path.endswith(".tflite") else open_saved_model)(path)
    outputs.append(opened[path](name, inputs, outputs[-1]))
Path(folder, "outputs").write_bytes(pickle.dumps(outputs[1:]))
"""
HIDDEN = ["keras", "kerasllm", "jax", "torch", "tokenizers", "tensorflow_text"]


def run_alone(folder, calls):
    """What exported files give.

    Args:
        folder: for the inputs and the outputs.
        calls: list of (path, signature, dict of arrays), of SavedModels or of TFLite files, whose operations must be
            builtin. What a TFLite file is not given is the output of the same name of the call before. Of a SavedModel
            ".name" is the attribute instead of the signature, and "POST" a request in JSON to TensorFlow Serving.

    Returns:
        A dict of arrays for each call, {"error": message} where a SavedModel refuses its inputs.
    """
    calls = [(str(path), name, inputs) for path, name, inputs in calls]
    hidden = [*HIDDEN, *(["tensorflow"] if calls[0][0].endswith(".tflite") else [])]
    (folder / "calls").write_bytes(pickle.dumps(calls))
    command = [sys.executable, "-c", RUN, str(folder), *hidden]
    result = subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return pickle.loads((folder / "outputs").read_bytes())
