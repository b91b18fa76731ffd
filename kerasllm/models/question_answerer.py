"""BERT for questions whose answers stand in a text."""

import keras

from kerasllm.models.bert import BERTModel, encode, make_dense
from kerasllm.tasks.answering import Answering


@keras.saving.register_keras_serializable("kerasllm")
class BERTQuestionAnswerer(Answering, BERTModel):
    """BERT that says where in a context the answer to a question begins and ends.

    Inputs:
        token_ids, segment_ids, padding_mask: as for `BERT`; the question first, then the context.

    Outputs:
        A dict: `start_logits` and `end_logits`, (B, T) each.

    Args: those of `BERT` without `pooler`.

    Example:
        >>> model = BERTQuestionAnswerer.from_preset("path/to/distilbert-base-cased-distilled-squad")
        >>> model.answer("Where did she live?", "Ada Lovelace lived in London.")
        {'score': 0.97, 'start': 22, 'end': 28, 'answer': 'London'}
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
        family="bert",
        dtype=None,
        tokenizer=None,
        name="bert_question_answerer",
    ):
        arguments, encoder, inputs, sequence = encode(locals())
        span = make_dense(arguments, 2, "answer_span")
        logits = span(sequence)  # (B, T, 2)
        super().__init__(inputs, {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}, arguments, name)
        self.encoder, self.span = encoder, span
        self.tokenizer = tokenizer
