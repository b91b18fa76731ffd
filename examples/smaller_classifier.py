"""Make a classifier of film reviews smaller and sturdier, and see what each way costs: size, speed, accuracy.

python examples/smaller_classifier.py
"""

import pathlib
import random
import time
import zlib

import keras
from keras import ops

import kerasllm
from kerasllm.export.runtime import Runner
from kerasllm.text import drop_words
from kerasllm.training import AdamW, ClassificationDataset, DistillationLoss, MagnitudePruning, WarmupCosine, sparsity

LABELS = ["negative", "positive"]
TRAINING_SENTENCES = [500, 5000]
EPOCHS = 4
LEARNING_RATE = 1e-4
OPTIONS = {"batch_size": 32, "max_length": 64, "too_long": "truncate"}
HALF = [0, 2, 4]  # of MiniLM's six blocks
FILE = pathlib.Path("runs/student.tflite")


def main(tiny=False):
    """Train and measure all of them; with `tiny` toys of them, for the tests.

    Returns:
        The rows of the table: (number of training sentences, what it is, megabytes, zipped, sentences per second,
        accuracy).
    """
    train, _, test = kerasllm.datasets.movie_reviews("rotten_tomatoes")
    random.Random(0).shuffle(train)  # good ones come first in the file
    epochs, blocks = (1, [0]) if tiny else (EPOCHS, HALF)
    rows = []
    for count in [16] if tiny else TRAINING_SENTENCES:
        texts, labels = map(list, zip(*train[:count], strict=True))

        def measure(name, model, count=count):
            rows.append((count, name, *sizes(model), *speed_and_accuracy(model, test)))
            print("{:>6} {:<26} {:>7.1f} MB {:>7.1f} MB zipped {:>6.0f} sentences/s  {:.3f}".format(*rows[-1]))

        teacher = fit(fresh(), texts, labels, epochs)
        measure("fine-tuned", teacher)
        measure("+ words dropped", fit(fresh(), texts, labels, epochs, augment=drop_words))

        steps = epochs * -(-count // OPTIONS["batch_size"])
        pruning = MagnitudePruning(0.5, end_step=steps // 2, every=5)
        pruned = fit(fresh(), texts, labels, epochs, callbacks=[pruning])
        measure(f"{sparsity(pruned):.0%} of kernels pruned", pruned)

        measure(f"{len(blocks)} blocks", fit(kerasllm.student_of(fresh(), blocks), texts, labels, epochs))
        student = kerasllm.student_of(teacher, blocks)
        fit(student, texts, labels, epochs, loss=DistillationLoss(teacher, temperature=2.0, alpha=0.5))
        measure(f"{len(blocks)} blocks, distilled", student)

        FILE.parent.mkdir(exist_ok=True)
        student.export(FILE, format="litert", quantize="dynamic_int8", verbose=False)
        measure("the same, int8 TFLite file", Runner(FILE))
        student.quantize("int8")
        measure("the same, int8 in Keras", student)
    return rows


def fresh():
    """MiniLM with a new classifier."""
    keras.utils.set_random_seed(0)
    return kerasllm.BERTClassifier.from_preset(kerasllm.pretrained.minilm(), fresh_head=True, labels=LABELS)


def fit(model, texts, labels, epochs, loss=None, augment=None, callbacks=()):
    """The model, trained."""
    data = ClassificationDataset(texts, labels, model.tokenizer, augment=augment, **OPTIONS)
    steps = epochs * len(data)
    optimizer = AdamW(WarmupCosine(LEARNING_RATE, steps // 10, steps), weight_decay=0.01, global_clipnorm=1.0)
    model.compile(optimizer, loss or kerasllm.training.TokenCrossentropy())
    model.fit(data, epochs=epochs, callbacks=list(callbacks), verbose=0)
    return model


def sizes(model):
    """Megabytes of the weights, as they are and zipped."""
    if isinstance(model, Runner):
        data = model.path.read_bytes()
    else:
        data = b"".join(ops.convert_to_numpy(v.value).tobytes() for v in model.weights)
    return len(data) / 1e6, len(zlib.compress(data, 1)) / 1e6


def speed_and_accuracy(model, test):
    """Sentences in a second, one at a time, and the share of right labels."""
    texts, labels = map(list, zip(*test, strict=True))
    model.classify(texts[0], truncate=True)
    start = time.perf_counter()
    for text in texts[:50]:
        model.classify(text, truncate=True)
    speed = len(texts[:50]) / (time.perf_counter() - start)
    answers = model.classify(texts, truncate=True)
    return speed, sum(LABELS.index(a[0]["label"]) == y for a, y in zip(answers, labels, strict=True)) / len(texts)


if __name__ == "__main__":
    main()
