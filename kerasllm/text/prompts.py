"""The strings that an embedder sets before texts, by what they are for."""

from kerasllm.arguments import check_text, shown

QUERY = ("query",)  # names of the prompt of what is searched for
DOCUMENT = ("document", "passage", "corpus")  # and of what is searched


def find_prompt(arguments, prompt=None, name=None):
    """The string that stands before each text: `prompt`, else the prompt of this name, else the default, else ""."""
    prompts = arguments.get("prompts") or {}
    if prompt is not None:
        if not isinstance(prompt, str) or name is not None:
            raise ValueError(
                f"prompt ({shown(prompt)}) must be a string, or prompt_name ({shown(name)}) be given in its place."
            )
        check_text("prompt", prompt)
        return prompt
    name = arguments.get("default_prompt_name") if name is None else name
    if name is not None and (not isinstance(name, str) or name not in prompts):
        raise ValueError(
            f"prompt_name ({shown(name)}) must be one of the model's: {', '.join(map(repr, prompts)) or 'none'}."
        )
    return "" if name is None else prompts[name]


def num_prompt_tokens(tokenizer, prompt):
    """The number of tokens of a prompt, with the special ones before it."""
    ids = tokenizer.encode(prompt) if prompt else []
    return len(ids) - (ids[-1:] != [] and ids[-1] in tokenizer.special_ids)


def first_prompt(arguments, names):
    """The model's first prompt of these names, or ""."""
    prompts = arguments.get("prompts") or {}
    return next((prompts[name] for name in names if name in prompts), "")
