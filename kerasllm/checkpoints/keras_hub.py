"""Presets of KerasHub: the backbones of BERT, GPT-2 and Llama, read without KerasHub.

A folder holds config.json (a Keras config), model.weights.h5 (weights by the classes of their layers) and the files of
a tokenizer in assets/tokenizer. Source of the names: keras_hub 0.32, `save_to_preset`.
"""

import json
import re

import ml_dtypes
import numpy as np

from kerasllm.arguments import shown
from kerasllm.checkpoints.config_map import boolean, is_one_of, optional_size, positive, rate, size
from kerasllm.checkpoints.family import Family
from kerasllm.checkpoints.weight_map import Layout, same
from kerasllm.json_files import MOST_JSON_BYTES, read_settings
from kerasllm.stack import OFF

WEIGHTS = "model.weights.h5"
DTYPES = ("float16", "float32", "float64")
SIZES = [
    ("vocabulary_size", "vocabulary_size", size, None),
    ("num_layers", "num_layers", size, None),
    ("hidden_dim", "hidden_dim", size, None),
    ("intermediate_dim", "intermediate_dim", size, None),
    ("dropout", "dropout", rate, 0.1),
]
TABLE_SIZE = ("max_sequence_length", "max_sequence_length", size, 512)
FIXED = {"oov_token": "[UNK]", "suffix_indicator": "##", "split": True}  # of its tokenizer: what ours does
LOWERING = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}  # Hugging Face's names, and KerasHub's


def is_config(config):
    """Whether the content of a config.json is KerasHub's."""
    return str(config.get("registered_name", "")).startswith(("keras_hub>", "keras_nlp>"))


def read(folder, config):
    """Read a folder.

    Args:
        folder: its path.
        config: the content of its config.json.

    Returns:
        A config that `family_of` knows; a function that reads the tensors, dict name -> memory-mapped array; the
        tokenizer's files as Hugging Face names them, dict name -> text.

    Raises:
        ValueError: a file is missing or malformed.
    """
    arguments = config.get("config")
    if not isinstance(arguments, dict):
        raise ValueError(f"config.json: config ({shown(arguments)}) must be an object.")
    return (
        {"model_type": config.get("class_name"), **arguments},
        lambda: _read_tensors(folder / WEIGHTS),
        _tokenizer_files(folder),
    )


def _tokenizer_files(folder):
    assets, config = folder / "assets" / "tokenizer", folder / "tokenizer.json"
    names = {"vocabulary.txt": "vocab.txt", "vocabulary.json": "vocab.json", "merges.txt": "merges.txt"}
    texts = {new: _text(assets / name) for name, new in names.items() if (assets / name).is_file()}
    if "vocab.txt" in texts and config.is_file():
        options = read_settings(config).get("config", {})
        if not isinstance(options, dict):
            raise ValueError(f"{config}: config ({shown(options)}) must be an object.")
        for name, value in FIXED.items():
            if not is_one_of(options.get(name), (None, value)):
                raise ValueError(f"{config}: {name} ({shown(options[name])}) must be {value!r}.")
        said = {new: options.get(name, False) for new, name in LOWERING.items()}
        for new, name in LOWERING.items():
            if not boolean.accepts(said[new]):
                raise ValueError(f"{config}: {name} ({shown(said[new])}) must be {boolean.accepted}.")
        texts["tokenizer_config.json"] = json.dumps(said)
    return texts


def _text(path):
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ValueError(f"it is longer than {MOST_JSON_BYTES} bytes")
        return path.read_text("utf-8")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no text: {error}") from error


def _read_tensors(path):
    import h5py

    if not path.is_file():
        raise ValueError(f"folder ({str(path.parent)!r}) has no {path.name}.")
    places = {}

    def visit(name, item):  # which h5py calls for each item once, and not for links out of the file
        if isinstance(item, h5py.Dataset):
            dtype = "bfloat16" if item.attrs.get("dtype") == "bfloat16" else item.dtype.name
            places[name] = item.shape, dtype, None if item.external else item.id.get_offset(), item.nbytes

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except Exception as error:  # whatever the library runs into
        raise ValueError(f"{path} is not a whole HDF5 file: {error}") from error
    data = np.memmap(path, np.uint8, mode="r")
    return {name: _tensor(f"{path}: {name}", data, *place) for name, place in places.items()}


def _tensor(name, data, shape, dtype, offset, num_bytes):
    # Not compressed, nor in another file, as Keras writes them.
    if offset is None or shape is None or offset + num_bytes > len(data):
        raise ValueError(f"{name} must lie in one piece in the file.")
    if dtype not in (*DTYPES, "bfloat16"):
        raise ValueError(f"{name}: dtype ({dtype}) must be one of {', '.join(DTYPES)}, bfloat16.")
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return np.asarray(data[offset : offset + num_bytes]).view(dtype).reshape(shape)


def heads(count, axis):
    """The `Layout` of a kernel or bias one of whose axes is parted into heads: (N, H) for our N * H."""

    def theirs(shape):
        return (*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])

    return Layout(
        lambda tensor, shapes: [tensor.reshape(shapes[0])],
        lambda arrays: arrays[0].reshape(theirs(arrays[0].shape)),
        lambda shapes: theirs(shapes[0]),
    )


def backbone(model_type, class_name, block, fields, rows, fixed, **more):
    """The family of a backbone of KerasHub, to be read and not written.

    Args:
        model_type: its class.
        class_name: ours.
        block: the name of its blocks in the file.
        fields, rows, fixed, **more: as for `Family`; `fixed` is beside the initializer's range, which no config says.
    """
    own = {"num_segments": 0} if class_name == "BERT" else {"tie_embeddings": True, "logit_softcap": None}
    return Family(
        model_type,
        {class_name: model_type},
        OFF | own | {"initializer_range": 0.02},
        fields,
        rows,
        fixed=fixed,
        irrelevant=("name", "trainable"),
        prepare=_prepare,
        # The first of several layers of a class bears no number.
        rename=lambda name: re.sub(rf"^layers/{block}/", f"layers/{block}_0/", name),
        **more,
    )


def _prepare(config):
    dtype = config.get("dtype")
    if isinstance(dtype, dict) and dtype.get("class_name") != "DTypePolicy":
        raise ValueError(f"config.json: dtype ({shown(dtype)}) must be a plain DTypePolicy.")
    return config


def _norm(theirs, ours):
    return [(f"{theirs}/vars/0", f"{ours}/gamma", same), (f"{theirs}/vars/1", f"{ours}/beta", same)]


def _dense(theirs, ours):
    return [(f"{theirs}/vars/0", f"{ours}/kernel", same), (f"{theirs}/vars/1", f"{ours}/bias", same)]


def _transformer(stack, block, num_heads):
    """The rows of a stack of KerasHub's `TransformerEncoder`s or `TransformerDecoder`s."""
    theirs, ours = f"layers/{block}_{{i}}", f"{stack}/block_{{i}}"
    attention = f"{theirs}/_self_attention_layer"
    rows = [
        ("layers/reversible_embedding/vars/0", f"{stack}/embeddings/token/embeddings", same),
        ("layers/position_embedding/vars/0", f"{stack}/embeddings/position/embeddings", same),
        (f"{attention}/output_dense/vars/0", f"{ours}/attention/output/kernel", heads(num_heads, 0)),
        (f"{attention}/output_dense/vars/1", f"{ours}/attention/output/bias", same),
        *_norm(f"{theirs}/_self_attention_layer_norm", f"{ours}/attention_norm"),
        *_norm(f"{theirs}/_feedforward_layer_norm", f"{ours}/feed_forward_norm"),
        *_dense(f"{theirs}/_feedforward_intermediate_dense", f"{ours}/feed_forward/input"),
        *_dense(f"{theirs}/_feedforward_output_dense", f"{ours}/feed_forward/output"),
    ]
    for name in ("query", "key", "value"):
        rows.append((f"{attention}/{name}_dense/vars/0", f"{ours}/attention/{name}/kernel", heads(num_heads, 1)))
        rows.append((f"{attention}/{name}_dense/vars/1", f"{ours}/attention/{name}/bias", heads(num_heads, 0)))
    return rows


def _bert_rows(arguments):
    return [
        *_transformer("encoder", "transformer_encoder", arguments["num_heads"]),
        ("layers/embedding/vars/0", "encoder/embeddings/segment/embeddings", same),
        *_norm("layers/layer_normalization", "encoder/embeddings/norm"),
        *_dense("layers/dense", "pooler"),
    ]


def _gpt2_rows(arguments):
    return [
        *_transformer("decoder", "transformer_decoder", arguments["num_heads"]),
        *_norm("layers/layer_normalization", "decoder/final_norm"),
    ]


def _llama_rows(arguments):
    theirs, ours = "layers/llama_transformer_decoder_{i}", "decoder/block_{i}"
    num_heads, attention = arguments["num_heads"], f"{theirs}/_self_attention_layer"
    num_key_heads = arguments["num_key_value_heads"] or num_heads
    head = [] if arguments["tie_embeddings"] else [("layers/reversible_embedding/vars/1", "head/kernel", same)]
    return [
        ("layers/reversible_embedding/vars/0", "decoder/embeddings/token/embeddings", same),
        (f"{theirs}/_self_attention_layernorm/vars/0", f"{ours}/attention_norm/scale", same),
        (f"{attention}/_query_dense/vars/0", f"{ours}/attention/query/kernel", heads(num_heads, 1)),
        (f"{attention}/_key_dense/vars/0", f"{ours}/attention/key/kernel", heads(num_key_heads, 1)),
        (f"{attention}/_value_dense/vars/0", f"{ours}/attention/value/kernel", heads(num_key_heads, 1)),
        (f"{attention}/_output_dense/vars/0", f"{ours}/attention/output/kernel", heads(num_heads, 0)),
        (f"{theirs}/_feedforward_layernorm/vars/0", f"{ours}/feed_forward_norm/scale", same),
        (f"{theirs}/_feedforward_gate_dense/vars/0", f"{ours}/feed_forward/gate/kernel", same),
        (f"{theirs}/_feedforward_intermediate_dense/vars/0", f"{ours}/feed_forward/input/kernel", same),
        (f"{theirs}/_feedforward_output_dense/vars/0", f"{ours}/feed_forward/output/kernel", same),
        ("layers/llama_layer_norm/vars/0", "decoder/final_norm/scale", same),
        *head,
    ]


def _told_by_tensors(arguments, tensor_names):
    return {"tie_embeddings": "layers/reversible_embedding/vars/1" not in tensor_names}


BERT = backbone(
    "BertBackbone",
    "BERT",
    "transformer_encoder",
    [
        *SIZES,
        TABLE_SIZE,
        ("num_heads", "num_heads", size, None),
        ("num_segments", "num_segments", size, 2),
    ],
    _bert_rows,
    {
        "residual": "post",
        "norm_embeddings": True,
        "activation": "gelu_tanh",
        "norm_epsilon": 1e-12,
        "pooler": True,
    },
)
GPT2 = backbone(
    "GPT2Backbone",
    "GPT",
    "transformer_decoder",
    [*SIZES, (*TABLE_SIZE[:3], 1024), ("num_heads", "num_heads", size, None)],
    _gpt2_rows,
    {"activation": "gelu_tanh"},
)
LLAMA = backbone(
    "LlamaBackbone",
    "GPT",
    "llama_transformer_decoder",
    [
        *SIZES,
        ("num_query_heads", "num_heads", size, None),
        ("num_key_value_heads", "num_key_value_heads", optional_size, None),
        ("layer_norm_epsilon", "norm_epsilon", positive, 1e-6),
        ("rope_max_wavelength", "rope_base", positive, 10000.0),
    ],
    _llama_rows,
    {
        "norm": "rms",
        "activation": "silu",
        "positions": "rotary",
        "gated": True,
        "use_bias": False,
        # KerasHub's has no limit; this is what a config of Hugging Face stands for that names none.
        "max_sequence_length": 2048,
    },
    told_by_tensors=_told_by_tensors,
    supported={
        "rope_position_scaling_factor": (1.0,),
        "tie_word_embeddings": (True, False),  # which the tensors say, too
        **dict.fromkeys(
            (
                "rope_frequency_adjustment_factor",
                "rope_low_freq_factor",
                "rope_high_freq_factor",
                "rope_pretraining_sequence_length",
            ),
            (None,),
        ),
    },
)
FAMILIES = (BERT, GPT2, LLAMA)
