"""The families that `BERT` and its heads read: BERT, RoBERTa, DistilBERT, ELECTRA and their like."""

import warnings
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

from kerasllm.arguments import shown
from kerasllm.checkpoints import weight_map
from kerasllm.checkpoints.config_map import Kind, choice, size
from kerasllm.checkpoints.family import Family, replaced
from kerasllm.checkpoints.weight_map import linear, same
from kerasllm.stack import OFF


def _is_labels(value):
    if not isinstance(value, dict) or not value or set(value) != set(map(str, range(len(value)))):
        return False
    names = list(value.values())
    return all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)


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


class Head(NamedTuple):
    """What one of our classes has beside the encoder.

    Args:
        ending: of the name of its class in config.json.
        rows: of its tensors.
        fields: rows of its config, beside the encoder's or in their place.
        fixed: dict argument -> what all its models have.
        tied: dict of names of tensors, duplicate -> original.
    """

    ending: str
    rows: tuple | list = ()
    fields: tuple | list = ()
    fixed: dict | None = None
    tied: dict | None = None


# An embedder's own arguments stand in the files of sentence-transformers.
ENCODERS = {"BERT": Head("Model"), "BERTEmbedder": Head("Model")}
TOKEN_HEADS = {
    "BERTTokenClassifier": Head("ForTokenClassification", linear("classifier", "classifier"), LABELS),
    "BERTQuestionAnswerer": Head("ForQuestionAnswering", linear("qa_outputs", "answer_span")),
}
ELSEWHERE = (
    "pooling",
    "include_prompt",
    "dense",
    "normalize",
    "truncate_at",
    "prompts",
    "default_prompt_name",
    "similarity",
)
# The parts of an encoder: before them stands the prefix in a model with a head.
BODY = ("embeddings", "embeddings_project", "encoder", "transformer", "pooler")
SEGMENTS = [("embeddings.token_type_embeddings.weight", "encoder/embeddings/segment/embeddings", same)]
PROJECTION = linear("embeddings_project", "encoder/embeddings/projection")
POOLER = linear("pooler.dense", "pooler")
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # 0 .. T - 1, and zeros
# A pooler, and heads that we have no model for.
IGNORED = (
    *BUFFERS,
    "pooler.*",
    "cls.seq_relationship.*",
    "discriminator_predictions.*",
    "*_Dense/*",  # of sentence-transformers
)
IRRELEVANT = (
    "classifier_dropout",
    # Read where other files of sentence-transformers are.
    "sentence_transformers",
    "sbert_ce_default_activation_function",
    # Google's own fields, which transformers doesn't read.
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
)


def dense_folder(number):
    """The folder that sentence-transformers has for a dense module after the pooling."""
    return f"{2 + number}_Dense"


class EncoderFamily:
    """A family that BERT and its heads read: a `Family` for each of these classes.

    Args:
        model_type, prefix, architecture: its names in config.json, before its encoder's tensors, and of its classes.
        fields, fixed, second_names, irrelevant, written: as for `Family`.
        rows: of its encoder, but for segments, projection and pooler.
        heads: dict our class name -> `Head`, of those that differ from family to family.
        pooler: whether its encoder may have one.
    """

    def __init__(
        self,
        model_type,
        prefix,
        architecture,
        fields,
        rows,
        heads,
        fixed=None,
        second_names=None,
        irrelevant=(),
        written=None,
        pooler=True,
    ):
        self.MODEL_TYPE, self.prefix, self.pooler = model_type, prefix, pooler
        self.encoder, self.heads = rows, ENCODERS | heads | TOKEN_HEADS
        self.ARCHITECTURES = {name: f"{architecture}{head.ending}" for name, head in self.heads.items()}
        written = {"tie_word_embeddings": True, **(written or {})}
        self.families = {
            class_name: Family(
                model_type,
                self.ARCHITECTURES,
                OFF | {"num_segments": 0},
                replaced(fields, head.fields),
                partial(self._rows, class_name),
                fixed={
                    "residual": "post",
                    "norm_embeddings": True,
                    "family": model_type,
                    **(fixed or {}),
                    **(head.fixed or {}),
                },
                second_names=second_names,
                supported={
                    "position_embedding_type": ("absolute",),
                    **{name: (value,) for name, value in written.items()},
                    # An encoder alone has no output embedding to tie.
                    **dict.fromkeys(
                        ("tie_word_embeddings", "tie_weights_"),
                        (True,) if class_name == "BERTMaskedLM" else (True, False),
                    ),
                },
                irrelevant=(*IRRELEVANT, *irrelevant),
                written=written,
                elsewhere=ELSEWHERE if class_name == "BERTEmbedder" else (),
                prepare=_with_labels if any(row in head.fields for row in LABELS) else dict,
                told_by_tensors=self._pooler if class_name == "BERT" else lambda arguments, names: {},
                finish=_with_plain_labels,
                tied=head.tied,
                ignored=self._ignored(class_name),
            )
            for class_name, head in self.heads.items()
        }

    def read_config(self, config, class_name, tensor_names):
        """The arguments of a model; the tensors tell whether there is a pooler, and the head that is asked for."""
        names = set(map(self._short, tensor_names))
        if tensor_names:
            self._check_head(config, class_name, names)
        return self.families[class_name].read_config(config, class_name, names)

    def write_config(self, class_name, arguments):
        """config.json for a model; None for one that is not of this family."""
        return self.families[class_name].write_config(class_name, arguments)

    def read_weights(self, class_name, arguments, tensors, shapes):
        """Values of the variables of a model: dict path -> array."""
        tensors = weight_map.renamed(tensors, self._short)
        if class_name == "BERTMaskedLM":
            foreign = [n for n in tensors if n.startswith("cls.") and not n.startswith(("cls.pred", "cls.seq"))]
            if foreign:
                warnings.warn(f"Heads that a {class_name} hasn't are left out: {', '.join(foreign)}.", stacklevel=2)
            tensors = {name: tensor for name, tensor in tensors.items() if name not in foreign}
        return self.families[class_name].read_weights(class_name, arguments, tensors, shapes)

    def write_weights(self, class_name, arguments, arrays):
        """The tensors of this family from the values of a model's variables."""
        tensors = self.families[class_name].write_weights(class_name, arguments, arrays)
        return {self._full(class_name, name): tensor for name, tensor in tensors.items()}

    def rows_of(self, class_name, arguments):
        """The rows of all tensors of a model, by the names that files have."""
        rows = self.families[class_name].expanded(arguments)
        return [row._replace(name=self._full(class_name, row.name)) for row in rows]

    def _full(self, class_name, name):
        return f"{self.prefix}.{name}" if class_name not in ENCODERS and _part(name) in BODY else name

    def left_out(self, class_name, arguments, names):
        """The names of those tensors of a checkpoint that a model has no place for: poolers and other heads."""
        family = self.families[class_name]
        rows = {row.name for row in family.expanded(arguments)} | set(family.tied)
        ignored = [pattern for pattern in family.ignored if pattern not in BUFFERS]
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
            if all(row[0] in names for row in self.heads[class_name].rows):
                return class_name
        return "BERT"

    def _rows(self, class_name, arguments):
        segments = SEGMENTS if arguments["num_segments"] else []
        factorised = arguments.get("embedding_dim") not in (None, arguments["hidden_dim"])
        dense = enumerate(arguments.get("dense", ()))
        return [
            *self.encoder,
            *segments,
            *(PROJECTION if factorised else []),
            *(POOLER if arguments.get("pooler") else []),
            *(row for i, layer in dense for row in _dense(i, **layer)),
            *self.heads[class_name].rows,
        ]

    def _pooler(self, arguments, tensor_names):
        return {"pooler": self.pooler and any(name.startswith("pooler.") for name in tensor_names)}

    def _ignored(self, class_name):
        own = {_part(row[0]) for row in self.heads[class_name].rows}
        parts = {_part(row[0]) for head in self.heads.values() for row in head.rows} - own
        return [*IGNORED, *(f"{part}.*" for part in parts - set(BODY))]

    def _check_head(self, config, class_name, names):
        """Refuse a file of another task's model: the tensors of two heads may have the same names."""
        if class_name in ENCODERS:
            return
        needed = [row[0] for row in self.heads[class_name].rows if row not in POOLER]
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


def _with_plain_labels(config):
    """The config with what transformers writes of labels, and without what it leaves out."""
    if config.get("id2label", DEFAULT_LABELS) != DEFAULT_LABELS:
        config = {**config, "label2id": {name: int(i) for i, name in config["id2label"].items()}}
    else:
        config = {field: value for field, value in config.items() if field != "id2label"}
    if config.get("problem_type") == "regression" and len(config.get("id2label", DEFAULT_LABELS)) == 1:
        # sentence-transformers would put a sigmoid over one number.
        config = {**config, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    return {field: value for field, value in config.items() if field != "problem_type" or value is not None}


def _dense(number, use_bias=True, **layer):
    return linear(f"{dense_folder(number)}/linear", f"dense_{number}", bias=same if use_bias else None)


def _part(name):
    return name.partition(".")[0]
