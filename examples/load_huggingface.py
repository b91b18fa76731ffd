"""Open models as others have written them, use them, and write them back.

python examples/load_huggingface.py [SOURCE]

A source is a folder of Hugging Face transformers, a .gguf file of llama.cpp, or hf://organisation/name.
"""

import pathlib
import sys

import numpy as np

import kerasllm

FOLDER = pathlib.Path("runs/load_huggingface")


def main(tiny=False, source=None):
    """Open, look at, save and open again; with `tiny` the weights are a toy's, for the tests.

    Returns:
        The largest difference of the two models' outputs.
    """
    source = source or kerasllm.pretrained.minilm()

    # What is in it, told without reading the weights.
    found = kerasllm.checkpoints.describe(source)
    print(f"{found.path}: {found.family}, {found.num_parameters:,} parameters, {found.dtypes}")
    print(f"opens as {' or '.join(found.class_names)}; tokenizer: {', '.join(found.tokenizer_files)}")

    # A Keras model like any other: summary, fit, save, export.
    model = kerasllm.load(None, source)
    model.summary()

    # Written back in the same layout, which transformers opens.
    model.save_to_preset(FOLDER)
    again = type(model).from_preset(FOLDER)
    inputs = {name: np.ones((1, 8), "int32") for name in model.input}
    outputs, same = (next(iter(_leaves(m.predict_on_batch(inputs)))) for m in (model, again))
    difference = float(np.abs(outputs - same).max())
    print(f"\nWritten to {FOLDER} and opened again: the outputs differ by {difference}.")
    return difference


def _leaves(outputs):
    return outputs.values() if isinstance(outputs, dict) else [outputs]


if __name__ == "__main__":
    main(source=sys.argv[1] if len(sys.argv) > 1 else None)
