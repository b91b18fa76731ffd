"""Ask the functions of strings of an exported SavedModel, with TensorFlow alone: no Keras model, no kerasllm.

python examples/serve_saved_model.py SAVED_MODEL "The city of" "In 1969 , the band"
python examples/serve_saved_model.py OF_A_BERTQuestionAnswerer "Who wrote it?" "When?" "Ada wrote the notes in 1843."
"""

import json
import sys

import numpy as np
import tensorflow as tf

# What the functions take beside texts. For `generate_text` 0, 1 and -1 switch something off.
OPTIONS = {
    "generate_text": {
        "max_new_tokens": 40,
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 0.95,
        "repetition_penalty": 1.0,
        "seed": 1,
        "num_return_sequences": 1,
        "stop_token_ids": [-1],
    },
    "translate_text": {"max_new_tokens": 40},
    "translate_beams_text": {"max_new_tokens": 40, "length_penalty": 1.0},
    "fill_mask_text": {"top_k": 5},
    "answer_text": {"top_k": 1, "max_answer_length": 30},
    "classify_text": {},
    "tag_text": {},
    "embed_text": {},
}


def main(path, texts):
    """What each of a model's functions says of texts: dict function -> dict output -> list."""
    signatures, results = tf.saved_model.load(path).signatures, {}
    for name, options in OPTIONS.items():
        if name in signatures:
            specs = signatures[name].structured_input_signature[1]
            inputs = {**given(name, texts), **options}
            outputs = signatures[name](**{key: tf.constant(value, specs[key].dtype) for key, value in inputs.items()})
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
