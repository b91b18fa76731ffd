"""Train a small GPT on any backend, and let it write where there is no Keras: TensorFlow, LiteRT, LiteRT-LM.

python examples/export_everywhere.py
"""

import json
import pathlib
import subprocess
import sys

import keras
import run_on_device
import train_gpt

PROMPT = "The city of"
ARTIFACTS = {  # format: (ending of the path, options, script that runs the artifact)
    "tf_saved_model": ("", {"strings": True}, "serve_saved_model.py"),
    "litert": (".tflite", {}, "run_on_device.py"),
    "litertlm": (".litertlm", {}, "run_litert_lm.py"),
}
FOLDER = pathlib.Path("runs/export_everywhere")


def main(tiny=False):
    """Train, export and run the model; with `tiny` a toy of it, for the tests.

    Returns:
        What the model writes, drawn with a seed and greedily; and what the artifacts write, by their formats.
    """
    model, _, _ = train_gpt.main(tiny)
    folder = FOLDER / keras.backend.backend()
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        "Keras": model.generate(PROMPT, **run_on_device.SAMPLING, strip_prompt=True),
        "Keras, greedy": model.generate(PROMPT, max_new_tokens=40, strip_prompt=True),
    }
    for format, (ending, options, script) in ARTIFACTS.items():
        path = folder / f"gpt{ending}"
        model.export(path, format, **options)
        command = [sys.executable, pathlib.Path(__file__).with_name(script), path, PROMPT]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout.removesuffix("\n")
        # The client of the SavedModel prints what all its functions say, as JSON.
        text = json.loads(output)["generate_text"]["texts"][0] if format == "tf_saved_model" else output
        written[f"{format}, greedy" if format == "litertlm" else format] = text
    for where, text in written.items():
        print(f"{where:>16}: {PROMPT}{text!r}")
    return written


if __name__ == "__main__":
    main()
