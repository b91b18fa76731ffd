"""Makes tests/data/tokenizers: small vocabularies and the ids transformers gives with them on a hard corpus.

Run by hand, with transformers and sentencepiece installed: `python tests/data/make_tokenizer_fixtures.py`.
"""

import json
import pathlib
import re
import tempfile

import sentencepiece
import transformers

from kerasllm.text.tokenizers import Tokenizer

FOLDER = pathlib.Path(__file__).parent / "tokenizers"

TRAINING = [
    "The cat sat on the mat. It's a cat's life, isn't it?",
    "Don't stop: I can't, won't and shan't; they'll see, we've seen, you're here, I'm there, he'd go.",
    "In 2024 about 1,000,000 people paid $3.14 each (or 99 %).",
    "Naïve café owners in Ångström and Zürich serve crème brûlée.",
    "El niño comió una manzana. ¿Dónde está? ¡Qué bien!",
    "東京と日本語。中文字符",
    "one\n\ntwo\n\nthree   four\tfive",
    "A smile 🙂 and a family 👩‍👩‍👧‍👦",
]

HARD = [
    "Hello, world!",
    "I can't, won't, don't; it's they'll we've I'd YOU'RE",
    "paragraph\n\nparagraph\n\n\nend\n",
    "  leading and trailing  ",
    "tab\there\t\tthere",
    "\r\nwindows\r\n",
    "3.14159 1,000,000 2024-01-31 007 ٣٤",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🙂",
    "日本語のテキスト、東京。中文 한국어",
    "naïve café Ünïcödé Ångström e\u0301 ﬁ ² ½",
    "\x00\x01\x7f\x80\x9f control \ufffd and \u200b\ufeff zero width",
    "The [MASK] sat on the [SEP] mat.[CLS]",
    "[mask] [PAD][UNK] < |endoftext|> [MASK",
    "<|endoftext|>inside<|endoftext|>text",
    "العربية עברית हिन्दी ไทย",
    "x" * 120,
    "",
    "   ",
    "CamelCase snake_case https://x.y/z?q=1&r=2#f",
    "don’t “quote” — dash… \u00a0nbsp",
    "<extra_id_0> walks <extra_id_1>in a</s>b </s> c",
    " <s> cat <mask> and <mask>",
    ">>fr<< Die straße",
    "The▁cat　ｓａｔ",
]


def train_sentencepiece(path, texts, **arguments):
    """A SentencePiece model; of nmt_nfkc, which is 240 kB, only the rules for the characters of our texts."""
    if "normalization_rule_name" not in arguments:
        nmt_nfkc = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc", add_dummy_prefix=False).normalize
        texts_ = "".join(TRAINING + HARD)
        keys = sorted({*texts_, *(texts_[i : i + 2] for i in range(len(texts_) - 1))} - {"\x00"})
        kept = str.maketrans("", "", "▁")  # normalize writes it for a space
        rules = {key: nmt_nfkc(f"a{key}a")[1:-1].replace("▁", " ").translate(kept) for key in keys}
        single = {key: value for key, value in rules.items() if len(key) == 1 and key != value}
        pairs = {k: v for k, v in rules.items() if len(k) == 2 and v != single.get(k[0], k[0]) + single.get(k[1], k[1])}
        pairs = {k: v for k, v in pairs.items() if not any(c.isspace() for c in k + v)}
        lines = [
            f"{' '.join(f'{ord(c):X}' for c in key)}\t{' '.join(f'{ord(c):X}' for c in value)}\n"
            for key, value in (single | pairs).items()
        ]
        arguments["normalization_rule_tsv"] = tempfile.mktemp()
        pathlib.Path(arguments["normalization_rule_tsv"]).write_text("".join(lines))
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts * 3),
            model_writer=file,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
            **arguments,
        )
    return sentencepiece.SentencePieceProcessor(str(path))


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n")


def sentencepiece_references():
    """Models of SentencePiece as their families keep them, and transformers' tokenizers."""
    t5, albert, xlm_roberta = FOLDER / "t5", FOLDER / "albert", FOLDER / "xlm_roberta"
    unigram = {"model_type": "unigram", "vocab_size": 260}
    train_sentencepiece(t5 / "spiece.model", TRAINING, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, **unigram)
    train_sentencepiece(xlm_roberta / "sentencepiece.bpe.model", TRAINING, **unigram)
    train_sentencepiece(
        albert / "spiece.model",
        [text.lower() for text in TRAINING],
        **{"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP],[MASK]"},
        **unigram,
    )
    write_json(albert / "tokenizer_config.json", {"tokenizer_class": "AlbertTokenizer"})
    for name, legacy in (("llama", False), ("llama_legacy", True)):
        train_sentencepiece(
            FOLDER / name / "tokenizer.model",
            TRAINING,
            **{"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "character_coverage": 0.98},
            **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True},
        )
        config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": legacy}
        write_json(FOLDER / name / "tokenizer_config.json", config)
    marian = FOLDER / "marian"
    sides = [
        train_sentencepiece(marian / f"{side}.spm", texts, **unigram)
        for side, texts in (("source", TRAINING), ("target", TRAINING[:4] * 3 + TRAINING + ["Die straße ist groß."]))
    ]
    pieces = [side.id_to_piece(i) for side in sides for i in range(3, side.piece_size())]
    tokens = ["</s>", "<unk>", *dict.fromkeys(pieces), ">>fr<<", "<pad>"]
    write_json(marian / "vocab.json", {token: i for i, token in enumerate(tokens)})
    write_json(marian / "tokenizer_config.json", {"source_lang": "en", "target_lang": "de"})
    return {
        "t5": transformers.T5Tokenizer.from_pretrained(t5),
        "albert": transformers.AlbertTokenizer.from_pretrained(albert),
        "xlm_roberta": transformers.XLMRobertaTokenizer.from_pretrained(xlm_roberta),
        "llama": transformers.LlamaTokenizer.from_pretrained(FOLDER / "llama"),
        "marian/source": transformers.MarianTokenizer.from_pretrained(marian),
    }


def main():
    bert, gpt2, roberta = FOLDER / "bert", FOLDER / "gpt2", FOLDER / "roberta"
    Tokenizer.train_wordpiece(TRAINING, 300, lowercase=True, min_frequency=1).save_vocabulary(bert)
    Tokenizer.train_bpe(TRAINING, 400, min_frequency=2).save_vocabulary(gpt2)
    tokens = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    Tokenizer.train_bpe(TRAINING, 400, min_frequency=2, **tokens).save_vocabulary(roberta)
    mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    write_json(roberta / "special_tokens_map.json", {"mask_token": mask})  # as published
    references = {
        "bert": transformers.BertTokenizerFast(vocab=str(bert / "vocab.txt")),
        "gpt2": transformers.GPT2TokenizerFast(vocab=str(gpt2 / "vocab.json"), merges=str(gpt2 / "merges.txt")),
        "roberta": transformers.RobertaTokenizer.from_pretrained(roberta),
        **sentencepiece_references(),
    }
    answers = {"texts": HARD}
    for name, reference in references.items():
        answers[name] = ask(reference, "text")
    answers["marian/target"] = ask(references["marian/source"], "text_target")
    answers["llama_legacy"] = ask_sentencepiece(FOLDER / "llama_legacy" / "tokenizer.model", references["llama"])
    (FOLDER / "answers.json").write_text(json.dumps(answers) + "\n")


def ask(reference, argument):
    ids = [reference(**{argument: text})["input_ids"] for text in HARD]
    answers = {"ids": ids, "texts": [reference.decode(row, skip_special_tokens=True) for row in ids]}
    if not isinstance(reference, transformers.MarianTokenizer):  # It has no segments, and counts them wrong.
        pairs = [reference(text, "The cat.", return_token_type_ids=True) for text in HARD]
        answers["pairs"] = [[pair["input_ids"], pair["token_type_ids"]] for pair in pairs]
    return answers


def ask_sentencepiece(path, reference):
    """What transformers 4 gave for `legacy=True`: each stretch between special tokens as SentencePiece encodes it.

    transformers 5 swallows the space that begins a stretch; neither SentencePiece nor Llama's published
    tokenizer.json does.
    """
    model = sentencepiece.SentencePieceProcessor(str(path))
    stretches = [re.split("(<s>|</s>|<unk>)", text) for text in HARD]
    ids = [
        [model.bos_id()]
        + [i for k, s in enumerate(row) for i in ([model.piece_to_id(s)] if k % 2 else model.encode(s))]
        for row in stretches
    ]
    return {"ids": ids, "texts": [reference.decode(row, skip_special_tokens=True) for row in ids]}


if __name__ == "__main__":
    main()
