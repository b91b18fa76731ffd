"""The beginnings of texts, as much of them as a model reads."""


def cut(tokenizer, text, limit):
    """The beginning of a text that has at most so many tokens."""
    if limit is None or len(tokenizer.encode(text)) <= limit:
        return text
    [encoding] = tokenizer.encodings([text], max_length=limit)
    text = text[: max(end for _, end in encoding.offsets)]
    while len(tokenizer.encode(text)) > limit:  # its last word may be parted otherwise now
        text = text[:-1]
    return text
