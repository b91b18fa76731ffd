"""BERT for classes of texts: one of several labels, any of several, or numbers."""

import keras
import numpy as np

from kerasllm.arguments import check_choice, check_positive
from kerasllm.models.bert import BERTModel, encode, make_dense, make_pooler
from kerasllm.models.predicting import answer_each, encode_texts, predict, sigmoid, softmax

PROBLEM_TYPES = ("single_label", "multi_label", "regression")


@keras.saving.register_keras_serializable("kerasllm")
class BERTClassifier(BERTModel):
    """BERT with a classifier of texts, or of pairs of texts, over its pooled first token.

    Inputs:
        token_ids, segment_ids, padding_mask: as for `BERT`.

    Outputs:
        Logits (B, L), one for each label.

    Args: those of `BERT` without `pooler`, and
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
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim=None,
        max_sequence_length=512,
        num_segments=2,
        dropout=0.1,
        activation="gelu",
        norm_epsilon=1e-12,
        initializer_range=0.02,
        embedding_dim=None,
        labels=2,
        problem_type=None,
        pooler_activation="tanh",
        family="bert",
        dtype=None,
        tokenizer=None,
        name="bert_classifier",
    ):
        arguments, encoder, inputs, sequence = encode(locals())
        labels = read_labels(labels)
        check_choice("problem_type", problem_type, (*PROBLEM_TYPES, None))
        pooler = make_pooler(arguments, pooler_activation)
        classifier = make_dense(arguments, len(labels), "classifier")
        pooled = keras.layers.Dropout(dropout, dtype=encoder.dtype_policy, name="classifier_dropout")(
            pooler(sequence[:, 0])
        )
        own = {"labels": labels, "problem_type": problem_type, "pooler_activation": pooler_activation}
        super().__init__(inputs, classifier(pooled), {**arguments, **own}, name)
        self.encoder, self.pooler, self.classifier = encoder, pooler, classifier
        self.tokenizer = tokenizer

    @property
    def problem_type(self):
        """What the logits mean: "single_label", "multi_label" or "regression"."""
        return self.arguments["problem_type"] or (
            "single_label" if len(self.arguments["labels"]) > 1 else "multi_label"
        )

    def classify(self, texts, pairs=None, top_k=1, batch_size=32, truncate=False, verbose=True):
        """Say which labels texts have.

        Args:
            texts: a string, a list or an iterable of strings.
            pairs: the second texts, where the model judges pairs: a string for a string, a list for a list.
            top_k: number of labels for each text; None for all.
            batch_size: the most texts that are computed at a time.
            truncate: whether texts longer than the model are cut; otherwise they are errors.
            verbose: whether a long list has a progress bar.

        Returns:
            For a text a list of dicts with `label` and `score`, best first: the score is a probability, or the
            predicted number where `problem_type` is "regression". For a list a list of those, for an iterable an
            iterator.

        Raises:
            ValueError: there is no tokenizer; a text is empty, or longer than the model's `max_sequence_length`.
        """
        self.required_tokenizer()
        labels = self.arguments["labels"]
        check_positive("batch_size", batch_size)
        if top_k is not None:
            check_positive("top_k", top_k)
            if top_k > len(labels):
                raise ValueError(f"top_k ({top_k}) must be at most the number of labels ({len(labels)}).")
        pairs = _checked_pairs(texts, pairs)

        def answer(texts, verbose):
            hint = "; truncate=True cuts it"
            encodings = encode_texts(self, texts, pairs, truncate=truncate, hint=hint)
            return [self._ranked(logits, top_k) for logits in predict(self, encodings, batch_size, verbose)]

        return answer_each("texts", texts, answer, verbose)

    def _ranked(self, logits, top_k):
        convert = {"single_label": softmax, "multi_label": sigmoid, "regression": np.float64}[self.problem_type]
        scores = convert(logits)
        best = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [{"label": self.arguments["labels"][i], "score": float(scores[i])} for i in best]


def _checked_pairs(texts, pairs):
    if pairs is None:
        return None
    if isinstance(texts, str) and isinstance(pairs, str):
        return [pairs]
    both = isinstance(texts, list | tuple) and isinstance(pairs, list | tuple)
    if not both or len(texts) != len(pairs):
        raise ValueError(f"pairs ({pairs!r:.60}) must be a string for a string, a list of as many for a list of texts.")
    return list(pairs)


def read_labels(labels):
    """The names of labels given by names or by number, checked."""
    if isinstance(labels, int) and not isinstance(labels, bool) and labels > 0:
        return [f"LABEL_{i}" for i in range(labels)]
    names = list(labels) if isinstance(labels, list | tuple) else []
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError(f"labels ({labels!r:.80}) must be a positive number or a list of different names.")
    return names
