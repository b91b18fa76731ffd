import numpy as np
import pytest

from kerasllm import BERTQuestionAnswerer, Tokenizer
from kerasllm.tasks import answering

CONTEXT = "Ada Lovelace lived in London . " + "She wrote a program . " * 6 + "It rained in Paris ."
TOKENIZER = Tokenizer.train_wordpiece([CONTEXT.lower() + "where did she live ?"] * 3, 120)


@pytest.fixture(scope="module")
def model():
    return BERTQuestionAnswerer(120, 1, 2, 8, max_sequence_length=24, tokenizer=TOKENIZER, dropout=0.0)


@pytest.fixture
def told(monkeypatch):
    """Logits that are told: dict token -> start logit and end logit."""

    def tell(logits):
        def predict(model, encodings, batch_size, verbose):
            outputs = []
            for encoding in encodings:
                pairs = np.array([logits.get(token, (0.0, 0.0)) for token in encoding.tokens] + [(9.0, 9.0)])
                outputs.append({"start_logits": pairs[:, 0], "end_logits": pairs[:, 1]})
            return outputs

        monkeypatch.setattr(answering, "predict", predict)

    return tell


def test_the_best_span_of_a_context_in_windows(model, told):
    told({"in": (2.0, 0.0), "paris": (1.0, 8.0), "where": (99.0, 99.0)})
    answer = model.answer("Where did she live ?", CONTEXT, stride=4)
    assert answer["answer"] == "in Paris" == CONTEXT[answer["start"] : answer["end"]]
    assert 0 < answer["score"] <= 1 and type(answer["score"]) is float and type(answer["start"]) is int


def test_scores_are_products_of_probabilities_in_the_context_and_cls(model, told):
    told({"london": (3.0, 2.0), "[CLS]": (1.0, 0.0)})
    (encoding,) = model._windows(0, "Where ?", "in London", 0)
    start, end = np.exp([1.0, 0.0, 3.0]), np.exp([0.0, 0.0, 2.0])
    expected = start[2] / start.sum() * end[2] / end.sum()
    answer = model.answer("Where ?", "in London", allow_no_answer=True)
    assert answer == {"score": pytest.approx(expected), "start": 3, "end": 9, "answer": "London"}


def test_no_answer_wins_where_it_is_allowed(model, told):
    told({"[CLS]": (5.0, 5.0), "london": (1.0, 1.0)})
    assert model.answer("Where ?", "in London")["answer"] == "London"
    nothing = model.answer("Where ?", "in London", allow_no_answer=True)
    assert nothing == {
        "score": pytest.approx((np.exp(5) / (np.exp(5) + 1 + np.e)) ** 2),
        "start": 0,
        "end": 0,
        "answer": "",
    }


def test_top_k_answers_are_different_and_in_order(model, told):
    told({"london": (3.0, 3.0), "in": (1.0, 0.0)})
    answers = model.answer("Where ?", "in London", top_k=9)
    assert [a["answer"] for a in answers] == ["London", "in London", "in"]
    assert sorted((a["score"] for a in answers), reverse=True) == [a["score"] for a in answers]


def test_an_answer_is_not_longer_than_allowed_and_does_not_end_before_it_starts(model, told):
    told({"ada": (5.0, 0.0), "london": (0.0, 5.0), "lived": (1.0, 4.5)})
    assert model.answer("Who ?", CONTEXT[:30])["answer"] == "Ada Lovelace lived in London"
    limited = model.answer("Who ?", CONTEXT[:30], max_answer_length=1)["answer"]
    assert limited in ("Ada", "London", "lived")
    told({"london": (5.0, 0.0), "ada": (0.0, 5.0)})
    assert model.answer("Who ?", CONTEXT[:30])["answer"] != ""


def test_lists_give_lists_and_the_network_answers_them(model):
    questions = ["Where ?", "Who ?"]
    one = [model.answer(q, CONTEXT, stride=4) for q in questions]
    both = model.answer(questions, CONTEXT, stride=4)
    for a, b in zip(one, both, strict=True):
        assert a["answer"] == b["answer"] and a["score"] == pytest.approx(b["score"], abs=1e-6)
    assert model.answer(questions[:1], [CONTEXT], stride=4)[0]["answer"] == one[0]["answer"]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: m.answer("she " * 20, CONTEXT, stride=4), r"question\[0\].*20 tokens.*room for 1 of.*stride \(4\)"),
        (lambda m: m.answer(["a", "b"], [CONTEXT]), "context .1 of them.*question .2"),
        (lambda m: m.answer("a", [CONTEXT]), "context"),
    ],
)
def test_bad_arguments_are_refused(call, words, model):
    with pytest.raises(ValueError, match=words):
        call(model)
