"""Tables of reversible rows between the fields of a Hugging Face config.json and our constructors' arguments.

A table is a list of rows `(field or fields, our argument or arguments, kind, default)`. The default is what
transformers takes when the field is absent, a tuple where it differs from field to field. The same table reads and
writes:

    ("n_layer", "num_layers", size, 12)

Of two rows for an argument the later one goes before. A row whose default is `UNSAID` is read where its field is there,
and never written.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kerasllm.arguments import LARGEST, MOST, is_number, is_whole, shown

UNSAID = object()


@dataclass(frozen=True)
class Kind:
    """The values of a field that we understand, and what they are called on either side.

    Args:
        accepted: the values in words, for errors.
        accepts: foreign value -> whether it is understood.
        to_ours: values of all fields of a row -> our value, or a tuple of one for each argument of the row.
        to_foreign: our value, or that tuple -> foreign value, one that is not accepted if there is none.
    """

    accepted: str
    accepts: Callable
    to_ours: Callable = lambda values: values[0]
    to_foreign: Callable = lambda value: value


def _is_number(value):
    return is_number(value) and abs(value) <= LARGEST


def _is_size(value):
    return is_whole(value) and 0 < value < MOST


size = Kind("a positive whole number", _is_size)
optional_size = Kind("null or a positive whole number", lambda value: value is None or _is_size(value))
number = Kind("a number", _is_number)
positive = Kind("a positive number", lambda value: _is_number(value) and value > 0)
optional_positive = Kind("null or a positive number", lambda value: value is None or positive.accepts(value))
boolean = Kind("true or false", lambda value: isinstance(value, bool))
# One vocabulary, where we have two sizes.
shared_size = Kind(
    size.accepted, _is_size, lambda values: (values[0], values[0]), lambda pair: pair[0] if pair[0] == pair[1] else None
)
# Others have several rates, we have one: the largest. It matters to further training only.
rate = Kind("a number in [0, 1)", lambda value: _is_number(value) and 0 <= value < 1, to_ours=max)


def choice(ours):
    """The `Kind` of words: `ours` maps foreign words to ours; the first of several is the one written."""
    foreign = {our_word: word for word, our_word in reversed(ours.items())}
    return Kind(
        " or ".join(map(repr, ours)),
        lambda value: isinstance(value, str) and value in ours,
        lambda values: ours[values[0]],
        foreign.get,
    )


activation = choice(
    {
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "relu": "relu",
        "silu": "silu",
        "swish": "silu",
    }
)

# Fields of any config that change nothing we compute: records, token ids, and generation (see `generation_config`).
IRRELEVANT = frozenset(
    """
    architectures attn_implementation _attn_implementation_autoset bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward cls_token_id _commit_hash constraints decoder_start_token_id
    diversity_penalty do_sample dola_layers dtype early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff exponential_decay_length_penalty finetuning_task
    force_words_ids forced_bos_token_id forced_decoder_ids forced_eos_token_id gradient_checkpointing guidance_scale
    id2label label2id length_penalty low_memory mask_token_id max_length max_new_tokens max_time min_length
    min_new_tokens min_p model_type _name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    _num_labels num_return_sequences output_attentions output_hidden_states output_logits output_past output_scores
    pad_token_id penalty_alpha prefix problem_type prompt_lookup_num_tokens remove_invalid_values renormalize_logits
    repetition_penalty return_dict return_dict_in_generate sep_token_id sequence_bias stop_strings suppress_tokens
    task_specific_params temperature tf_legacy_loss token_healing tokenizer_class top_h top_k top_p torch_dtype
    torchscript transformers_version typical_p unk_token_id use_bfloat16 use_cache watermarking_config
    """.split()
)
# Fields of any config that are understood with these values only.
SUPPORTED = {
    "add_cross_attention": (False,),
    "auto_map": (None,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False,),
}


def read(table, config, supported=None, irrelevant=()):
    """Our arguments from a foreign config.

    Args:
        table: rows that name all arguments.
        config: dict, the content of config.json.
        supported: dict field -> tuple of the values understood, beside `SUPPORTED`.
        irrelevant: fields that change nothing, beside `IRRELEVANT`.

    Returns:
        dict argument -> value.

    Raises:
        ValueError: names every field whose value is not understood, and every field that is unknown.
    """
    supported, arguments, problems = SUPPORTED | (supported or {}), {}, []
    known = IRRELEVANT | set(irrelevant) | set(supported)
    for fields, ours, kind, default in table:
        fields, ours = names_in(fields), names_in(ours)
        known |= set(fields)
        if default is UNSAID and not set(fields) & set(config):
            continue
        defaults = default if isinstance(default, tuple) else (default,) * len(fields)
        values = [config.get(field, value) for field, value in zip(fields, defaults, strict=True)]
        refused = [f for f, value in zip(fields, values, strict=True) if not kind.accepts(value)]
        problems += [f"{field} ({shown(config.get(field))}) must be {kind.accepted}" for field in refused]
        if not refused:
            value = kind.to_ours(values)
            arguments |= zip(ours, value if len(ours) > 1 else [value], strict=True)
    for field, values in supported.items():
        if field in config and not is_one_of(config[field], values):
            problems.append(f"{field} ({shown(config[field])}) must be {' or '.join(map(repr, values))}")
    problems += [f"{field} ({shown(config[field])}) is unknown" for field in config if field not in known]
    if problems:
        raise ValueError("config.json: " + "; ".join(problems) + ".")
    return arguments


def is_one_of(value, values):
    """Whether a value is among those, and True and 1 are not the same."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


def renamed(config, names):
    """The config by the first names of fields, dict second name -> first; as in transformers the second goes before."""
    return config | {first: config[second] for second, first in names.items() if second in config}


def write(table, arguments):
    """The fields of a foreign config from our arguments: the inverse of `read`.

    Args:
        table: as for `read`.
        arguments: dict argument -> value, all that the table names.

    Returns:
        dict field -> value; None if an argument says something that a field cannot.
    """
    config = {}
    for fields, ours, kind, default in table:
        if default is UNSAID:
            continue
        values = tuple(arguments[name] for name in names_in(ours))
        foreign_value = kind.to_foreign(values if len(values) > 1 else values[0])
        if not kind.accepts(foreign_value):
            return None
        config |= dict.fromkeys(names_in(fields), foreign_value)
    return config


def names_in(names):
    """One name, or several, as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)
