"""The call of `generate`, `translate`, `stream` and `score`: forms of prompts and results, words, presets."""

import functools
import json
import math
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from kerasllm import GPT, BERTMaskedLM, LSTMTranslator, RNNLanguageModel, Tokenizer, TransformerTranslator
from kerasllm.generation.config import GenerationConfig
from kerasllm.generation.programs import Programs

TEXTS = ["the cat sat on the mat.", "a dog did not sit on the cat. Grüße 🎉", "one, two, three. stop"]
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 64}
PROMPTS = ["the cat", "a dog did not", "one"]


@functools.cache
def tokenizer():
    return Tokenizer.train_bpe(TEXTS, 300, pad="<pad>", bos="<s>", eos="</s>")


def gpt(**arguments):
    keras.utils.set_random_seed(0)
    model = GPT(tokenizer().vocabulary_size, **SIZES, initializer_range=0.4, tokenizer=tokenizer(), **arguments)
    return model


shared_gpt = functools.cache(gpt)


@functools.cache
def translator(kind):
    keras.utils.set_random_seed(0)
    size = tokenizer().vocabulary_size
    tokenizers = {"source_tokenizer": tokenizer(), "target_tokenizer": tokenizer()}
    if kind == "lstm":
        return LSTMTranslator(size, size, hidden_dim=16, **tokenizers)
    return TransformerTranslator(size, size, **SIZES, **tokenizers)


def test_the_tutorials_call_gives_five_independent_draws():
    texts = shared_gpt().generate("the cat", max_length=20, num_return_sequences=5, temperature=0.7)
    assert len(set(texts)) == 5 and all(text.startswith("the cat") for text in texts)


def test_results_have_the_form_of_the_prompts():
    model, n = shared_gpt(), {"num_return_sequences": 2, "seed": 1}
    one, many = model.generate(PROMPTS[0], max_new_tokens=3), model.generate(PROMPTS, max_new_tokens=3)
    assert isinstance(one, str) and many[0] == one and len(many) == 3
    assert [len(row) for row in model.generate(PROMPTS, max_new_tokens=3, **n)] == [2, 2, 2]
    assert len(model.generate(PROMPTS[0], max_new_tokens=3, **n)) == 2
    rows = [tokenizer().encode(text) for text in PROMPTS]
    ids = model.generate(rows, max_new_tokens=3)
    assert [row[: len(prompt)] for row, prompt in zip(ids, rows, strict=True)] == rows
    assert [tokenizer().decode(row) for row in ids] == many


@pytest.mark.parametrize("side", ["left", "right"])
def test_arrays_with_a_mask_are_the_lists_without_their_padding(side):
    model, rows = shared_gpt(), [tokenizer().encode(text) for text in PROMPTS]
    size = max(map(len, rows))
    token_ids, mask = np.full((3, size), 7, "int32"), np.zeros((3, size), "int32")
    for i, row in enumerate(rows):
        place = slice(size - len(row), size) if side == "left" else slice(len(row))
        token_ids[i, place], mask[i, place] = row, 1
    found = model.generate({"token_ids": token_ids, "padding_mask": mask}, max_new_tokens=4)
    expected = model.generate(rows, max_new_tokens=4)
    assert [row[: len(e)].tolist() for row, e in zip(found, expected, strict=True)] == expected


def test_scores_bring_text_ids_log_probabilities_and_the_reason():
    model = shared_gpt()
    found = model.generate(PROMPTS[0], max_new_tokens=6, return_scores=True)
    assert found.text == model.generate(PROMPTS[0], max_new_tokens=6)
    assert found.finish_reason == "length" and len(found.log_probs) == len(found.completion) == 6
    rows = model.generate(PROMPTS, max_new_tokens=6, return_scores=True, temperature=0.9, num_return_sequences=2)
    assert [len(row) for row in rows] == [2, 2, 2]
    beams = model.generate(PROMPTS[0], max_new_tokens=6, return_scores=True, num_beams=3, num_return_sequences=3)
    assert [g.score for g in beams] == sorted((g.score for g in beams), reverse=True)


def test_strip_prompt_leaves_the_completion():
    model = shared_gpt()
    whole, alone = (model.generate(PROMPTS, max_new_tokens=6, strip_prompt=strip) for strip in (False, True))
    assert [prompt + text for prompt, text in zip(PROMPTS, alone, strict=True)] == whole
    ids = [tokenizer().encode(PROMPTS[0])]
    assert (
        model.generate(ids, max_new_tokens=6)[0][len(ids[0]) :]
        == model.generate(ids, max_new_tokens=6, strip_prompt=True)[0]
    )


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_a_stream_is_the_text_of_generate(options):
    model = shared_gpt()
    options = {**options, "logit_bias": {i: -math.inf for i in model.end_token_ids}}  # a long text
    text = model.generate(PROMPTS[1], max_new_tokens=40, strip_prompt=True, **options)
    pieces = list(model.stream(PROMPTS[1], max_new_tokens=40, **options))
    assert "".join(pieces) == text and len(pieces) > 1
    # Bytes that are no character may become one with the next.
    stops = [text[i : i + 3] for i in range(len(text) - 2) if "\ufffd" not in text[i : i + 3]]
    stop = stops[len(stops) // 2]
    expected = text[: text.index(stop)]
    assert model.generate(PROMPTS[1], max_new_tokens=40, strip_prompt=True, stop=stop, **options) == expected
    assert "".join(model.stream(PROMPTS[1], max_new_tokens=40, stop=[stop, "never"], **options)) == expected


def test_a_stop_string_ends_the_ids_with_the_token_that_completes_it():
    model = shared_gpt()
    plain = model.generate(PROMPTS[0], max_new_tokens=40, return_scores=True)
    text = plain.text[len(PROMPTS[0]) :]
    stop = text[10:14]
    found = model.generate(PROMPTS, max_new_tokens=40, return_scores=True, stop=stop)[0]
    assert found.finish_reason == "stop" and found.text == PROMPTS[0] + text[: text.index(stop)]
    n = len(found.completion)
    assert n < 40 and found.completion.tolist() == plain.completion[:n].tolist()
    assert stop in tokenizer().decode(found.completion) and stop not in tokenizer().decode(found.completion[:-1])


def test_end_and_stop_ids_stay_in_ids_and_not_in_text():
    model = gpt()
    plain = model.generate(PROMPTS[0], max_new_tokens=20, return_scores=True)
    stop = int(plain.completion[7])
    first = plain.completion.tolist().index(stop)
    found = model.generate(PROMPTS[0], max_new_tokens=20, return_scores=True, stop=stop)
    assert found.completion.tolist() == plain.completion[: first + 1].tolist() and found.finish_reason == "stop"
    assert found.text == PROMPTS[0] + tokenizer().decode(plain.completion[:first])
    model.end_token_ids = [stop]
    assert model.generate(PROMPTS[0], max_new_tokens=20) == found.text
    later = model.generate(PROMPTS[0], max_new_tokens=20, min_new_tokens=20, return_scores=True)
    assert stop not in later.completion and len(later.completion) == 20


def test_bad_words_are_not_written_with_or_without_a_space():
    model = shared_gpt()
    plain = model.generate(PROMPTS[0], max_new_tokens=30, strip_prompt=True)
    words = [word for word in plain.replace(".", " ").split() if word.isascii()][:3]
    text = model.generate(PROMPTS[0], max_new_tokens=30, strip_prompt=True, bad_words=words)
    ids = tokenizer().encode(text)
    for word in words:
        for banned in (tokenizer().encode(word), tokenizer().encode(f" {word}")):
            assert not any(ids[i : i + len(banned)] == banned for i in range(len(ids)))


def test_only_allowed_tokens_follow_for_each_prompt():
    model = shared_gpt()

    def allowed(i, token_ids):
        return [10 + i, 20 + i]

    for batch_size in (2, 32):
        found = model.generate(PROMPTS, max_new_tokens=5, prefix_allowed_tokens=allowed, batch_size=batch_size,
                               return_scores=True, temperature=1.0, num_return_sequences=2, seed=1)  # fmt: skip
        for i, row in enumerate(found):
            assert all(set(g.completion.tolist()) <= {10 + i, 20 + i} for g in row)
    beams = model.generate(PROMPTS, max_new_tokens=5, prefix_allowed_tokens=allowed, num_beams=2, return_scores=True)
    assert all(set(g.completion.tolist()) <= {10 + i, 20 + i} for i, g in enumerate(beams))


def test_score_is_the_chain_rule_over_the_full_pass():
    model = gpt()
    scores = model.score(TEXTS, batch_size=2)
    for text, score in zip(TEXTS, scores, strict=True):
        ids = [tokenizer().bos_id, *tokenizer().encode(text)]
        inputs = {"token_ids": np.zeros((1, 60), "int32"), "padding_mask": np.ones((1, 60), "bool")}
        inputs["token_ids"][0, : len(ids)] = ids
        logits = model.predict_on_batch(inputs)[0, : len(ids)].astype("float64")
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = log_probs[np.arange(len(ids) - 1), ids[1:]]
        assert score.token_ids.tolist() == ids
        np.testing.assert_allclose(score.log_probs, expected, atol=1e-4)
        assert score.log_probability == pytest.approx(expected.sum(), rel=1e-5)
        assert score.perplexity == pytest.approx(np.exp(-expected.mean()), rel=1e-5)
    assert model.score(TEXTS[0]).log_probability == pytest.approx(scores[0].log_probability, rel=1e-5)
    for count in (3, 4):
        assert len(model.score(TEXTS[:1] * count)) == count
    assert len(Programs.of(model).functions) == 3  # of 2 rows, of 1, of 4


def test_ids_between_the_tokenizers_size_and_the_models_are_no_text():
    keras.utils.set_random_seed(0)
    chats = Tokenizer(tokenizer().backend, **tokenizer().roles, config={"chat_template": "{{ messages[0].content }}"})
    size, prompt = chats.vocabulary_size, chats.encode("the cat")
    model = GPT(size + 8, **SIZES, tokenizer=chats)
    order = [size, prompt[0], size + 7, prompt[-1], size + 1]

    def processor(token_ids, logits):
        bias = np.full_like(logits, -np.inf)
        for row, ids in zip(bias, token_ids, strict=True):
            row[order[len(ids) - len(prompt)]] = 0
        return bias

    text = chats.decode([prompt[0], prompt[-1]])
    options = {"max_new_tokens": 5, "processors": (processor,)}
    for more in ({}, {"num_beams": 2}, {"return_scores": True}):
        [ids] = model.generate([prompt], **options, **more)
        found = model.generate("the cat", **options, **more)
        if more == {"return_scores": True}:
            ids, found = ids.token_ids.tolist(), found.text
        assert ids == [*prompt, *order] and found == "the cat" + text
    assert model.generate("the cat", stop=text[2:], strip_prompt=True, **options) == text[:2]
    always = {"logit_bias": {size + 3: 1e4}, "max_new_tokens": 4}
    assert "".join(model.stream("the cat", stop="x", **always)) == ""
    assert model.chat([{"role": "user", "content": "the cat"}], **always) == ""
    assert len(model.score([[5, size + 7, size]])[0].log_probs) == 2
    for call in (model.generate, model.score):
        with pytest.raises(ValueError, match=rf"holds {size + 8}; the vocabulary's ids are 0 to {size + 7}"):
            call([[5, size + 8]])


@pytest.mark.in_turn
@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_a_translator_streams_and_scores_what_it_translates(kind):
    model, text = translator(kind), "the cat sat"
    translation = model.translate(text, max_new_tokens=12)
    assert "".join(model.stream(text, max_new_tokens=12)) == translation
    found = model.translate(text, max_new_tokens=12, return_scores=True)
    assert found.text == translation
    ids = tokenizer().encode(text)
    [score] = model.score([ids], [found.token_ids.tolist()])
    np.testing.assert_allclose(score.log_probs, found.log_probs, atol=1e-4)
    strings = model.score([text, text], ["a dog", "the cat sat on the mat."])
    expected = model.score([ids], [[tokenizer().bos_id, *tokenizer().encode("a dog"), tokenizer().eos_id]])
    np.testing.assert_allclose(strings[0].log_probs, expected[0].log_probs, atol=1e-4)


@pytest.mark.in_turn
@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_translators_take_beams_and_n_best_lists(kind):
    model = translator(kind)
    rows = model.translate(TEXTS, max_new_tokens=8, num_beams=3, num_return_sequences=2)
    assert [len(row) for row in rows] == [2, 2, 2]
    alone = model.translate(TEXTS[1], max_new_tokens=8, num_beams=3, num_return_sequences=2)
    assert alone == rows[1]


def test_the_defaults_decide_what_the_call_leaves_open():
    model = gpt()
    greedy = model.generate(PROMPTS[0], max_new_tokens=10)
    model.generation_defaults = GenerationConfig(max_new_tokens=10, temperature=0.9, seed=4)
    drawn = model.generate(PROMPTS[0])
    assert drawn != greedy and drawn == model.generate(PROMPTS[0], max_new_tokens=10, temperature=0.9, seed=4)
    assert model.generate(PROMPTS[0], temperature=0) == greedy
    beams = model.generate(PROMPTS[0], num_beams=3)
    assert beams == gpt().generate(PROMPTS[0], max_new_tokens=10, num_beams=3)
    assert model.generate(PROMPTS[0], GenerationConfig(max_length=12), temperature=0) == gpt().generate(
        PROMPTS[0], max_length=12
    )


def test_defaults_and_end_ids_travel_with_presets_and_keras_files(tmp_path):
    model = gpt()
    model.generation_defaults = GenerationConfig(max_new_tokens=9, top_p=0.8, repetition_penalty=1.2)
    model.end_token_ids = [5, 6]
    model.save_to_preset(tmp_path / "preset")
    model.save(tmp_path / "model.keras")
    said = json.loads((tmp_path / "preset" / "generation_config.json").read_text())
    assert said["do_sample"] is True and said["eos_token_id"] == [5, 6]
    for loaded in (GPT.from_preset(tmp_path / "preset"), keras.models.load_model(tmp_path / "model.keras")):
        assert loaded.generation_defaults == model.generation_defaults and loaded.end_token_ids == (5, 6)
        assert loaded.generate(PROMPTS, seed=1) == model.generate(PROMPTS, seed=1)


def folder_with_ids(folder, name, config, generation_config=None):
    """The fixture `name` with special ids of its own."""
    shutil.copytree(Path(__file__).parent / "data" / name, folder)
    said = json.loads((folder / "config.json").read_text())
    said = {field: value for field, value in said.items() if not field.endswith("_token_id")}
    (folder / "config.json").write_text(json.dumps(said | config))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder


def ids_in(folder, file="config.json"):
    said = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    return {name: value for name, value in said.items() if name.endswith("_token_id")}


def test_ids_that_the_files_name_are_kept_without_a_tokenizer(tmp_path):
    ids = {"bos_token_id": 7, "eos_token_id": [8, 9], "pad_token_id": 5, "sep_token_id": 4, "unk_token_id": None}
    generation = {"bos_token_id": 6, "eos_token_id": [8, 11], "pad_token_id": 3}
    bart = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 4}
    cases = [
        (GPT, "gpt2", ids, generation),
        (GPT, "llama", ids, None),
        (GPT, "llama3_tied", {}, None),  # silent: transformers takes its family's own
        (TransformerTranslator, "bart", bart | {"forced_eos_token_id": 2, "forced_bos_token_id": None}, None),
        (BERTMaskedLM, "bert_masked_lm", {"pad_token_id": 3, "cls_token_id": 4, "bos_token_id": None}, None),
    ]
    for cls, name, config, said in cases:
        folder = folder_with_ids(tmp_path / f"{name}_{len(config)}", name, config, said)
        model = cls.from_preset(folder)
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        for number, copy in enumerate((model, cls.from_preset(folder), again)):
            written = tmp_path / f"{folder.name}_{number}"
            copy.save_to_preset(written)
            assert ids_in(written) == config
            expected = said or {n: config[n] for n in ("bos_token_id", "eos_token_id", "pad_token_id") if n in config}
            found = ids_in(written, "generation_config.json")
            if said or "eos_token_id" in config:
                ends = expected["eos_token_id"]
                expected = expected | {"eos_token_id": ends if isinstance(ends, list) else [ends]}
                expected |= {n: config[n] for n in ("decoder_start_token_id", "forced_eos_token_id") if n in config}
            assert found == (expected if cls is not BERTMaskedLM else {})


def test_the_named_ids_are_used_until_a_tokenizer_says_otherwise(tmp_path):
    ids = {"eos_token_id": [8, 9], "pad_token_id": 5, "bos_token_id": 7}
    model = GPT.from_preset(folder_with_ids(tmp_path / "gpt2", "gpt2", ids, None))
    prompts, length = np.array([[3, 4], [5, 6]]), 10
    free = model.generate(prompts, max_new_tokens=length, seed=1, temperature=3.0)
    model.end_token_ids = None
    assert model.end_token_ids == ()
    model.end_token_ids = [int(free[0, 3])]
    cut = model.generate(prompts, max_new_tokens=length, seed=1, temperature=3.0)
    assert (cut[0, 4:] == 5).all() or cut.shape[1] == 4  # filled up with the named id

    model = GPT.from_preset(tmp_path / "gpt2")
    assert model.end_token_ids == (8, 9) and model.token_id("pad") == 5
    same = Tokenizer.train_wordpiece(["abcdefghij klmnop"] * 3, 60)
    own = Tokenizer(same.backend, eos=same.id_to_token(9), pad=same.id_to_token(6))
    model.tokenizer = own  # one of the file's two ends; another padding
    assert model.end_token_ids == (8, 9)
    assert model.special_token_ids() == ids | {"pad_token_id": 6}
    for given in (Tokenizer(same.backend, eos=same.id_to_token(11)), own):
        model.tokenizer = given
        assert model.end_token_ids == (given.eos_id,)
    assert GPT.from_preset(tmp_path / "gpt2", tokenizer=given).special_token_ids()["pad_token_id"] == 6
    model.end_token_ids = [1, 2]
    model.tokenizer = given
    assert model.end_token_ids == (1, 2)  # what the user says stays
    model.save_to_preset(tmp_path / "saved")
    assert ids_in(tmp_path / "saved") == {"bos_token_id": 7, "eos_token_id": 9, "pad_token_id": 6}


def test_a_models_own_draws_are_those_of_its_place_in_any_batch():
    model, options = shared_gpt(), {"max_new_tokens": 8, "temperature": 1.2, "seed": 9}
    together = model.generate(PROMPTS, **options)
    assert model.generate(PROMPTS, batch_size=2, **options) == together
    assert model.generate(PROMPTS[1:], first_index=1, **options) == together[1:]
    assert model.generate(PROMPTS[:1], **options) == together[:1]


def test_recurrent_models_take_penalties_beams_and_streams():
    keras.utils.set_random_seed(0)
    size = tokenizer().vocabulary_size
    model = RNNLanguageModel(size, hidden_dim=16, num_attention_heads=2, tokenizer=tokenizer())
    assert model.generate("the", max_new_tokens=5, num_beams=2, no_repeat_ngram_size=2, repetition_penalty=1.2)
    text = model.generate("the", max_new_tokens=12, strip_prompt=True)
    assert "".join(model.stream("the", max_new_tokens=12)) == text


@pytest.mark.in_turn
@pytest.mark.parametrize("change", ["fit", "load_weights", "enable_lora", "quantize"])
def test_what_changes_the_weights_changes_the_text(change, tmp_path):
    model, prompt = gpt(), [tokenizer().encode(PROMPTS[0])]
    before = model.generate(prompt, max_new_tokens=12)
    if change == "fit":
        x = {"token_ids": np.full((8, 6), 9, "int32"), "padding_mask": np.ones((8, 6), "bool")}
        model.compile(keras.optimizers.Adam(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, np.full((8, 6), 11), epochs=15, verbose=0)
    elif change == "load_weights":
        other = gpt()
        for variable in other.trainable_variables:
            variable.assign(variable * -1.5 + 0.1)
        other.save_weights(tmp_path / "other.weights.h5")
        model.load_weights(tmp_path / "other.weights.h5")
    elif change == "enable_lora":
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Dense):
                layer.enable_lora(2)
        for variable in model.trainable_variables:
            if "lora" in variable.path:
                variable.assign(0.5 * keras.random.normal(variable.shape, seed=len(variable.path)))
    else:
        model.quantize("int8")
    after = model.generate(prompt, max_new_tokens=12)
    ids, size = list(prompt[0]), len(prompt[0]) + 12
    for _ in range(12):
        rest = [0] * (size - len(ids))
        inputs = {"token_ids": np.array([ids + rest], "int32"), "padding_mask": np.ones((1, size), "bool")}
        ids.append(int(np.argmax(model.predict_on_batch(inputs)[0, len(ids) - 1])))
    assert after == [ids]
    assert change == "quantize" or after != before


def test_a_model_with_rotary_positions_can_be_quantised():
    model = gpt(norm="rms", positions="rotary", gated=True)
    x = {"token_ids": np.arange(5)[None], "padding_mask": np.ones((1, 5), "bool")}
    before = keras.ops.convert_to_numpy(model(x))
    model.quantize("int8")
    difference = np.abs(keras.ops.convert_to_numpy(model(x)) - before).max()
    assert 0 < difference < 0.1 * np.abs(before).max()


def home_trained(folder, **config):
    """A preset of a model of 11 symbols without a tokenizer, with this generation_config.json."""
    GPT(11, **SIZES).save_to_preset(folder)
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


def test_ids_that_a_model_does_not_have_are_left_out(tmp_path):
    folder = home_trained(
        tmp_path, bos_token_id=50256, eos_token_id=50256, suppress_tokens=[3, 90], max_length=4096, min_new_tokens=99
    )
    with pytest.warns(UserWarning, match=r"eos_token_id \(50256\).*outside the model's 11 symbols"):
        model = GPT.from_preset(folder)
    assert model.end_token_ids == () and model.generation_defaults.suppress_tokens == (3,)
    assert model.generation_defaults.max_length == SIZES["max_sequence_length"]
    assert len(model.generate([[1, 2]], max_new_tokens=3, min_new_tokens=1)[0]) == 5


def test_what_a_preset_asks_for_and_we_do_not_do_is_an_error_until_it_is_left_out(tmp_path):
    model = GPT.from_preset(home_trained(tmp_path, guidance_scale=1.5, num_beams=2, do_sample=True))
    model.save_to_preset(tmp_path / "copy")
    for opened in (model, GPT.from_preset(tmp_path / "copy")):
        for options in ({}, {"num_beams": 1}, {"num_beams": 2}):
            with pytest.raises(ValueError, match=r"guidance_scale \(1.5\)"):
                opened.generate([[1]], max_new_tokens=2, **options)
    with pytest.raises(ValueError, match=r"do_sample \(True\)"):
        model.generate([[1]], max_new_tokens=2)
    assert len(model.generate([[1]], max_new_tokens=2, unsupported=None)[0]) == 3


def test_a_preset_that_samples_takes_the_fifty_most_probable_tokens(tmp_path):
    folder = home_trained(tmp_path, do_sample=True)
    model = GPT.from_preset(folder)
    assert model.generation_defaults == GenerationConfig(top_k=50)
    model.generation_defaults = GenerationConfig(top_k=2, suppress_tokens=[4])
    model.end_token_ids = []
    assert model.end_token_ids == ()
    model.end_token_ids = [4]  # it may be drawn, if it were not suppressed
    rows = model.generate([[1]], max_new_tokens=1, num_return_sequences=200, seed=0)[0]
    assert len({row[1] for row in rows}) == 2


def test_transformers_finds_the_end_in_the_file_that_says_how_to_generate(tmp_path):
    model = gpt()
    model.generation_defaults = GenerationConfig(repetition_penalty=1.5)
    model.save_to_preset(tmp_path)
    fields = json.loads((tmp_path / "generation_config.json").read_text())
    ids = {"eos_token_id": [tokenizer().eos_id], "bos_token_id": tokenizer().bos_id, "pad_token_id": tokenizer().pad_id}
    assert ids.items() <= fields.items()
