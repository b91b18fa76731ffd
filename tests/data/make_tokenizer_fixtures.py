"""Makes tests/data/tokenizers: small vocabularies and the ids transformers gives with them on a hard corpus.

Run by hand, with transformers installed: `python tests/data/make_tokenizer_fixtures.py`.
"""

import json
import pathlib

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
]


def main():
    bert, gpt2 = FOLDER / "bert", FOLDER / "gpt2"
    Tokenizer.train_wordpiece(TRAINING, 300, lowercase=True, min_frequency=1).save_vocabulary(bert)
    Tokenizer.train_bpe(TRAINING, 400, min_frequency=2).save_vocabulary(gpt2)
    references = {
        "bert": transformers.BertTokenizerFast(vocab=str(bert / "vocab.txt")),
        "gpt2": transformers.GPT2TokenizerFast(vocab=str(gpt2 / "vocab.json"), merges=str(gpt2 / "merges.txt")),
    }
    answers = {"texts": HARD}
    for name, reference in references.items():
        ids = [reference(text)["input_ids"] for text in HARD]
        pairs = [reference(text, "The cat.", return_token_type_ids=True) for text in HARD]
        answers[name] = {
            "ids": ids,
            "texts": [reference.decode(row, skip_special_tokens=True) for row in ids],
            "pairs": [[pair["input_ids"], pair["token_type_ids"]] for pair in pairs],
        }
    (FOLDER / "answers.json").write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
