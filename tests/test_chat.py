"""Chats: what a template makes of messages, what it must not do, and the models' answers."""

import pytest

from kerasllm import GPT
from kerasllm.text import Tokenizer, chat

CHATML = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}<s>system Be kind.</s>\n{% endif %}"
    "<s>{{ message['role'] }} {{ message['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant {% endif %}"
)
MESSAGES = [
    {"role": "user", "content": " Hello! "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who are you?"},
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["Hello! Hi. Who are you? system Be kind. user assistant"] * 3
    tokenizer = Tokenizer.train_words(texts, 40, unk="<unk>", bos="<s>", eos="</s>")
    tokenizer.config["chat_template"] = CHATML
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 64}
    return GPT(tokenizer.vocabulary_size, **sizes, initializer_range=1.0, tokenizer=tokenizer)


def test_a_template_writes_the_chat(tokenizer):
    whole = "<s>system Be kind.</s>\n<s>user Hello!</s>\n<s>assistant Hi.</s>\n<s>user Who are you?</s>\n<s>assistant "
    assert tokenizer.apply_chat_template(MESSAGES) == whole
    assert tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False) == whole.removesuffix("<s>assistant ")


def test_blocks_leave_no_lines_and_json_keeps_its_characters():
    template = "{% if true %}\n  {% set x = messages[0].content %}\n{{ x | tojson }}{% endif %}"
    assert chat.render(template, [{"role": "user", "content": "é<"}]) == '"é<"'


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ missing.attribute }}",
        "{% for %}",
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_a_template_that_reaches_out_or_refuses_is_an_error(template):
    with pytest.raises(ValueError, match="chat template cannot be filled in"):
        chat.render(template, MESSAGES)


@pytest.mark.parametrize(
    "messages, words",
    [
        ("Hello", "messages .'Hello'. must be a non-empty list"),
        ([], "messages .*must be a non-empty list"),
        ([MESSAGES[0], "Hi"], "messages.1. .'Hi'. must be a dict"),
        ([{"role": "user"}], "messages.0. .*role and content"),
        ([{"role": "user", "content": 3}], "messages.0. .*strings"),
    ],
)
def test_what_is_no_chat_is_refused(messages, words, model):
    with pytest.raises(ValueError, match=words):
        model.tokenizer.apply_chat_template(messages)
    with pytest.raises(ValueError, match="must be"):
        model.chat(messages)


def test_the_answer_is_the_continuation_of_the_text(model):
    prompt = model.tokenizer.apply_chat_template(MESSAGES)
    expected = model.generate(prompt, max_new_tokens=6, strip_prompt=True)
    assert model.chat(MESSAGES, max_new_tokens=6) == expected != ""
    assert "".join(model.stream(MESSAGES, max_new_tokens=6)) == expected
    assert model.chat([MESSAGES, MESSAGES[:1]], max_new_tokens=6)[0] == expected
    assert len(model.chat(MESSAGES, max_new_tokens=6, num_beams=2, num_return_sequences=2)) == 2


def test_the_template_is_kept_and_read_where_transformers_writes_it(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).apply_chat_template(MESSAGES) == tokenizer.apply_chat_template(MESSAGES)
    (tmp_path / "chat_template.jinja").write_text("other")
    assert Tokenizer.from_folder(tmp_path).apply_chat_template(MESSAGES) == "other"


def test_a_tokenizer_without_a_template_says_so():
    plain = Tokenizer.train_words(["a b"], 9, unk="<unk>")
    with pytest.raises(ValueError, match="tokenizer has no chat_template"):
        plain.apply_chat_template(MESSAGES)
