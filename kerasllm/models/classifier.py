"""BERT for classes of texts: one of several labels, any of several, or numbers."""

from typing import Unpack

import keras

from kerasllm.arguments import check_choice, shown
from kerasllm.checkpoints.bert import MOST_LABELS
from kerasllm.models.bert import BERTArguments, BERTModel, encode, make_dense, make_pooler, takes_encoder
from kerasllm.tasks.classification import Classification

PROBLEM_TYPES = ("single_label", "multi_label", "regression")


@keras.saving.register_keras_serializable("kerasllm")
class BERTClassifier(Classification, BERTModel):
    """BERT with a classifier of texts, or of pairs of texts, over its pooled first token.

    Inputs:
        token_ids, segment_ids, padding_mask: as for `BERT`.

    Outputs:
        Logits (B, L), one for each label.

    Args:
        vocabulary_size, num_layers, num_heads, hidden_dim: size of the encoder.
        **arguments: as for `BERT`.
        labels: names of the L labels, a list of strings; or their number, for names LABEL_0, LABEL_1, ...
        problem_type: what the logits mean. "single_label": a softmax over them; "multi_label": a sigmoid for each;
            "regression": the numbers themselves. Default: a softmax over several labels, a sigmoid for one.
        pooler_activation: of the dense layer between encoder and classifier: "tanh" in BERT and RoBERTa, "relu" in
            DistilBERT, "gelu" in ELECTRA.

    Example:
        >>> model = BERTClassifier.from_preset("bert-base-uncased", fresh_head=True, labels=["bad", "good"])
        >>> model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
        >>> model.fit(kerasllm.training.ClassificationDataset(texts, labels, model.tokenizer), epochs=3)
        >>> model.classify("What a film!")
        [{'label': 'good', 'score': 0.98}]

    A cross-encoder of sentence-transformers is a classifier of pairs with one label, and opens as such; `rank` orders
    texts by it:

        >>> model = BERTClassifier.from_preset(preset, fresh_head=True, labels=["relevant"])
        >>> model.compile("adamw", keras.losses.BinaryCrossentropy(from_logits=True))
        >>> model.fit(kerasllm.training.ClassificationDataset(queries, relevance, model.tokenizer, pairs=texts))
        >>> model.rank("a query", ["a text", "another"])
    """

    @takes_encoder("labels problem_type pooler_activation")
    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        *,
        labels=2,
        problem_type=None,
        pooler_activation="tanh",
        name="bert_classifier",
        **arguments: Unpack[BERTArguments],
    ):
        encoder, inputs, sequence = encode(vocabulary_size, num_layers, num_heads, hidden_dim, **arguments)
        labels = read_labels(labels)
        check_choice("problem_type", problem_type, (*PROBLEM_TYPES, None))
        pooler = make_pooler(encoder, pooler_activation)
        classifier = make_dense(encoder, len(labels), "classifier")
        dropout = keras.layers.Dropout(arguments["dropout"], dtype=encoder.dtype_policy, name="classifier_dropout")
        super().__init__(inputs, classifier(dropout(pooler(sequence[:, 0]))), labels=labels)
        self.encoder, self.pooler, self.classifier = encoder, pooler, classifier
        self.tokenizer = arguments["tokenizer"]

    @property
    def has_one_label(self):
        return self.problem_type == "single_label" or self.problem_type == "multi_label" and self.output.shape[1] == 1


def read_labels(labels):
    """The names of labels given by names or by number, checked."""
    if isinstance(labels, int) and not isinstance(labels, bool) and 0 < labels <= MOST_LABELS:
        return [f"LABEL_{i}" for i in range(labels)]
    names = list(labels) if isinstance(labels, list | tuple) else []
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError(
            f"labels ({shown(labels)}) must be a positive number up to {MOST_LABELS} or a list of different names."
        )
    return names
