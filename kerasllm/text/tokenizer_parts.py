"""What each kind of tokenizer has around its vocabulary: normaliser, words, special tokens at the ends, decoder."""

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
BERT_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
GPT2_TOKENS = {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}
TRANSLATOR_TOKENS = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>"}
ROBERTA_TOKENS = TRANSLATOR_TOKENS | {"cls": "<s>", "sep": "</s>", "mask": "<mask>"}
ALBERT_TOKENS = TRANSLATOR_TOKENS | {"bos": "[CLS]", "eos": "[SEP]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
T5_TOKENS = {"pad": "<pad>", "unk": "<unk>", "eos": "</s>"}
LLAMA_TOKENS = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
DEBERTA_TOKENS = BERT_TOKENS | {"bos": "[CLS]", "eos": "[SEP]"}
GEMMA_TOKENS = {"pad": "<pad>", "unk": "<unk>", "bos": "<bos>", "eos": "<eos>", "mask": "<mask>"}
QWEN2_TOKENS = {"pad": "<|endoftext|>", "unk": "<|endoftext|>", "eos": "<|endoftext|>"}
# As Qwen2 cuts words: GPT-2's way, but each digit alone, and no line break inside a run of spaces or signs.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bert(model, lowercase, strip_accents=None, chinese_characters=True):
    """BERT's words and decoder around a `tokenizers` model."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese_characters
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def byte_level(model, add_prefix_space=False):
    """GPT-2's words and decoder around a `tokenizers` model."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def qwen2(model, add_prefix_space=False):
    """Qwen2's normaliser, words and decoder around a `tokenizers` model."""
    backend = byte_level(model)
    backend.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(tokenizers.Regex(QWEN2_WORDS), behavior="isolated")
    symbols = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, symbols])
    return backend


def add_template(backend, single, pair, roles):
    """Let `encode` write special tokens around texts.

    Args:
        backend: the `tokenizers.Tokenizer`.
        single: of one text, as in "{cls} $A {sep}"; names of roles in braces, ":1" after what is of segment 1.
        pair: of two texts, as in "{cls} $A {sep} $B:1 {sep}:1".
        roles: dict role -> token.

    Raises:
        ValueError: the vocabulary lacks one of the tokens.
    """
    used = {role: token for role, token in roles.items() if f"{{{role}}}" in single + pair}
    ids = {token: backend.token_to_id(token) for token in used.values()}
    if None in ids.values():
        wrong = " and ".join(f"{role} ({token!r})" for role, token in used.items())
        raise ValueError(f"{wrong} must be tokens of the vocabulary.")
    # As lists: a token may hold a space.
    single, pair = ([part.format(**used) for part in template.split()] for template in (single, pair))
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(ids.items()))


def add_bert_template(backend, roles):
    """[CLS] text [SEP] pair [SEP], where the tokenizer has these roles."""
    if "cls" in roles and "sep" in roles:
        add_template(backend, "{cls} $A {sep}", "{cls} $A {sep} $B:1 {sep}:1", roles)


def add_roberta_ends(backend, roles, config):
    """<s> text </s></s> pair </s>, and offsets without the spaces before words, as `config` of its tokenizer says."""
    ends = [(roles[role], backend.token_to_id(roles[role])) for role in ("sep", "cls")]
    settings = {
        "trim_offsets": config.get("trim_offsets", True),
        "add_prefix_space": bool(config.get("add_prefix_space")),
    }
    backend.post_processor = processors.RobertaProcessing(*ends, **settings)
