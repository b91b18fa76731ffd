"""Weights in other people's formats, read and written by the same tables of names."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "presets": ["errors_name", "named_token_ids", "read_preset", "write_preset"],
        "description": ["Description", "describe", "openers"],
        "generation_config": [
            "read_generation_config",
            "read_start_token_id",
            "read_token_ids",
            "write_generation_config",
        ],
        "sentence_transformers": ["read_modules", "reads_lowercase", "write_modules"],
        "weight_map": [],
        "files": [],
    },
)
