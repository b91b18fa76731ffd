"""The only part of kerasllm that asks which backend runs: compilation, and the kernels worth writing three times."""

from kerasllm import extras
from kerasllm.backend.chunked_rows import by_chunks
from kerasllm.backend.compilation import compiled, compiled_pass, name, while_loop, without_gradient
from kerasllm.backend.kernels import (
    argmax,
    attention,
    gelu_tanh,
    is_argmax,
    is_class,
    masked_score,
    product_with_table,
    small_masked_scores,
    token_crossentropy,
    write_slots,
)
from kerasllm.backend.linear_crossentropy import Product, linear_crossentropy
from kerasllm.backend.meshes import (
    AXES,
    Whole,
    check_placed,
    in_parts,
    notes_of,
    placed,
    placement,
    rows_multiple,
    spread,
)
from kerasllm.backend.optimizers import adamw_class, muon_class
from kerasllm.backend.ranks import (
    averaged,
    broadcast,
    check_agreed,
    one_writer,
    ranks,
    replicas,
    share_of_replica,
    shared,
    summands,
    sums,
)
from kerasllm.backend.recurrence import dense_recurrence, gru, lstm, not_folded, scan, simple_rnn
from kerasllm.backend.rematerialization import rematerialized

extras.check_backend(name())

__all__ = [
    "AXES",
    "Product",
    "Whole",
    "adamw_class",
    "argmax",
    "attention",
    "averaged",
    "broadcast",
    "by_chunks",
    "check_agreed",
    "check_placed",
    "compiled",
    "compiled_pass",
    "dense_recurrence",
    "gelu_tanh",
    "gru",
    "in_parts",
    "is_argmax",
    "is_class",
    "linear_crossentropy",
    "lstm",
    "masked_score",
    "muon_class",
    "name",
    "not_folded",
    "notes_of",
    "one_writer",
    "placed",
    "placement",
    "product_with_table",
    "ranks",
    "rematerialized",
    "replicas",
    "rows_multiple",
    "scan",
    "simple_rnn",
    "share_of_replica",
    "shared",
    "small_masked_scores",
    "spread",
    "summands",
    "sums",
    "token_crossentropy",
    "while_loop",
    "without_gradient",
    "write_slots",
]
