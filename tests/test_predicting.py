"""Many texts through one model: batches by length, results in order, streams, errors, the progress bar."""

import numpy as np
import pytest

from kerasllm import Tokenizer
from kerasllm.models.bert import BERTModel
from kerasllm.tasks.predicting import answer_each, encode_texts, predict

TOKENIZER = Tokenizer.train_wordpiece(["the cat sat on the mat and the dog sat too"] * 2, 80)


class Summing:
    """Stands in for a model: its output is the sum of the ids it was shown, which padding leaves alone."""

    def __init__(self, names=("token_ids", "padding_mask")):
        self.arguments, self.input, self.shapes = {"max_sequence_length": 24}, dict.fromkeys(names), []

    each_batch, progress_bar = BERTModel.each_batch, BERTModel.progress_bar

    def required_tokenizer(self):
        return TOKENIZER

    def outputs_function(self):
        return self.outputs_of

    def outputs_of(self, inputs):
        self.shapes.append(inputs["token_ids"].shape)
        assert set(inputs) == set(self.input)
        assert (inputs["padding_mask"] | (inputs["token_ids"] == 0)).all()
        return {"sum": inputs["token_ids"].sum(axis=1)}


def test_results_come_in_the_order_of_the_texts_and_shapes_are_few():
    model = Summing()
    texts = ["the " * (1 + i % 20) for i in range(53)]
    encodings = encode_texts(model, texts)
    outputs = predict(model, encodings, batch_size=8)
    assert [float(o["sum"]) for o in outputs] == [float(sum(e.ids)) for e in encodings]
    assert {length for _, length in model.shapes} <= {4, 8, 16, 24}
    assert model.shapes[-1][0] == 8 and len(set(model.shapes)) <= 4
    model.shapes.clear()
    for count in range(1, 13):
        assert len(predict(model, encodings[:count], batch_size=count)) == count
    assert {rows for rows, _ in model.shapes} == {1, 2, 4, 8, 12}


def test_segments_are_given_where_the_model_has_them():
    model = Summing(("token_ids", "segment_ids", "padding_mask"))
    predict(model, encode_texts(model, ["the cat"], ["the dog"]), batch_size=4)
    assert model.shapes == [(1, 8)]


def test_a_stream_is_read_as_its_answers_are_wanted():
    read = []

    def texts():
        for i in range(3000):
            read.append(i)
            yield f"text {i}"

    answers = answer_each("texts", texts(), lambda texts, verbose: [t.upper() for t in texts], verbose=True)
    assert next(answers) == "TEXT 0" and len(read) < 3000
    assert list(answers)[-1] == "TEXT 2999"
    assert answer_each("texts", "one", lambda texts, verbose: texts, True) == "one"
    with pytest.raises(ValueError, match=r"texts \(3\)"):
        answer_each("texts", 3, lambda texts, verbose: texts, True)


def test_a_long_text_is_named_or_cut():
    long = "the cat sat " * 20
    with pytest.raises(ValueError, match=r"texts\[1\] \('the cat .* has 62 tokens, max_sequence_length is 24"):
        encode_texts(Summing(), ["the cat", long])
    cut = encode_texts(Summing(), ["the cat", long], truncate=True)[1]
    assert cut.ids == TOKENIZER.encode(long)[:23] + [TOKENIZER.sep_id]


@pytest.mark.parametrize("first, second", [(20, 3), (3, 20), (20, 20), (20, 11), (1, 30)])
def test_of_a_pair_the_longer_text_is_cut(first, second):
    (pair,) = TOKENIZER.encodings(["the " * first], ["cat " * second], max_length=16)
    sizes = [pair.tokens.count(token) for token in ("the", "cat")]
    assert len(pair) == 16
    shorter = min(first, second, 6)
    assert sorted(sizes) == [shorter, 13 - shorter] and (sizes[0] >= sizes[1]) == (first >= second)
    assert pair.type_ids == [0] * (sizes[0] + 2) + [1] * (sizes[1] + 1)


def test_the_progress_bar_stands_on_stderr_and_can_be_turned_off(capsys):
    encodings = encode_texts(Summing(), ["the cat"] * 30)
    predict(Summing(), encodings, 2, verbose=True)
    out, err = capsys.readouterr()
    assert out == "" and "15/15" in err
    predict(Summing(), encodings, 2, verbose=False)
    predict(Summing(), encodings, 8, verbose=True)
    assert capsys.readouterr() == ("", "")


def test_batches_of_bfloat16_come_back_as_float32():
    import ml_dtypes

    model = Summing()
    model.outputs_of = lambda inputs: inputs["token_ids"].astype(ml_dtypes.bfloat16)
    (output,) = predict(model, encode_texts(model, ["the cat"]), 1)
    assert output.dtype == np.float32
