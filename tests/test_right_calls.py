"""What may be given in other forms than the usual one: numbers of numpy, tuples, arrays and streams of texts."""

import json
import pathlib

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm import layers, metrics, training

TEXTS = ["the cat sat on the mat .", "the dog ran to the cat .", "a bird sings"]
N, F = np.int64, np.float32
SMALL = {"num_layers": N(1), "num_heads": N(2), "hidden_dim": N(8), "max_sequence_length": N(16), "dropout": F(0.25)}
ROTARY = {"norm": np.str_("rms"), "positions": "rotary", "rope_base": F(100), "num_key_value_heads": N(1)}
CONSTRUCTORS = {
    "GPT": lambda: kerasllm.GPT(N(9), **SMALL),
    "rotary": lambda: kerasllm.GPT(N(9), **SMALL, **ROTARY, sliding_window=N(4), tie_embeddings=np.True_),
    "BERTClassifier": lambda: kerasllm.BERTClassifier(N(9), labels=N(3), **SMALL, num_segments=N(2)),
    "BERTEmbedder": lambda: kerasllm.BERTEmbedder(N(9), **SMALL, truncate_at=N(4), normalize=np.False_),
    "TransformerTranslator": lambda: kerasllm.TransformerTranslator(N(9), N(9), **SMALL),
    "LSTMTranslator": lambda: kerasllm.LSTMTranslator(N(9), N(9), hidden_dim=N(8), dropout=F(0.25)),
    "RNNLanguageModel": lambda: kerasllm.RNNLanguageModel(N(9), hidden_dim=N(8), num_layers=N(1)),
    "MultiHeadAttention": lambda: layers.MultiHeadAttention(N(2), N(4), dropout=F(0.25)),
    "FeedForward": lambda: layers.FeedForward(N(4)),
    "TransformerEncoder": lambda: layers.TransformerEncoder(N(9), N(1), N(2), N(8)),
    "TransformerDecoder": lambda: layers.TransformerDecoder(N(9), N(1), N(2), N(8)),
    "AdditiveAttention": lambda: layers.AdditiveAttention(N(4)),
    "LSTMCell": lambda: layers.LSTMCell(N(4)),
    "GRUCell": lambda: layers.GRUCell(N(4)),
    "TokenCrossentropy": lambda: training.TokenCrossentropy(N(-1), F(0.25)),
    "DistillationLoss": lambda: training.DistillationLoss(None, F(2), F(0.25), None, N(-1)),
    "Perplexity": lambda: training.Perplexity(N(-1)),
    "WarmupLinear": lambda: training.WarmupLinear(F(0.25), N(1), N(5)),
    "WarmupCosine": lambda: training.WarmupCosine(F(0.25), N(1), N(5), F(0.125)),
    "InverseSquareRoot": lambda: training.InverseSquareRoot.noam(N(8), N(3), F(0.5)),
    "AdamW": lambda: training.AdamW(F(0.25), weight_decay=F(0.5)),
}


@pytest.fixture(scope="module")
def words():
    return kerasllm.Tokenizer.train_words(TEXTS, N(40), pad="<pad>", unk="<unk>", bos="<s>", eos="</s>")


@pytest.fixture(scope="module")
def gpt(words):
    return kerasllm.GPT(words.vocabulary_size, **SMALL, tokenizer=words)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_numbers_of_numpy_are_plain_ones_in_configs(name):
    made = CONSTRUCTORS[name]()
    config = made.get_config()
    assert json.loads(json.dumps(config)) is not None
    again = type(made).from_config(config)
    assert again.get_config() == config


def test_models_of_numbers_of_numpy_are_saved(gpt, tmp_path):
    numbers = {"top_k": N(3), "temperature": F(0.5), "max_new_tokens": np.int32(2), "seed": np.uint32(3), "stop": N(3)}
    gpt.generation_config = kerasllm.GenerationConfig(
        **numbers, logit_bias={N(3): F(1)}, suppress_tokens=(N(4),), strip_prompt=np.True_, no_repeat_ngram_size=N(2)
    )
    expected = gpt.generate("the")
    gpt.save_to_preset(tmp_path / "preset")
    gpt.save(tmp_path / "gpt.keras")
    assert kerasllm.GPT.from_preset(pathlib.PurePath(tmp_path / "preset")).generate("the") == expected
    keras.models.load_model(tmp_path / "gpt.keras")
    gpt.generation_config = kerasllm.GenerationConfig()


@pytest.mark.once("torch")
@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.0},
        {"top_k": 1000},
        {"top_p": 1},
        {"seed": 2**32 - 1, "top_k": 2},
        {"num_beams": N(2), "length_penalty": 0},
        {"num_beams": 16},
        {"repetition_penalty": F(1.5), "presence_penalty": -1},
        {"stop": ("cat", N(3))},
        {"bad_words": (), "suppress_tokens": [], "logit_bias": {}},
        {"batch_size": 10**6, "processors": ()},
        {"prefix_allowed_tokens": lambda row, tokens: {3, 4}},
    ],
    ids=str,
)
def test_options_of_generation_in_other_forms(given, gpt):
    assert len(gpt.generate([[1, 2]], max_new_tokens=N(1), **given)) == 1


@pytest.mark.parametrize(
    "prompts",
    [((1, 2),), np.array([[1, 2]]), np.array([[1, 2]], "uint8"), [np.array([1, 2])], {"token_ids": [[1, 2]]}],
    ids=["tuples", "int64", "uint8", "arrays", "dict"],
)
def test_prompts_in_other_forms(prompts, gpt):
    prompts = {**prompts, "padding_mask": [[1, 1]]} if isinstance(prompts, dict) else prompts
    np.testing.assert_array_equal(
        gpt.generate(prompts, max_new_tokens=1)[0], gpt.generate([[1, 2]], max_new_tokens=1)[0]
    )


FORMS = {
    "a tuple": tuple(TEXTS),
    "an array": np.array(TEXTS),
    "an array of objects": np.array(TEXTS, object),
    "a stream": TEXTS,
    "keys": dict.fromkeys(TEXTS).keys(),
    "values": dict(enumerate(TEXTS)).values(),
}


@pytest.mark.parametrize("form", FORMS)
def test_texts_in_other_forms(form, words):
    given = FORMS[form]

    def texts():
        return iter(given) if form == "a stream" else given

    assert words.encode_batch(texts()) == words.encode_batch(TEXTS)
    assert kerasllm.Tokenizer.train_words(texts(), 40).vocabulary_size > 10
    assert metrics.bleu(texts(), texts()) == metrics.bleu(TEXTS, TEXTS)
    assert kerasllm.EmbeddingIndex(texts(), np.ones((3, 4), "float32")).texts == TEXTS
    kwargs = {"seed": 2**40, "batch_size": N(2)}
    made, usual = (training.LanguageModelDataset(given, words, **kwargs) for given in (texts(), TEXTS))
    keras.tree.map_structure(np.testing.assert_array_equal, made[0], usual[0])


def test_labels_in_other_forms():
    expected = metrics.confusion_matrix([0, 1, 1], [0, 0, 1], 2)
    for form in (
        tuple,
        np.array,
        iter,
        lambda labels: np.array(labels)[:, None],
        lambda labels: np.array(labels, bool),
    ):
        np.testing.assert_array_equal(metrics.confusion_matrix(form([0, 1, 1]), form([0, 0, 1]), N(2)), expected)
