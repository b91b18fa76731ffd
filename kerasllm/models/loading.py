"""Open a preset for a task, without picking the class."""

import importlib
import warnings

from kerasllm import checkpoints
from kerasllm.arguments import shown

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
            "score"; or None for the class that the preset was made for: a `BERTEmbedder` for a folder of
            sentence-transformers, a `BERTMaskedLM` for a BERT as it was pretrained.
        source, **arguments: as for `from_preset` of the class.

    Warns:
        UserWarning: for None, of the tensors that the class has no place for, such as those of a second head.

    Raises:
        ValueError: `task` is unknown, the preset holds no model that can do it, or as for `from_preset`.

    Example:
        >>> kerasllm.load("fill_mask", "path/to/bert-base-uncased").fill_mask("Paris is the [MASK] of France.")
        >>> kerasllm.load("chat", "path/to/SmolLM2-135M-Instruct.Q4_1.gguf").chat(messages)
    """
    if not isinstance(task, str | None) or task is not None and task not in TASKS:
        raise ValueError(f"task ({shown(task)}) must be None or one of {', '.join(map(repr, TASKS))}.")
    if task is None:
        found = checkpoints.describe(source)
        name = found.class_names[0]
        if found.left_out:
            warnings.warn(
                f"{source}: a {name} has no place for {', '.join(found.left_out)}; they are left out.", stacklevel=2
            )
    else:
        family, names = checkpoints.openers(source)
        name = next((name for name in TASKS[task] if name in names), None)
        if name is None:
            raise ValueError(
                f"source ({str(source)!r}) holds a {family!r} model, which can be opened as "
                f"{' or '.join(names)}: none can {task}."
            )
    # kerasllm, because models are imported when they are first used.
    return getattr(importlib.import_module("kerasllm"), name).from_preset(source, **arguments)
