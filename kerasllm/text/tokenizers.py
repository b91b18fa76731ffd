"""One tokenizer for every model: one of the `tokenizers` package, and the roles of its special tokens."""

import collections
import functools
import json

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from kerasllm import writing
from kerasllm.arguments import (
    check_boolean,
    check_from_zero,
    check_positive,
    check_sequence,
    check_text,
    is_whole,
    read_path,
    shown,
)
from kerasllm.text import chat, tokenizer_files, tokenizer_json, tokenizer_parts
from kerasllm.text.panics import refused

# In transformers, for tokenizers of whole words.
CLEAN_UPS = {f" {end}": end.strip() for end in (*".?!,", "' ", "n't", "'m", "'s", "'ve", "'re")}

CANNOT_ENCODE = "tokenizer cannot encode this text"


class Tokenizer:
    """Turns strings into token ids and back.

    Training (`train_wordpiece`, `train_bpe`, `train_unigram`, `train_words`) and `from_folder` make one. The
    same texts give the same tokenizer in every process.

        tokenizer = Tokenizer.train_bpe(texts, 3000, pad="<pad>", bos="<s>", eos="</s>")
        tokenizer.decode(tokenizer.encode("Hello world!"))  # "Hello world!"
        tokenizer.save("folder")  # transformers.AutoTokenizer.from_pretrained("folder") opens it

    Args:
        backend: a `tokenizers.Tokenizer`. It is taken over, not copied: its padding and truncation go.
        pad, unk, bos, eos, cls, sep, mask: the special tokens, as strings of its vocabulary. They stay whole
            where they stand inside a text, and `decode` leaves them out.
        config: further entries of a Hugging Face `tokenizer_config.json`, kept for `save`.

    The id of a role is `tokenizer.pad_id` and so on, None where the tokenizer has no such role.
    """

    def __init__(self, backend, pad=None, unk=None, bos=None, eos=None, cls=None, sep=None, mask=None, config=None):
        if not isinstance(backend, tokenizers.Tokenizer):
            raise ValueError(f"backend ({type(backend).__name__}) must be a tokenizers.Tokenizer.")
        tokens = dict(zip(tokenizer_parts.ROLES, (pad, unk, bos, eos, cls, sep, mask), strict=True))
        self.backend = backend
        self.backend.no_padding()
        self.backend.no_truncation()
        self.roles = {role: token for role, token in tokens.items() if token is not None}
        if not isinstance(config, dict | None):
            raise ValueError(f"config ({shown(config)}) must be a dict or None.")
        self.config = dict(config or {})
        # Not among what a tokenizer.json holds.
        self.backend.encode_special_tokens = bool(self.config.get("split_special_tokens", False))
        for role, token in self.roles.items():
            if isinstance(token, str):
                check_text(role, token)
            if not isinstance(token, str) or self.backend.token_to_id(token) is None:
                raise ValueError(f"{role} ({shown(token)}) must be a token of the vocabulary.")
        known = {t.content for t in self.backend.get_added_tokens_decoder().values() if t.special}
        self.backend.add_special_tokens([t for t in self.roles.values() if t not in known])
        # Not the number of tokens: a vocabulary may have holes.
        self.vocabulary_size = 1 + max(self.backend.get_vocab(with_added_tokens=True).values())
        ids = [None if token is None else self.backend.token_to_id(token) for token in tokens.values()]
        self.pad_id, self.unk_id, self.bos_id, self.eos_id, self.cls_id, self.sep_id, self.mask_id = ids

    # Strings to ids and back

    def encode(self, text, pair=None, special_tokens=True):
        """The token ids of `text`, or of `text` and `pair`, as a list.

        `special_tokens` adds what the family adds: BERT's [CLS] and [SEP]; other kinds trained here add none.
        """
        return self._encoding(text, pair, special_tokens).ids

    def encode_with_segments(self, text, pair=None, special_tokens=True):
        """Like `encode`, but returns `(token_ids, segment_ids)`: 0 in `text`, 1 in `pair`."""
        encoding = self._encoding(text, pair, special_tokens)
        return encoding.ids, encoding.type_ids

    def encode_batch(self, texts, special_tokens=True):
        """One list of token ids for each of `texts`, on all cores."""
        check_boolean("special_tokens", special_tokens)
        texts = list(_strings(texts, "texts"))
        with refused(CANNOT_ENCODE):
            return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=special_tokens)]

    def encodings(self, texts, pairs=None, max_length=None, special_tokens=True):
        """Encode texts, or pairs of texts, and keep where in the text each token comes from.

            question, context = "Who sat?", "The cat sat on the mat."
            [encoding] = tokenizer.encodings([question], [context])
            start, end = encoding.offsets[5]
            context[start:end]  # the characters of token 5, if encoding.sequence_ids[5] == 1

        Args:
            texts: iterable of strings.
            pairs: as many strings, or None.
            max_length: what has more tokens is cut to so many; of a text and its pair the longer one is cut first.
                Default: nothing is cut.
            special_tokens: as in `encode`.

        Returns:
            A list of `tokenizers.Encoding`s. These lists in them have an entry for each token: `ids`; `type_ids`, the
            segments; `offsets`, (start, end) in the characters of its text; `word_ids`, the number of its word;
            `sequence_ids`, 0 in `texts` and 1 in `pairs`; `special_tokens_mask`. Special tokens that were added have
            offsets (0, 0), and None as their word and sequence.

        Raises:
            ValueError: `texts` or `pairs` is no iterable of strings, they differ in number, or `max_length` leaves room
                for less than two tokens.
        """
        texts = list(_strings(texts, "texts"))
        check_boolean("special_tokens", special_tokens)
        if max_length is not None:
            check_positive("max_length", max_length)
        pairs = [None] * len(texts) if pairs is None else list(_strings(pairs, "pairs"))
        if len(pairs) != len(texts):
            raise ValueError(f"pairs ({len(pairs)}) must be as many as texts ({len(texts)}).")
        inputs = [text if pair is None else (text, pair) for text, pair in zip(texts, pairs, strict=True)]
        with refused(CANNOT_ENCODE):
            encodings = self.backend.encode_batch(inputs, add_special_tokens=special_tokens)
        if max_length is None:
            return encodings
        return [
            e if len(e) <= max_length else self._cut(text, pair, max_length, special_tokens)
            for e, text, pair in zip(encodings, texts, pairs, strict=True)
        ]

    def _cut(self, text, pair, max_length, special_tokens):
        room = max_length - special_tokens * self.backend.num_special_tokens_to_add(pair is not None)
        if room < 2:
            raise ValueError(f"max_length ({max_length}) must leave room for two tokens beside the special ones.")
        first = self.backend.encode(text, add_special_tokens=False)
        second = None if pair is None else self.backend.encode(pair, add_special_tokens=False)
        if second is None:
            first.truncate(room)
        else:
            half, sizes = room // 2, (len(first), len(second))
            first.truncate(room - min(sizes[1], half))
            second.truncate(room - min(sizes[0], room - half))
        return self.backend.post_process(first, second, special_tokens)

    def decode(self, ids, skip_special_tokens=True):
        """The text of a flat sequence of token ids.

        Ids without a token are left out: holes in the vocabulary, and what a model may write beyond its end, whose
        embeddings are padded to a size that suits its hardware.
        """
        check_boolean("skip_special_tokens", skip_special_tokens)
        try:
            ids = np.asarray(ids)
        except ValueError as error:  # of rows that differ in length
            raise ValueError(f"ids ({shown(ids)}) must be a flat sequence of integers.") from error
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"ids ({ids.dtype}, shape {ids.shape}) must be a flat sequence of integers.")
        for i in ids[ids < 0][:1]:
            raise ValueError(f"ids holds {i}; the vocabulary's ids are 0 to {self.vocabulary_size - 1}.")
        known = ids[ids < self.vocabulary_size].tolist()
        with refused("tokenizer cannot decode these ids"):
            text = self.backend.decode(known, skip_special_tokens=skip_special_tokens)
        for spaced, clean in self.clean_ups.items():
            text = text.replace(spaced, clean)
        return text

    @property
    def clean_ups(self):
        """What `decode` writes without spaces where the config says `clean_up_tokenization_spaces`, in their order."""
        forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        is_bpe = isinstance(self.backend.model, models.BPE)
        cleans = self.config.get("clean_up_tokenization_spaces") and (not is_bpe or self.config.get(forced))
        return CLEAN_UPS if cleans else {}

    def apply_chat_template(
        self,
        messages,
        add_generation_prompt=None,
        tools=None,
        documents=None,
        chat_template=None,
        continue_final_message=False,
        **variables,
    ):
        """Write a chat as the model that the tokenizer came with was taught to read it.

            tokenizer.apply_chat_template(messages, tools=[get_weather], enable_thinking=False)

        Args:
            messages: list of dicts with strings `role` ("system", "user", "assistant", "tool") and `content`, and
                what else the template reads: `tool_calls`, `reasoning_content`. The content may be a list of parts,
                dicts with `type` and `text`; a template that reads no parts gets their text. With `tool_calls` it may
                be None.
            add_generation_prompt: whether the text ends with the beginning of the assistant's answer. Default: yes,
                but for `continue_final_message`.
            tools: list of what the assistant may call: JSON schemas, or functions with types and a docstring in
                Google's style, which are described by them. A template that knows of no tools leaves them out.
            documents: list of dicts, with `title` and `text` for example, for templates that read them.
            chat_template: the name of one where the tokenizer has several, or another template. Default: "tool_use"
                where there are tools and it is one of them, else "default".
            continue_final_message: whether the text ends where the last message does, to be gone on with. A string
                names another field of it than `content`, such as "reasoning_content".
            **variables: what the template reads besides, such as `enable_thinking=False`.

        Returns:
            A string; `encode(text, special_tokens=False)` turns it into ids.

        Raises:
            ValueError: the tokenizer has no chat template, or none of this name; it refuses the messages, or does not
                read what they hold.
        """
        template = chat.choose(self.config.get("chat_template"), chat_template, tools)
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        text = chat.render(
            template,
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **self.chat_variables() | variables,
        )
        check_text("messages", text)
        return text

    def lowercased(self):
        """The tokenizer that reads small letters in place of capitals; itself if it does so."""
        state = json.loads(self.backend.to_str())
        if '"Lowercase"' in json.dumps(state["normalizer"]) or (state["normalizer"] or {}).get("lowercase"):
            return self
        backend = tokenizers.Tokenizer.from_str(json.dumps(state))
        rest = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
        return Tokenizer(backend, **self.roles, config=self.config)

    def encode_chat(self, messages, **arguments):
        """The token ids of a chat. The template writes the special tokens. Arguments are `apply_chat_template`'s."""
        return self.encode(self.apply_chat_template(messages, **arguments), special_tokens=False)

    def take_chat_arguments(self, options, others):
        """Take those of `apply_chat_template`, and variables of the template, out of a dict of a call's options.

        Args:
            options: dict, which what is returned leaves.
            others: names of options that are something else.
        """
        return chat.take_arguments(self.config.get("chat_template"), options, others)

    def chat_variables(self):
        """What a chat template may read of the tokenizer, dict name -> token: "bos_token", "eos_token" and so on."""
        extra = self.config.get("extra_special_tokens")
        named = {name: token for name, token in self.config.items() if name.endswith("_token")}
        named |= extra if isinstance(extra, dict) else {}
        named = {name: token["content"] if isinstance(token, dict) else token for name, token in named.items()}
        named = {name: token for name, token in named.items() if isinstance(token, str)}
        return named | {f"{role}_token": token for role, token in self.roles.items()}

    def token_to_id(self, token):
        """The id of a token of the vocabulary, or None."""
        check_text("token", token)
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id):
        """The token of an id, or None where the vocabulary has a hole or has ended."""
        if not is_whole(token_id) or token_id < 0:
            raise ValueError(f"token_id ({shown(token_id)}) must lie in 0 to {self.vocabulary_size - 1}.")
        return self.backend.id_to_token(int(token_id)) if token_id < self.vocabulary_size else None

    @property
    def special_ids(self):
        """The ids of all special tokens, sorted; those without a role too."""
        added = self.backend.get_added_tokens_decoder()
        return sorted(i for i, token in added.items() if token.special)

    @functools.cached_property
    def word_starts(self):
        """(V,) bool: whether a token begins a word, by its mark: no "##" in WordPiece, else "Ġ" or "▁"."""
        tokens = [self.backend.id_to_token(i) or "" for i in range(self.vocabulary_size)]
        if isinstance(self.backend.model, models.WordPiece):
            continues = self.backend.model.continuing_subword_prefix
            starts = np.array([not t.startswith(continues) for t in tokens])
        else:
            marks = ("▁", "Ġ", "Ċ", "ĉ")
            starts = np.array([t.startswith(marks) for t in tokens])
            if not starts.any():
                return ~starts
        starts[self.special_ids] = True
        return starts

    def _encoding(self, text, pair, special_tokens):
        check_boolean("special_tokens", special_tokens)
        check_text("text", text)
        if not isinstance(pair, str | None):
            raise ValueError(f"pair ({shown(pair)}) must be a string or None.")
        if pair is not None:
            check_text("pair", pair)
        with refused(CANNOT_ENCODE):
            return self.backend.encode(text, pair, add_special_tokens=special_tokens)

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.backend.encode_special_tokens = bool(self.config.get("split_special_tokens", False))

    def __eq__(self, other):
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self.roles == other.roles and self.backend.to_str() == other.backend.to_str()

    def __hash__(self):
        return hash((self.vocabulary_size, *self.roles.items()))

    def __repr__(self):
        roles = "".join(f", {role}={token!r}" for role, token in self.roles.items())
        return f"<Tokenizer {type(self.backend.model).__name__}, vocabulary_size={self.vocabulary_size}{roles}>"

    # Files

    @classmethod
    def from_folder(cls, folder, prefix=""):
        """Read a tokenizer from a folder, also from one of Hugging Face.

        The files are the first of these that are there; `tokenizer_class` in `tokenizer_config.json` says whose
        they are, else `model_type` in `config.json`, else the family named first. Others are an error.

        ============================================= =============================================
        `tokenizer.json`                              any
        `vocab.txt`                                   BERT, DistilBERT, ELECTRA, MPNet
        `vocab.json` and `merges.txt`                 GPT-2, RoBERTa, BART, CodeGen, GPT-NeoX, Qwen2
        `spiece.model`                                T5, ALBERT
        `sentencepiece.bpe.model`                     XLM-RoBERTa, CamemBERT
        `tokenizer.model`                             Llama, Mistral, Gemma
        `source.spm`, `target.spm` and `vocab.json`   Marian, with prefix "source_" or "target_"
        ============================================= =============================================

        `tokenizer_config.json` rules beside a `tokenizer.json` where transformers obeys it: for the classes of known
        families `do_lower_case`, `add_prefix_space` and their like, for all of them the added tokens and their flags.
        The roles stand there or in `special_tokens_map.json`; without these they are those of the family, and for a
        `tokenizer.json` without a family those that its contents leave no doubt of.

        Args:
            folder: path of the folder.
            prefix: stands before each file name, as in `source_tokenizer.json`. Files without it serve where there
                are none with it, as in a folder whose one tokenizer is for source and target.

        Raises:
            ValueError: none of these files is there, the class of tokenizers is unknown, or one cannot be read.
        """
        folder = read_path("folder", folder)
        check_text("prefix", prefix)
        writing.settle(folder)
        backend, roles, config = tokenizer_files.read(folder, prefix)
        with refused(f"folder ({str(folder)!r})"):
            return cls(backend, **roles, config=config)

    def save(self, folder, prefix=""):
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers opens too.

        A file is replaced only when the new one is complete. Files of chat templates, which would hide the new ones,
        go.
        """
        check_text("prefix", prefix)
        # Without this list transformers feeds segment ids to every model, and GPT-2 adds their embeddings.
        has_segments = "cls" in self.roles and tokenizer_json.ends(self.backend)[2]
        segments = ["token_type_ids"] if has_segments else []
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", *segments, "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **self.config,
            **{f"{role}_token": token for role, token in self.roles.items()},
            # With these, what older versions of transformers wrote into the folder is not read.
            "added_tokens_decoder": {i: _flags(token) for i, token in self.backend.get_added_tokens_decoder().items()},
        }
        _write(
            folder,
            {
                f"{prefix}tokenizer.json": self.backend.to_str(pretty=True),
                f"{prefix}tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
            },
            {f"{prefix}{name}" for name in tokenizer_files.TEMPLATE_NAMES},  # which go before what the config says
        )

    def save_vocabulary(self, folder, prefix=""):
        """Write the older files: `vocab.txt` of WordPiece, `vocab.json` and `merges.txt` of BPE."""
        check_text("prefix", prefix)
        model = json.loads(self.backend.to_str())["model"]
        if self.backend.get_vocab_size(with_added_tokens=True) != len(model["vocab"]):
            raise ValueError("tokenizer has special tokens outside its model's vocabulary; save() keeps them.")
        if model["type"] == "WordPiece":
            files = {"vocab.txt": "".join(t + "\n" for t in sorted(model["vocab"], key=model["vocab"].get))}
        elif model["type"] == "BPE":
            merges = "".join(" ".join(merge) + "\n" for merge in model["merges"])
            vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
            files = {
                "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
                "merges.txt": "#version: 0.2\n" + merges,
            }
        else:
            raise ValueError(f"tokenizer ({model['type']}) must be WordPiece or BPE; save() serves all kinds.")
        _write(folder, {prefix + name: text for name, text in files.items()})

    # Training

    @classmethod
    def train_wordpiece(
        cls, /, texts, vocabulary_size, lowercase=True, min_frequency=2, max_alphabet=1000, **special_tokens
    ):
        """BERT's tokenizer: pieces of words, "##" before a piece that continues one.

        Args:
            texts: iterable of strings.
            vocabulary_size: the largest number of tokens, special ones included.
            lowercase: also strips the accents, as BERT does (uncased).
            min_frequency: how often a piece must occur.
            max_alphabet: only so many characters, the most frequent ones; others become unknown words.
            **special_tokens: roles that replace or extend pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]",
                mask="[MASK]"; None removes one.
        """
        check_positive("vocabulary_size", vocabulary_size)
        check_positive("max_alphabet", max_alphabet)
        check_boolean("lowercase", lowercase)
        check_from_zero("min_frequency", min_frequency)
        roles = _roles(tokenizer_parts.BERT_TOKENS, special_tokens, required="unk")
        backend = tokenizer_parts.bert(models.WordPiece(unk_token=roles["unk"]), lowercase)
        texts = list(_strings(texts, "texts"))
        counts = collections.Counter()
        for text in texts:
            counts.update(backend.normalizer.normalize_str(text))
        characters = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
        characters = characters[:max_alphabet]
        # By itself the trainer numbers "##c" in the order of a randomly seeded hash table, and breaks ties
        # between merges by these numbers; so they are given, for each character that can continue a word.
        continuing = ["##" + c for c in sorted(characters) if len(_words(backend, "a" + c)) == 1]
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocabulary_size,
            min_frequency=min_frequency,
            special_tokens=_unique(roles) + continuing,
            initial_alphabet=characters,
            limit_alphabet=len(characters),
            show_progress=False,
        )
        _train(backend, texts, trainer)
        model = models.WordPiece(backend.get_vocab(), unk_token=roles["unk"])
        backend = tokenizer_parts.bert(model, lowercase)
        tokenizer_parts.add_bert_template(backend, roles)
        return cls._trained(backend, roles, vocabulary_size)

    @classmethod
    def train_bpe(cls, /, texts, vocabulary_size, min_frequency=2, **special_tokens):
        """GPT-2's tokenizer: merged bytes, so every text can be encoded and comes back unchanged.

        Args:
            texts: iterable of strings.
            vocabulary_size: the largest number of tokens: special ones, 256 bytes, merges.
            min_frequency: how often a pair must occur to be merged.
            **special_tokens: roles that replace or extend bos="<|endoftext|>", eos="<|endoftext|>"; for a
                translator pad="<pad>", bos="<s>", eos="</s>".
        """
        check_positive("vocabulary_size", vocabulary_size)
        check_from_zero("min_frequency", min_frequency)
        roles = _roles(tokenizer_parts.GPT2_TOKENS, special_tokens)
        backend = tokenizer_parts.byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            min_frequency=min_frequency,
            special_tokens=_unique(roles),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        _train(backend, _strings(texts, "texts"), trainer)
        return cls._trained(backend, roles, vocabulary_size)

    @classmethod
    def train_unigram(cls, /, texts, vocabulary_size, **special_tokens):
        """The unigram model of SentencePiece (Kudo, 2018, https://arxiv.org/abs/1804.10959), "▁" for a space.

        Args:
            texts: iterable of strings.
            vocabulary_size: the largest number of tokens, special ones included.
            **special_tokens: roles that replace or extend pad="<pad>", unk="<unk>", bos="<s>", eos="</s>".
        """
        check_positive("vocabulary_size", vocabulary_size)
        roles = _roles(tokenizer_parts.TRANSLATOR_TOKENS, special_tokens, required="unk")
        backend = tokenizers.Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=vocabulary_size,
            special_tokens=_unique(roles),
            unk_token=roles["unk"],
            show_progress=False,
        )
        _train(backend, _strings(texts, "texts"), trainer)
        backend.model = _canonical_unigram(backend.model, _unique(roles), roles["unk"])
        return cls._trained(backend, roles, vocabulary_size)

    @classmethod
    def train_words(cls, /, texts, vocabulary_size, lowercase=False, min_frequency=1, **special_tokens):
        """Whole words and runs of punctuation, the most frequent ones; all others are the unknown token.

        Args:
            texts: iterable of strings.
            vocabulary_size: the largest number of tokens, special ones included.
            lowercase: lower the case first.
            min_frequency: how often a word must occur.
            **special_tokens: roles that replace or extend pad="<pad>", unk="<unk>", bos="<s>", eos="</s>".
        """
        check_positive("vocabulary_size", vocabulary_size)
        roles = _roles(tokenizer_parts.TRANSLATOR_TOKENS, special_tokens, required="unk")
        check_boolean("lowercase", lowercase)
        check_from_zero("min_frequency", min_frequency)
        backend = tokenizers.Tokenizer(models.WordLevel(unk_token=roles["unk"]))
        if lowercase:
            backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocabulary_size,
            min_frequency=min_frequency,
            special_tokens=_unique(roles),
            show_progress=False,
        )
        _train(backend, _strings(texts, "texts"), trainer)
        return cls._trained(backend, roles, vocabulary_size)

    @classmethod
    def _trained(cls, backend, roles, vocabulary_size):
        tokenizer = cls(backend, **roles)
        if tokenizer.vocabulary_size > vocabulary_size:
            raise ValueError(
                f"vocabulary_size ({vocabulary_size}) must be at least {tokenizer.vocabulary_size}, for the "
                "special tokens and the characters of these texts."
            )
        if tokenizer.vocabulary_size <= len(_unique(roles)):
            raise ValueError(f"vocabulary_size ({vocabulary_size}) and min_frequency leave only the special tokens.")
        return tokenizer


def _words(backend, text):
    return backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))


def _canonical_unigram(model, special_tokens, unk):
    """The same pieces, in an order and with scores that do not depend on the trainer's hash seeds.

    The trainer sums floats in a random order, which moves the last digits of a score, and hands the lowest
    scores, a ten-thousandth apart, in a random order to the characters that are too rare to have one: here
    they all get the lowest.
    """
    vocabulary = json.loads(tokenizers.Tokenizer(model).to_str())["model"]["vocab"]
    scores = {piece: score for piece, score in vocabulary if piece not in special_tokens}
    if not scores:
        raise ValueError("texts hold nothing to learn from.")
    lowest = min(scores.values())
    margin = lowest + 1e-4 * sum(len(piece) == 1 for piece in scores)
    for piece, score in scores.items():
        scores[piece] = round(lowest if len(piece) == 1 and score <= margin else score, 6)
    pieces = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    pieces = [(token, 0.0) for token in special_tokens] + pieces
    return models.Unigram(pieces, unk_id=special_tokens.index(unk))


def _roles(defaults, given, required=None):
    for role, token in given.items():
        if isinstance(token, str):
            check_text(role, token)
        if role not in tokenizer_parts.ROLES:
            raise ValueError(
                f"{role!r} is not the role of a special token; roles are {', '.join(tokenizer_parts.ROLES)}."
            )
    roles = {role: (defaults | given).get(role) for role in tokenizer_parts.ROLES}
    roles = {role: token for role, token in roles.items() if token is not None}
    if required and required not in roles:
        raise ValueError(f"{required} (None) must be a token: this kind of tokenizer needs one.")
    return roles


def _flags(token):
    return {name: getattr(token, name) for name in tokenizer_files.FLAGS}


def _unique(roles):
    return list(dict.fromkeys(roles.values()))


def _strings(texts, name):
    if isinstance(texts, str):
        raise ValueError(f"{name} ({shown(texts)}) must be an iterable of strings.")
    check_sequence(name, texts)
    for index, text in enumerate(texts):
        check_text(f"{name}[{index}]", text)
        yield text


def _train(backend, texts, trainer):
    seen = False

    def watched():
        nonlocal seen
        for text in texts:
            seen = seen or bool(text.strip())
            yield text

    try:
        backend.train_from_iterator(watched(), trainer)
    except ValueError:
        raise
    except Exception as error:  # The package raises bare exceptions.
        raise ValueError(f"vocabulary_size ({trainer.vocab_size}) does not do for these texts: {error}") from error
    if not seen:
        raise ValueError("texts hold nothing to learn from.")


def _write(folder, files, stale=()):
    with writing.staged(read_path("folder", folder), set(stale).__contains__) as new:
        for name, text in files.items():
            (new / name).write_text(text, encoding="utf-8")
