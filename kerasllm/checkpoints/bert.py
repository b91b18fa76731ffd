"""BERT (Devlin et al. 2019) as Hugging Face lays it out: `BertModel` and `BertForMaskedLM`."""

from kerasllm.checkpoints import config_map, weight_map
from kerasllm.checkpoints.config_map import activation, positive, rate, size
from kerasllm.checkpoints.weight_map import same, transposed

MODEL_TYPE = "bert"
ARCHITECTURES = {"BERT": "BertModel", "BERTMaskedLM": "BertForMaskedLM"}

FIELDS = [
    ("vocab_size", "vocabulary_size", size, 30522),
    ("max_position_embeddings", "max_sequence_length", size, 512),
    ("type_vocab_size", "num_segments", size, 2),
    ("hidden_size", "hidden_dim", size, 768),
    ("num_hidden_layers", "num_layers", size, 12),
    ("num_attention_heads", "num_heads", size, 12),
    ("intermediate_size", "intermediate_dim", size, 3072),
    ("hidden_act", "activation", activation, "gelu"),
    (("hidden_dropout_prob", "attention_probs_dropout_prob"), "dropout", rate, 0.1),
    ("layer_norm_eps", "norm_epsilon", positive, 1e-12),
    ("initializer_range", "initializer_range", positive, 0.02),
]
SUPPORTED = {"position_embedding_type": ("absolute",)}
IRRELEVANT = (
    "classifier_dropout",
    # Google's own fields, which transformers doesn't read.
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
)

ENCODER = [
    ("embeddings.word_embeddings.weight", "encoder/embeddings/token/embeddings", same),
    ("embeddings.position_embeddings.weight", "encoder/embeddings/position/embeddings", same),
    ("embeddings.token_type_embeddings.weight", "encoder/embeddings/segment/embeddings", same),
    ("embeddings.LayerNorm.weight", "encoder/embeddings/norm/gamma", same),
    ("embeddings.LayerNorm.bias", "encoder/embeddings/norm/beta", same),
    ("encoder.layer.{i}.attention.self.query.weight", "encoder/block_{i}/attention/query/kernel", transposed),
    ("encoder.layer.{i}.attention.self.query.bias", "encoder/block_{i}/attention/query/bias", same),
    ("encoder.layer.{i}.attention.self.key.weight", "encoder/block_{i}/attention/key/kernel", transposed),
    ("encoder.layer.{i}.attention.self.key.bias", "encoder/block_{i}/attention/key/bias", same),
    ("encoder.layer.{i}.attention.self.value.weight", "encoder/block_{i}/attention/value/kernel", transposed),
    ("encoder.layer.{i}.attention.self.value.bias", "encoder/block_{i}/attention/value/bias", same),
    (
        "encoder.layer.{i}.attention.output.dense.weight",
        "encoder/block_{i}/attention/output/kernel",
        transposed,
    ),
    ("encoder.layer.{i}.attention.output.dense.bias", "encoder/block_{i}/attention/output/bias", same),
    ("encoder.layer.{i}.attention.output.LayerNorm.weight", "encoder/block_{i}/attention_norm/gamma", same),
    ("encoder.layer.{i}.attention.output.LayerNorm.bias", "encoder/block_{i}/attention_norm/beta", same),
    (
        "encoder.layer.{i}.intermediate.dense.weight",
        "encoder/block_{i}/feed_forward/input/kernel",
        transposed,
    ),
    ("encoder.layer.{i}.intermediate.dense.bias", "encoder/block_{i}/feed_forward/input/bias", same),
    ("encoder.layer.{i}.output.dense.weight", "encoder/block_{i}/feed_forward/output/kernel", transposed),
    ("encoder.layer.{i}.output.dense.bias", "encoder/block_{i}/feed_forward/output/bias", same),
    ("encoder.layer.{i}.output.LayerNorm.weight", "encoder/block_{i}/feed_forward_norm/gamma", same),
    ("encoder.layer.{i}.output.LayerNorm.bias", "encoder/block_{i}/feed_forward_norm/beta", same),
]
POOLER = [
    ("pooler.dense.weight", "pooler/kernel", transposed),
    ("pooler.dense.bias", "pooler/bias", same),
]
MASKED_LM_HEAD = [
    ("cls.predictions.transform.dense.weight", "masked_lm_head/dense/kernel", transposed),
    ("cls.predictions.transform.dense.bias", "masked_lm_head/dense/bias", same),
    ("cls.predictions.transform.LayerNorm.weight", "masked_lm_head/norm/gamma", same),
    ("cls.predictions.transform.LayerNorm.bias", "masked_lm_head/norm/beta", same),
    ("cls.predictions.bias", "masked_lm_head/bias", same),
]
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# Heads of other tasks than the class's own, and a buffer of 0 .. T - 1.
POSITION_IDS = "embeddings.position_ids"
IGNORED = {
    "BERT": (POSITION_IDS, "cls.*", "classifier.*", "qa_outputs.*"),
    "BERTMaskedLM": (POSITION_IDS, "pooler.*", "cls.seq_relationship.*"),
}


def read_config(config, class_name, tensor_names):
    """The arguments of a `BERT` or `BERTMaskedLM`; the tensors tell whether there is a pooler."""
    # BERT alone has no output embedding to tie.
    fields = {**SUPPORTED, "tie_word_embeddings": (True,) if class_name == "BERTMaskedLM" else (True, False)}
    arguments = config_map.read(FIELDS, config, fields, IRRELEVANT)
    if class_name == "BERT":
        arguments["pooler"] = any(_short(name).startswith("pooler.") for name in tensor_names)
    return arguments


def write_config(class_name, arguments):
    """config.json for a `BERT` or `BERTMaskedLM`; None for one that transformers' BERT cannot be."""
    arguments = {
        **arguments,
        "intermediate_dim": arguments["intermediate_dim"] or 4 * arguments["hidden_dim"],
    }
    config = config_map.write(FIELDS, arguments, {"pooler": (True, False)})
    return config and {**config, "tie_word_embeddings": True}


def read_weights(class_name, arguments, tensors, shapes):
    """Values of the variables of a `BERT` or `BERTMaskedLM`: dict path -> array."""
    tied = TIED if class_name == "BERTMaskedLM" else {}
    tensors = weight_map.renamed(tensors, _short)
    return weight_map.read(_rows(class_name, arguments), tensors, shapes, IGNORED[class_name], tied)


def write_weights(class_name, arguments, arrays):
    """The tensors of a `BertModel` or `BertForMaskedLM` from the values of our variables."""
    tensors = weight_map.write(_rows(class_name, arguments), arrays)
    if class_name == "BERT":
        return tensors
    return {name if name.startswith("cls.") else f"bert.{name}": tensor for name, tensor in tensors.items()}


def _rows(class_name, arguments):
    heads = {"BERT": POOLER if arguments.get("pooler") else [], "BERTMaskedLM": MASKED_LM_HEAD}
    return weight_map.expand(ENCODER + heads[class_name], arguments["num_layers"])


def _short(name):
    # Models with a head prefix the encoder; files made from TensorFlow's keep its words for norms.
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
