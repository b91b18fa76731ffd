"""Each argument of what is public gets values that it must refuse: with a short `ValueError` that names it.

A call is a function, arguments that are right, and of what kind each is. `WRONG` says what does not belong to a kind,
so a new argument is one word here. What datasets hold is tested where they are.
"""

import collections
import pathlib

import numpy as np
import pytest

import kerasllm
from kerasllm import datasets, layers, metrics, training
from kerasllm.export.runtime import Runner
from kerasllm.generation.config import GenerationConfig

TEXTS = ["the cat sat on the mat .", "the dog ran to the cat .", "a bird sings"]
SMALL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16}
LONGEST = 600
"""Characters of a message."""
NAN, INFINITY, HUGE, HALF = float("nan"), float("inf"), 10**400, "\ud800"
LONG = ["x" * 100] * 100  # whose repr has 10,000 characters
NOWHERE = "/nowhere/at all"

OTHERS = ["", "x", b"3", [], {}, set(), object(), LONG, np.ones((2, 2)), 1j, True]
FRACTIONS = [1.5, NAN, INFINITY, 10**30]
NO_TEXTS = [
    3,
    b"x",
    {},
    {"the": 1, "cat": 2},
    {"the", "cat"},
    object(),
    *([x] * 3 for x in (None, 3, b"x", HALF)),
]
WRONG = {
    "count": [None, -1, 0, HUGE, *FRACTIONS, *OTHERS],
    "count from 0": [None, -1, HUGE, *FRACTIONS, *OTHERS],
    "seed": [-1, HUGE, *FRACTIONS, *OTHERS],
    "whole": [None, HUGE, *FRACTIONS, *OTHERS],
    "positive": [None, -1, 0, NAN, INFINITY, HUGE, 1e-300, 1e300, *OTHERS],
    "finite": [None, NAN, INFINITY, -INFINITY, HUGE, 1e300, -1e300, *OTHERS],
    "from 0": [None, -1, NAN, INFINITY, HUGE, 1e300, *OTHERS],
    "rate": [None, -0.1, 1, NAN, INFINITY, HUGE, *OTHERS],
    "part": [None, -0.1, 1.1, NAN, INFINITY, HUGE, *OTHERS],
    "flag": [None, "false", "", 2, 0.5, NAN, [], {}, object(), LONG, np.ones(2)],
    "string": [None, 3, True, b"x", [], {}, {"the"}, object(), LONG, HALF],
    "text": [None, "", 3, True, b"x", [], {}, {"the"}, object(), HALF],
    "texts": [None, "", " ", True, [], (), [""], ["the", 3], [["the"]], *NO_TEXTS],
    "list of texts": [None, "", "the cat", [], *NO_TEXTS],
    "iterable of texts": ["the cat", *NO_TEXTS],
    "list of texts or lists": [None, "", "the cat", [], [[]] * 3, [[3]] * 3, [{}] * 3, *NO_TEXTS],
    "ids": [None, 3, 0.5, b"x", [], {}, {1, 2}, object(), [[]], [[1], []], [[1.5]], [["a"]], [[-1]], [[99]], [[10**30]]]
    + [
        [[True]],
        np.zeros((0, 3), "int32"),
        np.zeros((2, 0), "int32"),
        np.ones((2, 2)),
        np.full((9, 9), 99),
        np.array(3),
    ]
    + [{"token_ids": [[1]]}, [[1], 3], [None], [[None]], [{1, 2}], [{1: 2}]],
    "flat ids": [None, "x", 3, 1.5, {}, {1}, object(), [1.5], ["a"], [-1], [[1]], [[1], [1, 2]], [HUGE], [None], LONG],
    "id": [-1, 99, HUGE, *FRACTIONS, *OTHERS],
    "list of ids": [
        "x",
        b"3",
        3,
        1.5,
        {},
        {1, 2},
        object(),
        [-1],
        [1.5],
        [99],
        [HUGE],
        [None],
        ["a"],
        [True],
        [[1]],
        LONG,
    ],
    "words": [[""], [3], [[]], [[99]], [[HUGE]], [None], {"a"}, "the", object(), [[i] for i in range(16)]],
    "bias": [
        3,
        "x",
        [1],
        object(),
        {99: 1.0},
        {-1: 1.0},
        {1: NAN},
        {1: INFINITY},
        {1: HUGE},
        {1: "x"},
        {"a": 1.0},
        {1.5: 1.0},
    ]
    + [{i: -INFINITY for i in range(16)}],
    "stop": [99, -1, HUGE, 1.5, "", [""], [99], {1}, {"a"}, object(), [None], [[1]], True],
    "path": [None, "", 3, True, 1.5, [], {}, set(), object(), LONG, "a\0b"],
    "existing": [None, "", 3, True, [], {}, object(), LONG, "a\0b", NOWHERE, pathlib.Path(NOWHERE), b"/nowhere"],
    "tokenizer": [3, "x", {}, object(), LONG],
    "choice": [3, 1.5, *OTHERS],
    "config": [3, "x", [], {}, {"top_k": 3}, object(), GenerationConfig, LONG],
    "function": [3, "x", object(), LONG],
    "functions": [None, 3, "x", [3], [None], object(), {1: 2}, LONG, abs],
    "array": [None, "x", 3, [], {}, object(), [[1, 2], [3]], [["a"]], np.ones((1, 2, 3)), LONG, 1j],
    "size": ["", "x", -1, 0, 1.5, NAN, INFINITY, True, [], {}, object(), LONG, "5 parsecs"],
    "counts": [None, "x", 3, [0], [-1], [1.5], ["a"], [None], {}, object(), LONG, [HUGE]],
    "signature": ["x", 3, [], {}, {"x": 1}, object(), LONG],
    "classes": [
        None,
        "x",
        3,
        [],
        {},
        {0, 1},
        object(),
        [0.5, 1.5],
        ["a", "b"],
        [0],
        [0, 9],
        [-1, 0],
        [NAN, 0.0],
        [[0, 1]],
    ]
    + [[[0], 1], LONG, [None, 1]],
    "patterns": [None, 3, [3], [None], object(), ["("], "(", {"a": 1}],
    "pattern": [None, 3, [3], object(), "(", {"a": 1}, b"x"],
    "dict": [3, "x", ["a"], object(), LONG],
}
OTHER_NAMES = {"source": "preset"}
"""What a message may call an argument instead."""

Call = collections.namedtuple("Call", "function right kinds")
PARTS = ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "no_repeat_ngram_size", "top_k")
CONFIG = {
    **{name: "count from 0 or None" if "min" in name else "count or None" for name in LENGTHS},
    **dict.fromkeys(PARTS, "part or None"),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), "finite or None"),
    **dict.fromkeys(("renormalize_logits", "strip_prompt"), "flag"),
    "num_return_sequences": "count",
    "num_beams": "count",
    "temperature": "from 0 or None",
    "repetition_penalty": "positive or None",
    "seed": "seed",
    "early_stopping": "choice",
}
OF_MODEL = {
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), "list of ids"),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), "id"),
    "bad_words": "words",
    "logit_bias": "bias",
    "stop": "stop",
}
CALLING = {"batch_size": "count", "return_scores": "flag", "processors": "functions", "config": "config"}
CALLING |= {"prefix_allowed_tokens": "function", "first_index": "count from 0"}


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    return all_calls(tmp_path_factory.mktemp("wrong calls"))


def all_calls(folder):
    """The calls by their names, of models made once."""
    words = kerasllm.Tokenizer.train_words(TEXTS, 40)
    pieces = kerasllm.Tokenizer.train_wordpiece(TEXTS, 60)
    n, m = words.vocabulary_size, pieces.vocabulary_size
    gpt = kerasllm.GPT(n, **SMALL, tokenizer=words)
    translator = kerasllm.TransformerTranslator(n, n, **SMALL, source_tokenizer=words, target_tokenizer=words)
    bert, answerer, embedder = (
        cls(m, **SMALL, tokenizer=pieces)
        for cls in (kerasllm.BERTMaskedLM, kerasllm.BERTQuestionAnswerer, kerasllm.BERTEmbedder)
    )
    classifier = kerasllm.BERTClassifier(m, labels=["a", "b", "c"], **SMALL, tokenizer=pieces)
    reranker = kerasllm.BERTClassifier(m, labels=1, **SMALL, tokenizer=pieces)
    tagger = kerasllm.BERTTokenClassifier(m, labels=["O", "B-X"], **SMALL, tokenizer=pieces)
    index = kerasllm.EmbeddingIndex(TEXTS, np.ones((3, 8), "float32"))
    one, beams = {"max_new_tokens": 1}, {"max_new_tokens": 2, "num_beams": 2}
    classes = {"labels": [0, 1], "predictions": [0, 1], "num_classes": 2}
    texts = {"hypotheses": TEXTS, "references": TEXTS}
    draws = {"measure": "function", "rows": "array", "resamples": "count", "seed": "seed"}
    judged = {"model": tagger, "data": [{"words": TEXTS[0].split(), "labels": ["O"] * 7}], "task": "tag"}
    steps = {"peak_learning_rate": 1e-3, "warmup_steps": 1}
    data = {"batch_size": "count", "seed": "count from 0", "shuffle": "flag"}
    labelled = {**data, "multiple": "count", "max_length": "count", "too_long": "choice", "segments": "flag"}
    stack = {"vocabulary_size": 9, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}
    training_of = {
        "train_words": dict(min_frequency="count from 0", lowercase="flag"),
        "train_bpe": dict(min_frequency="count from 0"),
        "train_wordpiece": dict(min_frequency="count from 0", lowercase="flag", max_alphabet="count"),
        "train_unigram": {},
    }
    calls = [
        (GenerationConfig, {}, CONFIG),
        (gpt.generate, {"prompts": [[1]], **one}, {"prompts": "ids", **CALLING, **CONFIG, **OF_MODEL}),
        (gpt.generate, {"prompts": [[1]], "draft": "prompt", **one}, {"draft": "choice", "num_draft_tokens": "count"}),
        (gpt.stream, {"prompt": "the", **one}, {"prompt": "string", "config": "config", **CONFIG, **OF_MODEL}),
        (gpt.score, {"texts": [[1, 2]]}, {"texts": "ids", "batch_size": "count"}),
        (translator.translate, {"texts": "the cat", **one}, {"texts": "texts", **CALLING, **CONFIG, **OF_MODEL}),
        (translator.translate, {"texts": "the cat", **beams}, {"length_penalty": "finite"}),
        (
            translator.generate,
            {"sources": [[1]], "prompts": [[1]], **one},
            {"sources": "ids", "prompts": "ids or None"},
        ),
        (translator.score, {"sources": ["the"], "targets": ["the"]}, {"sources": "texts", "targets": "texts"}),
        (translator.stream, {"text": "the cat", **one}, {"text": "text", "config": "config"}),
        (bert.fill_mask, {"texts": "[MASK]"}, {"texts": "texts", "top_k": "count", "batch_size": "count"}),
        (classifier.classify, {"texts": TEXTS}, dict(texts="texts", top_k="count or None", truncate="flag")),
        (classifier.classify, {"texts": TEXTS}, {"stride": "count from 0 or None"}),
        (tagger.tag, {"texts": TEXTS}, {"stride": "count from 0 or None"}),
        (tagger.tag_words, {"words": [TEXTS]}, {"words": "iterable of texts", "batch_size": "count"}),
        (embedder.embed, {"texts": TEXTS}, {"stride": "count from 0 or None"}),
        (classifier.classify, {"texts": TEXTS}, {"pairs": "list of texts or None", "batch_size": "count"}),
        (tagger.tag, {"texts": TEXTS}, {"texts": "texts", "aggregation": "choice", "batch_size": "count"}),
        (
            answerer.answer,
            {"question": "the cat", "context": "the cat sat", "stride": 1},
            {"question": "texts", "context": "texts", "stride": "count from 0", "allow_no_answer": "flag"}
            | dict.fromkeys(("top_k", "max_answer_length", "batch_size"), "count"),
        ),
        (embedder.embed, {"texts": TEXTS}, dict(texts="texts", truncate="flag", prompt="string or None")),
        (embedder.embed, {"texts": TEXTS}, {"prompt_name": "choice", "batch_size": "count"}),
        (embedder.index, {"texts": TEXTS}, dict(texts="list of texts", truncate="flag", prompt="string or None")),
        (
            embedder.search,
            {"query": "the", "corpus": TEXTS},
            dict(query="texts", corpus="list of texts", top_k="count"),
        ),
        (kerasllm.EmbeddingIndex, {"texts": TEXTS, "embeddings": np.ones((3, 4))}, dict(texts="list of texts")),
        (kerasllm.EmbeddingIndex, {"texts": TEXTS, "embeddings": np.ones((3, 4))}, {"embeddings": "array"}),
        (kerasllm.EmbeddingIndex, {"texts": TEXTS, "embeddings": np.ones((3, 4))}, {"dtype": "choice"}),
        (embedder.index, {"texts": TEXTS}, {"dtype": "choice"}),
        (index.search, {"queries": np.ones((1, 8))}, {"queries": "array", "top_k": "count", "similarity": "choice"}),
        (index.save, {"folder": folder / "index"}, {"folder": "path"}),
        (kerasllm.EmbeddingIndex.load, {"folder": folder}, {"folder": "existing"}),
        (kerasllm.load, {"task": "generate", "source": folder}, {"task": "choice", "source": "existing"}),
        (kerasllm.GPT.from_preset, {"source": folder}, {"source": "existing"}),
        (kerasllm.checkpoints.describe, {"source": folder}, {"source": "existing"}),
        (gpt.save_to_preset, {"folder": folder / "preset"}, {"folder": "path", "max_shard_size": "size"}),
        (gpt.save, {"filepath": folder / "gpt.keras"}, {"filepath": "path"}),
        (gpt.save_weights, {"filepath": folder / "gpt.weights.h5"}, {"filepath": "path"}),
        (gpt.load_weights, {"filepath": folder / "gpt.weights.h5"}, {"filepath": "path"}),
        (
            gpt.export,
            {"filepath": folder / "gpt.tflite", "format": "litert"},
            {
                "filepath": "path",
                "format": "choice",
                "quantize": "choice or None",
                "signatures": "list of texts or None",
            }
            | {"min_agreement": "part", "prefill_lengths": "counts", "input_signature": "signature"}
            | dict.fromkeys(("strings", "truncate", "verify"), "flag")
            | {"max_length": "count or None", "batch_size": "count", "num_beams": "count"},
        ),
        (metrics.confusion_matrix, classes, dict(labels="classes", predictions="classes", num_classes="count")),
        (metrics.classification_scores, classes, dict(labels="classes", predictions="classes", num_classes="count")),
        (metrics.answer_scores, {"answers": TEXTS, "references": TEXTS}, {"answers": "list of texts"}),
        (metrics.answer_scores, {"answers": TEXTS, "references": TEXTS}, {"references": "list of texts or lists"}),
        (metrics.bleu, texts, dict.fromkeys(texts, "list of texts")),
        (metrics.chrf, texts, dict.fromkeys(texts, "list of texts")),
        (metrics.calibration_error, {"confidences": [0.5], "is_right": [True]}, {"num_bins": "count"}),
        (metrics.bootstrap_interval, {"measure": np.ravel, "rows": [1.0, 2.0]}, draws),
        (metrics.entity_scores, {"labels": [["O"]], "predictions": [["O"]]}, {"scheme": "choice"}),
        (metrics.distinct_ngrams, {"texts": TEXTS, "n": 2}, {"texts": "list of texts", "n": "count"}),
        (metrics.repeated_ngrams, {"texts": TEXTS, "n": 2}, {"texts": "list of texts", "n": "count"}),
        (
            kerasllm.evaluate,
            judged,
            {"task": "choice", "columns": "dict", "batch_size": "count", "limit": "count or None"},
        ),
        (kerasllm.evaluate, judged, {"resamples": "count from 0", "seed": "seed", "progress": "function or None"}),
        (metrics.rouge, texts, {**dict.fromkeys(texts, "list of texts"), "use_stemmer": "flag"}),
        (training.LanguageModelDataset, {"documents": TEXTS, "tokenizer": words}, data),
        (
            training.MaskedLMDataset,
            {"texts": TEXTS, "tokenizer": pieces},
            {"rate": "rate", "whole_words": "flag", **labelled},
        ),
        (
            training.ClassificationDataset,
            {"texts": TEXTS, "labels": [0, 1, 0], "tokenizer": pieces},
            {**labelled, "augment": "function or None"},
        ),
        (kerasllm.text.drop_words, {"texts": TEXTS}, {"texts": "list of texts", "seed": "seed", "rate": "rate"}),
        (kerasllm.text.swap_words, {"texts": TEXTS}, {"texts": "list of texts", "seed": "seed", "rate": "rate"}),
        (
            kerasllm.text.replace_words,
            {"texts": TEXTS, "model": bert},
            {"texts": "list of texts", "seed": "seed", "rate": "rate", "top_k": "count", "batch_size": "count"},
        ),
        (training.TokenCrossentropy, {}, {"ignore_class": "whole or None", "label_smoothing": "rate"}),
        (training.InBatchNegativesLoss, {}, {"temperature": "positive", "chunk_size": "count or None"}),
        (training.InBatchNegativesLoss, {}, {"reduction": "choice"}),
        (training.CosineSimilarityLoss, {}, {"chunk_size": "count or None"}),
        (training.CoSENTLoss, {}, {"scale": "positive", "chunk_size": "count or None"}),
        (
            training.MatryoshkaLoss,
            {"loss": training.CoSENTLoss(), "dims": [2]},
            {"loss": "choice", "dims": "counts", "weights": "choice"},
        ),
        (
            training.PairDataset,
            {"pairs": [TEXTS[:2]], "model": embedder},
            {**data, "multiple": "count", "max_length": "count or None", "too_long": "choice"}
            | {"batch_size": "count or None", "pairs": "choice", "model": "choice"}
            | dict.fromkeys(("query_prompt", "document_prompt"), "string or None"),
        ),
        (
            training.ScoredPairDataset,
            {"pairs": [TEXTS[:2]], "scores": [0.5], "model": embedder},
            {
                **data,
                "batch_size": "count or None",
                "pairs": "choice",
                "scores": "choice",
                "prompt": "string or None",
                "prompt_name": "choice",
            },
        ),
        (reranker.rank, {"query": "the", "texts": TEXTS}, {"query": "text", "texts": "list of texts"}),
        (
            reranker.rank,
            {"query": "the", "texts": TEXTS},
            {"top_k": "count or None", "batch_size": "count", "truncate": "flag"},
        ),
        (kerasllm.add_lora, {"model": gpt}, {"rank": "count", "alpha": "positive", "targets": "patterns"}),
        (kerasllm.add_lora, {"model": gpt}, {"train_also": "patterns or None"}),
        (kerasllm.set_adapter, {"model": gpt, "adapter": None}, {"adapter": "choice or None"}),
        (kerasllm.load_adapter, {"model": gpt, "folder": folder}, {"folder": "existing"}),
        (kerasllm.freeze, {"model": gpt, "patterns": "query"}, {"model": "choice", "patterns": "patterns"}),
        (kerasllm.unfreeze, {"model": gpt}, {"model": "choice"}),
        (
            kerasllm.add_tokens,
            {"model": gpt, "tokens": ["<a>"]},
            {
                "model": "choice",
                "tokens": "list of texts",
                "beginnings": "choice",
                "special": "flag",
                "multiple": "count",
            },
        ),
        (kerasllm.with_labels, {"model": classifier, "labels": 2}, {"model": "choice"}),
        (
            kerasllm.with_positions,
            {"model": classifier, "max_sequence_length": 20},
            {"model": "choice", "max_sequence_length": "count", "beginnings": "choice"},
        ),
        (
            training.ChatDataset,
            {"chats": [{"prompt": "the", "completion": "cat"}], "tokenizer": words},
            {**data, "multiple": "count", "max_length": "count", "too_long": "choice", "loss_on": "choice"}
            | {"batch_size": "count or None", "packing": "choice or None", "tokenizer": "choice"},
        ),
        (
            training.PreferenceDataset,
            {
                "pairs": [{"prompt": "the", "chosen": "cat", "rejected": "dog"}],
                "tokenizer": words,
                "reference": np.zeros((1, 2)),
            },
            {**data, "multiple": "count", "max_length": "count", "too_long": "choice", "chunk_size": "count"}
            | {"batch_size": "count or None", "tokenizer": "choice"},
        ),
        (training.DPOLoss, {}, {"beta": "positive", "label_smoothing": "rate", "chunk_size": "count or None"}),
        (training.DPOLoss, {}, {"reduction": "choice"}),
        (metrics.spearman, {"scores": [1, 2], "references": [3, 4]}, {"scores": "choice", "references": "choice"}),
        (
            metrics.retrieval_scores,
            {"ranked": [[1, 2]], "relevant": [[1]], "at": [1]},
            {"ranked": "choice", "relevant": "choice", "at": "counts"},
        ),
        (training.DistillationLoss, {"teacher": gpt}, {"temperature": "positive", "alpha": "part"}),
        (
            training.MagnitudePruning,
            {"final_sparsity": 0.5, "end_step": 10},
            {"final_sparsity": "rate", "initial_sparsity": "rate", "targets": "pattern"}
            | {"every": "count", "begin_step": "count from 0", "end_step": "count from 0"},
        ),
        (training.Perplexity, {}, {"ignore_class": "whole or None"}),
        (training.WarmupLinear, {**steps, "total_steps": 9}, dict(peak_learning_rate="positive", total_steps="count")),
        (
            training.WarmupCosine,
            {**steps, "total_steps": 9},
            dict(final_learning_rate="from 0", warmup_steps="count from 0"),
        ),
        (training.InverseSquareRoot, steps, {"peak_learning_rate": "positive", "warmup_steps": "count"}),
        (
            training.InverseSquareRoot.noam,
            {"hidden_dim": 8},
            dict(hidden_dim="count", warmup_steps="count", scale="positive"),
        ),
        (training.AdamW, {}, {"no_decay": "patterns"}),
        (words.encode, {"text": "the"}, {"text": "string", "pair": "string or None", "special_tokens": "flag"}),
        (words.encode_batch, {"texts": TEXTS}, {"texts": "iterable of texts", "special_tokens": "flag"}),
        (words.encodings, {"texts": TEXTS, "pairs": TEXTS}, dict.fromkeys(("texts", "pairs"), "iterable of texts")),
        (words.encodings, {"texts": TEXTS}, {"max_length": "count or None"}),
        (words.decode, {"ids": [1]}, {"ids": "flat ids", "skip_special_tokens": "flag"}),
        (words.token_to_id, {"token": "the"}, {"token": "string"}),
        (kerasllm.Tokenizer.from_folder, {"folder": folder}, {"folder": "existing", "prefix": "string"}),
        (words.save, {"folder": folder / "words"}, {"folder": "path", "prefix": "string"}),
        (pieces.save_vocabulary, {"folder": folder / "words"}, {"folder": "path", "prefix": "string"}),
        (kerasllm.Tokenizer, {"backend": words.backend}, {"backend": "tokenizer", "config": "dict", "pad": "choice"}),
        *(
            (
                getattr(kerasllm.Tokenizer, name),
                {"texts": TEXTS, "vocabulary_size": 300},
                {"vocabulary_size": "count", **kinds},
            )
            for name, kinds in training_of.items()
        ),
        (datasets.from_files, {"train": folder}, {"train": "path", "kind": "choice", "held_out": "rate"}),
        (datasets.tatoeba, {}, {"max_words": "count or None"}),
        (datasets.wikitext2, {}, {"unit": "choice"}),
        (datasets.movie_reviews, {}, {"source": "choice"}),
        (layers.MultiHeadAttention, {"num_heads": 2}, {"num_heads": "count", "dropout": "rate"}),
        (layers.FeedForward, {"intermediate_dim": 2}, {"intermediate_dim": "count", "activation": "choice or None"}),
        *(
            (cell, {"units": 2}, {"units": "count"})
            for cell in (layers.AdditiveAttention, layers.LSTMCell, layers.GRUCell)
        ),
        (layers.TransformerEncoder, stack, {**dict.fromkeys(stack, "count"), "dropout": "rate"}),
        (layers.TransformerDecoder, stack, {**dict.fromkeys(stack, "count"), "dropout": "rate"}),
        (
            kerasllm.GPT,
            {"vocabulary_size": 9, **SMALL},
            {**dict.fromkeys((*stack, "max_sequence_length"), "count")}
            | dict.fromkeys(("norm", "positions", "dtype"), "choice")
            | {"dropout": "rate", "intermediate_dim": "count or None", "tokenizer": "tokenizer"},
        ),
        (kerasllm.BERTClassifier, {"vocabulary_size": 9, **SMALL}, {"problem_type": "choice"}),
        (
            kerasllm.RNNLanguageModel,
            {"vocabulary_size": 9, "hidden_dim": 4},
            {"vocabulary_size": "count", "hidden_dim": "count"},
        ),
        (
            kerasllm.LSTMTranslator,
            {"source_vocabulary_size": 9, "target_vocabulary_size": 9, "hidden_dim": 4},
            dict.fromkeys(("source_vocabulary_size", "target_vocabulary_size", "hidden_dim", "num_layers"), "count")
            | {"dropout": "rate", "cell": "choice", "attention": "choice"}
            | dict.fromkeys(("share_embeddings", "input_feeding"), "flag"),
        ),
        (
            kerasllm.BERTEmbedder,
            {"vocabulary_size": 9, **SMALL},
            {"pooling": "choice", "similarity": "choice", "truncate_at": "count or None", "prompts": "dict"}
            | dict.fromkeys(("normalize", "include_prompt"), "flag"),
        ),
        (kerasllm.BERT.from_size, {"size": "tiny", "vocabulary_size": 9}, {"size": "choice"}),
    ]
    return [Call(*call) for call in calls]


def cases(calls):
    """Each call with each argument and each value that is wrong for it."""
    for call in calls:
        for argument, kind in call.kinds.items():
            base = kind.removesuffix(" or None")
            for value in WRONG[base]:
                if value is not None or base == kind:
                    yield call, argument, value


def complaint(call, argument, value):
    """None where the call refuses the value as it should, else what it does."""
    try:
        result = call.function(**{**call.right, argument: value})
        if isinstance(result, collections.abc.Iterator):
            list(result)
    except ValueError as error:
        message = str(error)
        is_named = argument in message or OTHER_NAMES.get(argument, argument) in message
        return (
            None if is_named and len(message) <= LONGEST else f"ValueError: {len(message)} characters: {message:.200}"
        )
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.200}"
    return "accepts it"


def complaints(cases):
    found = []
    for call, argument, value in cases:
        if said := complaint(call, argument, value):
            found.append(f"{call.function.__qualname__}({argument}={value!r:.50}) {said}")
    return found


def test_some_wrong_values_of_each_argument_are_refused_by_name(calls):
    some = list(cases(calls))[::5]
    assert len(some) > 500
    assert not complaints(some)


@pytest.mark.slow
def test_all_wrong_values_of_a_runners_arguments_are_refused_by_name(tmp_path):
    words, pieces = kerasllm.Tokenizer.train_words(TEXTS, 40), kerasllm.Tokenizer.train_wordpiece(TEXTS, 60)
    models = {
        "gpt": kerasllm.GPT(16, **SMALL, tokenizer=words),
        "bert": kerasllm.BERTClassifier(60, labels=["a", "b", "c"], **SMALL, tokenizer=pieces),
        "translator": kerasllm.TransformerTranslator(16, 16, **SMALL, source_tokenizer=words, target_tokenizer=words),
    }
    for name, model in models.items():
        model.export(tmp_path / f"{name}.tflite", "litert", verbose=False, verify=False)
    gpt, bert, translator = (Runner(tmp_path / f"{name}.tflite") for name in models)
    one = {"max_new_tokens": 1}
    flags, ids = {"strip_prompt": "flag", "config": "config", "stop": "stop"}, {"token_ids": np.ones((1, 2), "int32")}
    sampling = {name: CONFIG[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed")}
    lengths = {name: CONFIG[name] for name in ("max_length", "max_new_tokens", "num_return_sequences")}
    calls = [
        (Runner, {"path": gpt.path}, {"path": "existing", "num_threads": "count or None"}),
        (gpt.generate, {"prompts": "the", **one}, {"prompts": "ids", **flags, **sampling, **lengths}),
        (gpt.stream, {"prompt": "the", **one}, {"prompt": "string", **flags, **sampling}),
        (gpt.run, {"function": "decode", **ids}, {"function": "choice"}),
        (bert.classify, {"texts": "the"}, {"texts": "texts", "top_k": "count or None", "truncate": "flag"}),
        (bert.classify, {"texts": TEXTS}, {"pairs": "list of texts or None"}),
        (translator.translate, {"texts": "the", **one}, {"texts": "texts", **flags, "num_beams": "count"}),
    ]
    assert not (found := complaints(cases(Call(*call) for call in calls))), "\n".join(found)


@pytest.mark.slow
def test_all_wrong_values_of_each_argument_are_refused_by_name(calls):
    assert not complaints(cases(calls))
