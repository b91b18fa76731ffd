import ml_dtypes
import numpy as np
import pytest

from kerasllm.checkpoints.weight_map import after, expand, fused, read, renamed, same, transposed, write

TABLE = [
    ("wte", "token/embeddings", same),
    ("h.{i}.out.weight", "block_{i}/out/kernel", transposed),
    ("h.{i}.qkv.weight", ["block_{i}/query/kernel", "block_{i}/key/kernel"], fused),
    ("h.{i}.qkv.bias", ["block_{i}/query/bias", "block_{i}/key/bias"], fused),
]
ROWS = expand(TABLE, num_layers=2)
SHAPES = {"token/embeddings": (7, 4)}
for i in range(2):
    SHAPES[f"block_{i}/out/kernel"] = (4, 6)
    SHAPES |= {f"block_{i}/query/kernel": (4, 6), f"block_{i}/key/kernel": (4, 2)}
    SHAPES |= {f"block_{i}/query/bias": (6,), f"block_{i}/key/bias": (2,)}
FOREIGN_SHAPES = {"wte": (7, 4)}
for i in range(2):
    FOREIGN_SHAPES |= {f"h.{i}.out.weight": (6, 4), f"h.{i}.qkv.weight": (4, 8), f"h.{i}.qkv.bias": (8,)}


def foreign_tensors(dtype="float32"):
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape).astype(dtype) for name, shape in FOREIGN_SHAPES.items()}


def bits(arrays):
    return {name: (a.shape, a.dtype, np.ascontiguousarray(a).tobytes()) for name, a in arrays.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16, "float64"])
def test_writing_what_was_read_gives_the_same_bits(dtype):
    tensors = foreign_tensors(dtype)
    arrays = read(ROWS, tensors, SHAPES)
    assert {path: array.shape for path, array in arrays.items()} == SHAPES
    assert bits(write(ROWS, arrays)) == bits(tensors)


def test_nan_and_negative_zero_keep_their_bits():
    tensors = foreign_tensors()
    tensors["h.0.qkv.weight"][0, :3] = np.nan, -0.0, -np.inf
    assert bits(write(ROWS, read(ROWS, tensors, SHAPES))) == bits(tensors)


def test_layouts_put_values_where_the_table_says():
    tensors = foreign_tensors()
    arrays = read(ROWS, tensors, SHAPES)
    np.testing.assert_array_equal(arrays["block_1/out/kernel"], tensors["h.1.out.weight"].T)
    np.testing.assert_array_equal(arrays["block_1/query/kernel"], tensors["h.1.qkv.weight"][:, :6])
    np.testing.assert_array_equal(arrays["block_1/key/bias"], tensors["h.1.qkv.bias"][6:])


def test_rows_that_nothing_looks_up_are_left_out_and_written_as_zeros():
    rows, tensor = expand([("wpe", "position/embeddings", after(2))], 1), np.arange(1.0, 16.0).reshape(5, 3)
    arrays = read(rows, {"wpe": tensor}, {"position/embeddings": (3, 3)})
    np.testing.assert_array_equal(arrays["position/embeddings"], tensor[2:])
    np.testing.assert_array_equal(write(rows, arrays)["wpe"], np.concatenate([np.zeros((2, 3)), tensor[2:]]))


def test_arrays_are_views_where_the_layout_allows_it():
    tensors = foreign_tensors()
    arrays = read(ROWS, tensors, SHAPES)
    assert all(any(np.shares_memory(array, tensor) for tensor in tensors.values()) for array in arrays.values())


def test_one_error_names_all_that_is_wrong():
    tensors = foreign_tensors()
    del tensors["h.1.qkv.bias"]
    tensors["h.2.qkv.bias"] = np.zeros(8, "float32")
    tensors["h.0.out.weight"] = tensors["h.0.out.weight"].T
    tensors["wte"] = tensors["wte"].astype("int8")
    with pytest.raises(ValueError) as error:
        read(ROWS, tensors, {**SHAPES, "head/kernel": (4, 7)})
    message = str(error.value)
    assert "missing tensors: h.1.qkv.bias;" in message
    assert "extra tensors: h.2.qkv.bias;" in message
    assert "misshaped tensors: h.0.out.weight (4, 6) instead of (6, 4);" in message
    assert "wte int8" in message
    assert "variables without a row: head/kernel" in message


def test_a_row_for_a_variable_the_model_lacks_is_an_error():
    shapes = {path: shape for path, shape in SHAPES.items() if path != "block_0/query/bias"}
    with pytest.raises(ValueError, match="rows without a variable: block_0/query/bias"):
        read(ROWS, foreign_tensors(), shapes)


def test_a_long_list_is_cut_short():
    tensors = {**foreign_tensors(), **{f"x{i:04}": np.zeros(1, "float32") for i in range(5000)}}
    with pytest.raises(ValueError, match="extra tensors: x0000, .*, and 4988 more") as error:
        read(ROWS, tensors, SHAPES)
    assert len(str(error.value)) < 500


def test_ignored_tensors_are_no_error():
    tensors = {**foreign_tensors(), "h.0.mask": np.zeros((1, 1, 9, 9), "bool")}
    assert set(read(ROWS, tensors, SHAPES, ignored=["h.*.mask"])) == set(SHAPES)


def test_a_tied_duplicate_must_equal_its_original():
    tensors, tied = foreign_tensors(), {"head": "wte"}
    assert set(read(ROWS, {**tensors, "head": tensors["wte"].copy()}, SHAPES, tied=tied)) == set(SHAPES)
    with pytest.raises(ValueError, match=r"differ from the one they are tied to: head \(tied to wte\)"):
        read(ROWS, {**tensors, "head": tensors["wte"] + 1}, SHAPES, tied=tied)


def test_a_tied_duplicate_stands_in_for_an_absent_original():
    tensors = foreign_tensors()
    expected = tensors["wte"]
    tensors["head"] = tensors.pop("wte")
    np.testing.assert_array_equal(read(ROWS, tensors, SHAPES, tied={"head": "wte"})["token/embeddings"], expected)


def test_writing_names_variables_and_rows_that_do_not_match():
    arrays = read(ROWS, foreign_tensors(), SHAPES)
    arrays["head/kernel"] = arrays.pop("token/embeddings")
    with pytest.raises(ValueError, match="without a row: head/kernel; rows without a variable: token/embeddings"):
        write(ROWS, arrays)


def test_renaming_never_merges_two_tensors():
    tensors = {"bert.x": np.zeros(1), "y": np.zeros(2)}
    assert set(renamed(tensors, lambda name: name.removeprefix("bert."))) == {"x", "y"}
    with pytest.raises(ValueError, match="bert.x, x"):
        renamed({**tensors, "x": np.ones(1)}, lambda name: name.removeprefix("bert."))
