"""BERT for questions whose answers stand in a text."""

from typing import Unpack

import keras

from kerasllm.models.bert import BERTArguments, BERTModel, encode, make_dense, takes_encoder
from kerasllm.tasks.answering import Answering


@keras.saving.register_keras_serializable("kerasllm")
class BERTQuestionAnswerer(Answering, BERTModel):
    """BERT that says where in a context the answer to a question begins and ends.

    Inputs:
        token_ids, segment_ids, padding_mask: as for `BERT`; the question first, then the context.

    Outputs:
        A dict: `start_logits` and `end_logits`, (B, T) each.

    Args:
        vocabulary_size, num_layers, num_heads, hidden_dim: size of the encoder.
        **arguments: as for `BERT`.

    Example:
        >>> model = BERTQuestionAnswerer.from_preset("path/to/distilbert-base-cased-distilled-squad")
        >>> model.answer("Where did she live?", "Ada Lovelace lived in London.")
        {'score': 0.97, 'start': 22, 'end': 28, 'answer': 'London'}
    """

    @takes_encoder()
    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        *,
        name="bert_question_answerer",
        **arguments: Unpack[BERTArguments],
    ):
        encoder, inputs, sequence = encode(vocabulary_size, num_layers, num_heads, hidden_dim, **arguments)
        span = make_dense(encoder, 2, "answer_span")
        logits = span(sequence)  # (B, T, 2)
        super().__init__(inputs, {"start_logits": logits[..., 0], "end_logits": logits[..., 1]})
        self.encoder, self.span = encoder, span
        self.tokenizer = arguments["tokenizer"]
