"""Fewer bits: the matrices and tables of a float32 TFLite file as whole numbers with a scale for each row.

TensorFlow's converter would write an embedding that is the output layer as well twice, with one scale for the whole
table where it looks tokens up. Here both read the same rows: tokens are looked up by EMBEDDING_LOOKUP, which knows rows
with scales, instead of GATHER.
"""

import ml_dtypes
import numpy as np

MIN_SIZE = 1024
"""Matrices with fewer numbers stay as they are: the scales would weigh too much."""

SMALL = 1 / 2
"""A part of the median of the matrices. Smaller ones stay as they are: keys and values that many query heads share cost
little and matter much. With them float32, SmolLM2-135M's perplexity on WikiText-2 rises by 1.4 % and not by 4.7 %.
"""

BLOCK = 32
"""Numbers of 4 bits that share a scale."""


def quantized(content, bits=8):
    """A TFLite file with weights of `bits` bits, whose products are of whole numbers where it pays.

    Args:
        content: bytes-like, a float32 file.
        bits: 8; or 4 for the matrices of layers, in blocks that have a scale each. Tables that tokens are looked up in
            keep 8.

    Returns:
        The bytes of the file.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    file = _File(schema, model)
    for buffer, users in file.weights():
        file.quantize(buffer, users, bits)
    return file.bytes()


class _File:
    """A file's parts, as the schema's objects."""

    def __init__(self, schema, model):
        self.schema, self.model = schema, model
        self.names = {i: name for name, i in vars(schema.BuiltinOperator).items() if isinstance(i, int)}

    def operation(self, operator):
        """The name of an operator's operation."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return self.names[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def weights(self):
        """Pairs (buffer, users) of float32 matrices that are looked up or multiplied with, and nothing else.

        The users are triples (subgraph, operator, tensor).
        """
        users, others = {}, set()
        for graph in self.model.subgraphs:
            others.update(graph.tensors[i].buffer for i in (*graph.inputs, *graph.outputs))
            for operator in graph.operators:
                for place, i in enumerate(operator.inputs):
                    tensor = graph.tensors[i]
                    if i >= 0 and self.takes_rows(graph, operator, place):
                        users.setdefault(tensor.buffer, []).append((graph, operator, tensor))
                    elif i >= 0:
                        others.add(tensor.buffer)
        users = {i: uses for i, uses in users.items() if i not in others and self.model.buffers[i].data is not None}
        tables = {i for i, uses in users.items() if any(self.operation(o) == "GATHER" for _, o, _ in uses)}
        sizes = {i: self.model.buffers[i].data.nbytes // 4 for i in users}
        least = max(MIN_SIZE, SMALL * np.median([size for i, size in sizes.items() if i not in tables] or [0]))
        for i, uses in users.items():
            if sizes[i] >= (MIN_SIZE if i in tables else least):
                yield self.model.buffers[i], uses

    def takes_rows(self, graph, operator, place):
        """Whether an operator's input is a float32 matrix whose rows may have a scale each."""
        kinds, tensor = self.schema.TensorType, graph.tensors[operator.inputs[place]]
        if tensor.type != kinds.FLOAT32 or tensor.shape is None or len(tensor.shape) != 2:
            return False
        if self.operation(operator) == "GATHER":
            options, ids = operator.builtinOptions, graph.tensors[operator.inputs[1]]
            looks_up_rows = options is None or options.axis == options.batchDims == 0
            return place == 0 and ids.type == kinds.INT32 and looks_up_rows
        return self.operation(operator) == "FULLY_CONNECTED" and place == 1

    def quantize(self, buffer, users, bits):
        """Give a matrix fewer bits, and its users what they need for it."""
        rows = buffer.data.view("<f4").reshape(users[0][2].shape)
        looked_up = any(self.operation(operator) == "GATHER" for _, operator, _ in users)
        if bits == 4 and not looked_up and rows.shape[1] % BLOCK == 0:
            # Kernels keep these scales as bfloat16; the file has them as float16.
            whole, scales = _whole_numbers(rows.reshape(len(rows), -1, BLOCK), 7, ml_dtypes.bfloat16)
            buffer.data, kind = _packed(whole), self.schema.TensorType.INT4
            shape, scales = scales.shape, self.buffer(scales.astype("float16"))
            described = [self.blocks_with_scales(graph, shape, scales) for graph, *_ in users]
        else:
            whole, scales = _whole_numbers(rows, 127, "float32")
            buffer.data, kind = whole.view("uint8").ravel(), self.schema.TensorType.INT8
            described = [self.rows_with_scales(scales)] * len(users)
        for (graph, operator, tensor), quantization in zip(users, described, strict=True):
            tensor.type, tensor.quantization = kind, quantization
            if self.operation(operator) == "GATHER":
                self.look_up(graph, operator)
            else:
                operator.builtinOptions.asymmetricQuantizeInputs = True

    def rows_with_scales(self, scales):
        """How the tensors of a buffer say that each row has a scale."""
        zeros = np.zeros(len(scales), "int64")
        return _Once(self.schema.QuantizationParametersT(scale=scales, zeroPoint=zeros, quantizedDimension=0))

    def blocks_with_scales(self, graph, shape, buffer):
        """How a tensor says that each block of a row has a scale, of float16 in a tensor of their own."""
        kind = self.schema.TensorType.FLOAT16
        graph.tensors.append(self.schema.TensorT(shape=shape, type=kind, buffer=buffer, name=b"scales", hasRank=True))
        return self.schema.QuantizationParametersT(
            detailsType=self.schema.QuantizationDetails.BlockwiseQuantization,
            details=self.schema.BlockwiseQuantizationT(scales=len(graph.tensors) - 1, zeroPoints=-1, blockSize=BLOCK),
            quantizedDimension=0,
        )

    def look_up(self, graph, operator):
        """Make a GATHER of (B, T) ids an EMBEDDING_LOOKUP, which takes a vector of them: (B * T,) -> (B * T, D)."""
        table, ids = operator.inputs
        (output,) = operator.outputs
        options = self.schema.BuiltinOptions
        operator.opcodeIndex = self.code("EMBEDDING_LOOKUP", 4)
        operator.builtinOptionsType, operator.builtinOptions = options.NONE, None
        place = graph.operators.index(operator)
        if len(graph.tensors[ids].shape) != 1:
            flat = self.variable(graph, graph.tensors[ids], [-1])
            rows = self.variable(graph, graph.tensors[output], [-1, int(graph.tensors[table].shape[1])])
            before = [self.reshape(ids, self.constant(graph, [-1]), flat)]
            sizes, steps = self.sizes(graph, ids, output)
            after = [*steps, self.reshape(rows, sizes, output)]
            ids, operator.outputs = flat, [rows]
            graph.operators[place : place + 1] = [*before, operator, *after]
        operator.inputs = [ids, table]

    def sizes(self, graph, ids, output):
        """A tensor with the shape of `output`, which is that of `ids` and an axis more; and operators that make it."""
        signature = graph.tensors[output].shapeSignature
        shape = list(graph.tensors[output].shape if signature is None else signature)
        if shape.count(-1) <= 1:
            return self.constant(graph, shape), []
        options = self.schema.BuiltinOptions
        known = self.variable(graph, graph.tensors[self.constant(graph, [0] * (len(shape) - 1))], [len(shape) - 1])
        whole = self.variable(graph, graph.tensors[known], [len(shape)])
        take_shape = self.schema.OperatorT(
            opcodeIndex=self.code("SHAPE", 1),
            inputs=[ids],
            outputs=[known],
            builtinOptionsType=options.ShapeOptions,
            builtinOptions=self.schema.ShapeOptionsT(outType=self.schema.TensorType.INT32),
        )
        join = self.schema.OperatorT(
            opcodeIndex=self.code("CONCATENATION", 1),
            inputs=[known, self.constant(graph, shape[-1:])],
            outputs=[whole],
            builtinOptionsType=options.ConcatenationOptions,
            builtinOptions=self.schema.ConcatenationOptionsT(axis=0),
        )
        return whole, [take_shape, join]

    def reshape(self, given, sizes, output):
        """An operator."""
        return self.schema.OperatorT(
            opcodeIndex=self.code("RESHAPE", 1),
            inputs=[given, sizes],
            outputs=[output],
            builtinOptionsType=self.schema.BuiltinOptions.ReshapeOptions,
            builtinOptions=self.schema.ReshapeOptionsT(),
        )

    def constant(self, graph, numbers):
        """The index of a new tensor of int32."""
        kind, buffer = self.schema.TensorType.INT32, self.buffer(np.array(numbers, "<i4"))
        tensor = self.schema.TensorT(shape=[len(numbers)], type=kind, buffer=buffer, name=b"sizes", hasRank=True)
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def buffer(self, array):
        """The index of a new buffer."""
        self.model.buffers.append(self.schema.BufferT(data=array.ravel().view("uint8")))
        return len(self.model.buffers) - 1

    def variable(self, graph, like, shape):
        """The index of a new tensor of another's type; -1 is a size that is not known."""
        tensor = self.schema.TensorT(
            shape=[max(size, 1) for size in shape], type=like.type, buffer=0, name=like.name + b"/rows", hasRank=True
        )
        if -1 in shape:
            tensor.shapeSignature = shape
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def code(self, name, version):
        """The index of an operation among those of the file, to which it is added if need be."""
        for i, code in enumerate(self.model.operatorCodes):
            if self.names[max(code.builtinCode, code.deprecatedBuiltinCode)] == name and code.version >= version:
                return i
        number = getattr(self.schema.BuiltinOperator, name)
        self.model.operatorCodes.append(
            self.schema.OperatorCodeT(builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=version)
        )
        return len(self.model.operatorCodes) - 1

    def bytes(self):
        """The file."""
        import flatbuffers

        size = sum(0 if buffer.data is None else buffer.data.nbytes for buffer in self.model.buffers)
        builder = flatbuffers.Builder(size + 2**20)
        self.model.buffers = [_Aligned(self.schema, buffer) for buffer in self.model.buffers]
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return builder.Output()


class _Once:
    """A part of the file that others share: it is written once."""

    def __init__(self, part):
        self.part, self.place = part, None

    def Pack(self, builder):  # noqa: N802
        """Write it, if it is not yet, and say where it is."""
        if self.place is None:
            self.place = self.part.Pack(builder)
        return self.place


class _Aligned:
    """A buffer whose numbers begin at a multiple of 16 bytes, as kernels want them."""

    def __init__(self, schema, buffer):
        self.schema, self.buffer = schema, buffer

    def Pack(self, builder):  # noqa: N802
        """Write it."""
        data = self.buffer.data
        if data is not None:
            builder.StartVector(1, len(data), 16)
            builder.head -= len(data)
            builder.Bytes[builder.head : builder.head + len(data)] = memoryview(data)
            start = builder.EndVector()
        self.schema.BufferStart(builder)
        if data is not None:
            self.schema.BufferAddData(builder, start)
        return self.schema.BufferEnd(builder)


def _whole_numbers(x, largest, scale_dtype):
    """The whole numbers from -`largest` to `largest` nearest to x, and the scale of each of its rows."""
    scales = (np.maximum(np.abs(x).max(axis=-1), 1e-6) / largest).astype(scale_dtype).astype("float32")
    return np.clip(np.rint(x / scales[..., None]), -largest, largest).astype("int8"), scales


def _packed(whole):
    """Two numbers of 4 bits a byte, the first in the lower half."""
    halves = whole.view("uint8").ravel() & 15
    return halves[::2] | halves[1::2] << 4
