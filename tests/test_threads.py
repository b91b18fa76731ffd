"""Eight threads that use the same models at once, from the first call on: each gets what it would get alone."""

import sys
import threading
import time

import keras
import numpy as np
import pytest

from kerasllm import (
    GPT,
    BERTClassifier,
    BERTEmbedder,
    BERTMaskedLM,
    BERTQuestionAnswerer,
    BERTTokenClassifier,
    RNNLanguageModel,
    Summarizer,
    Tokenizer,
    TransformerTranslator,
)
from kerasllm.training import TokenCrossentropy

NUM_THREADS = 8
TEXTS = ["the cat sees the dog", "a dog wants the book", "the king has a horse"]
WORDS = Tokenizer.train_wordpiece(TEXTS, 90)
BYTES = Tokenizer.train_bpe(TEXTS, 280, pad="<pad>", bos="<s>", eos="</s>")
ENCODER = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16, "tokenizer": WORDS}
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
LONG = {"max_new_tokens": 6}


def filled(model):
    """The model with weights as large as trained ones."""
    rng = np.random.default_rng(0)
    for v in model.weights:
        v.assign(rng.normal(scale=0.5, size=v.shape))
    return model


def writer(**arguments):
    arguments = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 64, **arguments}
    return filled(GPT(BYTES.vocabulary_size, tokenizer=BYTES, **arguments))


def writing(model):
    """Calls of all that a language model does."""
    chat = [{"role": "user", "content": "the cat"}]
    model.tokenizer.config["chat_template"] = TEMPLATE
    return {
        "generate": lambda: model.generate(TEXTS, **LONG),
        "sample": lambda: model.generate(TEXTS, temperature=0.9, top_k=20, seed=7, **LONG),
        "several": lambda: model.generate("the cat", temperature=0.9, num_return_sequences=3, seed=8, **LONG),
        "beams": lambda: model.generate(TEXTS, num_beams=2, **LONG),
        "stream": lambda: "".join(model.stream("the cat", max_new_tokens=9)),
        "speculative": lambda: model.generate("the cat the cat", draft="prompt", num_draft_tokens=2, **LONG),
        "processors": lambda: model.generate("the dog", processors=[lambda ids, logits: -logits], **LONG),
        "chat": lambda: model.chat(chat, **LONG),
        "score": lambda: [score.log_probs for score in model.score(TEXTS)],
    }


def reading():
    """Calls of the heads, each of a model of its own."""
    size = WORDS.vocabulary_size
    classifier, tagger = filled(BERTClassifier(size, labels=3, **ENCODER)), filled(BERTTokenClassifier(size, **ENCODER))
    masked, embedder = filled(BERTMaskedLM(size, **ENCODER)), filled(BERTEmbedder(size, **ENCODER))
    answerer = filled(BERTQuestionAnswerer(size, **ENCODER))
    return {
        "classify": lambda: classifier.classify(TEXTS, top_k=3, verbose=False),
        "embed": lambda: embedder.embed(TEXTS, verbose=False),
        "search": lambda: embedder.search("the cat", TEXTS, verbose=False),
        "fill_mask": lambda: masked.fill_mask("the [MASK] sees", verbose=False),
        "tag": lambda: tagger.tag(TEXTS, verbose=False),
        "answer": lambda: answerer.answer("the cat", "the dog sees the horse", stride=1, verbose=False),
    }


def measuring():
    """Calls of Keras's methods; the metrics of `evaluate` keep their sums on the model."""
    ids = np.random.default_rng(0).integers(1, 20, (12, 6)).astype("int32")
    inputs, labels = {"token_ids": ids, "padding_mask": np.ones_like(ids)}, ids[:, ::-1]
    model = writer()
    model.compile("sgd", loss=TokenCrossentropy(), metrics=["accuracy"])
    return {
        "evaluate": lambda: model.evaluate(inputs, labels, batch_size=4, verbose=0),
        "test_on_batch": lambda: model.test_on_batch(inputs, labels),
        "predict": lambda: model.predict(inputs, batch_size=4, verbose=0),
        "predict_on_batch": lambda: model.predict_on_batch(inputs),
    }


def translating():
    size = BYTES.vocabulary_size
    translator = TransformerTranslator(size, size, 1, 2, 8, max_sequence_length=32)
    translator.source_tokenizer = translator.target_tokenizer = BYTES
    filled(translator)
    summarizer = filled(Summarizer(WORDS.vocabulary_size, **ENCODER))
    return {
        "translate": lambda: translator.translate(TEXTS, **LONG),
        "pieces": lambda: "".join(translator.stream(TEXTS[0], **LONG)),
        "pairs": lambda: [score.log_probs for score in translator.score(TEXTS, TEXTS)],
        "summarize": lambda: summarizer.summarize(TEXTS[0], num_beams=2, max_new_tokens=4),
    }


def tokenizing():
    long = " ".join(TEXTS * 20)
    return {
        "cut": lambda: [[e.ids for e in WORDS.encodings([long] * 3, max_length=n)] for n in (4, 9, 16)],
        "pairs of texts": lambda: [e.ids for e in WORDS.encodings([TEXTS[0]] * 9, TEXTS * 3, max_length=12)],
        "encode": lambda: (WORDS.encode(long), BYTES.encode_batch(TEXTS)),
        "decode": lambda: BYTES.decode(BYTES.encode(long)),
        "wrapped": lambda: Tokenizer(WORDS.backend, **WORDS.roles, config=WORDS.config).encode(long),
    }


def alike(one, other):
    """Whether results are equal: numbers nearly, all else exactly."""

    def near(a, b):
        is_number = isinstance(a, float | np.floating | np.ndarray)
        return bool(np.allclose(a, b, atol=1e-5)) if is_number else a == b

    return all(keras.tree.flatten(keras.tree.map_structure(near, one, other)))


def failures(calls, seconds=0.0):
    """Make calls in all threads at once, each thread in an order of its own, and compare with what they give alone.

    Returns:
        `(number of calls, list of what went wrong)`.
    """
    start, results = threading.Barrier(NUM_THREADS), []

    def work(thread):
        order = list(calls.items())
        order = order[thread % len(order) :] + order[: thread % len(order)]
        start.wait()
        end = time.monotonic() + seconds
        while True:
            for name, call in order:
                try:
                    results.append((name, call()))
                except Exception as error:
                    results.append((name, error))
            if time.monotonic() >= end:
                return

    threads = [threading.Thread(target=work, args=(i,)) for i in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = {name: call() for name, call in calls.items()}
    wrong = [(name, found) for name, found in results if isinstance(found, Exception) or not alike(found, alone[name])]
    return len(results), [f"{name}: {found!r:.200}" for name, found in wrong]


def test_threads_get_what_they_would_get_alone():
    few = {"generate", "sample", "stream", "score", "classify", "embed", "fill_mask", "tag", "answer"}
    calls = {name: call for name, call in (writing(writer()) | reading()).items() if name in few} | tokenizing()
    count, wrong = failures(calls)
    assert count == NUM_THREADS * len(calls) and not wrong, (len(wrong), wrong[:4])


def test_threads_that_measure_take_turns():
    count, wrong = failures(measuring())
    assert count == NUM_THREADS * 4 and not wrong, (len(wrong), wrong[:4])


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["writing", "quantised", "recurrent", "reading", "measuring", "translating", "tokenizing"]
)
def test_threads_get_what_they_would_get_alone_for_a_minute(kind):
    makers = {
        "writing": lambda: writing(writer()),
        "quantised": lambda: writing(quantised(writer())),
        "recurrent": lambda: without(writing(filled(RNNLanguageModel(280, 1, 16, tokenizer=BYTES))), "speculative"),
        "reading": reading,
        "measuring": measuring,
        "translating": translating,
        "tokenizing": tokenizing,
    }
    count, wrong = failures(makers[kind](), seconds=60)
    print(f"{kind}: {count} calls, {len(wrong)} wrong")
    assert not wrong, (count, len(wrong), wrong[:4])


def quantised(model):
    model.quantize("int8")
    return model


def without(calls, name):
    return {other: call for other, call in calls.items() if other != name}


def test_models_are_made_and_opened_in_threads(tmp_path):
    model = writer()
    model.save_to_preset(tmp_path)
    count, wrong = failures(
        {
            "opened": lambda: GPT.from_preset(tmp_path).get_weights(),
            "made": lambda: writer().get_weights(),
            "written": lambda: model.get_config(),
        }
    )
    assert count == 3 * NUM_THREADS and not wrong, wrong[:4]


def test_progress_bars_of_threads_leave_the_standard_output(capsys):
    def bar():
        advance = BERTClassifier.progress_bar(None, 40)
        for _ in range(40):
            advance()

    before = sys.stdout
    threads = [threading.Thread(target=bar) for _ in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.stdout is before and capsys.readouterr().out == ""
