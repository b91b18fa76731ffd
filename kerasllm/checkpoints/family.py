"""What a family of checkpoints is: a table of its config, a table of its tensors, and what all its models have.

The same tables read and write. What a family does not name is off (`kerasllm.stack.OFF`). Nothing is lost in writing:
a config is written only where what is read from it is the same model.
"""

import math

from kerasllm.checkpoints import config_map, rope_fields, weight_map
from kerasllm.checkpoints.config_map import names_in
from kerasllm.stack import STANDS_FOR, spelled_out


class Family:
    """A family that one of our classes reads; what families are, `kerasllm.checkpoints.presets` says.

    `decoder_family`, `encoder_decoder_family` and `EncoderFamily` make it.

    Args:
        model_type, architectures: its names in config.json, of itself and, dict our class name -> its own, its classes.
        off: dict argument -> what the class has where a family says nothing, all beside sizes.
        fields: rows of its config; see `config_map`.
        rows: of its tensors, a list, or a function from the arguments to one; see `weight_map`. Those of paths that
            begin with "decoder/" are for the decoder's blocks.
        fixed: dict argument -> what all its models have, where that is not off.
        second_names, supported, irrelevant: further fields of its config; see `config_map`. The last two may be those
            of any family.
        written: dict field -> value that every config has.
        elsewhere: arguments that stand in other files than config.json.
        stands_for: what arguments stand for where they are None, as `kerasllm.stack.STANDS_FOR`.
        prepare: function (config) -> config, before the tables read it.
        told_by_tensors: function (arguments, names of tensors) -> dict of the arguments that only those tell.
        finish: function (config) -> config, before it is written.
        rename: function (name of a tensor) -> the name in `rows`.
        complete: function (tensors, arguments) -> tensors, before the table reads them.
        tied: dict of names of tensors, duplicate -> original, or a function from the arguments to one.
        ignored: patterns of tensors that hold nothing of ours.
        gguf: `GGUFNames`, where llama.cpp's files hold such models.
    """

    def __init__(
        self,
        model_type,
        architectures,
        off,
        fields,
        rows,
        fixed=None,
        second_names=None,
        supported=None,
        irrelevant=(),
        written=None,
        elsewhere=(),
        stands_for=STANDS_FOR,
        prepare=dict,
        told_by_tensors=lambda arguments, tensor_names: {},
        finish=dict,
        rename=str,
        complete=lambda tensors, arguments: tensors,
        tied=None,
        ignored=(),
        gguf=None,
    ):
        self.MODEL_TYPE, self.ARCHITECTURES, self.gguf = model_type, architectures, gguf
        self.fields, self.fixed, self.second_names = fields, off | (fixed or {}), second_names or {}
        self.supported, self.irrelevant = supported or {}, (*irrelevant, *self.second_names)
        self.written, self.elsewhere, self.stands_for = written or {}, elsewhere, stands_for
        self.prepare, self.told_by_tensors, self.finish = prepare, told_by_tensors, finish
        self.rows, self.rename, self.complete = rows, rename, complete
        self.tied, self.ignored = tied or {}, ignored

    def read_config(self, config, class_name, tensor_names):
        """The arguments of a model from config.json; some may be told by the names of its tensors."""
        config = rope_fields.plain(self.prepare(config), self.fields)
        config = config_map.renamed(config, self.second_names)
        arguments = self.fixed | config_map.read(self.fields, config, self.supported, self.irrelevant)
        return arguments | self.told_by_tensors(arguments, tensor_names)

    def write_config(self, class_name, arguments):
        """config.json for a model; None for one that is not of this family."""
        said = spelled_out(arguments, self.stands_for)
        config = config_map.write(self.fields, said)
        if config is None:
            return None
        config = self.finish(config | self.written)
        try:
            read = self.read_config(config, class_name, [row.name for row in self.expanded(arguments)])
        except ValueError:
            return None
        read = spelled_out(read, self.stands_for)
        told = set(said) - set(self.elsewhere)
        return config if all(name in read and _is_same(said[name], read[name]) for name in told) else None

    def read_weights(self, class_name, arguments, tensors, shapes):
        """Values of the variables of a model: dict path -> array."""
        tensors = self.complete(weight_map.renamed(tensors, self.rename), arguments)
        tied = self.tied(arguments) if callable(self.tied) else self.tied
        return weight_map.read(self.expanded(arguments), tensors, shapes, self.ignored, tied)

    def write_weights(self, class_name, arguments, arrays):
        """The tensors of this family from the values of a model's variables."""
        return weight_map.write(self.expanded(arguments), arrays)

    def rows_of(self, class_name, arguments):
        """The rows of all tensors of a model, by the names that files have."""
        return self.expanded(arguments)

    def expanded(self, arguments):
        """The rows of all tensors of a model."""
        rows = self.rows(arguments) if callable(self.rows) else self.rows
        num_decoder_layers = arguments.get("num_decoder_layers") or arguments["num_layers"]
        return [
            expanded
            for row in rows
            for expanded in weight_map.expand(
                [row], num_decoder_layers if names_in(row[1])[0].startswith("decoder/") else arguments["num_layers"]
            )
        ]


def replaced(table, rows):
    """A table with further rows, which replace those of the same argument, or of the same path."""
    ours = {name for row in rows for name in names_in(row[1])}
    return [row for row in table if not ours & set(names_in(row[1]))] + list(rows)


def with_defaults(table, defaults):
    """A table of fields with other defaults, dict field -> value."""
    return [(*row[:3], defaults.get(row[0], row[3])) for row in table]


def with_prefix(*prefixes):
    """A function (name) -> full name: those of a bare model, without head, lack the prefixes and get the first."""
    return lambda name: name if name.startswith(prefixes) else f"{prefixes[0]}{name}"


def _is_same(value, other):
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-12)  # 1 / sqrt(H), however it is computed
    return config_map.is_one_of(value, [other])
