"""What lies on which device, and how many bytes."""

import re

from kerasllm import backend


def sharding_summary(model, print_fn=print):
    """Print how a model's variables are split over devices, and the bytes of each device, the optimizer's with them.

    Of several processes the first prints, of its own devices.

    Blocks that are alike have one line. The state of an optimizer is split as the weights that it belongs to; it counts
    once `fit` has made it.

    Args:
        model: a `keras.Model`.
        print_fn: what a line is given to.

    Returns:
        dict name of a device of this process -> bytes.
    """
    groups, sizes = {}, {}
    if backend.ranks().index:
        print_fn = len
    for variable in model.variables:
        placement = backend.placement(variable)
        key = re.sub(r"\d+", "*", variable.path), tuple(variable.shape), placement.split, placement.note
        groups[key] = groups.get(key, 0) + 1
        _add(sizes, placement)
    for (path, shape, split, note), count in groups.items():
        times = f" x {count}" if count > 1 else ""
        print_fn(f"{path}{times} {shape} {split}" + (f"    ({note})" if note else ""))
    optimizer = getattr(model, "optimizer", None)
    for variable in optimizer.variables if getattr(optimizer, "built", False) else ():
        _add(sizes, backend.placement(variable))
    for device, size in sizes.items():
        print_fn(f"{device}: {size / 1e6:.1f} MB")
    return sizes


def _add(sizes, placement):
    for device, size in placement.bytes.items():
        sizes[device] = sizes.get(device, 0) + size
