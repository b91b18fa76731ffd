"""BERT (Devlin et al. 2019) and its relatives as Hugging Face lays them out: RoBERTa, DistilBERT, ELECTRA."""

from kerasllm.checkpoints.config_map import Kind, activation, choice, positive, rate, size
from kerasllm.checkpoints.encoder_family import LABELS, POOLER, EncoderFamily, Head, optional_problem_type
from kerasllm.checkpoints.encoder_family import MOST_LABELS as MOST_LABELS  # where the classifier looks for it
from kerasllm.checkpoints.family import replaced, with_defaults
from kerasllm.checkpoints.weight_map import after, linear, norm, same

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
# RoBERTa's positions begin after that of the padding token, which is 1.
UNUSED = 2
roberta_length = Kind(
    f"a whole number above {UNUSED}",
    lambda value: size.accepts(value) and value > UNUSED,
    lambda values: values[0] - UNUSED,
    lambda value: value + UNUSED if size.accepts(value) else value,
)
DISTILBERT_FIELDS = [
    ("vocab_size", "vocabulary_size", size, 30522),
    ("max_position_embeddings", "max_sequence_length", size, 512),
    ("dim", "hidden_dim", size, 768),
    ("n_layers", "num_layers", size, 6),
    ("n_heads", "num_heads", size, 12),
    ("hidden_dim", "intermediate_dim", size, 3072),
    ("activation", "activation", activation, "gelu"),
    (("dropout", "attention_dropout"), "dropout", rate, 0.1),
    ("initializer_range", "initializer_range", positive, 0.02),
]
# A head with a gelu, whatever the encoder's activation: ours has the encoder's.
GELU = [("hidden_act", "activation", choice({"gelu": "gelu"}), "gelu")]


def encoder(block, names, positions=same):
    """The rows of an encoder: embeddings, and `names` of eight modules of the block called `block`."""
    query, key, value, output, attention_norm, wide, narrow, feed_forward_norm = (f"{block}.{n}" for n in names)
    ours = "encoder/block_{i}"
    return [
        (WORDS, "encoder/embeddings/token/embeddings", same),
        ("embeddings.position_embeddings.weight", "encoder/embeddings/position/embeddings", positions),
        *norm("embeddings.LayerNorm", "encoder/embeddings/norm"),
        *linear(query, f"{ours}/attention/query"),
        *linear(key, f"{ours}/attention/key"),
        *linear(value, f"{ours}/attention/value"),
        *linear(output, f"{ours}/attention/output"),
        *norm(attention_norm, f"{ours}/attention_norm"),
        *linear(wide, f"{ours}/feed_forward/input"),
        *linear(narrow, f"{ours}/feed_forward/output"),
        *norm(feed_forward_norm, f"{ours}/feed_forward_norm"),
    ]


def masked_lm(dense, layer_norm, bias, decoder, fields=()):
    """The head of a masked language model.

    Args:
        dense, layer_norm, bias: names of its modules, and of the bias of its output layer.
        decoder: name of that layer, whose weights are the embeddings; files may hold it once more.
        fields: as for `Head`.
    """
    head = "masked_lm_head"
    rows = linear(dense, f"{head}/dense") + norm(layer_norm, f"{head}/norm") + [(bias, f"{head}/bias", same)]
    tied = {f"{decoder}.weight": WORDS, f"{decoder}.bias": bias}
    return Head("ForMaskedLM", rows, fields, tied={name: first for name, first in tied.items() if name != first})


def classifier(pooler, output="classifier", activation="tanh"):
    """The head of a classifier: rows of its own pooler, name of its output layer, activation of the pooler."""
    fields = [*LABELS, ("problem_type", "problem_type", optional_problem_type, None)]
    rows = pooler + linear(output, "classifier")
    return Head("ForSequenceClassification", rows, fields, {"pooler_activation": activation})


WORDS = "embeddings.word_embeddings.weight"
BERT_MODULES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
DISTILBERT_MODULES = (
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
BERT = EncoderFamily(
    "bert",
    "bert",
    "Bert",
    FIELDS,
    encoder("encoder.layer.{i}", BERT_MODULES),
    {
        "BERTMaskedLM": masked_lm(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.bias",
            "cls.predictions.decoder",
        ),
        "BERTClassifier": classifier(POOLER),
    },
)


def roberta(model_type, architecture, vocabulary_size=30522):
    """A family with RoBERTa's layout (Liu et al. 2019, arXiv:1907.11692), and so many symbols where no file says."""
    fields = replaced(FIELDS, [("max_position_embeddings", "max_sequence_length", roberta_length, 512)])
    return EncoderFamily(
        model_type,
        "roberta",
        architecture,
        with_defaults(fields, {"vocab_size": vocabulary_size}),
        encoder("encoder.layer.{i}", BERT_MODULES, positions=after(UNUSED)),
        {
            "BERTMaskedLM": masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder", GELU),
            "BERTClassifier": classifier(linear("classifier.dense", "pooler"), "classifier.out_proj"),
        },
        written={"pad_token_id": 1},
    )


DISTILBERT = EncoderFamily(  # Sanh et al. 2019, arXiv:1910.01108
    "distilbert",
    "distilbert",
    "DistilBert",
    DISTILBERT_FIELDS,
    encoder("transformer.layer.{i}", DISTILBERT_MODULES),
    {
        "BERTMaskedLM": masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector"),
        "BERTClassifier": classifier(linear("pre_classifier", "pooler"), activation="relu"),
    },
    fixed={"norm_epsilon": 1e-12},
    second_names={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    # sinusoidal_pos_embds says how the table of positions began; it is in the file.
    irrelevant=("qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds"),
    pooler=False,
)
ELECTRA = EncoderFamily(  # Clark et al. 2020, arXiv:2003.10555
    "electra",
    "electra",
    "Electra",
    [
        *with_defaults(FIELDS, {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}),
        ("embedding_size", "embedding_dim", size, 128),
    ],
    encoder("encoder.layer.{i}", BERT_MODULES),
    {
        "BERTMaskedLM": masked_lm(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head.bias",
            "generator_lm_head",
            GELU,
        ),
        "BERTClassifier": classifier(linear("classifier.dense", "pooler"), "classifier.out_proj", "gelu"),
    },
    # Of its head for multiple choice.
    irrelevant=("summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj"),
    pooler=False,
)
FAMILIES = (
    BERT,
    roberta("roberta", "Roberta", 50265),
    roberta("xlm-roberta", "XLMRoberta"),
    roberta("camembert", "Camembert"),
    DISTILBERT,
    ELECTRA,
)
