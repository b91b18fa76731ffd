"""Which contents a model's file has."""

from kerasllm.export.contents import Contents

# The first class that a model is an instance of decides; a model of none has its forward pass alone.
FAMILIES = []


def contents_of(model, options):
    """The `Contents` of a model's file."""
    return next((contents for cls, contents in FAMILIES if isinstance(model, cls)), Contents)(model, options)
