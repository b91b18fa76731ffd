"""The calls that prove a file of a language model: what it gives is what the model generates and scores."""

import numpy as np

from kerasllm.export import verification
from kerasllm.export.contents import Check
from kerasllm.export.runtime import sampling_inputs
from kerasllm.generation.config import GenerationConfig, named
from kerasllm.generation.samplers import wrap_seed
from kerasllm.text.batches import pad

NUM_TOKENS, PROMPT = 8, 4
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.3}
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 2**32 - 5}
TEXTS = ("Hello, world! What is 12 + 30?", "The cat sat", "")


class LanguageModelChecks:
    """The proofs of a `LanguageModelContents`, by its functions' names, from random prompts and `TEXTS`.

    Of a quantised file only logits and what is generated greedily: who draws among others draws others.
    """

    def __init__(self, contents):
        self.contents = contents

    def decode(self):
        """Calls that read random tokens by each `prefill_N` that is wanted, and by `decode`."""
        chains = [[]]
        for length in self.contents.prefill_lengths:
            if f"prefill_{length}" in self.contents.signatures:
                if sum(chains[-1]) + length > self.contents.max_length:
                    chains.append([])
                chains[-1].append(length)
        return [self._step_check(lengths) for lengths in chains]

    def _step_check(self, lengths):
        end = sum(lengths)
        start = max(end - 1, 0)  # the last prefill is filled up with one id
        size = min(start + 2, self.contents.max_length)
        shape = (self.contents.options.batch_size, size)
        token_ids = np.random.default_rng(1).integers(
            0, self.contents.model.output_vocabulary_size, shape, dtype="int32"
        )
        filled, places = (
            np.pad(token_ids[:, :start], [[0, 0], [0, end - start]]),
            np.arange(self.contents.max_length, dtype="int32"),
        )
        pieces = np.split(np.arange(end), np.cumsum(lengths[:-1]))
        calls = [(f"prefill_{len(p)}", {"tokens": filled[:, p], "input_pos": places[p]}) for p in pieces if len(p)]
        calls += [
            ("decode", {"tokens": token_ids[:, p : p + 1], "input_pos": places[p : p + 1]}) for p in range(start, size)
        ]
        first = {
            name: np.zeros(shape, dtype)
            for name, (shape, dtype) in self.contents.signatures[calls[0][0]].inputs.items()
        }
        calls[0] = (calls[0][0], {**first, **calls[0][1]})
        return Check(calls, {"logits": self._logits(token_ids)[:, -1:]})

    def generate(self):
        """Prompts of one token and of several, greedily, and drawn where the file is exact."""
        checks = []
        sampled = [(PROMPT, 2, SAMPLED)] if self.contents.options.exact else [(PROMPT, 1, GREEDY)]
        for length, num_rows, options in [(1, 1, GREEDY), *sampled]:
            count = min(NUM_TOKENS, self._room - length)
            if count < 1:
                continue
            if self.contents.options.static:
                prompts = self._examples([length] * self.contents.options.batch_size)
                completions = self._completions(prompts, count, options, num_rows)
                for row in range(num_rows):
                    inputs = {"token_ids": prompts, **_inputs(count, options), "row": row}
                    expected = _padded([rows[row] for rows in completions], self.contents.max_length)
                    checks.append(self._call("generate", inputs, expected))
            else:
                prompts = self._examples([length, max(length - 2, 1)])
                completions = [ids for rows in self._completions(prompts, count, options, num_rows) for ids in rows]
                token_ids, padding_mask = pad(prompts, length + 1, side="left")
                inputs = {"token_ids": token_ids, "padding_mask": padding_mask, **_inputs(count, options)}
                inputs["num_return_sequences"] = num_rows
                checks.append(self._call("generate", inputs, _padded(completions)))
        return checks

    def sample(self):
        """The last tokens of what was drawn."""
        count = min(NUM_TOKENS, self._room - PROMPT)
        if count < 1:
            return []
        prompts = self._examples([PROMPT] * self.contents.options.batch_size)
        completions = [rows[1] for rows in self._completions(prompts, count, SAMPLED, 2)]
        count = min(map(len, completions))
        texts = np.array([prompt + ids[:count] for prompt, ids in zip(prompts, completions, strict=True)], "int32")
        history, _ = pad(texts[:, :-1], self.contents.max_length, value=-1)
        inputs = _inputs(0, SAMPLED)
        wanted = self.contents.signatures["sample"].inputs
        inputs = {name: x for name, x in inputs.items() if name in wanted}
        inputs |= {"token_ids": history, "count": count - 1, "row": 1}
        inputs["logits"] = self._logits(texts[:, :-1])[:, -1]
        return [self._call("sample", inputs, {"token_ids": texts[:, -1]})]

    def score(self):
        """Random rows of two lengths."""
        rows = self._examples([2, min(5, self._room)]) if self._room > 1 else []
        if not rows:
            return []
        token_ids, padding_mask = pad(rows)
        log_probs = np.zeros((2, token_ids.shape[1] - 1), "float32")
        for row, score in zip(log_probs, self.contents.model.score(rows), strict=True):
            row[: len(score.log_probs)] = score.log_probs
        return [self._call("score", {"token_ids": token_ids, "padding_mask": padding_mask}, {"log_probs": log_probs})]

    def generate_text(self):
        """Two samples for each of TEXTS that there is room for."""
        tokenizer = self.contents.model.tokenizer
        lengths = {text: len(tokenizer.encode(text) or [0] * (tokenizer.bos_id is not None)) for text in TEXTS}
        texts = [text for text, length in lengths.items() if 0 < length < self._room]
        if not texts:
            return []
        count = min(NUM_TOKENS, self._room - max(lengths[text] for text in texts))
        request = {**SAMPLED, "num_return_sequences": 2, "max_new_tokens": count}
        rows = self.contents.model.generate(texts, strip_prompt=True, **request)
        inputs = {"texts": _strings(texts), **_inputs(count, SAMPLED), "num_return_sequences": 2}
        return [self._call("generate_text", inputs, {"texts": _strings(text for row in rows for text in row)})]

    def tokenize(self):
        """The ids of the first of TEXTS."""
        token_ids, mask = self._tokenized()
        return [self._call("tokenize", {"texts": _strings(TEXTS[:1])}, {"token_ids": token_ids, "padding_mask": mask})]

    def detokenize(self):
        """The text of these ids."""
        token_ids, mask = self._tokenized()
        texts = _strings(self.contents.model.tokenizer.decode(row) for row in token_ids)
        return [self._call("detokenize", {"token_ids": token_ids, "padding_mask": mask}, {"texts": texts})]

    def _tokenized(self):
        return pad([self.contents.model.tokenizer.encode(TEXTS[0])])

    @property
    def _room(self):
        return self.contents.max_length or self.contents.model.default_max_length

    def _examples(self, lengths):
        """Lists of random ids."""
        rng = np.random.default_rng(2)
        return [rng.integers(0, self.contents.model.output_vocabulary_size, length).tolist() for length in lengths]

    def _completions(self, prompts, count, options, num_rows):
        """What the model generates: for each prompt as many lists of ids."""
        unsaid = dict.fromkeys(named("exported", "choice"))  # whatever the model's defaults say
        request = {**unsaid, **options, "num_return_sequences": num_rows, "max_new_tokens": count}
        results = self.contents.model.generate(prompts, return_scores=True, **request)
        results = results if num_rows > 1 else [[result] for result in results]
        return [[result.completion.tolist() for result in row] for row in results]

    def _logits(self, token_ids):
        inputs = {"token_ids": token_ids, "padding_mask": np.ones(token_ids.shape, "bool")}
        [outputs] = verification.model_outputs(self.contents.model, [inputs])
        return outputs["logits"]

    def _call(self, name, inputs, expected):
        """A `Check` of one call; its inputs as arrays."""
        specs = self.contents.signatures[name].inputs
        arrays = {key: x if isinstance(x, np.ndarray) else np.array(x, specs[key][1]) for key, x in inputs.items()}
        return Check([(name, arrays)], expected)


def _inputs(count, options):
    """The inputs of a file that say the same as `GenerationConfig`'s fields."""
    config = GenerationConfig(**options)
    ends = {"max_new_tokens": count, "stop_token_ids": [-1]}
    return {**sampling_inputs(config), "seed": wrap_seed(config.seed or 0), **ends}


def _padded(rows, length=None):
    token_ids, mask = pad(rows, length)
    return {"token_ids": token_ids, "lengths": mask.sum(1).astype("int32")}


def _strings(texts):
    return np.array([text.encode() for text in texts], object)
