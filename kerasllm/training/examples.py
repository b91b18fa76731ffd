"""Texts that the model writes while it is trained."""

import json

from kerasllm.arguments import read_path, read_texts
from kerasllm.backend.aside import aside
from kerasllm.constructors import reading
from kerasllm.training.steps import EverySteps

# Arguments of `generate` and `translate` that are no fields of a `GenerationConfig`.
OTHERS = ("config", "batch_size", "processors", "prefix_allowed_tokens", "draft", "num_draft_tokens", "first_index")


class GenerateExamples(EverySteps):
    """Prints what the model makes of some prompts, at the end of each epoch or every so many steps.

    A language model continues them (`generate`), a translator translates them, a summariser summarises them
    (`translate`). Training goes on as if nothing had been: it has the same losses with and without.

    Args:
        prompts: a string or a list of strings.
        every: "epoch", or a number of steps.
        file: path of a file to which each text is added as a line of JSON, with `epoch`, `step`, `prompt`, `text`.
            Default: none.
        seed: of sampling, the same each time, so that texts differ by the weights alone.
        **options: of `generate` or `translate`, such as `max_new_tokens`, `temperature`, `num_beams`.

    Raises:
        ValueError: a prompt is empty; when `fit` begins, the model writes no text, has no tokenizer, or does not know
            an option.

    Example:
        >>> model.fit(dataset, callbacks=[GenerateExamples(["Once upon a time"], every=500, max_new_tokens=40)])
    """

    @reading
    def __init__(self, prompts, every="epoch", file=None, seed=0, **options):
        super().__init__(every)
        self.prompts, _ = read_texts("prompts", prompts)
        self.file = None if file is None else read_path("file", file)
        self.options = {"seed": seed, **options}

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        check_writer(self.model, self.options)

    def act(self, epoch, step, logs):
        with aside(self.model):
            texts = written(self.model, self.prompts, self.options)
        print(f"\nAfter {step} steps:", flush=True)
        for prompt, text in zip(self.prompts, texts, strict=True):
            for one in [text] if isinstance(text, str) else text:
                print(f"  {one!r}" if one.startswith(prompt) else f"  {prompt!r} -> {one!r}", flush=True)
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                for prompt, text in zip(self.prompts, texts, strict=True):
                    line = {"epoch": epoch, "step": step, "prompt": prompt, "text": text}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def check_writer(model, options):
    """Raise `ValueError` unless a model writes text, has the tokenizer for it, and knows the options."""
    if not hasattr(model, "required_output_tokenizer"):
        raise ValueError(f"model ({type(model).__name__}) must be one that writes: a GPT, a translator, a Summarizer.")
    model.required_output_tokenizer()
    fields = {name: value for name, value in options.items() if name not in OTHERS}
    defaults = model.generation_defaults
    type(defaults).merged(options.get("config"), defaults=defaults, **fields)


def written(model, texts, options):
    """What a model makes of texts: translations, or the texts with their continuations."""
    return (model.translate if hasattr(model, "translate") else model.generate)(texts, **options)
