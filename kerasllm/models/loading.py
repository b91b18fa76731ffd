"""Open a preset for a task, without picking the class."""

import importlib

from kerasllm import checkpoints

# The task is the name of the method that does it; the class of a preset is the first that can open it.
TASKS = {
    "generate": ("GPT", "RNNLanguageModel"),
    "chat": ("GPT",),
    "translate": ("TransformerTranslator", "LSTMTranslator"),
    "summarize": ("TransformerTranslator", "Summarizer"),
    "fill_mask": ("BERTMaskedLM",),
    "classify": ("BERTClassifier",),
    "tag": ("BERTTokenClassifier",),
    "answer": ("BERTQuestionAnswerer",),
    "embed": ("BERTEmbedder",),
    "score": ("GPT", "RNNLanguageModel", "TransformerTranslator", "LSTMTranslator"),
}


def load(task, source, **arguments):
    """Open the model that a preset holds, as the class that has a method of the task's name.

    Args:
        task: "generate", "chat", "translate", "summarize", "fill_mask", "classify", "tag", "answer", "embed" or
            "score"; or None for the class that the preset itself names.
        source, **arguments: as for `from_preset` of the class.

    Raises:
        ValueError: `task` is unknown, the preset holds no model that can do it, or as for `from_preset`.

    Example:
        >>> kerasllm.load("fill_mask", "path/to/bert-base-uncased").fill_mask("Paris is the [MASK] of France.")
        >>> kerasllm.load("chat", "path/to/SmolLM2-135M-Instruct.Q4_1.gguf").chat(messages)
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task ({task!r}) must be None or one of {', '.join(map(repr, TASKS))}.")
    found = checkpoints.describe(source)
    able = [name for name in TASKS[task] if name in found.class_names] if task else list(found.class_names)
    if not able:
        raise ValueError(
            f"source ({str(source)!r}) holds a {found.family!r} model, which can be opened as "
            f"{' or '.join(found.class_names)}: none can {task}."
        )
    # kerasllm, because models are imported when they are first used.
    return getattr(importlib.import_module("kerasllm"), able[0]).from_preset(source, **arguments)
