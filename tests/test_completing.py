"""What models and exported files share where texts are written: prompts in any form, chats, ends, results."""

import types
from collections import UserDict

import keras
import numpy as np
import pytest

from kerasllm import GenerationConfig, Tokenizer
from kerasllm.generation.sequences import Generation
from kerasllm.tasks import completing

TOKENIZER = Tokenizer.train_words(["the cat sat on a mat"], 20, unk="<unk>", bos="<s>", eos="</s>")
TOKENIZER.config["chat_template"] = "{{ messages[0].content }}{{ mood }}{{ top_k }}"
SIZE = TOKENIZER.vocabulary_size
MODEL = types.SimpleNamespace(
    generation_defaults=GenerationConfig(),
    end_token_ids=(TOKENIZER.eos_id,),
    output_vocabulary_size=SIZE,
    output_tokenizer=TOKENIZER,
    token_id={"pad": 7}.get,
    required_tokenizer=lambda name="tokenizer": TOKENIZER,
    required_output_tokenizer=lambda: TOKENIZER,
)


class OnGPU:
    """A row as torch has it on a GPU, where numpy cannot read it."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        return np.array([3, 4])


@pytest.mark.parametrize(
    "rows",
    [
        [[3, 4], [5]],
        (np.array([3, 4], "uint8"), (5,)),
        [keras.ops.convert_to_tensor([3, 4]), OnGPU()],
        UserDict(input_ids=np.array([[3, 4], [0, 5]]), attention_mask=[[1, 1], [0, 1]]),
        {"token_ids": keras.ops.convert_to_tensor([[3, 4], [5, 0]]), "padding_mask": [[True, True], [True, False]]},
    ],
    ids=["lists", "arrays and tuples", "tensors", "as of transformers", "padded on the right"],
)
def test_rows_of_ids_are_read_in_any_form(rows):
    second = [3, 4] if isinstance(rows, list) and isinstance(rows[1], OnGPU) else [5]
    assert completing.read_rows("rows", rows, SIZE) == [[3, 4], second]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([[1], [SIZE]], rf"rows\[1\] holds {SIZE}"),
        ([[[1, 2], [3]]], r"rows\[0\] \(\[\[1, 2\], \[3\]\]\) must be a non-empty list of token ids"),
        ([[1.0]], r"rows\[0\]"),
        ({1, 2}, r"rows \(\{1, 2\}\) must be a sequence"),
        ({"token_ids": 3, "padding_mask": [[1]]}, r"rows\['token_ids'\] \(3\) must be a sequence"),
        ({"token_ids": [[1, 2]], "padding_mask": [[1, 3]]}, r"rows\[0\]: token_ids"),
    ],
)
def test_wrong_rows_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        completing.read_rows("rows", rows, SIZE)


def test_sets_of_texts_have_no_order_and_are_refused():
    with pytest.raises(ValueError, match="prompts .* must be a sequence"):
        completing.read_prompts(MODEL, {"the cat", "a mat"}, False)


def generations(*completions):
    return [Generation(np.array([3, 4, *ids], "int32"), 2, "length", text=str(ids)) for ids in completions]


@pytest.mark.parametrize("strip", [False, True])
def test_results_have_the_form_of_the_prompts(strip):
    rows, start = [generations([5], [6, 8]), generations([9, 9, 9], [5])], [] if strip else [3, 4]
    lists = [[[*start, 5], [*start, 6, 8]], [[*start, 9, 9, 9], [*start, 5]]]
    _, results_of = completing.read_prompts(MODEL, [[3, 4], [3, 4]], strip)
    assert results_of(rows, 2) == lists and results_of(rows, 1) == [row[0] for row in lists]
    _, results_of = completing.read_prompts(MODEL, np.array([[3, 4], [3, 4]]), strip)
    array = results_of(rows, 2)
    assert array.shape == (2, 2, len(start) + 3) and array[0, 0].tolist() == [*start, 5, 7, 7]
    assert results_of([row[:1] for row in rows], 1).tolist() == [[*start, 5, 7, 7], [*start, 9, 9, 9]]
    _, results_of = completing.read_prompts(MODEL, ["the cat", "a mat"], strip)
    assert results_of(rows, 2) == [["[5]", "[6, 8]"], ["[9, 9, 9]", "[5]"]]
    _, results_of = completing.read_prompts(MODEL, "the cat", strip)
    assert results_of(rows[:1], 2) == ["[5]", "[6, 8]"] and results_of(rows[:1], 1) == "[5]"


def test_an_empty_text_is_the_start_token():
    assert completing.read_prompts(MODEL, ["", "the"], False)[0] == [[TOKENIZER.bos_id], TOKENIZER.encode("the")]


def test_chats_leave_the_options_that_are_not_their_templates():
    chat, options = [{"role": "user", "content": "the cat "}], {"mood": "sat", "top_k": 3}
    ids, unlist = completing.read_chats(MODEL, chat, options)
    assert ids == [TOKENIZER.encode("the cat sat", special_tokens=False)] and options == {"top_k": 3}
    assert unlist(["answer"]) == "answer"
    ids, unlist = completing.read_chats(MODEL, [chat, chat], {})
    assert len(ids) == 2 and unlist(["one", "other"]) == ["one", "other"]
    assert completing.read_streamed(MODEL, chat, {"mood": "sat"}) == completing.read_streamed(MODEL, "the cat sat", {})


def test_a_stream_is_of_one_sequence():
    completing.check_streamed(GenerationConfig(top_k=3))
    for name, config in [
        ("num_beams", GenerationConfig(num_beams=2, num_return_sequences=2)),
        ("num_return_sequences", GenerationConfig(num_return_sequences=2)),
    ]:
        with pytest.raises(ValueError, match=rf"^{name} \(2\) must be 1 in a stream"):
            completing.check_streamed(config)


def test_ends_are_those_of_the_model_and_of_the_call_and_are_not_written():
    end_ids, find_stop, writer = completing.ends_and_writer(MODEL, GenerationConfig(stop=[4, "sat"]))
    assert end_ids == (TOKENIZER.eos_id, 4) and find_stop == writer.find_stop
    the, cat, sat = TOKENIZER.encode("the cat sat", special_tokens=False)
    written = [
        completing.with_text(Generation(np.array([the, *ids]), 1, "stop"), writer, strip).text
        for ids in ([cat, 4], [cat, sat, the])
        for strip in (True, False)
    ]
    assert written == [" cat", "the cat", " cat ", "the cat "]
    assert completing.ends_and_writer(MODEL, GenerationConfig(stop=4))[1] is None
    silent = types.SimpleNamespace(**{**vars(MODEL), "output_tokenizer": None})
    generation = generations([5])[0]
    *ends, writer = completing.ends_and_writer(silent, GenerationConfig())
    assert ends == [(TOKENIZER.eos_id,), None] and completing.with_text(generation, writer, True) is generation
    with pytest.raises(ValueError, match=f"stop holds {SIZE}"):
        completing.ends_and_writer(MODEL, GenerationConfig(stop=SIZE))
