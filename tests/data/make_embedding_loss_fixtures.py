"""Make the fixture of losses of vectors: random vectors, and what sentence-transformers' losses and gradients are.

    python tests/data/make_embedding_loss_fixtures.py

`embedding_losses.npz` holds `anchors`, `positives`, `negatives` and `others` (6, 8), `scores` (6,), of which two are
equal, and for each case its loss and the gradients `CASE/0`, `CASE/1`, ... of the columns of vectors that it takes.
Made with sentence-transformers 6.2.0 and torch 2.13.0, in float64.
"""

from pathlib import Path

import numpy as np
import torch
from sentence_transformers.sentence_transformer import losses

RNG = np.random.default_rng(0)
ROWS, WIDTH = 6, 8
COLUMNS = {name: RNG.normal(size=(ROWS, WIDTH)) for name in ("anchors", "positives", "negatives", "others")}
SCORES = np.array([0.9, 0.1, 0.4, 0.4, 1.0, 0.0])


class Vectors(torch.nn.Module):
    """A model whose vectors are given."""

    def forward(self, features):
        return dict(features)

    def get_embedding_dimension(self):
        return WIDTH


MODEL = Vectors()
RANKING = losses.MultipleNegativesRankingLoss(MODEL)
WARM = losses.MultipleNegativesRankingLoss(MODEL, scale=5.0)
COSINE, COSENT = losses.CosineSimilarityLoss(MODEL), losses.CoSENTLoss(MODEL)
CASES = {
    "pairs": (RANKING, 2),
    "warm pairs": (WARM, 2),
    "triplets": (RANKING, 3),
    "two negatives": (RANKING, 4),
    "cosine": (COSINE, 2),
    "cosent": (COSENT, 2),
    "matryoshka of pairs": (losses.MatryoshkaLoss(MODEL, RANKING, [8, 4, 2]), 2),
    "weighted matryoshka of triplets": (losses.MatryoshkaLoss(MODEL, RANKING, [8, 3], [1, 0.5]), 3),
    "matryoshka of cosine": (losses.MatryoshkaLoss(MODEL, COSINE, [8, 4]), 2),
    "matryoshka of cosent": (losses.MatryoshkaLoss(MODEL, COSENT, [8, 4]), 2),
}

arrays = {**COLUMNS, "scores": SCORES}
for name, (loss, count) in CASES.items():
    vectors = [torch.tensor(x, requires_grad=True) for x in list(COLUMNS.values())[:count]]
    value = loss([{"sentence_embedding": x} for x in vectors], torch.tensor(SCORES))
    value.backward()
    arrays[name] = value.item()
    arrays |= {f"{name}/{i}": x.grad.numpy() for i, x in enumerate(vectors)}
    print(f"{name}: {value.item():.6f}")
np.savez_compressed(Path(__file__).parent / "embedding_losses.npz", **arrays)
