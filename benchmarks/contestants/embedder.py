"""MiniLM trained by examples/train_embedder.py, and by sentence-transformers on the same pairs.

Lines of Debian's packages find their descriptions in a pool of 5,000 that are not trained on. The interval is that of
recall@1 after training, by the bootstrap over lines.
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import train_embedder as recipe

import kerasllm

STEPS = 94  # of 64 pairs: 6,000 pairs once
FIGURES = ("recall@1 before", "after", "from", "to", "MRR@10")


def read(path):
    """(pairs to train on, others)."""
    return recipe.read_pairs()


def figures(before, ranks):
    """What the table shows of the places (N,) at which the right descriptions are found."""
    hits = ranks == 0
    low, high = kerasllm.metrics.bootstrap_interval(lambda sums: sums[:, 0] / len(hits), hits)
    return before, float(hits.mean()), low, high, float(np.where(ranks < 10, 1 / (ranks + 1), 0).mean())


def places(lines, descriptions):
    """(N,) how many descriptions are nearer to a line than its own; vectors (N, D) of length 1."""
    scores = lines @ descriptions.T
    return (scores > np.diag(scores)[:, None]).sum(axis=1)


def ours(seed, pairs, steps):
    """Ours: (figures, weights, seconds of training)."""
    import keras

    train, test = pairs
    keras.utils.set_random_seed(int(seed))
    model = kerasllm.BERTEmbedder.from_preset(kerasllm.pretrained.minilm(), truncate_at=recipe.MAX_LENGTH)

    def measured():
        return places(*(np.asarray(model.embed(list(texts))) for texts in zip(*test, strict=True)))

    before = float((measured() == 0).mean())
    start = time.perf_counter()
    recipe.fit(model, train[: steps * recipe.BATCH_SIZE], seed=int(seed))
    seconds = time.perf_counter() - start
    return *figures(before, measured()), model.count_params(), seconds


def plain_torch(seed, pairs, steps):
    """sentence-transformers on PyTorch: (figures, weights, seconds of training)."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    train, test = pairs
    model = SentenceTransformer(str(kerasllm.pretrained.minilm()), device="cpu")
    model.max_seq_length = recipe.MAX_LENGTH

    def measured():
        encode = {"normalize_embeddings": True, "show_progress_bar": False}
        return places(*(model.encode(list(texts), **encode) for texts in zip(*test, strict=True)))

    before = float((measured() == 0).mean())
    lines, descriptions = map(list, zip(*train[: steps * recipe.BATCH_SIZE], strict=True))
    arguments = SentenceTransformerTrainingArguments(
        output_dir="runs/sentence_transformers",
        num_train_epochs=recipe.EPOCHS,
        per_device_train_batch_size=recipe.BATCH_SIZE,
        learning_rate=recipe.LEARNING_RATE,
        warmup_steps=steps // 10,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=int(seed),
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict({"anchor": lines, "positive": descriptions}),
        loss=MultipleNegativesRankingLoss(model),
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    return *figures(before, measured()), sum(p.numel() for p in model.parameters()), seconds
