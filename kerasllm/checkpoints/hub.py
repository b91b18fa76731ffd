"""Presets that lie elsewhere, fetched into the caches of the Hugging Face Hub and of Kaggle."""

import re
from pathlib import Path
from urllib.parse import unquote

from kerasllm.arguments import read_path
from kerasllm.extras import required

WORD = r"\w[\w.-]*"
HUGGING_FACE = re.compile(
    rf"hf://(?P<id>{WORD}(/{WORD})?)(@(?P<revision>[\w.%-]+))?(/(?P<file>[^/\\]+\.gguf))?",
)
KAGGLE = re.compile(rf"kaggle://{WORD}/{WORD}/{WORD}/{WORD}(/\d+)?")
# What `from_preset` reads of a repository; `*` stops at no slash, but none of these begins with one.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    *("*tokenizer.json", "*tokenizer_config.json", "*special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "*.model", "*.spm"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
    *("modules.json", "sentence_bert_config.json", "*_Pooling/config.json"),
)
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
TORCH_WEIGHTS = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
KERAS_HUB_FILES = ("assets/tokenizer/*", "model.weights.h5")


def local(source):
    """The path of a preset on this machine, fetched if need be.

    Args:
        source: path, or a name of the form "hf://org/name", "hf://org/name@revision", "hf://org/name/file.gguf" or
            "kaggle://owner/model/framework/variation".

    Returns:
        The path; a fetched preset lies in the cache of huggingface_hub or kagglehub, which obey their own environment
        variables: `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `KAGGLEHUB_CACHE`. Without a network, what is in
        the cache is taken.

    Raises:
        ImportError: huggingface_hub or kagglehub is not installed.
        ValueError: the name is malformed, or the preset cannot be fetched.
    """
    read_path("source", source)
    name = str(source)
    if name.startswith("hf://"):
        return _from_hugging_face(name)
    if name.startswith("kaggle://"):
        return _from_kaggle(name)
    if not Path(source).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"there is no such folder. The Hugging Face Hub's model of this name is {f'hf://{name}'!r}.")
    return Path(source)


def _from_hugging_face(name):
    match = HUGGING_FACE.fullmatch(name)
    if match is None:
        raise ValueError("it must have the form 'hf://org/name', with '@revision' and '/file.gguf' behind it or not.")
    huggingface_hub = required("huggingface_hub", repr(name))
    where = {"repo_id": match["id"], "revision": match["revision"] and unquote(match["revision"])}

    def fetch(patterns):
        return Path(huggingface_hub.snapshot_download(**where, allow_patterns=list(patterns)))

    try:
        if match["file"]:
            return Path(huggingface_hub.hf_hub_download(**where, filename=match["file"]))
        folder = fetch((*SMALL_FILES, *WEIGHTS, *KERAS_HUB_FILES))
        if not any(path.suffix in (".safetensors", ".h5") for path in folder.iterdir()):
            fetch((*SMALL_FILES, *TORCH_WEIGHTS))
        return folder
    except Exception as error:  # whatever the library and its HTTP client run into
        raise ValueError(f"it cannot be fetched: {error}") from error


def _from_kaggle(name):
    if KAGGLE.fullmatch(name) is None:
        raise ValueError("it must have the form 'kaggle://owner/model/framework/variation'.")
    kagglehub = required("kagglehub", repr(name))
    try:
        return Path(kagglehub.model_download(name.removeprefix("kaggle://")))
    except Exception as error:  # as above
        raise ValueError(f"it cannot be fetched: {error}") from error
