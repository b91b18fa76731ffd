"""Chats: what a template makes of messages, what it must not do, and the models' answers."""

import itertools

import numpy as np
import pytest

from kerasllm import GPT, GenerationConfig
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


CALL = {"name": "f", "arguments": {"x": 1, "y": "é"}}
SCHEMA = {"type": "function", "function": {"name": "f", "description": "é", "parameters": {}}}
# Small ones, each with what well-known templates do.
TEMPLATES = {
    "llama": (
        "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '' %}{%- endif %}\n"
        "{%- if not tools is defined %}{{- 'UNDEFINED' }}{%- endif %}{%- if tools is not none %}\n"
        "    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}\n{%- endif %}"
        "{{- date_string }}"
        "{%- for message in messages %}\n  {%- if 'tool_calls' in message %}\n"
        "    {%- set tool_call = message.tool_calls[0].function %}{{- tool_call.name + tool_call.arguments | tojson }}"
        "  {%- elif message.role == 'tool' and (message.content is mapping or message.content is iterable) %}\n"
        "    {{- message.content | tojson }}\n  {%- else %}\n    {{- message['role'] + message['content'] | trim }}\n"
        "  {%- endif %}{{- eos_token }}\n{%- endfor %}{%- if add_generation_prompt %}{{- 'assistant\\n' }}{%- endif %}"
    ),
    "qwen": (
        "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
        "{% set ns = namespace(last=messages | length - 1) %}{% for message in messages[::-1] %}"
        "{% if message.role == 'user' %}{% set ns.last = messages | length - 1 - loop.index0 %}{% break %}{% endif %}"
        "{% endfor %}{% for message in messages %}{{ message.role }} {{ loop.index0 > ns.last }}"
        "{% if message.reasoning_content is string %}<think>{{ message.reasoning_content }}</think>{% endif %}"
        "{{ message.content }}{% for call in message.tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant{% if enable_thinking is defined and not enable_thinking %}"
        "<think></think>{% endif %}{% endif %}"
    ),
    "smollm": (
        "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}\n{% set x = 1 %}"
        "{{ message.content }}{{ eos_token }}\n{% endgeneration %}{{ x }}{% else %}{{ message.content }}{% endif %}"
        "{% endfor %}{{ strftime_now('%Y')[:2] }}"
    ),
    "rag": (
        "{% if documents is none %}none{% else %}{% for d in documents %}{{ d['title'] }}: {{ d.text }}\n{% endfor %}"
        "{% endif %}{{ tools is none }}{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
        "{{ m | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=true) }}{{ m | tojson }}{{ m.thinking }}"
        "{% endfor %}{{ dict(a=1) }}{{ dict.fromkeys('a') }}{{ pad_token }}{{ image_token }}{{ foo }}"
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}<turn>{% if m.content is string %}{{ m.content | trim }}{% else %}"
        "{% for item in m.content %}{% if item.type == 'image' %}<image>{% else %}{{ item.text }}{% endif %}"
        "{% endfor %}{% endif %}\n{% endfor %}"
    ),
}
CHATS = [
    MESSAGES,
    [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]}],
    [*MESSAGES, {"role": "assistant", "tool_calls": [{"function": CALL}]}, {"role": "tool", "content": {"x": 2}}],
    [*MESSAGES, {"role": "assistant", "content": "4 ", "reasoning": "2+2"}],
]
OPTIONS = [
    {},
    {"add_generation_prompt": False},
    {"tools": [SCHEMA]},
    {"documents": [{"title": "a", "text": "b"}]},
    {"enable_thinking": False, "date_string": "now", "bos_token": "<bos>", "foo": [1, np.int64(2)]},
    {"continue_final_message": True},
    {"continue_final_message": "reasoning_content"},
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_write_what_they_write_in_transformers(name, tokenizer):
    transformers = pytest.importorskip("transformers")
    config = {"chat_template": TEMPLATES[name], "image_token": "<image>"}
    ours = Tokenizer(tokenizer.backend, **tokenizer.roles, config=config)
    roles = {f"{role}_token": token for role, token in tokenizer.roles.items()}
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, **roles, **config)
    compared = 0
    for messages, options in itertools.product(CHATS, OPTIONS):
        given = {"add_generation_prompt": "continue_final_message" not in options, **options}
        try:
            expected = reference.apply_chat_template(messages, tokenize=False, **given)
        except Exception:
            with pytest.raises(ValueError):
                ours.apply_chat_template(messages, **options)
            continue
        assert ours.apply_chat_template(messages, **options) == expected, (messages, options)
        compared += 1
    assert compared >= 6


PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hi, "}, {"type": "text", "text": "you"}]}]
IMAGE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]


@pytest.mark.parametrize(
    "template, text, image",
    [
        (TEMPLATES["gemma"], "<turn>Hi, you", "<turn><image>Hi"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "Hi, you", None),
        ("{% for m in messages %}{{ '<turn>' + m['content'] | trim }}{% endfor %}", "<turn>Hi, you", None),
        ("{% for m in messages %}{{ '<turn>' + m['content'] }}{% endfor %}", "<turn>Hi, you", None),
        ("{% for m in messages if m.content is string %}{{ m.content }}{% endfor %}", "Hi, you", None),
    ],
)
def test_parts_are_written_as_their_text_where_a_template_does_not_read_them(template, text, image):
    assert chat.render(template, PARTS) == text
    if image is not None:
        assert chat.render(template, IMAGE) == image
        return
    with pytest.raises(
        ValueError, match="messages.0. has a part .*'image'.* that the chat template does not read|cannot"
    ):
        chat.render(template, IMAGE)


NAMED = {"default": "plain", "tool_use": "tools {{ tools | length }}", "rag": "{{ documents[0].title }}{{ mode }}"}


@pytest.mark.parametrize(
    "templates", [NAMED, [{"name": name, "template": template} for name, template in NAMED.items()]]
)
def test_a_template_is_chosen_by_its_name(templates, tokenizer, tmp_path):
    named = Tokenizer(tokenizer.backend, **tokenizer.roles, config={"chat_template": templates})
    named.save(tmp_path)
    for choosing in (named, Tokenizer.from_folder(tmp_path)):
        assert choosing.apply_chat_template(MESSAGES) == "plain"
        assert choosing.apply_chat_template(MESSAGES, tools=[SCHEMA]) == "tools 1"
        rag = {"chat_template": "rag", "documents": [{"title": "a"}], "mode": "fast"}
        assert choosing.apply_chat_template(MESSAGES, **rag) == "afast"
        assert choosing.apply_chat_template(MESSAGES, chat_template="{{ messages | length }}") == "3"
        with pytest.raises(
            ValueError, match="'tool-use'. must be one of the tokenizer's, 'default', 'rag', 'tool_use'"
        ):
            choosing.apply_chat_template(MESSAGES, chat_template="tool-use")


def test_named_templates_are_read_where_transformers_writes_them(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "ours")
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    reference.chat_template = NAMED
    reference.save_pretrained(tmp_path / "theirs")
    read = Tokenizer.from_folder(tmp_path / "theirs")
    assert read.apply_chat_template(MESSAGES) == "plain"
    assert read.apply_chat_template(MESSAGES, tools=[SCHEMA]) == "tools 1"
    # The files win in a folder that is written anew, too.
    read.config["chat_template"] = "other"
    read.save(tmp_path / "theirs")
    again = Tokenizer.from_folder(tmp_path / "theirs")
    assert again.apply_chat_template(MESSAGES) == again.apply_chat_template(MESSAGES, tools=[SCHEMA]) == "other"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tools": ["f"]}, "tools: 'f' must be a JSON schema or a function"),
        ({"documents": ["text"]}, "documents .*'text'.* must be a list of dicts"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "must not both be given"),
        ({"continue_final_message": "thinking"}, "has no 'thinking' to go on with"),
    ],
)
def test_arguments_of_a_chat_are_checked(options, words, tokenizer):
    with pytest.raises(ValueError, match=words):
        tokenizer.apply_chat_template(MESSAGES, **options)


@pytest.mark.parametrize(
    "template",
    [
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace.__init__ }}{{ dict.__class__.__mro__ }}",
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


def test_a_model_hands_the_template_its_variables(model):
    template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}{% if mode == 'kind' %}Be kind.{% endif %}"
    template += "{% if tools %}Who{% endif %}"
    plain = model.tokenizer
    model.tokenizer = Tokenizer(plain.backend, **plain.roles, config={"chat_template": template, "tools": 1})
    try:
        for options, end in (({}, ""), ({"mode": "kind"}, "Be kind."), ({"tools": [SCHEMA]}, "Who")):
            prompt = "<s>Hi.</s>" + end
            ids = model.tokenizer.encode(prompt, special_tokens=False)
            expected = model.complete([ids], GenerationConfig(max_new_tokens=5, strip_prompt=True))[0][0].text
            messages = [{"role": "user", "content": "Hi."}]
            assert model.chat(messages, max_new_tokens=5, **options) == expected
            assert "".join(model.stream(messages, max_new_tokens=5, **options)) == expected
        with pytest.raises(ValueError, match="mood"):
            model.chat(messages, mood="kind")
    finally:
        model.tokenizer = plain


def test_the_template_is_kept_and_read_where_transformers_writes_it(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).apply_chat_template(MESSAGES) == tokenizer.apply_chat_template(MESSAGES)
    (tmp_path / "chat_template.jinja").write_text("other")
    assert Tokenizer.from_folder(tmp_path).apply_chat_template(MESSAGES) == "other"


def test_a_tokenizer_without_a_template_says_so():
    plain = Tokenizer.train_words(["a b"], 9, unk="<unk>")
    with pytest.raises(ValueError, match="tokenizer has no chat_template"):
        plain.apply_chat_template(MESSAGES)
