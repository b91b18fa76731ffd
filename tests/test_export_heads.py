import json
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
from alone import run_alone
from flatbuffers.table import Table

from kerasllm.export import head_contents, mediapipe
from kerasllm.export.contents import Options
from kerasllm.export.contents_by_model import contents_of
from kerasllm.models.bert import BERT
from kerasllm.models.classifier import BERTClassifier
from kerasllm.models.embedder import BERTEmbedder
from kerasllm.models.gpt import GPT
from kerasllm.models.masked_lm import BERTMaskedLM
from kerasllm.models.question_answerer import BERTQuestionAnswerer
from kerasllm.models.token_classifier import BERTTokenClassifier
from kerasllm.text import Tokenizer, batches

IN_CHILD = keras.backend.backend() != "tensorflow"
TEXTS = ["The cat sat on the mat.", "A naïve café, isn't it?", "Who saw Élodie in the big city? No one!"]
# Characters that vanish, become several or two; a context of one token; capitals, and Chinese without spaces.
CONTEXTS = ["Élodie\u200b saw  the cafe\u0301 中文 in it", "No", "The\tBIG city; isn't it?"]
TOKENIZER = Tokenizer.train_wordpiece(TEXTS * 2, 100)
# More embeddings than symbols, as in checkpoints.
SIZES = {"vocabulary_size": TOKENIZER.vocabulary_size + 2, "num_layers": 1, "num_heads": 2, "hidden_dim": 16}
SIZES |= {"max_sequence_length": 32, "tokenizer": TOKENIZER}
EMBEDDER = {"pooling": ["max", "lasttoken"], "dense": [{"units": 6}]}
EMBEDDER |= {"prompts": {"query": "The city "}, "default_prompt_name": "query"}
HEADS = {
    "fill_mask": lambda: BERTMaskedLM(**SIZES),
    "classify": lambda: BERTClassifier(**SIZES, labels=["bad", "good", "so so"]),
    "multi_label": lambda: BERTClassifier(**SIZES, labels=2, problem_type="multi_label"),
    "regression": lambda: BERTClassifier(**SIZES, labels=["stars"], problem_type="regression", num_segments=0),
    "tag": lambda: BERTTokenClassifier(**SIZES, labels=["O", "B-PER", "I-PER"]),
    "answer": lambda: BERTQuestionAnswerer(**SIZES, num_segments=1),
    "embed": lambda: BERTEmbedder(**SIZES, truncate_at=8, **EMBEDDER),
}


def make(name):
    """A model whose weights are as large as trained ones."""
    model, rng = HEADS[name](), np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(scale=0.3, size=variable.shape))
    return model


def options(**given):
    return Options(**{"static": False, **given})


def encoded(model, texts, pairs=None, **given):
    encodings = TOKENIZER.encodings(texts, pairs, **given)
    return encodings, head_contents.model_inputs(model, encodings)


# What a program makes of a file's outputs: for each head a function (model, call) -> what the model's method must give,
# and what it gives; `call` takes the inputs of calls.


def fill_mask(model, call):
    texts = ["The [MASK] sat on the [MASK].", "No [MASK]!"]
    encodings, inputs = encoded(model, texts)
    masks = [[i for i, token in enumerate(e.ids) if token == TOKENIZER.mask_id] for e in encodings]
    positions, _ = batches.pad(masks)
    given = {"masked_positions": positions, "top_k": np.array(3, "int32")}
    [outputs] = call({**inputs, **given})
    expected = model.fill_mask(texts, top_k=3)
    expected = [expected[0], [expected[1]]]
    for i, proposals in enumerate(expected):
        for j, row in enumerate(proposals):
            assert outputs["token_ids"][i, j].tolist() == [proposal["token"] for proposal in row]
            assert outputs["probabilities"][i, j] == pytest.approx([proposal["score"] for proposal in row])


def classify(model, call):
    pairs = TEXTS[::-1]
    [outputs] = call(encoded(model, TEXTS, pairs)[1])
    for scores, answer in zip(outputs["scores"], model.classify(TEXTS, pairs, top_k=None), strict=True):
        ranked = [model.arguments["labels"][i] for i in np.argsort(-scores)]
        assert ranked == [entry["label"] for entry in answer]
        assert sorted(scores, reverse=True) == pytest.approx([entry["score"] for entry in answer], rel=1e-4)


def tag(model, call):
    encodings, inputs = encoded(model, TEXTS)
    [outputs] = call(inputs)
    for text, encoding, rows in zip(TEXTS, encodings, outputs["probabilities"], strict=True):
        tagged = [
            (model.arguments["labels"][row.argmax()], pytest.approx(row.max()), *offsets)
            for row, offsets, special in zip(rows, encoding.offsets, encoding.special_tokens_mask, strict=False)
            if not special and row.argmax()
        ]
        names = ("entity", "score", "start", "end")
        assert [tuple(entry[name] for name in names) for entry in model.tag(text, aggregation="none")] == tagged


def answer(model, call):
    questions, contexts = ["Who?", "The big city?"], [TEXTS[2], TEXTS[0]]
    encodings, inputs = encoded(model, questions, contexts)
    length = inputs["token_ids"].shape[1]
    mask = np.array([[i == 1 for i in e.sequence_ids] + [False] * (length - len(e)) for e in encodings])
    given = {"context_mask": mask, "max_answer_length": np.array(5, "int32"), "top_k": np.array(4, "int32")}
    short = {name: x[:, :2] for name, x in inputs.items()}
    short["context_mask"] = np.array([[False, True]] * 2)  # one token, so that there is one span
    outputs, single = call({**inputs, **given}, {**given, **short})
    names, answers = ("starts", "ends", "scores"), model.answer(questions, contexts, top_k=4, max_answer_length=5)
    for row, (encoding, expected) in enumerate(zip(encodings, answers, strict=True)):
        spans = zip(*(outputs[name][row] for name in names), strict=True)
        found = [(encoding.offsets[start][0], encoding.offsets[end][1], score) for start, end, score in spans]
        assert found == [(entry["start"], entry["end"], pytest.approx(entry["score"])) for entry in expected]
    nothing = model.answer(questions, contexts, top_k=200, allow_no_answer=True)
    nothing = [next(entry["score"] for entry in row if not entry["answer"]) for row in nothing]
    assert outputs["no_answer_scores"] == pytest.approx(np.array(nothing))
    assert single["starts"].tolist() == single["ends"].tolist() == [[1, -1, -1, -1]] * 2
    assert (single["scores"][:, 1:] == -1).all()


def embed(model, call):
    [outputs] = call(encoded(model, TEXTS, max_length=8)[1])
    np.testing.assert_allclose(outputs["embeddings"], model.embed(TEXTS, prompt=""), atol=1e-6)


RUNS = {"fill_mask": fill_mask, "classify": classify, "tag": tag, "answer": answer, "embed": embed}


@pytest.mark.once("tensorflow", "torch")
@pytest.mark.parametrize("name", ["answer"] if IN_CHILD else ["fill_mask", "multi_label", "tag", "answer", "embed"])
def test_what_the_methods_return_follows_from_a_tflite_file(name, tmp_path):
    model, path = make(name), tmp_path / "model.tflite"
    task = contents_of(None, model, options()).task
    model.export(path, "litert", verbose=False, signatures=None if name == "answer" else [task])
    description = json.loads((tmp_path / "model.tflite.assets" / "signatures.json").read_text())
    assert description["settings"]["task"] == task
    assert {*description["signatures"]} == ({"forward", task} if name == "answer" else {task})
    RUNS[task](model, lambda *inputs: run_alone(tmp_path, [(path, task, x) for x in inputs]))


@pytest.mark.once("tensorflow")
def test_a_saved_model_takes_strings(tmp_path):
    names = ["fill_mask"] if IN_CHILD else ["fill_mask", "classify", "tag", "answer", "embed"]
    models, calls = {name: make(name) for name in names}, []
    texts = ["The [MASK] sat on the [MASK].", "No [MASK]!", TEXTS[1] + "[MASK]"]
    long = [*texts, "The cat " * 40]  # of more tokens than the model takes
    for name, model in models.items():
        path = tmp_path / name
        functions = [f"{name}_text", "classify_pair_text"] if name == "classify" else [f"{name}_text"]
        cuts = {"truncate": True} if name == "classify" else {}
        model.export(path, verbose=False, strings=True, signatures=functions, verify=name != "tag", **cuts)
        inputs = {"texts": head_contents.strings(long if cuts else texts)}
        extra = {"top_k": np.array(2, "int32")} if name == "fill_mask" else {}
        if name == "answer":
            inputs = {"questions": head_contents.strings(TEXTS), "contexts": head_contents.strings(CONTEXTS)}
            extra = {"top_k": np.array(3, "int32"), "max_answer_length": np.array(4, "int32")}
        calls.append((path, f"{name}_text", {**inputs, **extra}))
        if name == "classify":
            calls.append((path, "classify_pair_text", {**inputs, "pairs": head_contents.strings(long[::-1])}))
    calls += [
        (tmp_path / "fill_mask", "serving_default", {"texts": head_contents.strings(x)})
        for x in (texts, ["[MASK]" + long[-1]])
    ]
    *found, default, refused = run_alone(tmp_path, calls)
    outputs = {name: y for (_, name, _), y in zip(calls, found, strict=False)}
    assert default["tokens"].shape == (3, 2, 5)  # the best five, as `fill_mask` gives them
    assert "texts must have at most 32 tokens" in refused["error"]
    expected = [p if isinstance(p[0], list) else [p] for p in models["fill_mask"].fill_mask(texts, top_k=2)]
    found = outputs["fill_mask_text"]
    assert (found["masked_positions"] >= 0).sum(axis=1).tolist() == [2, 1, 1]
    for i, masks in enumerate(expected):
        for j, row in enumerate(masks):
            assert [token.decode() for token in found["tokens"][i, j]] == [entry["token_str"] for entry in row]
            assert found["token_ids"][i, j].tolist() == [entry["token"] for entry in row]
            assert found["probabilities"][i, j] == pytest.approx([entry["score"] for entry in row])
    if IN_CHILD:
        return
    for name, pairs in (("classify_text", None), ("classify_pair_text", long[::-1])):
        for row, answer in enumerate(models["classify"].classify(long, pairs, top_k=None, truncate=True)):
            assert [label.decode() for label in outputs[name]["labels"][row]] == [entry["label"] for entry in answer]
            assert outputs[name]["scores"][row] == pytest.approx([entry["score"] for entry in answer])
    for row, text in enumerate(texts):
        found = {name: y[row] for name, y in outputs["tag_text"].items()}
        inner = [token not in (b"", b"[CLS]", b"[SEP]") for token in found["tokens"]]
        labels = [label.decode() for label in found["labels"][inner]]
        tagged = list(zip(labels, found["scores"][inner], strict=True))
        expected = [(entry["entity"], pytest.approx(entry["score"])) for entry in models["tag"].tag(text, "none")]
        assert [entry for entry in tagged if entry[0] != "O"] == expected
    expected = models["answer"].answer(TEXTS, CONTEXTS, top_k=3, max_answer_length=4)
    for row, answers in enumerate(expected):
        found = {name: y[row].tolist() for name, y in outputs["answer_text"].items()}
        count = len(answers)
        assert [answer.decode() for answer in found["answers"]] == [x["answer"] for x in answers] + [""] * (3 - count)
        assert found["starts"] == [x["start"] for x in answers] + [-1] * (3 - count)
        assert found["ends"] == [x["end"] for x in answers] + [-1] * (3 - count)
        assert found["scores"][:count] == pytest.approx([x["score"] for x in answers])
    np.testing.assert_allclose(outputs["embed_text"]["embeddings"], models["embed"].embed(texts), atol=1e-6)


def field(table, number, kind):
    """A field of a flatbuffer's table: a string, an int of a byte, a table or a list of tables."""
    offset = table.Offset(4 + 2 * number)
    if kind is int:
        return table.Get(flatbuffers.number_types.Uint8Flags, table.Pos + offset)
    if kind is str:
        return table.String(table.Pos + offset).decode()
    if kind is dict:
        return Table(table.Bytes, table.Indirect(table.Pos + offset))
    start = table.Vector(offset)
    return [Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(table.VectorLen(offset))]


@pytest.mark.once("tensorflow")
def test_a_classifier_for_mediapipe(tmp_path):
    from ai_edge_litert import schema_py_generated as schema

    model, path = make("regression"), tmp_path / "model.tflite"
    model.export(path, "mediapipe", verbose=False, max_length=24)
    texts = [TEXTS[0], "THE  cat isn't (on) it?"]
    expected = model.classify(texts, top_k=None)
    with zipfile.ZipFile(path) as file:
        files = {name: file.read(name).decode().splitlines() for name in file.namelist()}
    assert files["labels.txt"] == model.arguments["labels"]
    assert [TOKENIZER.token_to_id(token) for token in files["vocab.txt"]] == list(range(TOKENIZER.vocabulary_size))

    file = schema.Model.GetRootAs(path.read_bytes())
    [buffer] = [file.Metadata(i) for i in range(file.MetadataLength()) if file.Metadata(i).Name() == b"TFLITE_METADATA"]
    content = file.Buffers(buffer.Buffer()).DataAsNumpy().tobytes()
    assert content[4:8] == b"M001"
    [graph] = field(Table(content, int.from_bytes(content[:4], "little")), 3, list)
    names = [field(tensor, 0, str) for tensor in field(graph, 2, list)]
    tensors = [file.Subgraphs(0).Tensors(i) for i in file.Subgraphs(0).InputsAsNumpy()]
    assert file.SubgraphsLength() == 1 and sorted(names) == ["ids", "mask", "segment_ids"]
    assert {(tuple(x.ShapeAsNumpy()), x.Type()) for x in tensors} == {((1, 24), schema.TensorType.INT32)}
    # MediaPipe finds the tensors by these names alone.
    assert [tensor.Name().decode().split("_", 1)[1].split(":")[0] for tensor in tensors] == names
    [unit] = field(graph, 5, list)
    [vocabulary] = field(field(unit, 1, dict), 0, list)
    assert (field(unit, 0, int), field(vocabulary, 0, str), field(vocabulary, 2, int)) == (4, "vocab.txt", 5)
    [labels] = field(field(graph, 3, list)[0], 6, list)
    assert (field(labels, 0, str), field(labels, 2, int)) == ("labels.txt", 2)

    vocabulary = {token: i for i, token in enumerate(files["vocab.txt"])}
    calls = []
    for text in texts:
        ids = [vocabulary[piece] for piece in ["[CLS]", *mediapipe.pieces(text, vocabulary), "[SEP]"]]
        inputs = {name: np.zeros((1, 24), "int32") for name in names}
        inputs["ids"][0, : len(ids)], inputs["mask"][0, : len(ids)] = ids, 1
        calls.append((path, "classify", inputs))
    for outputs, answer in zip(run_alone(tmp_path, calls), expected, strict=True):
        scores = dict(zip(files["labels.txt"], outputs["scores"][0], strict=True))
        assert [scores[entry["label"]] for entry in answer] == pytest.approx([entry["score"] for entry in answer], 1e-4)


def test_mediapipe_reads_a_classifier(tmp_path):
    tasks = pytest.importorskip("mediapipe.tasks.python")
    model, path = make("classify"), tmp_path / "model.tflite"
    model.export(path, "mediapipe", verbose=False)
    base = tasks.BaseOptions(model_asset_path=str(path))
    with tasks.text.TextClassifier.create_from_options(tasks.text.TextClassifierOptions(base)) as classifier:
        for text in [TEXTS[0], "THE  cat isn't (on) it?"]:
            found = classifier.classify(text).classifications[0].categories
            expected = model.classify(text, top_k=None)
            assert [category.category_name for category in found] == [entry["label"] for entry in expected]
            assert [category.score for category in found] == pytest.approx([entry["score"] for entry in expected])


@pytest.mark.parametrize(
    "tokenizer, message",
    [
        (
            lambda: Tokenizer.train_bpe(TEXTS, 280, cls="[CLS]", sep="[SEP]", unk="[UNK]"),
            "must be an uncased WordPiece",
        ),
        (lambda: Tokenizer.train_wordpiece(TEXTS, 100, lowercase=False), "in lower case: .The quick brown fox JUMPS"),
        (lambda: Tokenizer.train_wordpiece(TEXTS, 100, unk="<unk>"), r"unk \('<unk>'\) must be '\[UNK\]'"),
        (lambda: Tokenizer.train_wordpiece(TEXTS, 100, sep=None), r"sep \(None\) must be"),
        (lambda: None, r"tokenizer \(None\) must be set"),
    ],
)
def test_tokenizers_that_mediapipe_does_not_have_are_refused(tokenizer, message, tmp_path):
    model = BERTClassifier(**SIZES | {"vocabulary_size": 280, "tokenizer": tokenizer()})
    with pytest.raises(ValueError, match=message):
        model.export(tmp_path / "model.tflite", "mediapipe")


@pytest.mark.parametrize(
    "model, given, message",
    [
        (lambda: GPT(20, 1, 2, 16), {}, "holds a BERTClassifier, not a GPT"),
        (HEADS["classify"], {"max_length": 33}, r"max_length \(33\) must lie in 2 to .* \(32\)"),
        (HEADS["classify"], {"batch_size": 2}, "a text at a time"),
        (HEADS["classify"], {"strings": True}, "strings"),
        (HEADS["classify"], {"signatures": ["forward"]}, r"signatures \('forward'\) must be among classify"),
        (lambda: BERTClassifier(**SIZES, labels=["a", "b\nc"]), {}, r"labels \('b\\nc'\) must be of one line"),
    ],
)
def test_what_mediapipe_cannot_hold_is_refused(model, given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        model().export(tmp_path / "model.tflite", "mediapipe", **given)


@pytest.mark.parametrize(
    "model, given, message",
    [
        (lambda: BERTClassifier(**SIZES | {"tokenizer": None}), {"strings": True}, r"tokenizer \(None\) must be set"),
        (HEADS["classify"], {"strings": True, "static": True}, r"strings \(True\)"),
        (lambda: BERT(**SIZES), {"strings": True}, r"strings \(True\) must be False: no function of a BERT takes"),
        (HEADS["answer"], {"max_length": 16}, r"max_length \(16\) .* must be left out"),
        (HEADS["answer"], {"batch_size": 3}, r"batch_size \(3\) must be left out"),
        (lambda: BERTEmbedder(**SIZES, include_prompt=False), {}, r"include_prompt \(False\)"),
        (HEADS["tag"], {"signatures": ("tag_text",)}, r"signatures \('tag_text'\) must be among forward, tag"),
        (
            lambda: BERTMaskedLM(**SIZES | {"tokenizer": Tokenizer.train_wordpiece(TEXTS, 100, mask=None)}),
            {"strings": True},
            "must have a mask token",
        ),
    ],
)
def test_options_that_do_not_suit_a_head_are_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        contents_of(None, model(), options(**given))


def test_choices_that_lie_closer_than_files_differ_are_not_compared():
    logits = np.array([[[5.0, 3.0, 1.0, -10.0]]])
    assert head_contents.best(logits, 2)[1]
    close = np.array([[[5.0, 3.0, 3.0 - 1e-5, -10.0]]])
    assert not head_contents.best(close, 2)[1]
    assert head_contents.best(close, 1)[1]
