"""Proposals for masks, of a model that is made of numbers."""

import numpy as np

from kerasllm import Tokenizer
from kerasllm.tasks.mask_filling import MaskFilling

TOKENIZER = Tokenizer.train_wordpiece(["the cat sat on the mat"] * 2, 60)
SIZE = TOKENIZER.vocabulary_size


class Padded(MaskFilling):
    """Its vocabulary is of two symbols more than the tokenizer's; the more probable a token, the larger its id."""

    tokenizer = TOKENIZER
    arguments = {"vocabulary_size": SIZE + 2, "max_sequence_length": 16}
    input = ("token_ids", "padding_mask", "masked_positions")

    def required_tokenizer(self):
        return self.tokenizer

    def outputs_function(self):
        return self.outputs_of

    def each_batch(self, work, batches, rows):
        return map(work, batches)

    def outputs_of(self, inputs):
        return np.tile(np.arange(SIZE + 2) / 4, (*inputs["masked_positions"].shape, 1))


def test_symbols_beyond_the_tokenizer_are_proposed_as_nothing():
    found = Padded().fill_mask("the [MASK] sat", top_k=3, verbose=False)
    last = TOKENIZER.id_to_token(SIZE - 1)
    assert [proposal["token"] for proposal in found] == [SIZE + 1, SIZE, SIZE - 1]
    assert [proposal["token_str"] for proposal in found[:2]] == ["", ""] and found[2]["token_str"] == last
    assert [proposal["sequence"] for proposal in found[:2]] == ["the sat"] * 2
    assert found[0]["score"] > found[1]["score"] > found[2]["score"]
