"""Ask the functions of strings of an exported SavedModel, with TensorFlow alone: no Keras model, no kerasllm.

python examples/serve_saved_model.py SAVED_MODEL "The city of" "In 1969 , the band"
python examples/serve_saved_model.py OF_A_BERTQuestionAnswerer "Who wrote it?" "When?" "Ada wrote the notes in 1843."
"""

import json
import sys

import numpy as np
import tensorflow as tf

# What the functions are told beside texts; the rest of their options has defaults.
OPTIONS = {
    "generate_text": {"max_new_tokens": 40, "temperature": 0.8, "top_p": 0.95, "seed": 1},
    "translate_text": {"max_new_tokens": 40},
    "translate_beams_text": {"max_new_tokens": 40},
    "fill_mask_text": {},
    "answer_text": {},
    "classify_text": {},
    "tag_text": {},
    "embed_text": {},
}


def main(path, texts):
    """What each of a model's functions says of texts: dict function -> dict output -> list."""
    model, results = tf.saved_model.load(path), {}
    for name, options in OPTIONS.items():
        if name in model.signatures:
            outputs = getattr(model, name)(**given(name, texts), **options)
            results[name] = {key: readable(y.numpy()) for key, y in outputs.items()}
    return results


def given(name, texts):
    """Texts as a function takes them: for `answer_text` the last one is what the others ask about."""
    if name == "answer_text":
        return {"questions": texts[:-1], "contexts": texts[-1:] * (len(texts) - 1)}
    return {"texts": texts}


def readable(array):
    """An array as lists, its strings as text."""
    return np.vectorize(bytes.decode)(array).tolist() if array.dtype == object else array.tolist()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:]), ensure_ascii=False))
    assert "kerasllm" not in sys.modules
