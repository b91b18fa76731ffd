"""Make the fixture of a cross-encoder: a tiny BERT of random weights as sentence-transformers saves it, and its scores.

    python tests/data/make_cross_encoder_fixtures.py

`cross_encoder/` is the folder, whose scores are the logits themselves; `scores.json` in it holds the `query`, the
`texts` and their `scores`. Made with sentence-transformers 6.2.0, transformers 5.23.0 and torch 2.13.0.
"""

import json
import tempfile
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, set_seed

HERE = Path(__file__).parent / "cross_encoder"
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat dog sat ran on under mat log a big small who".split()
QUERY, TEXTS = "who sat", ["the cat sat on the mat", "a dog ran", "the log", "who sat", "a big dog sat under a log"]
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

set_seed(0)
with tempfile.TemporaryDirectory() as folder:
    config = BertConfig(vocab_size=len(WORDS), **SIZES, num_labels=1, max_position_embeddings=24, initializer_range=0.6)
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=24).save_pretrained(folder)
    model = CrossEncoder(folder, num_labels=1, activation_fn=torch.nn.Identity(), device="cpu")
model.save_pretrained(str(HERE), create_model_card=False)
scores = {hit["corpus_id"]: float(hit["score"]) for hit in model.rank(QUERY, TEXTS)}
(HERE / "scores.json").write_text(
    json.dumps({"query": QUERY, "texts": TEXTS, "scores": [scores[i] for i in range(len(TEXTS))]}) + "\n"
)
