"""BERT (Devlin et al. 2019) and its relatives as Hugging Face lays them out: RoBERTa, DistilBERT, ELECTRA."""

import warnings
from fnmatch import fnmatchcase

from kerasllm.arguments import shown
from kerasllm.checkpoints import config_map, weight_map
from kerasllm.checkpoints.config_map import Kind, activation, choice, positive, rate, size
from kerasllm.checkpoints.weight_map import after, same, transposed

SUFFIXES = {
    "BERT": "Model",
    "BERTEmbedder": "Model",
    "BERTMaskedLM": "ForMaskedLM",
    "BERTClassifier": "ForSequenceClassification",
    "BERTTokenClassifier": "ForTokenClassification",
    "BERTQuestionAnswerer": "ForQuestionAnswering",
}
ENCODERS = ("BERT", "BERTEmbedder")
# What a model has that stands in no config.json; of an embedder in the files of sentence-transformers.
ELSEWHERE = (
    "pooler",
    "pooling",
    "include_prompt",
    "dense",
    "normalize",
    "truncate_at",
    "prompts",
    "default_prompt_name",
    "similarity",
)


def _is_labels(value):
    if not isinstance(value, dict) or not value or set(value) != set(map(str, range(len(value)))):
        return False
    names = list(value.values())
    return all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)


def _position_rows(unused):
    """The `Kind` of the number of rows in a position table whose first `unused` rows stand for no position."""
    return Kind(
        f"a whole number above {unused}",
        lambda value: size.accepts(value) and value > unused,
        lambda values: values[0] - unused,
        lambda value: value + unused,
    )


labels = Kind(
    "an object of different names for '0', '1', ...",
    _is_labels,
    lambda values: [values[0][str(i)] for i in range(len(values[0]))],
    lambda names: {str(i): name for i, name in enumerate(names)},
)
problem_type = choice(
    {
        "single_label_classification": "single_label",
        "multi_label_classification": "multi_label",
        "regression": "regression",
    }
)
optional_problem_type = Kind(
    f"null or {problem_type.accepted}",
    lambda value: value is None or problem_type.accepts(value),
    lambda values: None if values[0] is None else problem_type.to_ours(values),
    lambda value: None if value is None else problem_type.to_foreign(value),
)
MOST_LABELS = 10**6
DEFAULT_LABELS = {"0": "LABEL_0", "1": "LABEL_1"}
LABELS = [("id2label", "labels", labels, DEFAULT_LABELS)]
HEAD_FIELDS = {
    "BERTClassifier": [*LABELS, ("problem_type", "problem_type", optional_problem_type, None)],
    "BERTTokenClassifier": LABELS,
}

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
ROBERTA_FIELDS = [
    ("max_position_embeddings", "max_sequence_length", _position_rows(unused=2), 512),
    *(row for row in FIELDS if row[0] != "max_position_embeddings"),
]
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
ELECTRA_DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
ELECTRA_FIELDS = [
    *((*row[:3], ELECTRA_DEFAULTS.get(row[0], row[3])) for row in FIELDS),
    ("embedding_size", "embedding_dim", size, 128),
]
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
DISTILBERT_IRRELEVANT = (
    "qa_dropout",
    "seq_classif_dropout",
    "sinusoidal_pos_embds",  # says how the table of positions began; it is in the file
)
ELECTRA_IRRELEVANT = (  # of its head for multiple choice
    "summary_activation",
    "summary_last_dropout",
    "summary_type",
    "summary_use_proj",
)


def linear(name, path, use_bias=True, **_):
    """The rows of a `torch.nn.Linear` and our dense layer."""
    rows = [(f"{name}.weight", f"{path}/kernel", transposed), (f"{name}.bias", f"{path}/bias", same)]
    return rows if use_bias else rows[:1]


def dense_folder(number):
    """The folder that sentence-transformers has for a dense module after the pooling."""
    return f"{2 + number}_Dense"


def norm(name, path):
    """The rows of a layer norm."""
    return [(f"{name}.weight", f"{path}/gamma", same), (f"{name}.bias", f"{path}/beta", same)]


def masked_lm(dense, layer_norm, bias):
    """The rows of a masked language model's head."""
    head = "masked_lm_head"
    return linear(dense, f"{head}/dense") + norm(layer_norm, f"{head}/norm") + [(bias, f"{head}/bias", same)]


def encoder(block, names, positions=same):
    """The rows of an encoder: embeddings, and `names` of eight modules of the block called `block`."""
    query, key, value, output, attention_norm, wide, narrow, feed_forward_norm = (f"{block}.{n}" for n in names)
    ours = "encoder/block_{i}"
    return [
        ("embeddings.word_embeddings.weight", "encoder/embeddings/token/embeddings", same),
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
SEGMENTS = [("embeddings.token_type_embeddings.weight", "encoder/embeddings/segment/embeddings", same)]
PROJECTION = linear("embeddings_project", "encoder/embeddings/projection")
POOLER = linear("pooler.dense", "pooler")
# The parts of an encoder: before them stands the prefix in a model with a head.
BODY = ("embeddings", "embeddings_project", "encoder", "transformer", "pooler")
TOKEN_HEADS = {
    "BERTTokenClassifier": linear("classifier", "classifier"),
    "BERTQuestionAnswerer": linear("qa_outputs", "answer_span"),
}
# A classifier that has its own pooler, as RoBERTa's and ELECTRA's.
POOLING_CLASSIFIER = linear("classifier.dense", "pooler") + linear("classifier.out_proj", "classifier")
WORDS = "embeddings.word_embeddings.weight"
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # 0 .. T - 1, and zeros
# A pooler, and heads that we have no model for.
IGNORED = (
    *BUFFERS,
    "pooler.*",
    "cls.seq_relationship.*",
    "discriminator_predictions.*",
    "*_Dense/*",  # of sentence-transformers
)


class BERTFamily:
    """A family that BERT and its heads read; what families are, `kerasllm.checkpoints.presets` says.

    Args:
        model_type, prefix, architecture: its names in config.json, before its encoder's tensors, and of its classes.
        fields, fixed, supported, irrelevant: what its config has; see `config_map`. `fixed` are the arguments that all
            its models have in common.
        rows: of its encoder. heads: dict class name -> rows of its head.
        tied: dict of foreign names of its masked LM, duplicate -> original.
        pooler: whether its encoder may have one. pooler_activation: of its classifier's.
        gelu_head: whether its masked LM's head has a gelu, whatever the encoder's activation.
        second_names: dict second name of a field of its config -> first.
    """

    def __init__(
        self,
        model_type,
        prefix,
        architecture,
        rows,
        heads,
        tied,
        fields=FIELDS,
        fixed=None,
        supported=None,
        irrelevant=(),
        pooler=True,
        pooler_activation="tanh",
        gelu_head=False,
        second_names=None,
    ):
        self.MODEL_TYPE, self.prefix = model_type, prefix
        self.ARCHITECTURES = {name: architecture + suffix for name, suffix in SUFFIXES.items()}
        self.rows, self.heads, self.tied = rows, TOKEN_HEADS | heads, tied
        self.fields, self.fixed = fields, {"family": model_type, **(fixed or {})}
        self.supported = {"position_embedding_type": ("absolute",), **(supported or {})}
        self.second_names = second_names or {}
        self.irrelevant = (*IRRELEVANT, *irrelevant, *self.second_names)
        self.pooler, self.pooler_activation, self.gelu_head = pooler, pooler_activation, gelu_head

    def read_config(self, config, class_name, tensor_names):
        """The arguments of a model; the tensors tell whether there is a pooler, and the head that is asked for."""
        names = set(map(self._short, tensor_names))
        if tensor_names:
            self._check_head(config, class_name, names)
        config = config_map.renamed(config, self.second_names)
        if class_name in HEAD_FIELDS:
            config = _with_labels(config)
        # An encoder alone has no output embedding to tie.
        tied = (True,) if class_name == "BERTMaskedLM" else (True, False)
        supported = {**self.supported, "tie_word_embeddings": tied, "tie_weights_": tied}
        arguments = config_map.read(self._fields(class_name), config, supported, self.irrelevant)
        if class_name == "BERTMaskedLM" and self.gelu_head and arguments["activation"] != "gelu":
            raise ValueError(f"config.json: hidden_act ({shown(config['hidden_act'])}) must be 'gelu' in a masked LM.")
        if class_name == "BERT":
            arguments["pooler"] = self.pooler and any(name.startswith("pooler.") for name in names)
        if class_name == "BERTClassifier":
            arguments["pooler_activation"] = self.pooler_activation
        return arguments | self.fixed

    def write_config(self, class_name, arguments):
        """config.json for a model; None for one that is not of this family."""
        width = arguments["hidden_dim"]
        narrow = arguments.get("embedding_dim") or width
        filled = {"intermediate_dim": arguments["intermediate_dim"] or 4 * width, "embedding_dim": narrow}
        no_pooler = arguments.get("pooler") and not self.pooler
        other_head = class_name == "BERTMaskedLM" and self.gelu_head and arguments["activation"] != "gelu"
        if no_pooler or other_head:
            return None
        fixed = {"embedding_dim": width, "pooler_activation": self.pooler_activation, **self.fixed}
        arguments = {name: value for name, value in (arguments | filled).items() if name not in ELSEWHERE}
        config = config_map.write(self._fields(class_name), arguments, {name: (v,) for name, v in fixed.items()})
        if config is None:
            return None
        if "id2label" in config:
            config["label2id"] = {name: i for i, name in enumerate(arguments["labels"])}
        if config.get("id2label") == DEFAULT_LABELS:  # which transformers doesn't write either
            del config["id2label"], config["label2id"]
        if config.get("problem_type", "") is None:
            del config["problem_type"]
        needed = {name: values[0] for name, values in self.supported.items() if name == "pad_token_id"}
        return {**config, **needed, "tie_word_embeddings": True}

    def read_weights(self, class_name, arguments, tensors, shapes):
        """Values of the variables of a model: dict path -> array."""
        tensors = weight_map.renamed(tensors, self._short)
        tied = self.tied if class_name == "BERTMaskedLM" else {}
        ignored = self._ignored(class_name, arguments)
        if class_name == "BERTMaskedLM":
            foreign = [n for n in tensors if n.startswith("cls.") and not n.startswith(("cls.pred", "cls.seq"))]
            if foreign:
                warnings.warn(f"Heads that a {class_name} hasn't are left out: {', '.join(foreign)}.", stacklevel=2)
            ignored += foreign
        return weight_map.read(self._expanded(class_name, arguments), tensors, shapes, ignored, tied)

    def left_out(self, class_name, arguments, names):
        """The names of those tensors of a checkpoint that a model has no place for: poolers and other heads."""
        rows = {row.name for row in self._expanded(class_name, arguments)} | set(self.tied)
        ignored = [pattern for pattern in self._ignored(class_name, arguments) if pattern not in BUFFERS]
        return [
            name
            for name in names
            if (short := self._short(name)) not in rows
            and (any(fnmatchcase(short, pattern) for pattern in ignored) or short.startswith("cls."))
        ]

    def made_for(self, names):
        """The class of ours whose head is among tensors of these names, where their names say it."""
        names = {self._short(name) for name in names}
        for class_name in ("BERTMaskedLM", "BERTQuestionAnswerer"):
            if all(row[0] in names for row in self.heads[class_name]):
                return class_name
        return "BERT"

    def _ignored(self, class_name, arguments):
        own = {row[0] for row in self._head(class_name, arguments)}
        parts = {_part(row[0]) for rows in self.heads.values() for row in rows} - {_part(name) for name in own}
        return [*IGNORED, *(f"{part}.*" for part in parts - set(BODY))]

    def write_weights(self, class_name, arguments, arrays):
        """The tensors of this family from the values of a model's variables."""
        tensors = weight_map.write(self._expanded(class_name, arguments), arrays)
        if class_name in ENCODERS:
            return tensors
        return {f"{self.prefix}.{n}" if _part(n) in BODY else n: tensor for n, tensor in tensors.items()}

    def _fields(self, class_name):
        return [*self.fields, *HEAD_FIELDS.get(class_name, ())]

    def _head(self, class_name, arguments):
        if class_name in ENCODERS:
            dense = enumerate(arguments.get("dense", ()))
            rows = [row for i, layer in dense for row in linear(f"{dense_folder(i)}/linear", f"dense_{i}", **layer)]
            return rows + (POOLER if arguments.get("pooler") else [])
        return self.heads[class_name]

    def _expanded(self, class_name, arguments):
        segments = SEGMENTS if arguments["num_segments"] else []
        factorised = arguments.get("embedding_dim") not in (None, arguments["hidden_dim"])
        rows = self.rows + segments + (PROJECTION if factorised else []) + self._head(class_name, arguments)
        return weight_map.expand(rows, arguments["num_layers"])

    def _check_head(self, config, class_name, names):
        """Refuse a file of another task's model: the tensors of two heads may have the same names."""
        if class_name in ENCODERS:
            return
        needed = [row[0] for row in self.heads[class_name] if row not in POOLER]
        missing = [n for n in needed if n not in names]
        theirs = config.get("architectures") or []
        others = set(self.ARCHITECTURES.values()) - {self.ARCHITECTURES[class_name], self.ARCHITECTURES["BERT"]}
        if len(missing) == len(needed) or others & set(theirs):
            holds = f"architectures {str(theirs):.200}" + (
                f", missing tensors: {', '.join(missing)}" if missing else ""
            )
            raise ValueError(
                f"it holds the head of no {class_name} ({holds}); "
                f"{class_name}.from_preset(..., fresh_head=True) reads the encoder and makes a new head."
            )

    def _short(self, name):
        # Models with a head prefix the encoder; files made from TensorFlow's keep its words for norms.
        name = name.removeprefix(f"{self.prefix}.")
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _with_labels(config):
    """The config with `id2label`; in transformers another `num_labels` goes first, and its labels have numbers."""
    found = config.get("id2label")
    number = config.get("num_labels", config.get("_num_labels", 2) if found is None else None)
    if number is None and found is not None:
        return config
    if not size.accepts(number) or number > MOST_LABELS:
        raise ValueError(
            f"config.json: num_labels ({shown(number)}) must be a positive whole number up to {MOST_LABELS}."
        )
    if found is not None and (not isinstance(found, dict) or len(found) == number):
        return config
    return {**config, "id2label": {str(i): f"LABEL_{i}" for i in range(number)}}


def _part(name):
    return name.partition(".")[0]


BERT = BERTFamily(
    "bert",
    "bert",
    "Bert",
    encoder("encoder.layer.{i}", BERT_MODULES),
    {
        "BERTMaskedLM": masked_lm(
            "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
        ),
        "BERTClassifier": POOLER + linear("classifier", "classifier"),
    },
    {"cls.predictions.decoder.weight": WORDS, "cls.predictions.decoder.bias": "cls.predictions.bias"},
)


def roberta(model_type, architecture, vocabulary_size=30522):
    """A family with RoBERTa's layout (Liu et al. 2019, arXiv:1907.11692), and so many symbols where no file says."""
    return BERTFamily(
        model_type,
        "roberta",
        architecture,
        # Its positions begin after that of the padding token, which is 1.
        encoder("encoder.layer.{i}", BERT_MODULES, positions=after(2)),
        {
            "BERTMaskedLM": masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
            "BERTClassifier": POOLING_CLASSIFIER,
        },
        {"lm_head.decoder.weight": WORDS, "lm_head.decoder.bias": "lm_head.bias"},
        fields=[(*row[:3], vocabulary_size if row[0] == "vocab_size" else row[3]) for row in ROBERTA_FIELDS],
        supported={"pad_token_id": (1,)},
        gelu_head=True,
    )


DISTILBERT = BERTFamily(  # Sanh et al. 2019, arXiv:1910.01108
    "distilbert",
    "distilbert",
    "DistilBert",
    encoder("transformer.layer.{i}", DISTILBERT_MODULES),
    {
        "BERTMaskedLM": masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        "BERTClassifier": linear("pre_classifier", "pooler") + linear("classifier", "classifier"),
    },
    {"vocab_projector.weight": WORDS},
    fields=DISTILBERT_FIELDS,
    fixed={"num_segments": 0, "norm_epsilon": 1e-12},
    second_names={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    irrelevant=DISTILBERT_IRRELEVANT,
    pooler=False,
    pooler_activation="relu",
)
ELECTRA = BERTFamily(  # Clark et al. 2020, arXiv:2003.10555
    "electra",
    "electra",
    "Electra",
    encoder("encoder.layer.{i}", BERT_MODULES),
    {
        "BERTMaskedLM": masked_lm(
            "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"
        ),
        "BERTClassifier": POOLING_CLASSIFIER,
    },
    {"generator_lm_head.weight": WORDS},
    fields=ELECTRA_FIELDS,
    irrelevant=ELECTRA_IRRELEVANT,
    pooler=False,
    pooler_activation="gelu",
    gelu_head=True,
)
FAMILIES = (
    BERT,
    roberta("roberta", "Roberta", 50265),
    roberta("xlm-roberta", "XLMRoberta"),
    roberta("camembert", "Camembert"),
    DISTILBERT,
    ELECTRA,
)
