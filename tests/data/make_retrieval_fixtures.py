"""Make the fixture of measures of rankings and of scores.

    python tests/data/make_retrieval_fixtures.py

`retrieval.json` holds `ranked`, `relevant` and `graded` of 7 queries; what `InformationRetrievalEvaluator` of
sentence-transformers 6.2.0 makes of the first two, and scikit-learn 1.9.1's `ndcg_score` of the gains; `scores` and
`references` with equal values, and scipy 1.17.1's `spearmanr` of them.
"""

import json
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sklearn.metrics import ndcg_score

RNG = np.random.default_rng(0)
QUERIES, DOCUMENTS, AT = 7, 12, [1, 3, 5, 12]
ranked = [RNG.permutation(DOCUMENTS).tolist() for _ in range(QUERIES)]
relevant = [RNG.choice(DOCUMENTS, size=n, replace=False).tolist() for n in (1, 1, 2, 3, 5, 1, 12)]
graded = [{str(i): int(gain) for i, gain in zip(row, RNG.integers(1, 4, len(row)), strict=True)} for row in relevant]
evaluator = InformationRetrievalEvaluator(
    {str(q): "" for q in range(QUERIES)},
    {str(d): "" for d in range(DOCUMENTS)},
    {str(q): set(map(str, row)) for q, row in enumerate(relevant)},
    **dict.fromkeys(("accuracy_at_k", "precision_recall_at_k", "mrr_at_k", "ndcg_at_k", "map_at_k"), AT),
)
hits = [[{"corpus_id": str(d), "score": -float(place)} for place, d in enumerate(row)] for row in ranked]
found = evaluator.compute_metrics(hits)
expected = {f"{name}@{k}": float(found[f"{name}@k"][k]) for name in ("recall", "mrr", "ndcg") for k in AT}
gains = np.array([[row.get(str(d), 0) for d in range(DOCUMENTS)] for row in graded])
places = np.array([[-ids.index(d) for d in range(DOCUMENTS)] for ids in ranked])
expected_graded = {f"ndcg@{k}": float(ndcg_score(gains, places, k=k)) for k in AT}
scores, references = RNG.integers(0, 6, 20).tolist(), RNG.integers(0, 4, 20).tolist()
arrays = {"ranked": ranked, "relevant": relevant, "graded": graded, "at": AT, "expected": expected}
arrays |= {"expected_graded": expected_graded, "scores": scores, "references": references}
arrays["spearman"] = float(spearmanr(scores, references).statistic)
(Path(__file__).parent / "retrieval.json").write_text(json.dumps(arrays) + "\n")
