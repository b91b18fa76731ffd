"""The whole road: three models learn, are used, saved, loaded again, exported, and translate, fill masks and write
outside Keras; two others come with their weights, chat and search.

make demo                       # or, in an environment of one's own:
KERAS_BACKEND=jax python examples/demo.py
"""

import pathlib
import subprocess
import sys
import time

import chat_smollm
import keras
import numpy as np
import pretrain_bert
import semantic_search
import train_gpt
import train_translator

PARTS = {  # name: (script, text for the artifact)
    "translator": (train_translator, "Where is my book?"),
    "BERT": (pretrain_bert, "the film is a [MASK] of time ."),
    "GPT": (train_gpt, "The city of"),
}
PRETRAINED = {"SmolLM2": chat_smollm, "MiniLM": semantic_search}
FORMATS = {  # format: (ending of the path, its functions, script that runs the artifact)
    "tf_saved_model": ("_saved_model", ["forward"], "run_saved_model.py"),
    "litert": (".tflite", None, "run_tflite.py"),
}
FOLDER = pathlib.Path("runs/demo")


def main(tiny=False):
    """Run all parts and print the table; with `tiny` toys of them, for the tests."""
    folder = FOLDER / keras.backend.backend()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (script, text) in PARTS.items():
        print(f"\n==== {name}: examples/{pathlib.Path(script.__file__).name}\n")
        start = time.time()
        model, validation_data, figures = script.main(tiny)
        trained = time.time()
        differences = leave_keras(model, validation_data, folder / name.lower(), text)
        minutes = f"{(trained - start) / 60:.1f} + {(time.time() - trained) / 60:.1f}"
        for figure, value, baselines in figures:
            others = ", ".join(f"{baseline} {result:.3g}" for baseline, result in baselines.items())
            rows.append([name, figure, f"{value:.3g}", others, *differences, minutes])
    for name, script in PRETRAINED.items():
        print(f"\n==== {name}: examples/{pathlib.Path(script.__file__).name}\n")
        start = time.time()
        script.main(tiny)
        print(f"\n{time.time() - start:.0f} s")
    print(f"\n==== On held-out text, with {keras.backend.backend()}\n")
    print_table(["part", "figure", "ours", "without a network", "preset", *FORMATS, "minutes"], rows)
    print("\nThe numbers of the files: largest difference from the model, as a part of its largest logit.")
    print("Minutes: training and use + saving, exporting and comparing.")


def leave_keras(model, validation_data, path, text):
    """Save a model, load it, export it and run what was exported, in processes of their own; the last one on a text.

    Returns:
        How far the results on held-out examples are from the model's, one text for each file.
    """
    inputs = {name: array[:4] for name, array in validation_data[0][0].items()}
    expected = model.predict_on_batch(inputs)
    np.savez(f"{path}_inputs.npz", **inputs)

    model.save_to_preset(path)
    results = [type(model).from_preset(path).predict_on_batch(inputs)]
    for format, (ending, functions, script) in FORMATS.items():
        model.export(f"{path}{ending}", format=format, signatures=functions)
        files = [f"{path}{ending}", f"{path}_inputs.npz", f"{path}_outputs.npz"]
        subprocess.run([sys.executable, pathlib.Path(__file__).with_name(script), *files], check=True)
        with np.load(f"{path}_outputs.npz") as outputs:
            results.append(outputs["logits"])
    print(f"The TFLite file, on {text!r}:", flush=True)
    run_on_device = pathlib.Path(__file__).with_name("run_on_device.py")
    subprocess.run([sys.executable, run_on_device, f"{path}.tflite", text], check=True)
    return [f"{np.abs(result - expected).max() / np.abs(expected).max():.0e}" for result in results]


def print_table(head, rows):
    """Print a table in Markdown."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("|", " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), "|")


if __name__ == "__main__":
    main()
