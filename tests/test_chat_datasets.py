"""Chats to learn from: which tokens count, beside transformers, and how they become batches."""

import json

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.text import Tokenizer, batches
from kerasllm.training import ChatDataset, TokenCrossentropy
from kerasllm.training.chat_rows import encode_chat

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: only the last answer has its thoughts.
FORGETS = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi, who are you?"},
    {"role": "assistant", "content": "A bot, é 😀."},
    {"role": "user", "content": "A bot?"},
    {"role": "assistant", "content": "Yes."},
]
WORDS = "Be kind. Hi, who are you? A bot, é 😀. Yes. user assistant system"


@pytest.fixture(scope="module")
def tokenizer():
    roles = {"pad": "<|endoftext|>", "bos": "<|im_start|>", "eos": "<|im_end|>"}
    tokenizer = Tokenizer.train_bpe([WORDS] * 3, 400, **roles)
    tokenizer.config["chat_template"] = CHATML
    return tokenizer


def learnt(row, tokenizer):
    """The text of what counts, run by run."""
    runs = np.split(np.arange(len(row.ids)), np.flatnonzero(np.diff(row.learnt.astype(int))) + 1)
    return [tokenizer.decode(row.ids[r].tolist(), skip_special_tokens=False) for r in runs if row.learnt[r[0]]]


@pytest.mark.once("torch")
@pytest.mark.parametrize("template", [CHATML, TAGGED])
def test_answers_count_with_their_end(template, tokenizer):
    row = encode_chat("chats[0]", CHAT, tokenizer, chat_template=template)
    assert row.ids.tolist() == tokenizer.encode_chat(CHAT, add_generation_prompt=False, chat_template=template)
    assert learnt(row, tokenizer) == ["A bot, é 😀.<|im_end|>", "Yes.<|im_end|>"]
    row = encode_chat("chats[0]", CHAT, tokenizer, "last", template)
    assert learnt(row, tokenizer) == ["Yes.<|im_end|>"]
    whole = encode_chat("chats[0]", CHAT, tokenizer, "all", template)
    assert whole.learnt[1:].all() and not whole.learnt[0]
    parted = {"prompt": CHAT[:4], "completion": CHAT[4:]}
    assert learnt(encode_chat("chats[0]", parted, tokenizer, chat_template=template), tokenizer) == ["Yes.<|im_end|>"]


@pytest.mark.once("torch")
def test_tags_are_read_as_transformers_reads_them(tokenizer):
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=TAGGED
    )
    for chat in (CHAT, CHAT[1:3], CHAT[:3]):
        theirs = reference.apply_chat_template(
            chat, return_assistant_tokens_mask=True, return_dict=True, tokenize=True, add_generation_prompt=False
        )
        row = encode_chat("chats[0]", chat, tokenizer, chat_template=TAGGED)
        assert row.ids.tolist() == theirs["input_ids"]
        assert row.learnt.astype(int).tolist() == theirs["assistant_masks"]


@pytest.mark.once("torch")
def test_the_prompt_is_what_generation_reads(tokenizer):
    row = encode_chat("chats[0]", CHAT[:3], tokenizer)
    prompt = tokenizer.encode_chat(CHAT[:2])
    assert row.ids[: len(prompt)].tolist() == prompt and row.learnt.argmax() == len(prompt)


@pytest.mark.once("torch")
def test_prompts_and_completions_of_text_need_no_template(tokenizer):
    row = encode_chat("chats[0]", {"prompt": "Hi, who ", "completion": "are you?"}, tokenizer)
    assert learnt(row, tokenizer) == ["are you?<|im_end|>"]
    assert row.ids[0] == tokenizer.bos_id and row.ids[-1] == tokenizer.eos_id


@pytest.mark.once("torch")
def test_a_template_that_forgets_is_refused_but_for_the_last_answer(tokenizer):
    with pytest.raises(ValueError, match=r"chats\[3\]: the chat template writes messages\[2\] in another way"):
        encode_chat("chats[3]", CHAT, tokenizer, chat_template=FORGETS)
    row = encode_chat("chats[3]", CHAT, tokenizer, "last", FORGETS)
    assert learnt(row, tokenizer) == ["<think></think>Yes.<|im_end|>"]


@pytest.mark.once("torch")
@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{"role": "asistant", "content": "Hi"}], r"chats\[0\]: messages\[0\]: role \('asistant'\) must be one of"),
        ([*CHAT[:2], {"role": "assistant", "content": ""}], r"messages\[2\] is an assistant's without content"),
        (CHAT[:2], "have no answer of an assistant"),
        ([], "messages"),
        ("Hi", "chats: there is no file 'Hi'"),
        (3, "must be a list of messages, or a dict"),
        ({"messages": CHAT, "prompt": "a"}, "must have messages, or prompt and completion"),
        ({"prompt": "a"}, "must have messages, or prompt and completion"),
        ({"prompt": "a", "completion": " "}, "completion"),
        ({"prompt": "a", "completion": CHAT}, "must both be texts"),
        ({"prompt": CHAT[:2], "completion": CHAT[1:2]}, r"chats\[0\]: no token of it is to be learnt|have no answer"),
    ],
)
def test_bad_chats_are_named(chat, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        ChatDataset([chat], tokenizer)


@pytest.mark.once("torch")
def test_files_name_their_lines(tokenizer, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in ({"messages": CHAT}, {"messages": CHAT[:2]})))
    with pytest.raises(ValueError, match=r"chats.jsonl, line 2: messages have no answer"):
        ChatDataset(path, tokenizer)
    path.write_text(json.dumps({"messages": CHAT}) + "\n")
    (inputs, labels), (others, _) = ChatDataset(path, tokenizer)[0], ChatDataset([CHAT], tokenizer)[0]
    assert np.array_equal(inputs["token_ids"], others["token_ids"]) and (labels >= 0).sum() > 5


def some_chats(count=12):
    return [
        [{"role": "user", "content": "A bot? " * (1 + i % 3)}, {"role": "assistant", "content": "Yes. " * (1 + i % 5)}]
        for i in range(count)
    ]


@pytest.mark.once("torch")
def test_every_answer_comes_once_in_an_epoch(tokenizer):
    chats = some_chats()
    rows = [encode_chat("", chat, tokenizer) for chat in chats]
    expected = sorted(tuple(row.ids[row.learnt]) for row in rows)
    for packing in (None, "best_fit"):
        dataset = ChatDataset(chats, tokenizer, 2, max_length=64, packing=packing)
        found = []
        for inputs, labels in (dataset[i] for i in range(len(dataset))):
            assert (labels[~inputs["padding_mask"]] == -1).all()
            for row in labels:
                runs = np.split(row, np.flatnonzero(np.diff(row >= 0)) + 1)
                found += [tuple(run) for run in runs if run[0] >= 0]
        assert sorted(found) == expected
        assert dataset.num_tokens == sum(map(len, expected))


@pytest.mark.once("torch")
def test_too_long_chats_are_cut_dropped_or_refused(tokenizer):
    chats = [*some_chats(2), [CHAT[1], {"role": "assistant", "content": "Yes. " * 60}]]
    with pytest.raises(ValueError, match=r"chats\[2\] has \d+ tokens, more than max_length"):
        ChatDataset(chats, tokenizer, max_length=48)
    assert len(ChatDataset(chats, tokenizer, max_length=48, too_long="drop").chats) == 2
    cut = ChatDataset(chats, tokenizer, max_length=48, too_long="truncate")
    assert len(cut.chats) == 3 and cut.num_too_long == 1 and max(len(row.ids) for row in cut.chats) == 49
    with pytest.raises(ValueError, match="all too long"):
        ChatDataset(chats[2:], tokenizer, max_length=8, too_long="truncate")


@pytest.mark.in_turn
@pytest.mark.parametrize("packing", [None, "best_fit"])
def test_a_model_learns_the_answers_alone(packing, tokenizer):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 64, "dropout": 0.0}
    model = kerasllm.GPT(tokenizer.vocabulary_size, **sizes, tokenizer=tokenizer)
    dataset = ChatDataset(some_chats(), tokenizer, 4, max_length=64, packing=packing, multiple=64)
    model.compile(keras.optimizers.Adam(0.01), TokenCrossentropy(chunk_size=16))
    rows = [encode_chat("", chat, tokenizer) for chat in some_chats()]
    token_ids, padding_mask = batches.pad([row.ids[:-1] for row in rows], 64)
    labels, _ = batches.pad([np.where(row.learnt[1:], row.ids[1:], -1) for row in rows], 64, value=-1)
    logits = model.predict({"token_ids": token_ids, "padding_mask": padding_mask}, verbose=0)
    expected = float(TokenCrossentropy()(labels, logits))
    assert model.evaluate(dataset, verbose=0) == pytest.approx(expected, rel=1e-5)
    losses = model.fit(dataset, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.6 * losses[0]
