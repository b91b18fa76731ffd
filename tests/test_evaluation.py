"""Models judged by files of examples: what is read, what is measured, what is refused."""

import json
import sys

import numpy as np
import pytest

import kerasllm
from kerasllm import cli, metrics
from kerasllm.evaluation import evaluate
from kerasllm.evaluation.perplexity import windows_of
from kerasllm.evaluation.rows import Column, read_rows, text, words

COLUMNS = {"text": Column(text), "label": Column(text, is_needed=False)}
LABELS = ["bad", "good", "so so"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


class Classifier:
    """The first word of a text is the label that it is given, the second its probability."""

    arguments, problem_type = {"labels": LABELS}, "single_label"

    def classify(self, texts, pairs, batch_size, truncate, verbose, stride):
        for i, row in enumerate(texts):
            if len(row) > 20 and not truncate:
                raise ValueError(f"texts[{i}] is too long")
        return [[{"label": row.split()[0], "score": float(row.split()[1])}] for row in texts]


class Tagger:
    """A word is the label that it is given."""

    arguments = {"labels": TAGS}

    def tag_words(self, rows, batch_size, verbose, stride):
        return [list(row) for row in rows]


class Answerer:
    def answer(self, questions, contexts, max_answer_length, stride, allow_no_answer, batch_size, verbose):
        return [{"answer": context.split()[0].replace("-", "")} for context in contexts]


class Writer:
    """Writes the text itself in small letters."""

    max_sequence_length = None

    def translate(self, texts, batch_size, first_index, seed, **options):
        assert not options and first_index % batch_size == 0
        return [row.lower() for row in texts]

    generate = chat = summarize = translate


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.once("jax")
def test_files_of_every_kind_give_the_same_rows(tmp_path):
    rows = [{"text": 'a "b", c', "label": "x"}, {"text": "d", "label": "y"}]
    (tmp_path / "a.csv").write_text('\ufefflabel,text\r\nx,"a ""b"", c"\r\n\r\ny,d\r\n', newline="")
    (tmp_path / "a.tsv").write_text('text\tlabel\na "b", c\tx\nd\ty\n')
    jsonl(tmp_path / "a.jsonl", *rows)
    for data in (rows, *(tmp_path / f"a.{ending}" for ending in ("csv", "tsv", "jsonl"))):
        assert [row.values for row in read_rows(data, COLUMNS)] == rows
        assert len(read_rows(data, COLUMNS, limit=1)) == 1
    assert [row.place for row in read_rows(tmp_path / "a.csv", COLUMNS)] == [
        f"{tmp_path}/a.csv, line {n}" for n in (2, 4)
    ]
    (tmp_path / "long.csv").write_text(f'text\n"two\nlines"\n{"x" * 200_000}\n')
    long = read_rows(tmp_path / "long.csv", COLUMNS)
    assert [row.place[-6:] for row in long] == ["line 2", "line 4"] and long[0].values["text"] == "two\nlines"
    assert read_rows([{"review": "a"}], COLUMNS, {"text": "review"})[0].values == {"text": "a"}
    assert read_rows([{"words": "a b"}], {"words": Column(words)})[0].values == {"words": ["a", "b"]}
    (tmp_path / "a.en").write_text("one\ntwo\n")
    (tmp_path / "a.de").write_text("eins\nzwei")
    pair = {"source": Column(text), "target": Column(text)}
    found = read_rows((tmp_path / "a.en", tmp_path / "a.de"), pair, plain="pair")
    assert [row.values for row in found] == [{"source": "one", "target": "eins"}, {"source": "two", "target": "zwei"}]
    assert read_rows(tmp_path / "a.en", COLUMNS, plain="text")[0].values == {"text": "one\ntwo\n"}


@pytest.mark.once("jax")
@pytest.mark.parametrize(
    "content, name, message",
    [
        ("", "a.csv", "holds no rows"),
        ("text,label\n", "a.csv", "holds no rows"),
        ("text,label\na,b\nc\n", "a.csv", "a.csv, line 3 has 1 fields, the first line 2"),
        ('text\n"a\nb"\n"c', "a.csv", "a.csv, line 4: unexpected end of data"),
        ("text,text\na,b\n", "a.csv", "line 1 .* must be different names"),
        ("review\na\n", "a.csv", "a.csv, line 2 has no 'text'; its columns are review"),
        ("text,label\na,x\nb,\n", "a.csv", "line 3 has no 'label', other than .*line 2"),
        ('{"text": "a"}\n{"text": 3}\n', "a.jsonl", "a.jsonl, line 2, text .3. must be a string"),
        ('{"text": "a"}\n[1]\n', "a.jsonl", "a.jsonl, line 2 holds list, expected an object"),
        ('{"text": "a"}\n{"text": \n', "a.jsonl", "a.jsonl, line 2 is not a whole JSON file"),
        ('{"text": " "}\n', "a.jsonl", "must not be blank"),
        (b"text\n\xff\n", "a.tsv", "a.tsv, line 2: it is not in utf-8"),
        ("a", "a.txt", "must end in .jsonl, .ndjson, .csv, .tsv"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(content, name, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name, COLUMNS)


@pytest.mark.once("jax")
def test_files_that_are_no_pairs_are_refused(tmp_path):
    pair = {"source": Column(text), "target": Column(text)}
    (tmp_path / "a").write_text("one\n\n")
    (tmp_path / "b").write_text("one\ntwo\n")
    (tmp_path / "c").write_text("one\n")
    for files, message in (("ab", "a, line 2: it is blank"), ("bc", "b has 2 lines and .*c has 1"), ("bx", "no file")):
        with pytest.raises(ValueError, match=message):
            read_rows([tmp_path / name for name in files], pair, plain="pair")
    with pytest.raises(ValueError, match="must be one file"):
        read_rows([tmp_path / "b", tmp_path / "b"], COLUMNS)


@pytest.mark.once("tensorflow")
def test_a_classifier_is_judged_as_its_measures_say():
    given = ["good", "good", "bad", "bad", "good", "bad"]
    found = ["good", "bad", "bad", "bad", "good", "good"]
    rows = [{"text": f"{f} 0.{i + 4}", "label": g} for i, (f, g) in enumerate(zip(found, given, strict=True))]
    done = []
    report = evaluate(Classifier(), rows, "classify", batch_size=1, progress=lambda *counts: done.append(counts))
    scores = metrics.classification_scores([LABELS.index(x) for x in given], [LABELS.index(x) for x in found], 3)
    for name, measure in report.measures.items():
        if name in scores:
            assert measure.value == scores[name]
        assert measure.low <= measure.value <= measure.high or name == "calibration_error"
    right = [f == g for f, g in zip(found, given, strict=True)]
    assert report["calibration_error"] == metrics.calibration_error([0.4, 0.5, 0.6, 0.7, 0.8, 0.9], right)
    assert report.details["confusion_matrix"] == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert "'so so'" in report.notes[0] and done == [(6, 6)]
    assert evaluate(Classifier(), rows, "classify") == report
    plain = evaluate(Classifier(), rows, "classify", resamples=0)
    assert plain["mcc"] == report["mcc"] and plain.measures["mcc"].low is None
    numbers = [{**row, "label": LABELS.index(row["label"])} for row in rows]
    assert evaluate(Classifier(), numbers, "classify", label_ids=True) == report
    assert "accuracy" in str(report) and "given \\ predicted" in str(report)


@pytest.mark.once("torch")
def test_a_tagger_is_judged_by_entities_and_by_words():
    rows = [
        {"words": ["B-PER", "I-PER", "O", "B-PER"], "labels": ["B-PER", "I-PER", "O", "B-LOC"]},
        {"words": "O I-PER", "labels": "B-LOC O"},
        {"words": "O O", "labels": "O O"},
    ]
    report = evaluate(Tagger(), rows, "tag")
    given = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"], ["O", "O"]]
    found = [["B-PER", "I-PER", "O", "B-PER"], ["O", "I-PER"], ["O", "O"]]
    expected = metrics.entity_scores(given, found)
    for name in ("precision", "recall", "f1", "macro_f1"):
        assert report[f"entity_{name}"] == expected[name]
    low_high = report.measures["entity_f1"]
    assert low_high.low <= low_high.value <= low_high.high and low_high.note == "seqeval, strict, IOB2"
    assert report["word_accuracy"] == 5 / 8 and report.details["num_words"] == 8
    assert list(report.details["types"]) == ["LOC", "PER"] and "\nLOC " in str(report)
    plain = Tagger()
    plain.arguments = {"labels": ["noun", "verb"]}
    report = evaluate(plain, [{"words": "noun verb", "labels": "noun noun"}], "tag")
    assert report["word_accuracy"] == 0.5 and "entity_f1" not in report.measures and "no scheme" in report.notes[0]


def test_answers_summaries_and_translations_are_judged_by_their_libraries(tmp_path):
    rows = [
        {"question": "q", "context": "Paris is", "answers": {"text": ["in Paris", "Paris"], "answer_start": [0, 3]}},
        {"question": "q", "context": "- nothing", "answers": []},
        {"question": "q", "context": "Rome", "answers": "Milan"},
    ]
    report = evaluate(Answerer(), rows, "answer", allow_no_answer=True)
    assert report["exact_match"] == pytest.approx(2 / 3) and report["f1"] == pytest.approx(2 / 3)
    assert report.details["answers"] == ["Paris", "", "Rome"]

    sources = ["The Cat sat on the Mat", "A dog barked loudly at night", "Rain fell"]
    targets = ["the cat sat on a mat", "a dog barked in the night", "rain fell"]
    written = [source.lower() for source in sources]
    pairs = [{"source": s, "target": t} for s, t in zip(sources, targets, strict=True)]
    report = evaluate(Writer(), pairs, "translate", resamples=50)
    bleu, chrf = report.measures["bleu"], report.measures["chrf"]
    assert bleu.value == metrics.bleu(written, targets)[0] and chrf.value == metrics.chrf(written, targets)[0]
    assert bleu.low < bleu.value and "bs:50|seed:0" in bleu.note and "nc:6" in chrf.note
    assert "case:lc" in evaluate(Writer(), pairs, "translate", lowercase=True, resamples=0).measures["bleu"].note
    texts = [{"text": s, "summary": t} for s, t in zip(sources, targets, strict=True)]
    report = evaluate(Writer(), texts, "summarize", use_stemmer=False)
    assert {name: x.value for name, x in report.measures.items()} == metrics.rouge(written, targets, False)
    assert all(0 <= x.low <= x.value <= x.high <= 1 for x in report.measures.values())

    class Echo(Writer):
        chat = None

        def generate(self, prompts, strip_prompt, **options):
            return ["a b a b a", "a b c"][: len(prompts)]

    prompts = [{"prompt": "x"}, {"prompt": "y"}]
    report = evaluate(Echo(), prompts, "generate")
    assert report["distinct_1"] == 3 / 8 and report.measures["distinct_1"].low is None
    assert report["repeated_2"] == pytest.approx((0.5 + 0) / 2) and "bleu" not in report.measures
    report = evaluate(Echo(), [{**p, "reference": "a b c"} for p in prompts], "generate")
    assert (
        report["rouge1"] == metrics.rouge(["a b a b a", "a b c"], ["a b c"] * 2)["rouge1"] and "chrf" in report.measures
    )


def test_windows_score_each_token_once():
    assert windows_of(5, 8, 3) == [(0, 5, 1)] == windows_of(5, 5, 3)
    assert windows_of(11, 5, 3) == [(0, 5, 1), (2, 7, 5), (4, 9, 7), (6, 11, 9)]
    for length in range(2, 30):
        for stride in range(1, 6):
            seen = []
            for start, end, first in windows_of(length, 6, stride):
                assert end - start <= 6 and (first == 1 or first - start >= stride)
                seen += range(first, end)
            assert seen == list(range(1, length))


@pytest.fixture(scope="module")
def gpt():
    tokenizer = kerasllm.Tokenizer.train_bpe(["the cat sees the dog"], 300)
    return kerasllm.GPT(tokenizer.vocabulary_size, 1, 2, 8, max_sequence_length=16, tokenizer=tokenizer, dropout=0.0)


def test_perplexity_of_texts_however_long(gpt):
    short, long = "the cat", "the dog sees the cat and the bird " * 3
    report = evaluate(gpt, [{"text": short}], "language-model")
    score = gpt.score(short)
    assert report["token_perplexity"] == pytest.approx(score.perplexity, rel=1e-5)
    has_start = gpt.tokenizer.bos_id is not None
    nats = -score.log_probability
    if has_start:
        assert report["word_perplexity"] == pytest.approx(np.exp(nats / 2), rel=1e-5)
        assert report["character_perplexity"] == pytest.approx(np.exp(nats / 7), rel=1e-5)
        assert report["bits_per_character"] == pytest.approx(nats / 7 / np.log(2), rel=1e-5)
    # By hand: each window by itself, of which the tokens that are new count.
    ids = [gpt.tokenizer.bos_id] * has_start + gpt.tokenizer.encode(long, special_tokens=False)
    expected, num_tokens = 0.0, 0
    for start, end, first in windows_of(len(ids), 8, 3):
        log_probs = gpt.score([ids[start:end]])[0].log_probs
        expected -= log_probs[first - start - 1 :].sum()
        num_tokens += end - first
    report = evaluate(gpt, [{"text": long}], "language-model", window=8, stride=3)
    assert report["token_perplexity"] == pytest.approx(np.exp(expected / num_tokens), rel=1e-4)
    assert report.details["num_tokens"] == num_tokens == len(ids) - 1
    both = evaluate(gpt, [{"text": short}, {"text": long}], "language-model", window=8, stride=3)
    assert both.measures["token_perplexity"].low < both["token_perplexity"] < both.measures["token_perplexity"].high


@pytest.mark.once("torch")
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: evaluate(Classifier(), [{"text": "bad 1", "label": "1"}], "classify"), "data.0.: label .'1'. must be"),
        (lambda: evaluate(Classifier(), [{"text": "bad 1", "label": "1"}], "classify"), "label_ids=True reads numbers"),
        (lambda: evaluate(Classifier(), [{"text": "a", "label": 3}], "classify", label_ids=True), "in 0 .. 2"),
        (lambda: evaluate(Classifier(), [{"text": "a", "label": True}], "classify"), "label .True. must be a label's"),
        (
            lambda: evaluate(
                Classifier(),
                [{"text": f"bad 1{' ' * 40 * (i == 5)}.", "label": "bad"} for i in range(9)],
                "classify",
                batch_size=2,
            ),
            "data.5.: texts.0. is too long",
        ),
        (lambda: evaluate(Classifier(), [], "classify"), "data .... holds no rows"),
        (lambda: evaluate(Classifier(), [{"text": "a"}], "tag"), "'words'"),
        (lambda: evaluate(Classifier(), [{"words": "a", "labels": "O"}], "tag"), "model .Classifier. cannot tag"),
        (
            lambda: evaluate(Tagger(), [{"words": "O", "labels": "B-X"}], "tag"),
            "labels.0. .'B-X'. must be one of the m",
        ),
        (lambda: evaluate(Tagger(), [{"words": "O O", "labels": "O"}], "tag"), "has 2 words and 1 labels"),
        (
            lambda: evaluate(Tagger(), [{"words": "O", "labels": "O"}], "tag", scheme="IOBES", top_k=1),
            "top_k .1. is no",
        ),
        (lambda: evaluate(Answerer(), [{"question": "q", "context": "c", "answers": []}], "answer"), "has no answer"),
        (
            lambda: evaluate(Writer(), [{"source": "a", "target": "b"}], "translate", stride=1),
            "stride .1. is no option",
        ),
        (lambda: evaluate(Writer(), [{"source": "a", "target": "b"}], "translate", tokenize="x"), "tokenize .'x'."),
        (lambda: evaluate(Writer(), "nowhere.csv", "generate"), "there is no file 'nowhere.csv'"),
        (lambda: evaluate(Writer(), [{"text": "a"}], "summarise"), "task .'summarise'. must be one of"),
        (
            lambda: evaluate(Writer(), [{"text": "a"}], "classify", columns={"x": "y"}),
            "columns .'x'. must be of 'text'",
        ),
        (lambda: evaluate(Writer(), [{"text": "a"}], "classify", resamples=3), "resamples .3. must be 0 or at least"),
    ],
)
def test_what_cannot_be_judged_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.once("jax")
def test_bad_windows_are_refused(gpt):
    for options, message in (
        ({"window": 17}, "window .17. must be 2 or more, at most max_sequence_length .16."),
        ({"window": 1}, "window .1."),
        ({"window": 4, "stride": 4}, "stride .4. must be less than window .4."),
        ({"stride": 0}, "stride .0. must be a positive"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(gpt, [{"text": "the"}], "language-model", **options)


def test_a_missing_package_is_named_before_the_model_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqeval", None)
    for name in [name for name in sys.modules if name.startswith("seqeval.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr(Tagger, "tag_words")
    with pytest.raises(ImportError, match=r"evaluate tag needs seqeval: `pip install 'kerasllm\[metrics\]'`"):
        evaluate(Tagger(), [{"words": "O", "labels": "O"}], "tag")


@pytest.mark.once("torch")
def test_the_command_prints_a_table_and_writes_json(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(kerasllm, "load", lambda task, source: Classifier())
    data = tmp_path / "reviews.csv"
    data.write_text("review,label\ngood 0.9,good\nbad 0.8,good\nbad 0.7,bad\n")
    out = tmp_path / "scores.json"
    command = ["evaluate", "folder", data, "--task", "classify", "--column", "text=review", "--json", out, "--limit", 2]
    assert cli.main([*map(str, command), "--resamples", "50"]) == 0
    printed = capsys.readouterr()
    report = evaluate(Classifier(), data, "classify", columns={"text": "review"}, limit=2, resamples=50)
    assert printed.out == f"{report}\n" and "accuracy" in printed.out and not printed.err
    assert json.loads(out.read_text()) == json.loads(json.dumps(report.as_dict()))
    data.write_text("review,label\ngood 0.9,great\n")
    assert cli.main([*map(str, command)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "reviews.csv, line 2: label ('great')" in error
    assert json.loads(out.read_text())["num_rows"] == 2  # what was there before
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "folder", str(data), "--task", "fly"])


@pytest.mark.once("torch")
def test_the_command_hands_options_on(gpt, capsys, tmp_path, monkeypatch):
    gpt.save_to_preset(tmp_path / "gpt")
    data = tmp_path / "prompts.jsonl"
    jsonl(data, {"prompt": "the cat", "reference": "sees"}, {"prompt": "the dog", "reference": "sees"})
    flags = [
        "--max-new-tokens",
        "3",
        "--temperature",
        "0.8",
        "--seed",
        "5",
        "--resamples",
        "0",
        "--use-stemmer",
        "false",
    ]
    assert cli.main(["evaluate", str(tmp_path / "gpt"), str(data), "--task", "generate", *flags]) == 0
    options = {"max_new_tokens": 3, "temperature": 0.8, "seed": 5, "resamples": 0, "use_stemmer": False}
    assert capsys.readouterr().out == f"{evaluate(gpt, data, 'generate', **options)}\n"
    (tmp_path / "book.txt").write_text("the cat sees the dog\n" * 4)
    assert cli.main(["evaluate", str(tmp_path / "gpt"), str(tmp_path / "book.txt"), "--task", "language-model"]) == 0
    assert "character_perplexity" in capsys.readouterr().out
    assert cli.main(["evaluate", str(tmp_path / "gpt"), str(data), "--task", "tag"]) == 1
