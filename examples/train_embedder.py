"""Teach MiniLM to find the package that a line is about, from the descriptions of Debian's packages.

python examples/train_embedder.py
"""

import pathlib
import re

import keras

import kerasllm
from kerasllm.training import AdamW, InBatchNegativesLoss, PairDataset, WarmupCosine

NUM_PAIRS = 6000  # of 50,000, to train on
POOL = 5000  # descriptions among which the right one is to be found
MAX_LENGTH = 64  # tokens at which texts are cut
BATCH_SIZE = 64  # pairs: each line is told from 63 other packages
EPOCHS = 1
LEARNING_RATE = 5e-5
FILE = pathlib.Path("runs/package_embedder.tflite")


def main(tiny=False):
    """Train, measure and export the model; with `tiny` a toy of it, for the tests.

    Returns:
        The model, its training data, and figures: (name, value after, {"before": value before}).
    """
    keras.utils.set_random_seed(0)
    train, test = read_pairs(tiny)
    model = kerasllm.BERTEmbedder.from_preset(kerasllm.pretrained.minilm(), truncate_at=MAX_LENGTH)
    before = measure(model, test)
    data = fit(model, train)
    after = measure(model, test)
    print(f"\nThe right one of {len(test)} descriptions of packages that were not trained on:")
    for name in after:
        print(f"    {name:<9} {before[name]:.3f} before, {after[name]:.3f} after")

    FILE.parent.mkdir(exist_ok=True)
    model.export(FILE, format="litert")  # and compared with the model, in LiteRT
    return model, data, [(name, after[name], {"before": before[name]}) for name in after]


def read_pairs(tiny=False):
    """Pairs of a line and the description below it: to train on, and others to measure with.

    Packages made of one source say nearly the same ("foo - headers"): they are one family here, of which one is kept,
    so that what is measured was never seen in training.
    """
    descriptions = kerasllm.datasets.debian_descriptions()
    families = {}
    for description, summary in descriptions.test + descriptions.validation + descriptions.train:
        families.setdefault(family(summary), (summary, description))
    pairs = list(families.values())
    num_held_out = len(pairs) // 5 if tiny else POOL
    return pairs[num_held_out:][:NUM_PAIRS], pairs[:num_held_out]


def family(summary):
    """What the packages of one source have in common: "foo library" of "Foo library - headers"."""
    return re.split(r" - | \(|: |, ", summary.lower())[0]


def fit(model, pairs, seed=0):
    """Train the model; its data."""
    data = PairDataset(pairs, model, batch_size=BATCH_SIZE, too_long="truncate", seed=seed)
    total_steps = EPOCHS * len(data)
    model.compile(
        AdamW(WarmupCosine(LEARNING_RATE, total_steps // 10, total_steps), weight_decay=0.01, global_clipnorm=1.0),
        loss=InBatchNegativesLoss(),
    )
    model.fit(data, epochs=EPOCHS, verbose=2)
    return data


def measure(model, pairs):
    """How often the right description is among the nearest to a line."""
    lines, descriptions = map(list, zip(*pairs, strict=True))
    top_k = min(10, len(pairs))
    hits = model.search(lines, model.index(descriptions), top_k=top_k)
    ranked = [[hit["index"] for hit in found] for found in hits]
    scores = kerasllm.metrics.retrieval_scores(ranked, [[i] for i in range(len(pairs))], at=[1, 5, top_k])
    return {name: scores[name] for name in ("recall@1", "recall@5", f"mrr@{top_k}")}


if __name__ == "__main__":
    main()
