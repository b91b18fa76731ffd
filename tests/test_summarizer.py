"""The summariser: begins as a BERT, learns by `fit`, writes with beams, is saved and loaded."""

import functools
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from kerasllm import BERT, GenerationConfig, Summarizer, Tokenizer
from kerasllm.training import TokenCrossentropy, TranslationDataset

DATA = Path(__file__).parent / "data" / "bert"
TEXTS = ["the cat sat on the mat", "a dog ran to the house", "the dog sat", "a cat ran on the house to the mat"]
PAIRS = [(text, " ".join(text.split()[1:3])) for text in TEXTS]
to_numpy = keras.ops.convert_to_numpy


@functools.cache
def tokenizer():
    return Tokenizer.train_wordpiece(TEXTS, 90, min_frequency=1)


@pytest.fixture
def bert_folder(tmp_path):
    """The fixture with a tokenizer beside it, as BERTs have."""
    folder = tmp_path / "bert"
    shutil.copytree(DATA, folder)
    tokenizer().save(folder)
    return folder


def tiny(share=False, **arguments):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 16, "dropout": 0.0}
    return Summarizer(90, share=share, **sizes, initializer_range=0.3, tokenizer=tokenizer(), **arguments)


def inputs_of(bert):
    ids = np.random.default_rng(0).integers(0, bert.arguments["vocabulary_size"], (2, 5)).astype("int32")
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    return ids, mask


@pytest.mark.parametrize("share", [False, True])
def test_both_sides_begin_as_the_bert(bert_folder, share):
    bert, model = BERT.from_preset(bert_folder), Summarizer.from_bert(bert_folder, share)
    ids, mask = inputs_of(bert)
    expected = to_numpy(
        bert({"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": mask})["sequence_output"]
    )
    np.testing.assert_allclose(to_numpy(model.encoder(ids, padding_mask=mask))[mask], expected[mask], atol=1e-5)
    # The decoder without its memory and with all tokens seen is a BERT, too.
    np.testing.assert_allclose(to_numpy(model.decoder.encode(ids, mask))[mask], expected[mask], atol=1e-5)
    sides = {v.path.split("/")[0] for v in model.weights}
    assert sides == ({"decoder", "head"} if share else {"encoder", "decoder", "head"})
    num_bert = sum(int(np.prod(v.shape)) for v in bert.encoder.weights)
    fresh = sum(int(np.prod(v.shape)) for v in model.weights if "/cross_attention" in v.path or v.path == "head/bias")
    assert model.count_params() == num_bert * (1 if share else 2) + fresh


def test_the_tokenizers_cls_and_sep_begin_and_end_a_summary(bert_folder):
    model = Summarizer.from_bert(bert_folder)
    assert model.start_token_id == tokenizer().cls_id and model.end_token_ids == (tokenizer().sep_id,)
    assert model.generation_defaults == GenerationConfig(num_beams=4, no_repeat_ngram_size=3)
    inputs, labels = TranslationDataset(PAIRS, model.tokenizer, model.tokenizer, batch_size=4).arrays()
    assert (inputs["source_token_ids"][:, 0] == tokenizer().cls_id).all()
    assert (inputs["target_token_ids"][:, 0] == tokenizer().cls_id).all()
    assert [row[row >= 0][-1] for row in labels] == [tokenizer().sep_id] * 4


@pytest.mark.once("torch")
def test_it_learns_to_summarise():
    keras.utils.set_random_seed(0)
    model = tiny(share=True)
    model.compile(keras.optimizers.Adam(0.01), loss=TokenCrossentropy())
    data = TranslationDataset(PAIRS, model.tokenizer, model.tokenizer, batch_size=4, shuffle=False)
    losses = model.fit(data, epochs=60, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < 0.2 * losses[0]
    assert model.summarize(TEXTS, max_new_tokens=6) == [headline for _, headline in PAIRS]
    assert model.score(TEXTS[0], PAIRS[0][1]).perplexity < 2


@pytest.mark.parametrize("share", [False, True])
def test_it_is_saved_and_loaded(share, tmp_path):
    model = tiny(share)
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    for copy in (keras.models.load_model(tmp_path / "model.keras"), Summarizer.from_preset(tmp_path / "preset")):
        assert {v.path for v in copy.weights} == {v.path for v in model.weights}
        for mine, theirs in zip(model.weights, copy.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(mine), to_numpy(theirs))
        assert copy.tokenizer == model.tokenizer and copy.generation_defaults == model.generation_defaults


def test_a_decoder_without_its_memory_is_refused():
    with pytest.raises(ValueError, match=r"memory \(None\)"):
        tiny().decoder(np.zeros((1, 3), "int32"))
