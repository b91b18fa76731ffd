"""Batches for `fit` of embedders: texts that belong together, and pairs of texts with scores."""

import collections

import numpy as np

from kerasllm.arguments import check_choice, check_positive, check_text, is_number, read_sequence, shown
from kerasllm.text import batches
from kerasllm.text.prompts import DOCUMENT, QUERY, find_prompt, first_prompt, num_prompt_tokens
from kerasllm.training.datasets import BucketedDataset, fitting
from kerasllm.training.embedding_losses import ANCHOR, NEGATIVE, POSITIVE


class TextsDataset(BucketedDataset):
    """The base of datasets for embedders: an example is C texts, which are C rows of a batch, one after the other.

    Args:
        examples: list of lists of C strings.
        prompts: C strings that are set before them.
        model: a `BERTEmbedder` with a tokenizer.
        max_length, too_long: as for `PairDataset`.
        **kwargs: as for `BucketedDataset`.
    """

    def __init__(self, examples, prompts, model, max_length, too_long, batch_size, multiple, seed, shuffle, **kwargs):
        check_choice("too_long", too_long, ("error", "drop", "truncate"))
        max_length = _read_max_length(max_length, model)
        tokenizer = model.required_tokenizer()
        texts = [prompt + text for texts in examples for prompt, text in zip(prompts, texts, strict=True)]
        encodings = tokenizer.encodings(texts)
        bare = tokenizer.encodings([text for texts in examples for text in texts]) if any(prompts) else encodings
        columns = len(prompts)
        for row, encoding in enumerate(bare):
            if 0 not in encoding.sequence_ids:
                i, j = divmod(row, columns)
                raise ValueError(f"pairs[{i}][{j}] ({shown(examples[i][j])}) has no tokens.")
        lengths = np.array([len(e) for e in encodings]).reshape(-1, columns).max(axis=1)
        keep = fitting(lengths, max_length, too_long, "pairs")
        self.kept, self.num_too_long = keep, int((lengths > max_length).sum())
        for row in (i * columns + j for i in keep[lengths[keep] > max_length] for j in range(columns)):
            if len(encodings[row]) > max_length:
                encodings[row] = tokenizer.encodings([texts[row]], max_length=max_length)[0]
        rows = (keep[:, None] * columns + np.arange(columns)).reshape(-1)
        self.columns = columns
        self.token_ids = [np.array(encodings[row].ids, "int32") for row in rows]
        self.has_segments, starts = "segment_ids" in model.input, [num_prompt_tokens(tokenizer, p) for p in prompts]
        self.starts = starts if "pooling_mask" in model.input else None
        # Equal texts are those of which the model reads the same.
        numbers = collections.defaultdict(lambda: len(numbers))
        self.names = np.array([numbers[tuple(bare[row].ids[:max_length])] for row in rows]).reshape(
            -1, columns
        )  # (N, C)
        lengths = np.minimum(lengths[keep], max_length)
        super().__init__(lengths, batch_size, multiple, max_length, seed, shuffle, **kwargs)

    def make_inputs(self, indices, widths):
        """The inputs of the examples at `indices`, padded to `widths`."""
        rows = (np.asarray(indices)[:, None] * self.columns + np.arange(self.columns)).reshape(-1)
        token_ids, padding_mask = batches.pad([self.token_ids[row] for row in rows], widths[0])
        inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
        if self.has_segments:
            inputs["segment_ids"] = np.zeros_like(token_ids)
        if self.starts is not None:
            starts = np.tile(self.starts, len(indices))
            inputs["pooling_mask"] = (padding_mask & (np.arange(widths[0]) >= starts[:, None])).astype("int32")
        return inputs

    def rows_of(self, indices):
        return np.repeat(indices, self.columns)


class PairDataset(TextsDataset):
    """Texts that belong together, with or without negatives, for `InBatchNegativesLoss` and a `BERTEmbedder`.

    A batch is `(inputs, labels)`: `inputs` has the model's inputs (B, T), a row for each text; labels (B, 2) int32 are
    the place of its example in the batch, and 0, 1 or 2 for an anchor, its positive or a negative. All rows are as wide
    as the longest text of the batch.

    Batches hold examples of like length. Equal texts, as the model reads them, are not in two examples of a batch,
    where they would be taken for each other's negatives: the later example goes into one of the next batches. What is
    left in the end makes batches that are not full; one of a single pair without negatives teaches nothing.

        dataset = PairDataset([("who sat", "the cat sat"), ("who ran", "the dog ran")], model)
        model.compile("adamw", InBatchNegativesLoss())
        model.fit(dataset, epochs=1)

    Args:
        pairs: for each example a list of strings, as many as the others have: an anchor, such as a query, its positive,
            such as a document, and further documents that are negatives.
        model: a `BERTEmbedder` with a tokenizer, which says the prompts, the inputs and where texts are cut.
        batch_size: examples in a batch, two or more: a batch has so many times the texts of an example.
        max_length: the most tokens of a text, special ones and prompt included. Default: the model's `truncate_at`, or
            its `max_sequence_length`.
        too_long: what is done with examples of longer texts: "error" raises, "drop" leaves them out, "truncate" cuts
            the texts; `num_too_long` counts the examples.
        query_prompt: a string that is set before each anchor. Default: what `model.search` sets before a query.
        document_prompt: a string that is set before each other text. Default: what `model.index` sets.
        multiple, seed, shuffle, **kwargs: see `BucketedDataset`; 32 examples by default.

    Raises:
        ValueError: an example is no list of non-empty strings, or has another number of them than the first; the model
            makes no vectors or has no tokenizer.
    """

    def __init__(
        self,
        pairs,
        model,
        batch_size=None,
        max_length=None,
        too_long="error",
        query_prompt=None,
        document_prompt=None,
        multiple=32,
        seed=0,
        shuffle=True,
        **kwargs,
    ):
        check_embedder(model)
        if batch_size is not None:
            check_positive("batch_size", batch_size)
            if batch_size < 2:
                raise ValueError(f"batch_size ({batch_size}) must be 2 or more: one pair has no negatives.")
        examples = read_examples(pairs)
        query_prompt = _read_prompt("query_prompt", query_prompt, model, QUERY)
        document_prompt = _read_prompt("document_prompt", document_prompt, model, DOCUMENT)
        prompts = [query_prompt] + [document_prompt] * (len(examples[0]) - 1)
        super().__init__(examples, prompts, model, max_length, too_long, batch_size, multiple, seed, shuffle, **kwargs)

    def make_batch(self, indices, widths, generator):
        roles = [ANCHOR, POSITIVE] + [NEGATIVE] * (self.columns - 2)
        labels = np.stack([self.rows_of(np.arange(len(indices))), np.tile(roles, len(indices))], axis=1)
        return self.make_inputs(indices, widths), labels.astype("int32")

    def draw(self, generator):
        order = np.concatenate([indices for indices, _ in super().draw(generator)])
        plan = []
        for indices in apart(order, self.names, self.batch_size):
            width = batches.round_up(int(self.lengths[indices].max()), self.multiple)
            plan.append((indices, (min(width, self.max_length),)))
        return with_unlike_ends(plan)

    def arrays(self):
        for name, count in zip(
            *np.unique(np.concatenate([*map(np.unique, self.names)]), return_counts=True), strict=True
        ):
            if count > 1:
                first, second = self.kept[np.flatnonzero((self.names == name).any(axis=1))[:2]]
                raise ValueError(
                    f"pairs[{first}] and pairs[{second}] have a text in common, and cannot be in one batch."
                )
        return super().arrays()


class ScoredPairDataset(TextsDataset):
    """Pairs of texts with scores, for `CosineSimilarityLoss` or `CoSENTLoss` and a `BERTEmbedder`.

    A batch is `(inputs, labels)`: `inputs` as in `PairDataset`; labels (B, 2) float32 are the place of a row's pair in
    the batch, and its score.

        dataset = ScoredPairDataset([("a cat", "a kitten"), ("a cat", "a car")], [0.9, 0.1], model)
        model.compile("adamw", CosineSimilarityLoss())

    Args:
        pairs: sequence of pairs of strings.
        scores: for each a number: of `CosineSimilarityLoss` a cosine, from -1 to 1; of `CoSENTLoss` any.
        model, batch_size, max_length, too_long: as for `PairDataset`.
        prompt, prompt_name: of all texts, as for `model.embed`.
        multiple, seed, shuffle, **kwargs: see `BucketedDataset`; 32 pairs by default.
    """

    def __init__(
        self,
        pairs,
        scores,
        model,
        batch_size=None,
        max_length=None,
        too_long="error",
        prompt=None,
        prompt_name=None,
        multiple=32,
        seed=0,
        shuffle=True,
        **kwargs,
    ):
        check_embedder(model)
        examples, scores = read_examples(pairs, columns=2), read_sequence("scores", scores)
        if len(scores) != len(examples):
            raise ValueError(f"scores ({len(scores)} of them) must be as many as pairs ({len(examples)}).")
        for i, score in enumerate(scores):
            if not is_number(score):
                raise ValueError(f"scores[{i}] ({shown(score)}) must be a finite number.")
        prompts = [find_prompt(model.arguments, prompt, prompt_name)] * 2
        super().__init__(examples, prompts, model, max_length, too_long, batch_size, multiple, seed, shuffle, **kwargs)
        self.scores = np.array(scores, "float32")[self.kept]

    def make_batch(self, indices, widths, generator):
        groups = self.rows_of(np.arange(len(indices)))
        labels = np.stack([groups, self.rows_of(self.scores[np.asarray(indices)])], axis=1)
        return self.make_inputs(indices, widths), labels.astype("float32")


def apart(order, names, batch_size):
    """Cut an order of examples into batches in which no two have a name in common.

    Args:
        order: (N,) int.
        names: (N, C) int, those of each example.
        batch_size: the most examples of a batch.

    Returns:
        A list of (b,) int. An example that does not go into a batch is the first to be asked for the next.
    """
    names, order = [frozenset(row) for row in names.tolist()], order.tolist()
    found, waiting, start = [], [], 0
    while waiting or start < len(order):
        batch, seen, left = [], set(), []
        while len(batch) < batch_size and (waiting or start < len(order)):
            if waiting:
                example = waiting.pop(0)
            else:
                example, start = order[start], start + 1
            if seen.isdisjoint(names[example]):
                batch.append(example)
                seen |= names[example]
            else:
                left.append(example)
        waiting = left + waiting
        found.append(np.array(batch))
    return found


def with_unlike_ends(plan):
    """A plan whose first and last batch differ in their rows, and in their widths, if any two do."""
    shapes = [(len(indices), widths) for indices, widths in plan]
    first_of = {shape: i for i, shape in reversed(list(enumerate(shapes)))}
    pairs = [(a, b) for a in first_of for b in first_of if a != b]
    if not pairs:
        return plan

    def unlikeness(pair):
        (rows, widths), (other_rows, other_widths) = pair
        return (rows != other_rows) + (widths != other_widths), rows * max(widths)

    a, b = max(pairs, key=unlikeness)  # the larger one first
    ends = first_of[a], first_of[b]
    return [plan[ends[0]], *(batch for i, batch in enumerate(plan) if i not in ends), plan[ends[1]]]


def read_examples(pairs, columns=None):
    """Examples as lists of strings, checked: so many each, or as many as the first has, two at least."""
    examples = read_sequence("pairs", pairs)
    if not examples:
        raise ValueError(f"pairs ({shown(pairs)}) must not be empty.")
    for i, texts in enumerate(examples):
        examples[i] = texts = read_sequence(f"pairs[{i}]", texts)
        expected = columns or max(2, len(examples[0]))
        if len(texts) != expected:
            raise ValueError(f"pairs[{i}] ({shown(texts)}) must be {expected} texts, it has {len(texts)}.")
        for j, text in enumerate(texts):
            check_text(f"pairs[{i}][{j}]", text)
            if not text.strip():
                raise ValueError(f"pairs[{i}][{j}] ({shown(text)}) must not be empty.")
    return examples


def check_embedder(model):
    """Raise `ValueError` unless a model makes vectors of texts."""
    if "pooling" not in getattr(model, "arguments", ()) or not hasattr(model, "required_tokenizer"):
        raise ValueError(f"model ({shown(model)}) must be a BERTEmbedder.")


def _read_max_length(max_length, model):
    if max_length is None:
        max_length = model.arguments["truncate_at"] or model.arguments["max_sequence_length"]
    check_positive("max_length", max_length)
    return max_length


def _read_prompt(name, prompt, model, names):
    if prompt is None:
        return first_prompt(model.arguments, names)
    check_text(name, prompt)
    return prompt
