"""The examples run from top to bottom, on a little text and tiny models."""

import importlib
import json
import math
import pathlib
import random

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm import datasets, pretrained

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
NOUNS = {"cat": "gato", "dog": "perro", "boy": "niño", "king": "rey", "book": "libro", "horse": "caballo"}
VERBS = {"sees": "ve", "wants": "quiere", "has": "tiene", "knows": "conoce"}


@pytest.fixture(autouse=True)
def little_text(monkeypatch):
    """The corpora of the examples become a few sentences."""
    chance = random.Random(0)
    pairs = []
    for _ in range(150):
        (a, x), (b, y) = chance.sample(sorted(NOUNS.items()), 2)
        verb, verbo = chance.choice(sorted(VERBS.items()))
        pairs.append((f"The {a} {verb} the {b}.", f"El {x} {verbo} el {y}."))
    texts = [" ".join(english for english, _ in pairs[i : i + 10]) for i in range(0, 150, 10)]
    corpora = {"document": split(texts), "paragraph": split([paragraph(chance) for _ in range(30)])}
    monkeypatch.setattr(datasets, "tatoeba", lambda max_words=None: split(pairs))
    monkeypatch.setattr(datasets, "wikitext2", lambda unit="document": corpora[unit])
    monkeypatch.setattr(datasets, "movie_reviews", lambda source=None: split([(text, 1) for text in texts]))
    monkeypatch.setattr(datasets, "debian_descriptions", lambda: split([(e * 3, e) for e, _ in pairs]))
    monkeypatch.syspath_prepend(EXAMPLES)


def paragraph(chance):
    """Two sentences in WikiText's manner that have a name in common."""
    name, place = chance.choice(["Anna Lovelace", "Tom", "King John"]), chance.choice(["Rome", "Oslo"])
    return f"In the spring {name} saw a horse in {place} . Later the dog wanted to see {name} again ."


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Folders of a tiny MiniLM and a tiny SmolLM2."""
    folder = tmp_path_factory.mktemp("toys")
    texts = [paragraph(random.Random(i)).lower() for i in range(20)] + [*NOUNS, *VERBS]
    tokenizer = kerasllm.Tokenizer.train_wordpiece(texts, 200)
    kerasllm.BERT(tokenizer.vocabulary_size, 1, 2, 8, tokenizer=tokenizer).save_to_preset(folder / "minilm")
    tokenizer = kerasllm.Tokenizer.train_bpe(texts, 300)
    tokenizer.config["chat_template"] = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    kerasllm.GPT(tokenizer.vocabulary_size, 1, 2, 8, tokenizer=tokenizer).save_to_preset(folder / "smollm2")
    return folder


@pytest.fixture
def toy_weights(toys, monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "minilm", lambda: toys / "minilm")
    monkeypatch.setattr(pretrained, "smollm2", lambda: toys / "smollm2")
    monkeypatch.chdir(tmp_path)


def split(examples):
    tenth = len(examples) // 10
    return datasets.Splits(examples[: -2 * tenth], examples[-2 * tenth : -tenth], examples[-tenth:])


@pytest.mark.parametrize("script", ["train_translator", "pretrain_bert", "train_gpt", "train_rnn_language_model"])
def test_every_script_trains_a_model_and_measures_it(script, monkeypatch):
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "NUM_LAYERS", 1, raising=False)  # A second layer only takes longer to compile.
    model, validation_data, figures = module.main(tiny=True)
    inputs, labels = validation_data[0]
    assert model.predict_on_batch(inputs).shape[:2] == labels.shape
    for _, value, trivial in figures:
        assert math.isfinite(value)
        assert trivial and all(map(math.isfinite, trivial.values()))


@pytest.mark.in_turn
@pytest.mark.parametrize("kind, tokenizers", [("transformer", "one"), ("lstm", "one"), ("lstm", "two")])
def test_any_two_files_become_a_translator(kind, tokenizers, tmp_path, monkeypatch, capsys):
    module = importlib.import_module("translate_files")
    tiny = {"num_layers": 1, "hidden_dim": 8} | ({"num_heads": 2} if kind == "transformer" else {})
    monkeypatch.setitem(module.SIZES[kind], "tiny", tiny)
    files = {}
    for part, pairs in datasets.tatoeba()._asdict().items():
        files[part] = [str(tmp_path / f"{part}.{side}") for side in ("en", "es")]
        for path, lines in zip(files[part], zip(*pairs, strict=True), strict=True):
            pathlib.Path(path).write_text("\n".join(lines), encoding="utf-8")
    arguments = ["--source", files["train"][0], "--target", files["train"][1]]
    arguments += ["--validation", *files["validation"], "--test", *files["test"]]
    arguments += ["--model", kind, "--tokenizers", tokenizers, "--vocabulary-size", "300", "--max-length", "24"]
    arguments += ["--epochs", "2", "--average", "2", "--beams", "2", "--output", str(tmp_path / "run")]
    _, bleu = module.main(arguments)
    assert 0 <= bleu <= 100 and "chrF" in capsys.readouterr().out
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 3
    assert (tmp_path / "run" / "test.txt").read_bytes().count(b"\n") == 15
    if (kind, tokenizers) == ("lstm", "one"):
        assert module.main(arguments)[1] == bleu  # the run is finished
        assert "nothing is trained" in capsys.readouterr().out


# Each in the ordinary run of one backend; those of the other two are slow tests.
TEACHING = {
    "fine_tune_classifier": "jax",
    "tag_entities": "torch",
    "answer_questions": "tensorflow",
    "summarize": "torch",
    "train_embedder": "jax",
}
OFTEN = [
    pytest.param(script, marks=() if often == keras.backend.backend() else pytest.mark.slow)
    for script, often in TEACHING.items()
]


@pytest.mark.parametrize("script", OFTEN)
def test_every_script_teaches_a_pretrained_model_and_measures_it(script, toy_weights):
    _, _, figures = importlib.import_module(script).main(tiny=True)
    for _, value, trivial in figures:
        assert 0 <= value <= 1
        assert trivial and all(0 <= baseline <= 1 for baseline in trivial.values())


@pytest.mark.once("torch")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_chat_model_learns_from_chats(method, toy_weights):
    _, _, figures = importlib.import_module("fine_tune_chat").main(tiny=True, method=method)
    loss, *others = figures
    assert loss[1] < loss[2]["before"] and all(math.isfinite(value) for _, value, _ in others)
    assert pathlib.Path("adapters/synopses/adapter_config.json").exists() == (method == "lora")


@pytest.mark.slow
def test_a_cluster_answers_each_line_in_its_place(toys, tmp_path):
    ray = pytest.importorskip("ray")
    module = importlib.import_module("batch_inference")
    (tmp_path / "texts").mkdir()
    texts = {"a": ["the cat", "a dog sat", "the cat\u2028ran"] * 3, "b": ["one line, without its end"]}
    (tmp_path / "texts" / "a").write_text("".join(f"{text}\n" for text in texts["a"]), encoding="utf-8")
    (tmp_path / "texts" / "b").write_text(*texts["b"])
    arguments = [tmp_path / "texts", tmp_path / "out", toys / "minilm", "embed", 2, 4]
    environment = {"env_vars": {"PYTHONPATH": str(EXAMPLES), "KERAS_BACKEND": keras.backend.backend()}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=environment)
    try:
        assert module.main(*arguments) == 10
        (tmp_path / "out" / "parts" / "a.000001.jsonl").unlink()  # as if killed before it was there
        assert module.main(*arguments) == 4 and module.main(*arguments) == 0
    finally:
        ray.shutdown()
    model = kerasllm.BERTEmbedder.from_preset(toys / "minilm")
    for name, lines in texts.items():
        answers = [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").open(encoding="utf-8")]
        np.testing.assert_allclose(answers, model.embed(lines), atol=1e-5)
    (tmp_path / "texts" / "b").write_text("another line")
    with pytest.raises(SystemExit, match="another model, task or other texts"):
        module.main(*arguments)


def test_pretrained_models_chat_search_and_come_back(toy_weights):
    messages = importlib.import_module("chat_smollm").main(tiny=True)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    hits = importlib.import_module("semantic_search").main(tiny=True)
    assert all(len(found) == 2 and found[0]["score"] >= found[1]["score"] for found in hits)
    assert importlib.import_module("load_huggingface").main(tiny=True) == 0


@pytest.mark.slow
def test_a_model_writes_the_same_in_every_artifact(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.import_module("train_gpt"), "NUM_LAYERS", 1)
    written = importlib.import_module("export_everywhere").main(tiny=True)
    assert written["tf_saved_model"] == written["litert"] == written["Keras"] != ""
    assert set(written) == {"Keras", "Keras, greedy", "tf_saved_model", "litert", "litertlm, greedy"}


@pytest.mark.slow
def test_the_demo_walks_the_whole_road(toy_weights, capsys):
    importlib.import_module("demo").main(tiny=True)
    table = capsys.readouterr().out.split("==== On held-out text")[1]
    assert all(name in table for name in ("translator", "BERT", "GPT"))


@pytest.mark.once("tensorflow")  # which writes without a child
def test_a_classifier_is_made_smaller_in_every_way(toy_weights):
    rows = importlib.import_module("smaller_classifier").main(tiny=True)
    assert len(rows) == 7 and all(math.isfinite(x) for row in rows for x in row[2:])
    megabytes = {row[1]: row[2] for row in rows}
    assert megabytes["1 blocks, distilled"] == megabytes["fine-tuned"]  # the toy has no more
    assert megabytes["the same, int8 in Keras"] < megabytes["fine-tuned"]


def test_the_word_dictionary_learns_which_word_is_which():
    baselines = importlib.import_module("baselines")
    dictionary = baselines.word_dictionary(datasets.tatoeba().train)
    assert all(dictionary[english] == spanish for english, spanish in (NOUNS | VERBS).items())
    assert baselines.translate_words("The dog knows Tom!", dictionary) == "El perro conoce tom!"


def test_the_trigram_is_a_distribution_and_knows_what_follows():
    baselines = importlib.import_module("baselines")
    train = np.array([1, 2, 3, 1, 2, 3, 1, 2, 4, 0, 3, 3, 1, 2, 3, 4, 5, 2, 4])
    for history in ([1, 2], [4, 4], [0, 2], [5, 5]):
        chances = [math.exp(-baselines.trigram_loss(train, np.array([*history, w]), 6)) for w in range(6)]
        assert math.isclose(sum(chances), 1.0)
        assert history != [1, 2] or np.argmax(chances) == 3


def test_the_unigram_counts_every_symbol_once_more():
    baselines = importlib.import_module("baselines")
    assert math.isclose(baselines.unigram_loss(np.array([0, 0, 1]), np.array([2]), 3), math.log(6))
