"""generation_config.json as Hugging Face transformers has it: what a model's authors advise for generation.

A preset's text is that of transformers' `generate` on the same folder. Each field of transformers 5 is one of

    FIELDS         an argument of `GenerationConfig`, which says what the file may hold and by which name
    UNSUPPORTED    what changes the text and is not done here: kept by `GenerationConfig.unsupported`
    IRRELEVANT     what changes no text: caches, outputs, speculation, the padding
"""

import warnings
from pathlib import Path

import numpy as np

from kerasllm.arguments import shown
from kerasllm.generation import file_kinds
from kerasllm.generation.config import BEAMS, LENGTHS, OPTIONS, SAMPLING
from kerasllm.json_files import read_settings, write_json

FILE = "generation_config.json"


# What a field may hold, by its name in the file, and the argument of `GenerationConfig` that it is.
FIELDS = {option.theirs or name: option.in_file for name, option in OPTIONS.items() if option.in_file}
OURS = {option.theirs or name: name for name, option in OPTIONS.items()}
OTHERS = {
    "do_sample": file_kinds.TRUTH,
    "bos_token_id": file_kinds.ID,
    "pad_token_id": file_kinds.ID,
    "eos_token_id": file_kinds.ID_OR_IDS,
    "decoder_start_token_id": file_kinds.ID_OR_IDS,
}
TOP_K = 50  # what transformers takes where a file that samples is silent
# What we do not do, each with the value with which transformers does nothing.
UNSUPPORTED = {
    "constraints": None,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "force_words_ids": None,
    "guidance_scale": 1.0,
    "is_assistant": False,
    "max_time": None,
    "num_beam_groups": 1,
    "penalty_alpha": 0,
    "token_healing": False,
    "top_h": None,
    "watermarking_config": None,
}
IRRELEVANT = frozenset(
    """
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind cache_config
    cache_implementation _commit_hash compile_config continuous_batching_config disable_compile diversity_penalty
    _from_model_config low_memory max_cache_len max_matching_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule output_attentions output_hidden_states output_logits output_scores prefill_chunk_size
    prompt_lookup_num_tokens remove_invalid_values return_dict_in_generate speculation_type target_lookbehind
    transformers_version use_cache use_mtp
    """.split()
)


def read_generation_config(folder, vocabulary_size=None):
    """What a folder's generation_config.json says about generation; without it config.json, as in older folders.

    Without `do_sample`, temperature and the filters are left out, with it a silent `top_k` is 50, as in transformers.
    Its 20 new tokens where no length is given are none of this: the length is the caller's or the model's.

    Args:
        folder: its path.
        vocabulary_size: of the text that is generated. Default: any id is believed.

    Returns:
        A dict of `GenerationConfig` arguments, and the tuple of end ids or None.

    Raises:
        ValueError: the file is malformed, or a field has a value that it cannot have.

    Warns:
        UserWarning: ids outside the vocabulary, which are left out; fields unknown to transformers and to us.
    """
    path, config = _read(folder, vocabulary_size)
    unknown = set(config) - {*FIELDS, *OTHERS, *UNSUPPORTED} - IRRELEVANT
    unknown = sorted(name for name in unknown if config[name] not in (None, False))
    if unknown:
        warnings.warn(f"{path}: {', '.join(unknown)} is unknown and does nothing.", stacklevel=2)
    ends = config.get("eos_token_id")
    ends = None if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
    values = {OURS[name]: config[name] for name in FIELDS if config.get(name) is not None}
    unsupported = _take_unsupported(config, values)
    # transformers rules a word out unless it is an end token; suppress_tokens is for those.
    alone = set(ends or ())
    values["bad_words"] = [word for word in values.get("bad_words", ()) if len(word) > 1 or word[0] not in alone]
    values["logit_bias"] = {word[0]: bias for word, bias in values.get("logit_bias", ())}
    _settle_lengths(values)
    values = {name: value for name, value in values.items() if not OPTIONS[name].is_off(value)}
    return values | ({"unsupported": unsupported} if unsupported else {}), ends


def read_start_token_id(folder, vocabulary_size=None):
    """The id that targets begin with, from the same files: else their bos_token_id; None where they say neither."""
    config = _read(folder, vocabulary_size, silent=True)[1]
    start = config.get("decoder_start_token_id")
    if isinstance(start, list):  # one for each target
        start = start[0] if len(set(start)) == 1 else None
    return config.get("bos_token_id") if start is None else start


def read_token_ids(folder, vocabulary_size=None):
    """The ids of the start token and of padding that the same files name: dict as in the file."""
    config = _read(folder, vocabulary_size, silent=True)[1]
    return {name: config[name] for name in ("bos_token_id", "pad_token_id") if config.get(name) is not None}


def write_generation_config(folder, values, end_ids, start_id=None, special_token_ids=None):
    """Write generation_config.json.

    Args:
        folder: path of an existing folder.
        values: dict of `GenerationConfig` arguments.
        end_ids: tuple of ids, or None.
        start_id: the id that targets begin with, or None.
        special_token_ids: dict with "bos_token_id" and "pad_token_id", as far as known.
    """
    others = dict(values.get("unsupported") or {})
    config = {name: _plain(values[name]) for name in FIELDS if values.get(name) is not None}
    drawn = any(values.get(name) is not None for name in SAMPLING)
    drawn = drawn or (values.get("num_return_sequences", 1) > 1 and values.get("num_beams", 1) == 1)
    config["do_sample"] = drawn and config.get("temperature") != 0
    if config["do_sample"]:
        config.setdefault("top_k", 0)  # Without it, transformers takes 50.
    config |= special_token_ids or {}
    config |= {} if start_id is None else {"decoder_start_token_id": int(start_id)}
    stop, biases = values.get("stop", ()), values.get("logit_bias") or {}
    ends = [*(end_ids or ()), *(i for i in stop if not isinstance(i, str))]
    config |= {"eos_token_id": [int(i) for i in ends]} if ends or end_ids is not None else {}
    config |= {"stop_strings": strings} if (strings := [s for s in stop if isinstance(s, str)]) else {}
    # JSON has no infinity; what a bias of minus infinity does, a bad word of one token does too.
    words = [list(map(int, word)) for word in values.get("bad_words", ())]
    words += [[int(i)] for i, bias in biases.items() if bias == -float("inf")]
    # transformers takes no end token for a bad word.
    suppressed = [i for word in words for i in word if len(word) == 1 and i in ends]
    words = [word for word in words if word[0] not in suppressed or len(word) > 1]
    config |= {"bad_words_ids": words} if words else {}
    config |= {"suppress_tokens": [*config.get("suppress_tokens", ()), *suppressed]} if suppressed else {}
    biases = [[[int(i)], float(bias)] for i, bias in biases.items() if bias > -float("inf")]
    biases += others.pop("sequence_bias", [])
    config |= {"sequence_bias": biases} if biases else {}
    write_json(Path(folder) / FILE, config | others)


def _read(folder, vocabulary_size, silent=False):
    """The path of the file, and what it says about generation, checked."""
    path = Path(folder) / FILE
    if path.exists():
        config = read_settings(path)
    else:
        path = Path(folder) / "config.json"
        config = read_settings(path) if path.exists() else {}
        if config.get("force_bos_token_to_be_generated"):
            config["forced_bos_token_id"] = config.get("bos_token_id")
        config = {name: value for name, value in config.items() if name in {*FIELDS, *OTHERS, *UNSUPPORTED}}
    kinds = FIELDS | OTHERS
    if not config.get("do_sample"):
        kinds |= dict.fromkeys(SAMPLING, file_kinds.NUMBER)
    for name, value in config.items():
        if value is not None and name in kinds and not kinds[name].accepts(value):
            raise ValueError(f"{path}: {name} ({shown(value)}) must be {kinds[name].accepted}, or null.")
    return path, config if vocabulary_size is None else _within(path, config, vocabulary_size, silent)


def _within(path, config, vocabulary_size, silent):
    """The config without ids that the model does not have."""

    def is_known(entry):  # an id, a word, or a word with its bias
        word = entry[0] if isinstance(entry, list) and entry and isinstance(entry[0], list) else entry
        return all(0 <= i < vocabulary_size for i in (word if isinstance(word, list) else [word]))

    names = [option.theirs or name for name, option in OPTIONS.items() if option.holds_ids]
    kept, outside = dict(config), []
    for name in (*names, *(name for name in OTHERS if name.endswith("_token_id"))):
        value = config.get(name)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        wrong = [entry for entry in entries if not is_known(entry)]
        if wrong:
            rest = [entry for entry in entries if is_known(entry)]
            kept[name] = (rest or None) if isinstance(value, list) else None
            outside.append(f"{name} ({shown(value)})")
    if outside and not silent:
        warnings.warn(
            f"{path}: {', '.join(outside)} is outside the model's {vocabulary_size} symbols and is left out.",
            stacklevel=4,
        )
    return kept


def _take_unsupported(config, values):
    """What changes the text and is not done, by its name in transformers; `values` keep what is done."""
    unsupported = {}

    def leave(*names):
        unsupported.update({name: config[name] for name in names if config.get(name) not in (None, [], "")})
        for name in names:
            values.pop(OURS.get(name, name), None)

    def leave_if_set(*names):
        leave(*(name for name in names if config.get(name) not in (None, UNSUPPORTED[name])))

    has_beams, sampling = config.get("num_beams") not in (None, 1), bool(config.get("do_sample"))
    leave_if_set(*set(UNSUPPORTED) - {"penalty_alpha", "top_h"})
    if "num_beam_groups" in unsupported:
        leave("diversity_penalty")
    if sampling and not has_beams:
        values.setdefault("top_k", TOP_K)
        if all(OPTIONS[name].is_off(values.get(name)) for name in SAMPLING):
            values["temperature"] = 1.0
        leave_if_set("top_h")
    else:
        for name in SAMPLING:
            values.pop(name, None)
    if not sampling and not has_beams and config.get("top_k") not in (0, 1):
        leave_if_set("penalty_alpha")
    if has_beams:
        leave(*(["do_sample", *SAMPLING] if sampling else []), "stop_strings")
    else:
        for name in BEAMS:
            values.pop(name, None)
    most = values.get("num_beams", 1) if has_beams or not sampling else np.inf
    if values.get("num_return_sequences", 1) > most:
        leave("num_return_sequences")
    forced = values.get("forced_eos_token_id")
    if isinstance(forced, list):
        if len(forced) > 1:
            leave("forced_eos_token_id")
        else:
            values["forced_eos_token_id"] = forced[0] if forced else None
    longer = [pair for pair in values.get("logit_bias", ()) if len(pair[0]) > 1]
    if longer:
        unsupported["sequence_bias"] = longer
        values["logit_bias"] = [pair for pair in values["logit_bias"] if len(pair[0]) == 1]
    return unsupported


def _settle_lengths(values):
    """As in transformers, numbers of new tokens go first, and what has its length ends however short it should be."""
    for both, new in LENGTHS:
        if new in values:
            values.pop(both, None)
    most_of, least_of = LENGTHS
    for least in least_of:
        for most in most_of:
            if least in values and most in values and (least, most) != ("min_length", "max_new_tokens"):
                values[least] = min(values[least], values[most])


def _plain(value):
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
