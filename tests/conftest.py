"""Every test starts from the same seed; tests marked `gpu` run where the backend computes on one."""

import keras
import pytest

DEVICE = str(keras.ops.zeros(1).device).lower()


def pytest_report_header():
    return f"keras {keras.__version__} with {keras.backend.backend()} on {DEVICE}"


def pytest_collection_modifyitems(items):
    if "gpu" not in DEVICE and "cuda" not in DEVICE:
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=f"{keras.backend.backend()} sees no GPU"))


@pytest.fixture(autouse=True)
def same_seed():
    keras.utils.set_random_seed(0)
