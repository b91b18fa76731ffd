"""BERT for classes of tokens: names of persons, parts of speech."""

from typing import Unpack

import keras

from kerasllm.models.bert import BERTArguments, BERTModel, encode, make_dense, takes_encoder
from kerasllm.models.classifier import read_labels
from kerasllm.tasks.tagging import Tagging


@keras.saving.register_keras_serializable("kerasllm")
class BERTTokenClassifier(Tagging, BERTModel):
    """BERT with a classifier of tokens.

    Inputs:
        token_ids, segment_ids, padding_mask: as for `BERT`.

    Outputs:
        Logits (B, T, L), one for each token and label.

    Args:
        vocabulary_size, num_layers, num_heads, hidden_dim: size of the encoder.
        **arguments: as for `BERT`.
        labels: names of the L labels, a list of strings; or their number, for names LABEL_0, LABEL_1, ... In
            "B-PER", "I-PER" the letters say whether a token begins or continues an entity; "O" is none.

    Example:
        >>> model = BERTTokenClassifier.from_preset("path/to/bert-base-NER")
        >>> model.tag("Ada Lovelace lived in London.")
        [{'entity': 'PER', 'score': 0.99, 'word': 'Ada Lovelace', 'start': 0, 'end': 12}, ...]
    """

    @takes_encoder("labels")
    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        *,
        labels=2,
        name="bert_token_classifier",
        **arguments: Unpack[BERTArguments],
    ):
        encoder, inputs, sequence = encode(vocabulary_size, num_layers, num_heads, hidden_dim, **arguments)
        labels = read_labels(labels)
        classifier = make_dense(encoder, len(labels), "classifier")
        dropout = keras.layers.Dropout(arguments["dropout"], dtype=encoder.dtype_policy, name="classifier_dropout")
        super().__init__(inputs, classifier(dropout(sequence)), labels=labels)
        self.encoder, self.classifier = encoder, classifier
        self.tokenizer = arguments["tokenizer"]
