"""LiteRT-LM: a language model and its tokenizer as one file that LiteRT-LM runs, on phones, desktops and the web."""

import contextlib
import functools
import json
import re
import subprocess
import tempfile
import weakref
from pathlib import Path

import numpy as np

from kerasllm import processes, writing
from kerasllm.export import litert
from kerasllm.export.contents import Check
from kerasllm.export.language_models import LanguageModelContents
from kerasllm.extras import is_installed
from kerasllm.generation.config import GenerationConfig
from kerasllm.models.language_model import LanguageModel
from kerasllm.text import chat

PACKAGES = (*litert.PACKAGES, "litert_lm_builder")
STATIC = True
QUANTIZATIONS = litert.QUANTIZATIONS
assets_folder = litert.assets_folder

RUN = "litert_lm"
"""The name of the check that runs the whole file."""
PROMPT = "The cat sat on"
NUM_TOKENS = 16


def check_path(path):
    """Raise `ValueError` unless a LiteRT-LM file may be written to a path, or replace what is there."""
    if path.suffix != ".litertlm":
        raise ValueError(f"filepath ({str(path)!r}) must end in '.litertlm'.")
    if path.is_dir():
        raise ValueError(f"filepath ({str(path)!r}) is a folder.")


def contents_of(model, options):
    """What a LiteRT-LM file of a model holds.

    Raises:
        ValueError: LiteRT-LM cannot run the model.
    """
    if not isinstance(model, LanguageModel) or not model.rewinds:
        raise ValueError(f"format ('litertlm') holds Transformers that continue text, not a {type(model).__name__}.")
    if options.batch_size != 1:
        raise ValueError(f"batch_size ({options.batch_size}) must be 1: LiteRT-LM reads a text at a time.")
    if options.strings:
        raise ValueError("strings (True) must be False: LiteRT-LM reads texts by itself.")
    start_token_ids(model.required_tokenizer())
    contents = LiteRTLMContents(model, options)
    if not any(name.startswith("prefill_") for name in contents.signatures) or "decode" not in contents.signatures:
        raise ValueError(
            f"signatures ({', '.join(contents.signatures)}) must hold decode and a prefill_N; prefill_lengths "
            f"({options.prefill_lengths}) must lie below {contents.max_length}."
        )
    return contents


class LiteRTLMContents(LanguageModelContents):
    """`prefill_N` and `decode`, all that LiteRT-LM calls."""

    def available(self):
        """These two."""
        return {name: s for name, s in super().available().items() if name == "decode" or name.startswith("prefill_")}

    def checks(self):
        """Those of the two, and where litert_lm is installed a text that it writes."""
        checks = super().checks()
        ids = self.model.tokenizer.encode(PROMPT)
        num_tokens = min(NUM_TOKENS, self.max_length - len(ids))
        if not is_installed("litert_lm") or not ids or num_tokens < 1:
            return checks
        [[generation]] = self.model.complete([ids], GenerationConfig(max_new_tokens=num_tokens, strip_prompt=True))
        call = (RUN, {"prompt": _string(PROMPT), "max_new_tokens": np.array(num_tokens, "int32")})
        expected = {}
        # Of a character that is not whole, each writes a different sign; quantised, the model may say another thing.
        if "\ufffd" not in generation.text and self.options.exact:
            expected["text"] = _string(generation.text.strip())
        if _chat_template(self.model.tokenizer) and is_installed("jinja2"):
            text = self.model.tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}])
            expected["chat"] = _string(text)
        return [*checks, Check([call], expected)]


def start_token_ids(tokenizer):
    """The ids that a tokenizer puts before a text: its start token, or none.

    Raises:
        ValueError: it puts other tokens round a text, which LiteRT-LM would not.
    """
    ids, plain = (tokenizer.encode("a", special_tokens=special) for special in (True, False))
    for start in ([], [tokenizer.bos_id]):
        if ids == start + plain:
            return start
    raise ValueError("tokenizer puts more than a start token (bos) round a text, which LiteRT-LM cannot do.")


def write(contents, path):
    """Write a model's functions, its tokenizer and what LiteRT-LM must know of them.

    Args:
        contents: `LiteRTLMContents` of a model under the tensorflow backend, with static options.
        path: of the file.

    Returns:
        What the functions take and give, as `saved_model.write`.
    """
    from litert_lm_builder.litertlm_builder import DType, LitertLmFileBuilder, Metadata, TfLiteModelType

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        folder = Path(folder)
        described = litert.write(contents, folder / "model.tflite")
        (folder / "metadata.pb").write_bytes(_metadata(contents).SerializeToString())
        contents.model.tokenizer.save(folder)
        builder = LitertLmFileBuilder()
        builder.add_system_metadata(Metadata(key="Authors", value="kerasllm", dtype=DType.STRING))
        builder.add_llm_metadata(str(folder / "metadata.pb"))
        builder.add_hf_tokenizer(str(folder / "tokenizer.json"))
        builder.add_tflite_model(str(folder / "model.tflite"), TfLiteModelType.PREFILL_DECODE)
        with open(path, "wb") as file:
            builder.build(file)
    inputs = {"prompt": {"shape": [], "dtype": "string"}, "max_new_tokens": {"shape": [], "dtype": "int32"}}
    outputs = {name: {"shape": [], "dtype": "string"} for name in ("text", "chat")}
    return {**described, RUN: {"inputs": inputs, "outputs": outputs}}


def _metadata(contents):
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, sampler_params_pb2

    model, config = contents.model, contents.model.generation_defaults
    metadata = llm_metadata_pb2.LlmMetadata(
        max_num_tokens=contents.max_length, supports_thinking=False, supports_function_calling=False
    )
    metadata.llm_model_type.generic_model.SetInParent()
    for token_id in start_token_ids(model.tokenizer):
        metadata.start_token.token_ids.ids.append(token_id)
    for token_id in [*model.end_token_ids, *(stop for stop in config.stop if not isinstance(stop, str))]:
        metadata.stop_tokens.add().token_ids.ids.append(token_id)
    sampler = metadata.sampler_params
    # Its GREEDY is not implemented; the first of one token is the same.
    sampler.type, sampler.k, sampler.p, sampler.temperature = sampler_params_pb2.SamplerParameters.TOP_P, 1, 1.0, 1.0
    if config.sampling:
        sampler.k = config.top_k or model.output_vocabulary_size
        sampler.p = 1.0 if config.top_p is None else config.top_p
        sampler.temperature = 1.0 if config.temperature is None else config.temperature
    if template := _chat_template(model.tokenizer):
        metadata.jinja_prompt_template = template
    return metadata


MESSAGES = """\
{%- set plain = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is string -%}
{%- set plain.messages = plain.messages + [message] -%}
{%- else -%}
{%- set text = message.content | map(attribute='text') | join -%}
{%- set plain.messages = plain.messages + [{'role': message.role, 'content': text}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = plain.messages %}"""
"""LiteRT-LM's messages are lists of parts, where templates expect strings."""


def _chat_template(tokenizer):
    """The tokenizer's chat template as LiteRT-LM can fill it in, or ""."""
    template = tokenizer.config.get("chat_template")
    if not template:
        return ""
    # The tag is for training, and unknown to LiteRT-LM.
    template = re.sub(r"(\{%-?\s*)generation\b", r"\1if true", chat.choose(template))
    template = re.sub(r"(\{%-?\s*)endgeneration\b", r"\1endif", template)
    tokens = [f"{{%- set {role}_token = {json.dumps(token)} %}}" for role, token in tokenizer.roles.items()]
    return "".join(tokens) + MESSAGES + template


def load(path):
    """Load a file: a function (signature, dict of arrays) -> dict of arrays."""
    from litert_lm_builder import litertlm_builder

    held = contextlib.ExitStack()
    folder = held.enter_context(writing.scratch())

    @functools.cache
    def functions():
        litertlm_builder.unpack(str(path), str(folder))
        [model] = folder.glob("*.tflite")
        return litert.load(model)

    def call(name, inputs):
        return run(path, **inputs) if name == RUN else functions()(name, inputs)

    weakref.finalize(call, held.close)
    return call


SCRIPT = """
import json, sys
import litert_lm
path, prompt, num_tokens = json.load(sys.stdin)
results = {}
greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)
options = {"sampler_config": greedy, "max_output_tokens": num_tokens}
with litert_lm.Engine(path, backend=litert_lm.Backend.CPU(), cache_dir=":nocache") as engine:
    with engine.create_session(apply_prompt_template=False, **options) as session:
        session.run_prefill([prompt])
        results["text"] = session.run_decode().texts[0].strip()
    with engine.create_conversation() as conversation:
        results["chat"] = conversation.render_message_to_string(prompt)
print(json.dumps(results))
"""


def run(path, prompt, max_new_tokens):
    """Let litert_lm continue a text in a process of its own, and write it as a chat: a dict with `text` and `chat`."""
    request = json.dumps([str(path), prompt.item().decode(), int(max_new_tokens)])
    result = subprocess.run(processes.python("-c", SCRIPT), input=request, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"LiteRT-LM cannot run the file ({result.returncode}):\n{result.stderr[-4000:]}")
    return {name: _string(text) for name, text in json.loads(result.stdout.splitlines()[-1]).items()}


def _string(text):
    return np.array(text.encode(), object)
