"""Make the fixtures of KerasHub: tiny random backbones as it saves them, and what they answer.

    python tests/data/make_keras_hub_fixtures.py

Each folder below keras_hub/ holds a preset and `answers.npz`, inputs and outputs in float32. Made with keras_nlp 0.32.0
on TensorFlow.
"""

import os
import shutil
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras  # noqa: E402
import keras_nlp  # noqa: E402
import numpy as np  # noqa: E402

HERE = Path(__file__).parent / "keras_hub"
SIZES = dict(vocabulary_size=29, num_layers=2, hidden_dim=8, intermediate_dim=12)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", ".", *"abcdefghijklmnopqrs"]
SYMBOLS = ["<|endoftext|>", *"acehtsĠ", "th", "the", "Ġc", "at", "Ġcat"]
MERGES = ["t h", "th e", "Ġ c", "a t", "Ġc at"]


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    keras.utils.set_random_seed(0)
    models = keras_nlp.models
    bert = models.BertBackbone(**SIZES, num_heads=2, max_sequence_length=9)
    save("bert", bert, models.BertTokenizer(vocabulary=WORDS, lowercase=True))
    gpt2 = models.GPT2Backbone(**SIZES, num_heads=2, max_sequence_length=9)
    vocabulary = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    save("gpt2", gpt2, models.GPT2Tokenizer(vocabulary=vocabulary, merges=MERGES))
    save("llama", models.LlamaBackbone(**SIZES, num_query_heads=4, num_key_value_heads=2, rope_max_wavelength=50))


def save(name, model, tokenizer=None):
    # Initial biases and norms of 0 and 1 would hide a mistake.
    random = np.random.default_rng(0)
    model.set_weights([random.normal(scale=0.5, size=w.shape) for w in model.get_weights()])
    model.save_to_preset(HERE / name)
    token_ids = random.integers(1, 29, (2, 7)).astype("int32")
    padding_mask = np.arange(7) < [[7], [5]]
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    if name == "bert":
        inputs["segment_ids"] = random.integers(0, 2, (2, 7)).astype("int32")
    outputs = model.predict(inputs, verbose=0)
    if name == "bert":
        answers = {"sequence_output": outputs["sequence_output"], "pooled_output": outputs["pooled_output"]}
    else:
        answers = {"logits": keras.ops.convert_to_numpy(model.token_embedding(outputs, reverse=True))}
    if tokenizer:
        tokenizer.save_to_preset(HERE / name)
        answers["text_ids"] = np.array(tokenizer("the cat sat"))
    np.savez_compressed(HERE / name / "answers.npz", **inputs, **answers)


if __name__ == "__main__":
    main()
