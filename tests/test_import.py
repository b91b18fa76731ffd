"""What `import kerasllm` brings in, seen from fresh processes."""

import json
import os
import subprocess
import sys

import keras
import pytest

BACKEND = keras.backend.backend()
BACKENDS = {"tensorflow", "jax", "torch"}
# What the extras install, beyond the backends.
EXTRAS = {
    "ai_edge_litert",
    "gguf",
    "keras_hub",
    "keras_nlp",
    "litert_lm",
    "litert_lm_builder",
    "matplotlib",
    "rouge_score",
    "sacrebleu",
    "seqeval",
    "sklearn",
    "tensorboardX",
    "tensorflow_text",
    "transformers",
}


def run(code):
    """Run Python code in a fresh process and return what it prints, read as JSON."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ, KERAS_BACKEND=BACKEND),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def packages_brought_in_by(statement, given=""):
    """The packages that a statement brings in, the standard library left out."""
    return set(
        run(f"""
import json, sys
{given}
def packages():
    return {{name.partition(".")[0] for name in sys.modules}}
before = packages()
{statement}
print(json.dumps(sorted(packages() - before - sys.stdlib_module_names)))
""")
    )


@pytest.mark.parametrize("package", ["kerasllm", "kerasllm.export"])
def test_kerasllm_alone_imports_no_other_package(package):
    assert packages_brought_in_by(f"import {package}") == {"kerasllm"}


def test_beside_keras_kerasllm_imports_no_other_package():
    assert packages_brought_in_by("import kerasllm", given="import keras") == {"kerasllm"}


def test_every_public_name_works_where_only_this_backend_is_installed():
    hidden = sorted(BACKENDS - {BACKEND} | EXTRAS)
    found = run(f"""
import importlib, json, pkgutil, sys
sys.modules.update(dict.fromkeys({hidden!r}))  # so that importing one of them fails
import kerasllm
packages = [m.name for m in pkgutil.iter_modules(kerasllm.__path__, "kerasllm.") if m.ispkg]
names = [getattr(getattr(package, name), "__name__", name)
         for package in map(importlib.import_module, ["kerasllm", *packages]) for name in package.__all__]
print(json.dumps([*names, sys.modules["keras"].backend.backend()]))
""")
    assert found[-1] == BACKEND
    assert {"GPT", "BERT", "LSTMTranslator", "MultiHeadAttention", "TokenCrossentropy"} <= set(found)


REGISTERED = ["GPT", "BERT", "LSTMTranslator", "LSTMCell", "TokenCrossentropy", "Perplexity", "WarmupCosine"]


@pytest.mark.once("torch")
@pytest.mark.parametrize(
    "imports",
    ["import keras, kerasllm", "import kerasllm; kerasllm.layers.FeedForward"],
    ids=["keras comes first", "a name is used"],
)
def test_keras_finds_our_classes_in_its_files(imports):
    missing = run(f"""
import json
{imports}
import keras
print(json.dumps([n for n in {REGISTERED!r} if keras.saving.get_registered_object("kerasllm>" + n) is None]))
""")
    assert not missing


def test_unknown_names_are_attribute_errors():
    import kerasllm

    with pytest.raises(AttributeError, match="'kerasllm' has no attribute 'Gpt'"):
        kerasllm.Gpt  # noqa: B018
    assert {"GPT", "models", "layers"} <= set(dir(kerasllm))
