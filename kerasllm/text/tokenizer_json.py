"""What a tokenizer_config.json changes in the tokenizer.json beside it: what transformers obeys, class by class."""

import json

import tokenizers
from tokenizers import models

from kerasllm.text import tokenizer_limits, tokenizer_parts

# A kind of model, as `RULES` names it.
MODELS = {"WordPiece": models.WordPiece, "BPE": models.BPE, "Unigram": models.Unigram}


def fits(backend, name):
    """Whether a tokenizer is of the kind that the class is: many files name another family's class."""
    kind = RULES.get(name, (None,))[0]
    # A Llama 3 calls itself a Llama too, but is of bytes.
    is_bytes = any(part["type"] == "ByteLevel" for part in _parts(backend, "pre_tokenizer"))
    return kind is not None and isinstance(backend.model, MODELS[kind]) and not (is_bytes and name in LLAMAS)


def obey(backend, name, config, roles):
    """Let a tokenizer do what the settings of its class say, where its file says otherwise.

    Args:
        backend: the `tokenizers.Tokenizer` of the file, which is changed.
        name: its class, which it fits.
        config: the entries of tokenizer_config.json.
        roles: dict role -> token, for the special tokens around texts.
    """
    for rule in RULES[name][1:]:
        rule(backend, config)
    single, pair = TEMPLATES.get(name, ("", ""))
    if name in LANGUAGES:
        roles = roles | {"lang": config.get("src_lang") or LANGUAGES[name]}
        if backend.token_to_id(roles["lang"]) is None:
            return
        if name == "NllbTokenizer" and config.get("legacy_behaviour"):
            single, pair = TEMPLATES["MBartTokenizer"]
    if name == "AlbertTokenizer" and backend.post_processor is not None:  # It lets the file have its way.
        return
    if single and all(role in roles for role in tokenizer_parts.ROLES if f"{{{role}}}" in single):
        if TEMPLATES[name] is _ROBERTA_ENDS:
            tokenizer_parts.add_roberta_ends(backend, roles, config)
        else:
            tokenizer_parts.add_template(backend, single, pair, roles)


def evident_roles(backend, model):
    """The roles of a file without a tokenizer_config.json that its own contents, or its model's ids, leave no doubt of.

    Args:
        backend: a `tokenizers.Tokenizer`.
        model: the entries of config.json.
    """
    added = {i: token.content for i, token in backend.get_added_tokens_decoder().items() if token.special}
    ids = {role: model.get(f"{role}_token_id") for role in tokenizer_parts.ROLES}
    roles = {role: added[i] for role, i in ids.items() if isinstance(i, int) and i in added}
    unk = getattr(backend.model, "unk_token", None)
    if unk in added.values():
        roles.setdefault("unk", unk)
    before, after, segment = ends(backend)
    evident = {}
    if len(before) == 1 and not after:
        evident = {"bos": before[0]}
    elif len(after) == 1 and not before:
        evident = {"eos": after[0]}
    elif len(before) == len(after) == 1 and segment:  # as in BERT
        evident = {"cls": before[0], "sep": after[0]}
    return {role: added[i] for role, i in evident.items() if i in added} | roles


def ends(backend):
    """The ids before and after a text, and whether a pair of texts has segments."""
    text = tokenizer_limits.known_text(backend)
    whole = backend.encode(text, text)
    encoding = backend.encode(text)
    places = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
    if not places:
        return [], [], False
    return encoding.ids[: places[0]], encoding.ids[places[-1] + 1 :], 1 in whole.type_ids


# Rules: (backend, config) -> the parts of the tokenizer that a setting decides


def _bert_normalizer(backend, config):
    settings = {
        "lowercase": bool(config.get("do_lower_case", True)),
        "strip_accents": config.get("strip_accents"),
        "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
    }
    _change(backend, "normalizer", lambda parts: _update(parts, "BertNormalizer", settings))


def _byte_level(default=False):
    def rule(backend, config):
        settings = {"add_prefix_space": bool(config.get("add_prefix_space", default))}
        _change(backend, "pre_tokenizer", lambda parts: _update(parts, "ByteLevel", settings))

    return rule


def _metaspace(otherwise):
    def rule(backend, config):
        settings = {"prepend_scheme": "always" if config.get("add_prefix_space", True) else otherwise}
        for kind in ("pre_tokenizer", "decoder"):
            _change(backend, kind, lambda parts: _update(parts, "Metaspace", settings))

    return rule


def _no_prefix(backend, config):
    if config.get("add_prefix_space") is False:  # None is True.
        words = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
        normalizer = [part for part in _parts(backend, "normalizer") if part["type"] not in ("Prepend", "Replace")]
        _set(backend, "normalizer", normalizer)
        _set(backend, "pre_tokenizer", [words])


def _llama(backend, config):
    if config.get("add_prefix_space") is False:
        _change(backend, "decoder", lambda parts: [part for part in parts if part["type"] != "Strip"])
    elif config.get("legacy") is not None:
        settings = {"prepend_scheme": "always" if config["legacy"] else "first"}
        _change(backend, "pre_tokenizer", lambda parts: _update(parts, "Metaspace", settings))


def _lowercase(after):
    """A rule for `do_lower_case`: the part that lowers the case comes after the last one of these types."""

    def rule(backend, config):
        def change(parts):
            parts = [part for part in parts if part["type"] != "Lowercase"]
            return _inserted(parts, after, [{"type": "Lowercase"}] * bool(config.get("do_lower_case", False)))

        _change(backend, "normalizer", change)

    return rule


def _albert(backend, config):
    added = [] if config.get("keep_accents", False) else [{"type": "NFKD"}, {"type": "StripAccents"}]
    added += [{"type": "Lowercase"}] * bool(config.get("do_lower_case", True))

    def change(parts):
        kept = [part for part in parts if part["type"] not in ("NFKD", "StripAccents", "Lowercase")]
        place = next((i for i, part in enumerate(kept) if part["type"] != "Replace"), len(kept))
        return kept[:place] + added + kept[place:]

    _change(backend, "normalizer", change)


def _punctuation(backend, config):
    added = [{"type": "Punctuation", "behavior": "Isolated"}] * bool(config.get("split_by_punct", False))
    _change(backend, "pre_tokenizer", lambda parts: added + [p for p in parts if p["type"] != "Punctuation"])


# Class -> its kind of model, and its rules.
RULES = {
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer"), ("WordPiece", _bert_normalizer)),
    **dict.fromkeys(
        "CodeGenTokenizer CohereTokenizer DebertaTokenizer GPT2Tokenizer GPTNeoXTokenizer Qwen2Tokenizer "
        "RobertaTokenizer".split(),
        ("BPE", _byte_level()),
    ),
    "BlenderbotTokenizer": ("BPE", _byte_level(True)),
    "CodeLlamaTokenizer": ("BPE", _no_prefix),
    "LlamaTokenizer": ("BPE", _no_prefix, _llama),
    **dict.fromkeys(
        "BarthezTokenizer BigBirdTokenizer CamembertTokenizer XLMRobertaTokenizer".split(),
        ("Unigram", _metaspace("never")),
    ),
    "AlbertTokenizer": ("Unigram", _albert, _metaspace("never")),
    "DebertaV2Tokenizer": ("Unigram", _lowercase(()), _punctuation, _metaspace("first")),
    "XLNetTokenizer": ("Unigram", _lowercase(("Replace", "NFKD", "StripAccents"))),
    **dict.fromkeys(("GemmaTokenizer", "NllbTokenizer"), ("BPE",)),
    **dict.fromkeys("MBart50Tokenizer MBartTokenizer PegasusTokenizer T5Tokenizer XGLMTokenizer".split(), ("Unigram",)),
}
_BERT_ENDS = ("{cls} $A {sep}", "{cls} $A {sep} $B:1 {sep}:1")
_ROBERTA_ENDS = ("{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}")
_XLM_ENDS = ("{bos} $A {eos}", "{bos} $A {eos} {eos} $B {eos}")
# Class -> what it writes around a text, and around two.
TEMPLATES = {
    **dict.fromkeys("AlbertTokenizer BertTokenizer BigBirdTokenizer DebertaV2Tokenizer".split(), _BERT_ENDS),
    "DistilBertTokenizer": _BERT_ENDS,
    **dict.fromkeys(("MPNetTokenizer", "RobertaTokenizer"), _ROBERTA_ENDS),
    **dict.fromkeys(("CamembertTokenizer", "XLMRobertaTokenizer"), _XLM_ENDS),
    "MBart50Tokenizer": ("{lang} $A {eos}", "{lang} $A $B {eos}"),
    "MBartTokenizer": ("$A {eos} {lang}", "$A $B {eos} {lang}"),
    "NllbTokenizer": ("{lang} $A {eos}", "{lang} $A $B {eos}"),
    "PegasusTokenizer": ("$A {eos}", "$A $B {eos}"),
    "T5Tokenizer": ("$A {eos}", "$A {eos} $B {eos}"),
    "XLNetTokenizer": ("$A {sep} {cls}:2", "$A {sep} $B:1 {sep}:1 {cls}:2"),
}

# Class of translators' tokenizers -> the language of a text where the config names none.
LANGUAGES = {"MBart50Tokenizer": "en_XX", "MBartTokenizer": "en_XX", "NllbTokenizer": "eng_Latn"}
LLAMAS = ("LlamaTokenizer", "CodeLlamaTokenizer")


# Parts of a tokenizer, as lists of dictionaries

LISTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


def _spec(backend, kind):
    part = getattr(backend, kind)
    return None if part is None else json.loads(part.__getstate__())


def _parts(backend, kind):
    """The parts of a kind in their order."""
    spec = _spec(backend, kind)
    if spec is None:
        return []
    return spec[LISTS[kind]] if spec["type"] == "Sequence" else [spec]


def _change(backend, kind, change):
    before = _parts(backend, kind)
    after = change([dict(part) for part in before])
    if after != before:
        _set(backend, kind, after)


def _set(backend, kind, parts):
    spec = {"type": "Sequence", LISTS[kind]: parts} if len(parts) > 1 else parts[0] if parts else None
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    whole = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "model": empty, kind: spec}))
    setattr(backend, kind, getattr(whole, kind))


def _update(parts, kind, settings):
    return [part | settings if part["type"] == kind else part for part in parts]


def _inserted(parts, after, new):
    """The parts with `new` after the last one of the types in `after`."""
    place = max((i + 1 for i, part in enumerate(parts) if part["type"] in after), default=0)
    return parts[:place] + new + parts[place:]
