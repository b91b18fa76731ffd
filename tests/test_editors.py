"""What editors know without running anything: the arguments of every constructor, by a static reader (pyright's)."""

import inspect
import json
import pathlib
import subprocess
import sys

import pytest

import kerasllm

MODELS = (
    "GPT",
    "BERT",
    "BERTClassifier",
    "BERTEmbedder",
    "BERTMaskedLM",
    "BERTQuestionAnswerer",
    "BERTTokenClassifier",
)
CLASSES = {
    "kerasllm": (*MODELS, "Summarizer", "TransformerTranslator", "LSTMTranslator", "RNNLanguageModel"),
    "kerasllm.layers": ("TransformerEncoder", "TransformerDecoder"),
}


@pytest.mark.slow
def test_an_editor_knows_every_argument_and_no_other(tmp_path):
    pytest.importorskip("basedpyright", reason="pip install kerasllm[peers]")
    right, wrong = ["from typing import Any", "value: Any = None"], []
    for module, names in CLASSES.items():
        for name in names:
            cls = getattr(sys.modules[module] if module == "kerasllm" else kerasllm.layers, name)
            arguments = ", ".join(f"{argument}=value" for argument in inspect.signature(cls).parameters)
            right += [f"from {module} import {name}", f"{name}({arguments})"]
            wrong += [f"{name}(value, value, value, value, misspelt=value)"]
    wrong += ["GPT(9, 1, 2, 8, gated=3)", "GPT(9, 1, 2, 8, sliding_window='all')"]
    right += ["GPT(9, 1, 2, 8, sliding_window=[4, None], residual='pre', dropout=0.1)"]
    (tmp_path / "calls.py").write_text("\n".join(right + wrong))
    # A static reader does not follow the import hook of a package that is installed to be edited.
    tree = str(pathlib.Path(kerasllm.__file__).parent.parent)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [tree]}))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", "--level", "error"]
    done = subprocess.run([*command, "calls.py"], cwd=tmp_path, capture_output=True, text=True)
    errors = json.loads(done.stdout)["generalDiagnostics"]
    assert [error["range"]["start"]["line"] for error in errors] == list(range(len(right), len(right + wrong))), errors
    assert sum("misspelt" in error["message"] for error in errors) == len(wrong) - 2
