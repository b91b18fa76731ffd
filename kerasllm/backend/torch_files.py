"""Files that PyTorch wrote."""

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from kerasllm.extras import required


def read_torch_file(path):
    """The tensors of a `pytorch_model.bin`, on any backend: dict name -> read-only array, memory-mapped.

    Such a file is a pickle, which could run code; torch reads it with `weights_only`, which refuses all but tensors.

    Raises:
        ImportError: torch is not installed.
        ValueError: the file is malformed, or holds something else than tensors by name.
    """
    torch = required("torch", f"Reading {Path(path).name}, a pickle, which model.safetensors is not,")
    try:
        _check_archive(path)
        # Files older than PyTorch 1.6 are no archives, and cannot be mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever its pickle runs into
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} is refused: it is not a whole file of tensors and nothing else. {reason}") from error
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise ValueError(f"{path} must hold tensors by their names.")
    return {name: _array(torch, f"{path}: {name}", tensor) for name, tensor in tensors.items()}


def _check_archive(path):
    """Raise where an archive is larger than its file, as PyTorch's never is, or its list is not of its entries."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            sizes = [entry.file_size for entry in archive.infolist()]
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("It is a compressed archive.")
            if sum(sizes) > Path(path).stat().st_size:
                raise ValueError("Its entries are larger than the file.")
            for entry in archive.infolist():
                archive.open(entry).close()  # compares the list with what stands before the entry


def _array(torch, name, tensor):
    # A stride of 0 makes a large tensor of a small file.
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or not tensor.is_contiguous():
        raise ValueError(f"{name} must be a dense tensor.")
    tensor = tensor.detach()
    try:
        if tensor.dtype == torch.bfloat16:  # which torch does not hand to numpy, but its bits
            array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{name} ({tensor.dtype}) is of a type that numpy does not have.") from error
    array = np.asarray(array)
    array.flags.writeable = False
    return array
