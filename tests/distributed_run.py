r"""What a fit comes to, on one device or several: a program that tests run with devices and processes of its own.

`CASES="gpt\nlstm" python tests/distributed_run.py OUT MESH ...` writes a pickle: dict mesh -> dict case -> what it
came to; a process of several one of its own, with its rank behind the name.
"""

import json
import os
import pickle
import sys

import keras
import numpy as np

import kerasllm
from kerasllm.generation import generator
from kerasllm.training import (
    AdamW,
    ClassificationDataset,
    Perplexity,
    TokenAccuracy,
    TokenCrossentropy,
    TranslationDataset,
)

WORDS = "a b c d e f g h i j k l m n o p".split()
SMALL = {"num_layers": 2, "num_heads": 4, "hidden_dim": 32, "dropout": 0.0}


def texts(seed, count):
    """Lines of 1 to 12 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 13))) for _ in range(count)]


def tokenizer():
    return kerasllm.Tokenizer.train_words(texts(0, 200), 40)


def optimizer(**options):
    """One whose step is the gradient, so that weights tell of it."""
    return keras.optimizers.SGD(0.1, **options)


def gpt(chunk_size=None, lora=False, **options):
    """Grouped heads, rotary positions, gated feed-forwards; rows of unequal length in arrays."""
    model = kerasllm.GPT(
        40,
        **SMALL,
        initializer_range=0.15,
        num_key_value_heads=2,
        max_sequence_length=16,
        gated=True,
        norm="rms",
        positions="rotary",
    )
    if lora:
        kerasllm.add_lora(model, 4)
    model.compile(
        optimizer(**options), TokenCrossentropy(chunk_size=chunk_size), metrics=[Perplexity(), TokenAccuracy()]
    )
    rng = np.random.default_rng(1)
    ids, lengths = rng.integers(1, 40, (21, 13)), rng.integers(2, 13, 21)
    mask = np.arange(12) < lengths[:, None]
    x = {"token_ids": ids[:, :-1], "padding_mask": mask}
    return model, (x, np.where(mask, ids[:, 1:], -1)), {"batch_size": 8}


def translator(kind, optimizer=optimizer, **options):
    words = tokenizer()
    sizes = (
        {"hidden_dim": 32, "dropout": 0.0} if kind is kerasllm.LSTMTranslator else {**SMALL, "max_sequence_length": 32}
    )
    both = {"source_tokenizer": words, "target_tokenizer": words}
    model = kind(words.vocabulary_size, words.vocabulary_size, **sizes, **both)
    model.compile(optimizer(**options), TokenCrossentropy(), metrics=[Perplexity()])
    count = 20 if os.environ.get("ODD") == os.environ.get("RANK", "0") else 21
    pairs = list(zip(texts(1, count), texts(2, count), strict=True))
    return model, TranslationDataset(pairs, words, words, batch_size=8, multiple=4), {}


def classifier(**options):
    pieces = kerasllm.Tokenizer.train_wordpiece(texts(0, 200), 60)
    model = kerasllm.BERTClassifier(
        pieces.vocabulary_size, **SMALL, labels=["x", "y", "z"], max_sequence_length=32, tokenizer=pieces
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(**options), loss, metrics=["accuracy"])
    labels = np.random.default_rng(3).integers(0, 3, 21)
    return model, ClassificationDataset(texts(1, 21), labels, pieces, batch_size=8, multiple=4), {}


CASES = {
    "gpt": gpt,
    "gpt, chunks": lambda: gpt(chunk_size=16),
    "gpt, LoRA": lambda: gpt(chunk_size=16, lora=True),
    "transformer": lambda: translator(kerasllm.TransformerTranslator),
    "transformer, accumulation": lambda: translator(kerasllm.TransformerTranslator, gradient_accumulation_steps=2),
    # Clipping takes the norm of the gradients of all rows.
    "transformer, AdamW": lambda: translator(
        kerasllm.TransformerTranslator, AdamW, learning_rate=1e-2, global_clipnorm=1.0
    ),
    "lstm": lambda: translator(kerasllm.LSTMTranslator),
    "classifier": classifier,
}


def run(case, folder=None):
    """Weights before and after two epochs, their history, what is measured and predicted, and texts.

    Args:
        case: its name.
        folder: where a GPT is saved, and opened again.
    """
    keras.utils.set_random_seed(0)
    model, data, options = CASES[case]()
    before = weights(model)
    x, y = data if isinstance(data, tuple) else (data, None)
    history = model.fit(x, y, epochs=2, verbose=0, shuffle=False, **options).history
    found = {"history": history, "before": before, "weights": weights(model)}
    found["measured"] = model.evaluate(x, y, verbose=0, return_dict=True, **options)
    if isinstance(data, tuple):
        if folder:
            model.save(f"{folder}/model.keras")
            model.save_to_preset(f"{folder}/preset")
            found["reopened"] = kerasllm.GPT.from_preset(f"{folder}/preset").predict_on_batch(x)
        found["predicted"] = model.predict({k: v[:11] for k, v in x.items()}, verbose=0, batch_size=8)
        found["text"] = model.generate([[1, 2, 3], [4, 5], [6]], max_new_tokens=6, temperature=0.7, seed=3)
        found["beams"] = model.generate([[1, 2, 3], [4, 5]], max_new_tokens=6, num_beams=2)
    elif hasattr(model, "translate"):
        found["batches"], found["text"] = counted(lambda: model.translate(texts(5, 3), max_new_tokens=5, batch_size=1))
        found["scores"] = [x.log_probability for x in model.score(texts(5, 3), texts(6, 3), batch_size=2)]
    else:
        found["text"] = [row[0]["label"] for row in model.classify(texts(5, 5), batch_size=2)]
    return found


def counted(translate):
    """How many batches this process translates, and the translations."""
    generate, calls = generator.generate, []
    generator.generate = lambda task: calls.append(task) or generate(task)
    try:
        translations = translate()
    finally:
        generator.generate = generate
    return len(calls), translations


def weights(model):
    return {v.path: keras.ops.convert_to_numpy(v.value) for v in model.trainable_variables}


def go_wrong():
    """Divide on purpose as Keras does: means of means."""
    from kerasllm import backend
    from kerasllm.training import shards

    backend.share_of_replica = lambda count: None
    right = shards.Shard.of

    def of(self, batch):
        x, y, weights = right(self, batch)
        return x, y, {**weights, shards.SHARE: np.ones_like(weights[shards.SHARE])}

    shards.Shard.of = of


def survive(folder):
    """Train long enough for another process to be killed meanwhile; started again, to the end."""
    keras.utils.set_random_seed(0)
    kerasllm.distribute("data")
    model, data, _ = CASES["transformer"]()
    log = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: print(f"loss of epoch {epoch}: {logs['loss']:.6f}", flush=True)
    )
    callbacks = [kerasllm.training.ResumableTraining(folder), *([log] if os.environ["RANK"] == "0" else [])]
    model.fit(data, epochs=int(os.environ["EPOCHS"]), verbose=0, callbacks=callbacks)


def main(out, *meshes):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    if "WRONG" in os.environ:
        go_wrong()
    found = {}
    for mesh in meshes:
        kerasllm.distribute(json.loads(mesh) if mesh.startswith("{") else mesh)
        found[mesh] = {case: run(case, os.path.dirname(out)) for case in os.environ["CASES"].splitlines()}
    with open(f"{out}{os.environ.get('RANK', '')}", "wb") as file:
        pickle.dump(found, file)


if __name__ == "__main__":
    (survive if "EPOCHS" in os.environ else main)(*sys.argv[1:])
