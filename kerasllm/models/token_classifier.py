"""BERT for classes of tokens: names of persons, parts of speech."""

import keras

from kerasllm.models.bert import BERTModel, encode, make_dense
from kerasllm.models.classifier import read_labels
from kerasllm.tasks.tagging import Tagging


@keras.saving.register_keras_serializable("kerasllm")
class BERTTokenClassifier(Tagging, BERTModel):
    """BERT with a classifier of tokens.

    Inputs:
        token_ids, segment_ids, padding_mask: as for `BERT`.

    Outputs:
        Logits (B, T, L), one for each token and label.

    Args: those of `BERT` without `pooler`, and
        labels: names of the L labels, a list of strings; or their number, for names LABEL_0, LABEL_1, ... In
            "B-PER", "I-PER" the letters say whether a token begins or continues an entity; "O" is none.

    Example:
        >>> model = BERTTokenClassifier.from_preset("path/to/bert-base-NER")
        >>> model.tag("Ada Lovelace lived in London.")
        [{'entity': 'PER', 'score': 0.99, 'word': 'Ada Lovelace', 'start': 0, 'end': 12}, ...]
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
        family="bert",
        dtype=None,
        tokenizer=None,
        name="bert_token_classifier",
    ):
        arguments, encoder, inputs, sequence = encode(locals())
        labels = read_labels(labels)
        classifier = make_dense(arguments, len(labels), "classifier")
        sequence = keras.layers.Dropout(dropout, dtype=encoder.dtype_policy, name="classifier_dropout")(sequence)
        super().__init__(inputs, classifier(sequence), {**arguments, "labels": labels}, name)
        self.encoder, self.classifier = encoder, classifier
        self.tokenizer = tokenizer
