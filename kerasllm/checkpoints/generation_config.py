"""generation_config.json as Hugging Face transformers has it: what a model's authors advise for generation."""

import warnings
from pathlib import Path

import numpy as np

from kerasllm.checkpoints.json_files import read_json, write_json

FILE = "generation_config.json"
SAME = (
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "num_return_sequences",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "renormalize_logits",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
RENAMED = {"bad_words": "bad_words_ids", "stop": "stop_strings"}
# Values with which transformers leaves something out.
OFF = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "renormalize_logits": False,
}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
BEAMS = ("length_penalty", "early_stopping")
# Values of fields we do not have with which transformers does nothing.
NEUTRAL = {
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "num_beam_groups": 1,
    "typical_p": 1.0,
}
IRRELEVANT = {
    "_from_model_config",
    "transformers_version",
    "do_sample",  # read below
    "eos_token_id",
    "sequence_bias",
    # The prompt and the padding are ours to make.
    "bos_token_id",
    "decoder_start_token_id",
    "pad_token_id",
    # Of the implementation.
    "cache_implementation",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict_in_generate",
    "use_cache",
}


def read_generation_config(folder):
    """What a folder's generation_config.json says about generation; without it config.json, as in older folders.

    Without `do_sample`, temperature and the filters are left out, as transformers does.

    Returns:
        A dict of `GenerationConfig` arguments, and the tuple of end ids or None.

    Raises:
        ValueError: the file is malformed.

    Warns:
        UserWarning: it holds fields that kerasllm does not know; they are named.
    """
    path, config = _read(folder)
    values = {name: config[name] for name in SAME if config.get(name) not in (None, OFF.get(name))}
    values |= {ours: config[theirs] for ours, theirs in RENAMED.items() if config.get(theirs)}
    if "max_new_tokens" in values:
        values.pop("max_length", None)  # As in transformers, max_new_tokens goes first.
    if config.get("sequence_bias"):
        values["logit_bias"] = _bias(path, config["sequence_bias"])
    if not config.get("do_sample"):
        values = {name: value for name, value in values.items() if name not in SAMPLING}
    elif not any(name in values for name in SAMPLING):
        values["temperature"] = 1.0
    if values.get("num_beams", 1) == 1:
        values = {name: value for name, value in values.items() if name not in BEAMS}
    else:
        values = {name: value for name, value in values.items() if name not in SAMPLING}
    unknown = {name for name, value in config.items() if value not in (None, False, NEUTRAL.get(name))}
    unknown -= {*SAME, *RENAMED.values(), *IRRELEVANT}
    if values.get("num_beams", 1) > 1 and config.get("do_sample"):
        unknown.add("do_sample with num_beams")
    if unknown:
        warnings.warn(f"{path}: {', '.join(sorted(unknown))} is unknown and does nothing.", stacklevel=2)
    ends = config.get("eos_token_id")
    return values, None if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)


def read_start_token_id(folder):
    """The id that targets begin with, from the same files; None where they do not say."""
    return _read(folder)[1].get("decoder_start_token_id")


def write_generation_config(folder, values, end_ids, start_id=None):
    """Write generation_config.json.

    Args:
        folder: path of an existing folder.
        values: dict of `GenerationConfig` arguments.
        end_ids: tuple of ids, or None.
        start_id: the id that targets begin with, or None.
    """
    config = {name: _plain(values[name]) for name in SAME if values.get(name) is not None}
    drawn = any(values.get(name) is not None for name in SAMPLING)
    drawn = drawn or (values.get("num_return_sequences", 1) > 1 and values.get("num_beams", 1) == 1)
    config["do_sample"] = drawn and config.get("temperature") != 0
    if config["do_sample"]:
        config.setdefault("top_k", 0)  # Without it, transformers takes 50.
    config |= {} if start_id is None else {"decoder_start_token_id": int(start_id)}
    stop, biases = values.get("stop", ()), values.get("logit_bias") or {}
    ends = [*(end_ids or ()), *(i for i in stop if not isinstance(i, str))]
    config |= {"eos_token_id": [int(i) for i in ends]} if ends or end_ids is not None else {}
    config |= {"stop_strings": strings} if (strings := [s for s in stop if isinstance(s, str)]) else {}
    # JSON has no infinity; what a bias of minus infinity does, a bad word of one token does too.
    words = [list(ids) for ids in values.get("bad_words", ())]
    words += [[int(i)] for i, bias in biases.items() if bias == -float("inf")]
    config |= {"bad_words_ids": words} if words else {}
    biases = [[[int(i)], float(bias)] for i, bias in biases.items() if bias > -float("inf")]
    config |= {"sequence_bias": biases} if biases else {}
    write_json(Path(folder) / FILE, config)


def _read(folder):
    """The path of the file, and what it says about generation."""
    path = Path(folder) / FILE
    if path.exists():
        return path, read_json(path)
    path = Path(folder) / "config.json"
    config = read_json(path) if path.exists() else {}
    names = {*SAME, *RENAMED.values(), "do_sample", "sequence_bias", "eos_token_id", "decoder_start_token_id"}
    return path, {name: config[name] for name in names & set(config)}


def _bias(path, biases):
    def is_pair(entry):
        return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], list) and len(entry[0]) == 1

    if not isinstance(biases, list) or not all(map(is_pair, biases)):
        raise ValueError(f"{path}: sequence_bias ({biases!r}) must be a list of [[id], number].")
    return {ids[0]: bias for ids, bias in biases}


def _plain(number):
    return number.item() if isinstance(number, np.generic) else number
