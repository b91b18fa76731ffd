"""Run an exported TFLite file on texts, with numpy, LiteRT and tokenizers: no TensorFlow, no Keras.

python examples/run_on_device.py MODEL.tflite "The city of" "In 1969 , the band"
"""

import sys

from kerasllm.export.runtime import Runner

SAMPLING = {"max_new_tokens": 40, "temperature": 0.8, "top_p": 0.95, "seed": 1}


def main(path, texts):
    """Say what the model makes of each text, a language model's as it is written."""
    runner = Runner(path)
    for text in texts:
        if "stream" in runner.methods:
            for piece in runner.stream(text, **SAMPLING):
                print(piece, end="", flush=True)
            print()
        else:
            print(getattr(runner, runner.methods[0])(text))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
    assert not {"tensorflow", "keras"} & set(sys.modules)
