"""The runtime of exported TFLite files gives what the models' own methods give, without Keras and TensorFlow."""

import importlib
import json
import pathlib
import subprocess
import sys

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
    GenerationConfig,
    LSTMTranslator,
    RNNLanguageModel,
    Tokenizer,
)
from kerasllm.export import litert
from kerasllm.export.contents import Options
from kerasllm.export.contents_by_model import contents_of
from kerasllm.export.file_decoder import FileDecoder
from kerasllm.export.runtime import Runner
from kerasllm.text.completions import REPLACEMENT

pytestmark = pytest.mark.once("torch")

TEXTS = ["the cat sees the dog", "a dog wants the book", "", "the king has a horse, naïve"]
CHAT = [{"role": "user", "content": "the cat"}]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{{ mood }}"
SAMPLING = {"max_new_tokens": 12, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 2**32 - 5}


def filled(model):
    """The model with weights as large as trained ones."""
    rng = np.random.default_rng(0)
    for v in model.weights:
        v.assign(rng.normal(scale=0.3, size=v.shape))
    return model


def exported(model, folder, **options):
    path = folder / "model.tflite"
    model.export(path, "litert", verbose=False, verify=False, **options)
    return Runner(path, num_threads=1)


@pytest.fixture(scope="module")
def gpt():
    tokenizer = Tokenizer.train_bpe(TEXTS, 300)
    tokenizer.config["chat_template"] = TEMPLATE
    return filled(GPT(tokenizer.vocabulary_size, 1, 2, 16, max_sequence_length=64, tokenizer=tokenizer))


@pytest.fixture(scope="module")
def runner(gpt, tmp_path_factory):
    functions = ["generate", "prefill_4", "prefill_8", "decode", "sample"]
    return exported(gpt, tmp_path_factory.mktemp("gpt"), prefill_lengths=(4, 8), signatures=functions)


@pytest.fixture
def one_call(runner):
    """A runner of the same file that knows no steps."""
    other = Runner(runner.path)
    del other.signatures["decode"]
    return other


def test_texts_are_those_of_the_model(gpt, runner, one_call):
    expected = gpt.generate(TEXTS, max_new_tokens=12)
    assert runner.generate(TEXTS, max_new_tokens=12) == expected
    assert one_call.generate(TEXTS, max_new_tokens=12) == expected
    assert runner.generate(TEXTS[0], max_new_tokens=12) == expected[0]
    ids = [gpt.tokenizer.encode(TEXTS[0])]
    assert runner.generate(ids, max_new_tokens=12) == gpt.generate(ids, max_new_tokens=12)
    assert runner.generate(TEXTS[0]) == gpt.generate(TEXTS[0])


def test_the_same_seed_writes_the_same_texts(gpt, runner, one_call):
    options = {**SAMPLING, "num_return_sequences": 2, "repetition_penalty": 1.3, "strip_prompt": True}
    expected = gpt.generate(TEXTS, **options)
    assert len({text for row in expected for text in row}) == 8
    assert runner.generate(TEXTS, **options) == expected
    assert one_call.generate(TEXTS, **options) == expected


def test_without_a_seed_texts_differ_as_numpy_draws_it(runner):
    options = {name: value for name, value in SAMPLING.items() if name != "seed"}
    np.random.seed(1)
    texts = [runner.generate(TEXTS[0], **options) for _ in range(2)]
    np.random.seed(1)
    assert texts == [runner.generate(TEXTS[0], **options) for _ in range(2)]
    assert texts[0] != texts[1]


def test_stop_strings_and_ids_end_a_text(gpt, runner, one_call):
    whole = gpt.generate(TEXTS[0], max_new_tokens=12, strip_prompt=True)
    ids = gpt.tokenizer.encode(TEXTS[0])
    [completion] = gpt.generate([ids], max_new_tokens=12, strip_prompt=True)
    for stop in (whole[2:4], completion[5], [whole[4:6], completion[7]]):
        expected = gpt.generate(TEXTS[0], max_new_tokens=12, stop=stop)
        assert expected != TEXTS[0] + whole
        for reader in (runner, one_call):
            assert reader.generate(TEXTS[0], max_new_tokens=12, stop=stop) == expected
            if not isinstance(stop, str):
                assert reader.generate([ids], max_new_tokens=12, stop=stop) == gpt.generate(
                    [ids], max_new_tokens=12, stop=stop
                )


def test_streams_hold_whole_characters_and_chats_what_the_model_answers(gpt, runner):
    pieces = list(runner.stream(TEXTS[3], **SAMPLING))
    whole = gpt.generate(TEXTS[3], **SAMPLING, strip_prompt=True)
    assert "".join(pieces) == whole and len(pieces) > 2
    assert not any(piece.endswith(REPLACEMENT) for piece in pieces[:-1])
    for options in ({"max_new_tokens": 8}, {"max_new_tokens": 8, "mood": "the dog"}):
        answer = gpt.chat(CHAT, **options)
        assert runner.chat(CHAT, **options) == answer == "".join(runner.stream(CHAT, **options))


def test_prompts_and_chats_have_all_forms_that_the_model_takes(gpt, runner):
    rows = [gpt.tokenizer.encode(text) for text in TEXTS[:2]]
    size = min(map(len, rows))
    array, mask = np.array([row[:size] for row in rows]), np.ones((2, size), bool)
    mask[1, 0] = False
    options = [{}, {"strip_prompt": True}, {"num_return_sequences": 2, **SAMPLING}]
    # A stop, and so rows of other lengths.
    [[first, *_], _] = gpt.generate(array, max_new_tokens=12, strip_prompt=True).tolist()
    for prompts in (
        array,
        keras.ops.convert_to_tensor(array, "int32"),
        tuple(array),
        {"token_ids": array, "padding_mask": mask},
        {"input_ids": array, "attention_mask": mask.astype(int)},
        np.array(TEXTS[:2]),
    ):
        for given in options:
            given = {"max_new_tokens": 12, "stop": first, **given}
            found, expected = runner.generate(prompts, **given), gpt.generate(prompts, **given)
            assert type(found) is type(expected)
            np.testing.assert_equal(found, expected)
    chats = [CHAT, [{"role": "user", "content": TEXTS[1]}]]
    for given in ({"max_new_tokens": 8}, {"num_return_sequences": 2, **SAMPLING}):
        assert runner.chat(chats, **given) == gpt.chat(chats, **given)


def test_a_stream_without_a_seed_is_drawn_as_keras_draws_it(gpt, runner):
    options = {name: value for name, value in SAMPLING.items() if name != "seed"}
    texts = []
    for model in (runner, gpt):
        np.random.seed(1)
        texts.append(["".join(model.stream(TEXTS[0], **options)) for _ in range(2)])
    assert texts[0] == texts[1] and texts[0][0] != texts[0][1]


def test_what_was_read_is_not_read_again(runner, monkeypatch):
    calls = []
    run = FileDecoder._run

    def watched(self, function, token_ids, length):
        calls.append((function, len(token_ids)))
        run(self, function, token_ids, length)

    monkeypatch.setattr(FileDecoder, "_run", watched)
    decoder = FileDecoder(runner.path, runner.signatures, 64, 1)
    ids = list(range(40))
    first = decoder.after(ids[:18])
    # 17 before the last: 8 and 8 whole, then one.
    assert calls == [("prefill_8", 8), ("prefill_8", 8), ("prefill_4", 1), ("decode", 1)]
    calls.clear()
    np.testing.assert_allclose(decoder.after(ids[:18]), first, atol=1e-5)
    assert calls == [("decode", 1)]
    calls.clear()
    other = decoder.after([*ids[:10], 70, 71, 72, 73])
    assert calls == [("prefill_4", 3), ("decode", 1)]
    np.testing.assert_allclose(
        other, FileDecoder(runner.path, runner.signatures, 64, 1).after([*ids[:10], 70, 71, 72, 73]), atol=1e-5
    )
    decoder.after(list(range(100, 161)))
    calls.clear()
    decoder.after(list(range(100, 164)))  # of 64 slots: there is no room for a prefill that is filled up
    assert calls == [("decode", 1)] * 3


THREADS = """
import random, sys, threading
from kerasllm.export.runtime import Runner
path, seconds, texts = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
runner, alone = Runner(path, num_threads=2), Runner(path, num_threads=1)
del alone.signatures["prefill_8"]
options = {"max_new_tokens": 12}
sampled = {**options, "temperature": 0.9, "seed": 3}

def calls(runner):
    generated = [lambda t=t, o=o: runner.generate(t, **o) for t in texts for o in (options, sampled)]
    streamed = [lambda t=t: "".join(runner.stream(t, **options)) for t in texts]
    inputs = {"token_ids": [[5, 6, 7]], "max_new_tokens": 9, "stop_token_ids": [1], "seed": 1, "row": 0}
    inputs |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    return [*generated, *streamed, lambda: runner.run("generate", **inputs)["token_ids"].tolist()]

expected, wrong, count = [call() for call in calls(alone)], [], 0
start, end = threading.Barrier(8), threading.Event()

def work(number):
    global count
    order = list(enumerate(calls(runner)))
    random.Random(number).shuffle(order)
    start.wait()
    while True:
        for i, call in order:
            try:
                found = call()
                if found != expected[i]:
                    wrong.append(f"{i}: {found!r} is not {expected[i]!r}")
            except Exception as error:
                wrong.append(f"{i}: {error!r}")
            count += 1
        if end.wait(0):
            return

threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for thread in threads:
    thread.start()
end.wait(seconds)
end.set()
for thread in threads:
    thread.join()
print(count, len(wrong), *wrong[:3], sep="\\n")
"""


@pytest.mark.parametrize("seconds", [0.5, pytest.param(60, marks=pytest.mark.slow)])
def test_threads_share_a_runner(seconds, runner):
    """In a process of its own: LiteRT, called from two threads at once, breaks it."""
    command = [sys.executable, "-c", THREADS, str(runner.path), str(seconds), *TEXTS[:2], TEXTS[3]]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 120)
    assert result.returncode == 0, (result.returncode, result.stderr[-500:])
    count, num_wrong, *wrong = result.stdout.splitlines()
    assert int(count) >= 80 and num_wrong == "0", wrong


def texts_in_turns(runner):
    streams = [runner.stream(text, max_new_tokens=9, seed=1) for text in (TEXTS[0], TEXTS[3])]
    texts = ["", ""]
    for _ in range(9):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    return texts


def interrupted(call, place, name="file_decoder.py"):
    """Make a call that Ctrl-C ends at the `place`-th line that it runs of a file: whether it came so far."""
    left = place

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.endswith(name):
            return None
        left -= event == "line"
        if left < 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
        return False
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)


def check_interruptions(runner):
    """What is interrupted at any line, and what is left, leaves the next call right."""
    decoder, one, other, place = runner._steps, list(range(5, 14)), [70, 71], 0
    expected = decoder.after(one)
    for before, while_reading in ((other, one), (one, other)):
        decoder.after(before)
        while interrupted(lambda ids=while_reading: decoder.after(ids), place):
            np.testing.assert_allclose(decoder.after(one), expected, atol=1e-5, err_msg=f"{while_reading}, {place}")
            decoder.after(before)
            place += 1
        assert place > 20
        place = 0
    text = runner.generate(TEXTS[0], max_new_tokens=4, seed=1)
    stream = runner.stream(TEXTS[0], max_new_tokens=4, seed=2)
    next(stream)
    stream.close()
    assert runner.generate(TEXTS[0], max_new_tokens=4, seed=1) == text


def test_streams_in_turns_and_what_is_interrupted_leave_a_runner_right(gpt, runner):
    expected = [gpt.generate(text, max_new_tokens=9, strip_prompt=True) for text in (TEXTS[0], TEXTS[3])]
    assert texts_in_turns(runner) == expected
    check_interruptions(runner)


def test_recurrent_models_and_the_defaults_of_a_model(gpt, tmp_path):
    model = filled(RNNLanguageModel(gpt.tokenizer.vocabulary_size, 1, 16, tokenizer=gpt.tokenizer))
    ids = [gpt.tokenizer.encode(TEXTS[0])]
    defaults = GenerationConfig(max_new_tokens=9, no_repeat_ngram_size=1, bad_words=[[70]], temperature=0.8, top_k=50)
    [completion] = model.generate(ids, defaults, temperature=0, strip_prompt=True)
    model.generation_defaults = GenerationConfig.merged(defaults, stop=completion[3])
    runner = exported(model, tmp_path, max_length=32, signatures=["decode", "sample"])
    assert runner.generate(TEXTS, seed=1) == model.generate(TEXTS, seed=1)
    assert runner.generate(ids, temperature=0, strip_prompt=True) == [completion[:4]]
    options = {"num_return_sequences": 2, "seed": 3}
    assert runner.generate(TEXTS[0], **options) == model.generate(TEXTS[0], **options)
    assert texts_in_turns(runner) == [
        runner.generate(text, max_new_tokens=9, seed=1, strip_prompt=True) for text in (TEXTS[0], TEXTS[3])
    ]
    check_interruptions(runner)


WORDS = Tokenizer.train_wordpiece(["the cat sat on the mat and the dog sat too in rome"] * 3, 70)
BERT_SIZE = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16}
LONG = "the cat sat on the mat in rome and the dog sat too on the cat"
HEADS = {
    "classify": (
        lambda: BERTClassifier(70, **BERT_SIZE, labels=["a", "b", "c"], tokenizer=WORDS),
        [
            ((["the cat", "the dog sat"],), {"top_k": 2}),
            (("the cat", "a dog"), {}),
            ((LONG,), {"truncate": True}),
            ((LONG,), {"stride": 3, "top_k": 3}),
        ],
    ),
    "tag": (
        lambda: BERTTokenClassifier(70, **BERT_SIZE, labels=["O", "B-X", "I-X"], tokenizer=WORDS),
        [
            ((["the cat", "the dog sat in rome"],), {}),
            (("the cat",), {"aggregation": "average"}),
            ((LONG,), {"stride": 3}),
        ],
    ),
    "answer": (
        lambda: BERTQuestionAnswerer(70, **BERT_SIZE, tokenizer=WORDS),
        [(("the cat", LONG), {"stride": 2, "top_k": 3}), (("a dog", "the dog sat"), {"allow_no_answer": True})],
    ),
    "embed": (
        lambda: BERTEmbedder(70, **BERT_SIZE, truncate_at=8, tokenizer=WORDS),
        [((["the cat", LONG],), {}), (("the dog",), {}), ((LONG,), {"stride": 2})],
    ),
}


def assert_near(given, expected):
    if isinstance(expected, dict):
        assert list(given) == list(expected)
        given, expected = list(given.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            assert_near(one, other)
    elif isinstance(expected, float | np.ndarray):
        np.testing.assert_allclose(given, expected, atol=1e-5)
    else:
        assert given == expected


def standing_in(model, folder):
    """A runner of the model itself, in the place of a file that LiteRT runs."""
    contents = contents_of(litert, model, Options(static=True))
    shapes = {
        name: {"shape": list(shape), "dtype": dtype} for name, (shape, dtype) in contents.forward_inputs().items()
    }
    (folder / "model.tflite").touch()
    assets = folder / "model.tflite.assets"
    assets.mkdir()
    model.save_assets(assets)
    description = {
        "model": type(model).__name__,
        "settings": contents.settings(),
        "signatures": {"forward": {"inputs": shapes, "outputs": {"logits": {"shape": [None, 70], "dtype": "float32"}}}},
    }
    (assets / "signatures.json").write_text(json.dumps(description))
    runner = Runner(folder / "model.tflite")

    def run(function, **inputs):
        outputs = model.predict_on_batch(inputs)
        return outputs if isinstance(outputs, dict) else {"logits": outputs}

    runner.run = run
    return runner


@pytest.mark.parametrize("method", HEADS)
def test_heads_answer_as_the_models_from_what_stands_beside_the_file(method, tmp_path):
    make, calls = HEADS[method]
    model = filled(make())
    runner = standing_in(model, tmp_path)
    assert runner.methods == (method,)
    for arguments, options in calls:
        expected = getattr(model, method)(*arguments, **options, verbose=False)
        assert_near(getattr(runner, method)(*arguments, **options), expected)
    with pytest.raises(ValueError, match=f"cannot generate: it can {method}"):
        runner.generate("the cat")


def test_masks_are_filled_by_files_of_any_and_of_fixed_size(tmp_path):
    model = filled(BERTMaskedLM(70, **BERT_SIZE, tokenizer=WORDS))
    texts = ["the [MASK] sat", "the cat [MASK] on [MASK] mat", "[MASK]"]
    expected = model.fill_mask(texts, top_k=3, verbose=False)
    # Where TensorFlow is the backend, by LiteRT; elsewhere a process of its own would write the same file.
    in_process = keras.backend.backend() == "tensorflow"
    runner = exported(model, tmp_path, signatures=["forward"]) if in_process else standing_in(model, tmp_path)
    assert_near(runner.fill_mask(texts, top_k=3), expected)
    for shapes in runner.signatures["forward"]["inputs"].values():
        shapes["shape"] = [2, 2 if shapes is runner.signatures["forward"]["inputs"]["masked_positions"] else 12]
    assert_near(runner.fill_mask(texts, top_k=3), expected)
    with pytest.raises(ValueError, match="has 13 tokens, max_sequence_length is 12"):
        runner.fill_mask("the cat sat on the mat and the dog sat [MASK]")


RUN = """
import json, sys, time
sys.modules.update(dict.fromkeys(["keras", "tensorflow", "jax", "torch", "jinja2", "safetensors"]))  # imports fail
start = time.process_time()
from kerasllm.export.runtime import Runner
seconds = time.process_time() - start
runner = Runner(sys.argv[1])
print(json.dumps([seconds, runner.generate(sys.argv[2], **json.loads(sys.argv[3]))]))
"""


def test_an_application_needs_neither_keras_nor_tensorflow(gpt, runner):
    command = [sys.executable, "-c", RUN, str(runner.path), TEXTS[3], json.dumps(SAMPLING)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # what LiteRT notes of itself does not reach a user's terminal
    seconds, text = json.loads(result.stdout.splitlines()[-1])
    assert text == gpt.generate(TEXTS[3], **SAMPLING)
    assert seconds <= 0.5


def ids_of(runner, token_ids):
    """Inputs of `generate`, of which `token_ids` alone may be wrong."""
    return {**dict.fromkeys(runner.signatures["generate"]["inputs"], 1), "stop_token_ids": [], "token_ids": token_ids}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda r: r.translate("a"), "model.tflite, a GPT with .*decode.* cannot translate: it can generate, chat"),
        (lambda r: r.generate("a", min_p=0.1), "min_p cannot be chosen in an exported file; max_length, .*seed can"),
        (lambda r: r.generate("a", num_beams=2), "num_beams cannot be chosen"),
        (lambda r: r.generate("a", fly=2), "Unknown generation arguments: fly"),
        (lambda r: r.generate([]), r"prompts \(\[\]\)"),
        (lambda r: r.generate([[]]), r"prompts\[0\] \(\[\]\) must be a non-empty list"),
        (lambda r: r.generate([[7, 9999]]), r"prompts\[0\] holds 9999"),
        (lambda r: r.generate("the dog " * 99), "is longer than max_sequence_length"),
        (lambda r: r.generate("the dog", max_new_tokens=64), "exceeds the model's max_sequence_length"),
        (lambda r: r.generate("the dog", max_length=2), r"max_length \(2\) must be greater"),
        (lambda r: r.stream(["the dog"]), r"prompt \(\['the dog'\]\)"),
        (lambda r: r.stream("a", num_return_sequences=2), r"num_return_sequences \(2\) must be 1"),
        (lambda r: r.run("fly"), r"function \('fly'\) must be one of 'generate', "),
        (lambda r: r.run("decode", tokens=1), r"inputs \(tokens\) of decode must be"),
        (lambda r: r.generate(["a", "\ud800"]), r"prompts\[1\] \('.ud800'\) holds a lone surrogate"),
        (lambda r: r.run("generate", **ids_of(r, np.ones((1, 0), int))), r"token_ids \(1, 0\) must not be empty"),
        (
            lambda r: r.run("generate", **ids_of(r, np.ones((2, 3), int))),
            r"token_ids \(2, 3\) must have the shape \(1, N",
        ),
        (lambda r: Runner(r.path.with_name("none.tflite")), "none.tflite'\\) must be a file"),
        (lambda r: Runner(__file__), "does not exist"),
    ],
)
def test_bad_calls_are_refused(call, message, runner):
    with pytest.raises(ValueError, match=message):
        call(runner)


def test_a_file_for_more_rows_cannot_write(runner):
    decode = {**runner.signatures["decode"]["inputs"], "tokens": {"shape": [2, 1], "dtype": "int32"}}
    with pytest.raises(ValueError, match=r"batch_size \(2\) of model.tflite must be 1"):
        FileDecoder(runner.path, {"decode": {**runner.signatures["decode"], "inputs": decode}}, 64, 1)


def test_the_example_for_devices_streams(runner, capsys, monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent.parent / "examples")
    example = importlib.import_module("run_on_device")
    monkeypatch.setattr(example, "SAMPLING", SAMPLING)
    example.main(runner.path, TEXTS[:2])
    expected = [runner.generate(text, **SAMPLING, strip_prompt=True) for text in TEXTS[:2]]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in expected)


def test_translations_are_those_of_the_model(tmp_path):
    tokenizer = Tokenizer.train_bpe(TEXTS, 300, pad="<pad>", bos="<s>", eos="</s>")
    size = tokenizer.vocabulary_size
    model = filled(LSTMTranslator(size, size, 1, 16, source_tokenizer=tokenizer, target_tokenizer=tokenizer))
    model.generation_defaults = GenerationConfig(no_repeat_ngram_size=2)
    runner = exported(
        model, tmp_path, signatures=["decode", "translate", "translate_beams"], num_beams=3, max_length=24
    )
    texts = TEXTS[:2]
    assert runner.translate(texts, max_new_tokens=9) == model.translate(texts, max_new_tokens=9)
    assert runner.summarize(texts[0], max_length=8) == model.translate(texts[0], max_length=8)
    options = {"num_beams": 3, "length_penalty": 0.5, "max_new_tokens": 9}
    assert runner.translate(texts, **options) == model.translate(texts, **options)
    with pytest.raises(ValueError, match=r"num_beams \(2\) must be 1 or what the file was exported with, 3"):
        runner.translate(texts, num_beams=2)
    with pytest.raises(ValueError, match="temperature cannot be chosen"):
        runner.translate(texts, temperature=0.5)
