"""Models that continue text: the base of GPT and of the recurrent language model."""

import keras
import numpy as np

from kerasllm.arguments import check_text
from kerasllm.generation.config import GenerationConfig
from kerasllm.models.base import carried_tokenizer
from kerasllm.models.generating import GeneratingModel, read_token_ids, unnested
from kerasllm.text import batches


class LanguageModel(GeneratingModel):
    """A model that continues text: `generate`, `stream` and `score` on strings, lists of ids or arrays."""

    tokenizer = carried_tokenizer("tokenizer", "vocabulary_size")

    def generate(
        self,
        prompts,
        config=None,
        batch_size=32,
        *,
        return_scores=False,
        processors=(),
        prefix_allowed_tokens=None,
        draft=None,
        num_draft_tokens=8,
        **overrides,
    ):
        """Continue prompts.

        Args:
            prompts: a string or a list of strings (with a tokenizer); a list of lists of ids; an int array (B, P); or a
                dict of `token_ids` (B, P) and `padding_mask` (B, P), True = real, padded on either side. An empty
                string stands for the tokenizer's start token.
            config: a `GenerationConfig`. What it leaves at its default, `model.generation_defaults` decides.
            batch_size: number of prompts continued at a time. It does not change the texts.
            return_scores: whether to return `Generation`s instead: text, ids, the log-probability of each token, the
                reason of the end.
            processors: functions (token_ids, logits) -> logits that change what may follow. They are given the tokens
                of each row so far, a list of int arrays, and the logits (R, V) after penalties and bans, before
                temperature and filters, and return such logits, in numpy. The model then runs step by step, more
                slowly.
            prefix_allowed_tokens: function (i, token_ids) -> the ids that may follow the tokens so far of `prompts[i]`,
                at least one. The model runs step by step, too.
            draft: a smaller model of the same vocabulary, or "prompt", which takes guesses from the text so far:
                speculative decoding, for one prompt and greedy choice. The text is the same, found in fewer steps
                of the model; `Generation.num_steps` says how many.
            num_draft_tokens: the most tokens of a guess.
            **overrides: fields of `GenerationConfig` that replace `config`'s. Without `max_length` and
                `max_new_tokens` a text grows up to the model's `max_sequence_length`, or 256 tokens where it has none.

        Returns:
            Prompts with their continuations, in the form they came in: a string for a string, a list of strings for
            a list, lists of ids for lists of ids, and for an array an int32 array (B, L) whose shorter rows are
            filled up with the padding id (0 without one). With `num_return_sequences` n > 1 each is a list (for
            arrays an axis: (B, n, L)) of n. The end token stays in ids and not in text.

        Raises:
            ValueError: an argument is out of range, or two contradict each other; the prompts are empty, too long or
                hold unknown ids; strings without a tokenizer; an empty prompt without a start token.
            FloatingPointError: the model's logits are NaN.

        Example:
            >>> model.generate("I enjoy walking with my cute dog", max_new_tokens=40, temperature=0.7, seed=1)
        """
        config = GenerationConfig.merged(config, defaults=self.generation_defaults, **overrides)
        ids, rebuild = self._read_prompts(prompts, config.strip_prompt)
        results = self.complete(
            ids,
            config,
            batch_size,
            return_scores=return_scores,
            processors=processors,
            prefix_allowed_tokens=prefix_allowed_tokens,
            draft=draft,
            num_draft_tokens=num_draft_tokens,
        )
        if return_scores:
            results = results if config.num_return_sequences > 1 else [row[0] for row in results]
            return results[0] if isinstance(prompts, str) else results
        return rebuild(results, config.num_return_sequences)

    def chat(self, messages, config=None, batch_size=32, **overrides):
        """Answer a chat, which the tokenizer's chat template turns into text.

        Args:
            messages: a list of dicts with strings `role` ("system", "user" or "assistant") and `content`, the last of
                them to be answered; or a list of such lists.
            config, batch_size, **overrides: as for `generate`, whose `strip_prompt` is True here.

        Returns:
            The assistant's answer, a string; a list for a list of chats. With `num_return_sequences` n > 1 each is a
            list of n.

        Raises:
            ValueError: the tokenizer has no chat template, or it refuses the messages; and as for `generate`.

        Example:
            >>> messages = [{"role": "user", "content": "What is the capital of France?"}]
            >>> messages += [{"role": "assistant", "content": model.chat(messages, max_new_tokens=40)}]
        """
        is_one = isinstance(messages, list | tuple) and len(messages) > 0 and isinstance(messages[0], dict)
        chats = [messages] if is_one else messages
        if not isinstance(chats, list | tuple) or not chats:
            raise ValueError(f"messages ({messages!r}) must be a non-empty list of dicts, or a list of such lists.")
        overrides["strip_prompt"] = True
        config = GenerationConfig.merged(config, defaults=self.generation_defaults, **overrides)
        results = self.complete([self._read_chat(chat) for chat in chats], config, batch_size)
        answers = unnested([[g.text for g in row] for row in results], config.num_return_sequences)
        return answers[0] if is_one else answers

    def stream(self, prompt, config=None, **overrides):
        """Continue a prompt or answer a chat, and yield the text in pieces as it is made.

        A piece holds whole characters, and nothing that turns out to belong to a stop string. Joined, the pieces are
        what `generate` returns with `strip_prompt=True`, or what `chat` returns.

        Args:
            prompt: a string, or the messages of a chat as for `chat`.
            config, **overrides: as for `generate`; one sequence, without beams.

        Returns:
            An iterator of strings.

        Example:
            >>> for piece in model.stream("Once upon a time", max_new_tokens=100, temperature=0.8):
            ...     print(piece, end="", flush=True)
        """
        is_chat = isinstance(prompt, list | tuple) and prompt and all(isinstance(m, dict) for m in prompt)
        if not isinstance(prompt, str) and not is_chat:
            raise ValueError(f"prompt ({prompt!r}) must be a string or the messages of a chat.")
        config = GenerationConfig.merged(config, defaults=self.generation_defaults, **overrides)
        ids = self._read_chat(prompt) if is_chat else self._read_prompts([prompt], True)[0][0]
        return self.stream_text(ids, config, {})

    def score(self, texts, batch_size=8):
        """Say how probable given texts are, by the chain rule.

        Args:
            texts: a string or a list of strings, which are read with the tokenizer's start token, where it has one, in
                front; or a list of lists of two ids or more.
            batch_size: number of texts scored at a time.

        Returns:
            A `Score` for a string, a list of them for a list: `log_probs` of all tokens after the first, their sum
            `log_probability`, and `perplexity`.

        Example:
            >>> model.score("The cat sat on the mat.").perplexity
        """
        if isinstance(texts, str):
            return self.score([texts], batch_size)[0]
        if not isinstance(texts, list | tuple) or len(texts) == 0:
            raise ValueError(f"texts ({texts!r}) must be a string, or a list of strings or of lists of ids.")
        rows = texts
        if all(isinstance(text, str) for text in texts):
            tokenizer = self.required_tokenizer()
            for i, text in enumerate(texts):
                check_text(f"texts[{i}]", text)
            start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
            rows = [start + tokenizer.encode(text, special_tokens=False) for text in texts]
        for i, row in enumerate(rows):
            if not hasattr(row, "__len__") or len(row) < 2:
                raise ValueError(f"texts[{i}] ({texts[i]!r}) must be of two tokens at least.")
        rows = read_token_ids("texts", rows, self.output_vocabulary_size)

        def read_inputs(places, token_ids, padding_mask):
            return {"token_ids": token_ids, "padding_mask": padding_mask}

        return self.score_batches(rows, batch_size, read_inputs)

    def _read_chat(self, messages):
        tokenizer = self.required_tokenizer()
        return tokenizer.encode(tokenizer.apply_chat_template(messages), special_tokens=False)

    def _read_prompts(self, prompts, strip_prompt):
        """Prompts in any form -> lists of ids, and the function that gives `Generation`s the same form."""
        if isinstance(prompts, str):
            ids, rebuild = self._read_prompts([prompts], strip_prompt)
            return ids, lambda rows, n: rebuild(rows, n)[0]
        if isinstance(prompts, dict):
            rows, as_array = _unpadded(prompts), True
        elif prompts is None or not hasattr(prompts, "__len__") or len(prompts) == 0:
            raise ValueError(f"prompts ({prompts!r}) must be a string, a list of strings or ids, or an int array.")
        elif all(isinstance(p, str) for p in prompts):
            tokenizer = self.required_tokenizer()
            for i, prompt in enumerate(prompts):
                check_text(f"prompts[{i}]", prompt)
            ids = [tokenizer.encode(text) or self._start(tokenizer) for text in prompts]
            return ids, lambda rows, n: unnested([[g.text for g in row] for row in rows], n)
        else:
            rows, as_array = prompts, not isinstance(prompts, list | tuple)
        ids = read_token_ids("prompts", rows, self.arguments["vocabulary_size"])
        pad_id = self.tokenizer.pad_id if self.tokenizer and self.tokenizer.pad_id is not None else 0

        def rebuild(rows, n):
            rows = [[(g.completion if strip_prompt else g.token_ids).tolist() for g in row] for row in rows]
            if not as_array:
                return unnested(rows, n)
            flat, _ = batches.pad([r for row in rows for r in row], value=pad_id)
            return flat if n == 1 else flat.reshape(len(rows), n, -1)

        return ids, rebuild

    def _start(self, tokenizer):
        if tokenizer.bos_id is None:
            raise ValueError("prompts: an empty prompt needs a tokenizer with a start token (bos), and this has none.")
        return [tokenizer.bos_id]


def _unpadded(prompts):
    """The rows of `{"token_ids": (B, P), "padding_mask": (B, P)}`, without padding."""
    if set(prompts) != {"token_ids", "padding_mask"}:
        raise ValueError(f"prompts ({sorted(prompts)}) must hold token_ids and padding_mask.")
    token_ids, mask = (keras.ops.convert_to_numpy(prompts[name]) for name in ("token_ids", "padding_mask"))
    if token_ids.ndim != 2 or token_ids.shape != mask.shape or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"prompts: token_ids {token_ids.shape} and padding_mask {mask.shape} must be of one shape (B, P), "
            "the mask True or 1 where a token is real."
        )
    return [row[real.astype("bool")] for row, real in zip(token_ids, mask, strict=True)]
