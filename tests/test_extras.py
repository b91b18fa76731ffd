"""What is missing is named: packages of the extras, and Keras's backend."""

import os
import subprocess
import sys

import keras
import pytest

import kerasllm
from kerasllm import cli, extras, metrics

SMALL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16}


@pytest.fixture
def hide(monkeypatch):
    """A function that lets a package be missing."""

    def hide(package):
        for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


def exported(format):
    return lambda folder: kerasllm.GPT(9, **SMALL).export(folder / "out.tflite", format=format)


def gguf(folder):
    (folder / "model.gguf").write_bytes(b"GGUF")
    kerasllm.load("generate", folder / "model.gguf")


CALLS = {
    "sacrebleu": ("kerasllm[metrics]", lambda folder: metrics.bleu(["a"], ["a"])),
    "rouge_score": ("kerasllm[metrics]", lambda folder: metrics.rouge(["a"], ["a"])),
    "sklearn": ("kerasllm[metrics]", lambda folder: metrics.classification_scores([0], [0], 1)),
    "seqeval": ("kerasllm[metrics]", lambda folder: metrics.entity_scores([["O"]], [["B-X"]])),
    "gguf": ("kerasllm[gguf]", gguf),
    "huggingface_hub": ("kerasllm[hub]", lambda folder: kerasllm.load("generate", "hf://org/name")),
    "kagglehub": ("pip install kagglehub", lambda folder: kerasllm.load(None, "kaggle://owner/model/framework/name")),
    "ai_edge_litert": ("kerasllm[export]", exported("litert")),
    "litert_lm_builder": ("kerasllm[export]", exported("litertlm")),
}
if keras.backend.backend() != "tensorflow":
    CALLS["tensorflow"] = ("kerasllm[export]", exported("tf_saved_model"))
if keras.backend.backend() != "torch":
    CALLS["torch"] = ("kerasllm[torch]", lambda folder: kerasllm.checkpoints.files.read_tensors(folder))


@pytest.mark.parametrize("package", CALLS)
def test_a_package_that_is_missing_is_named_with_its_extra(package, hide, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    extra, call = CALLS[package]
    hide(package)
    with pytest.raises(ImportError) as error:
        call(tmp_path)
    assert extra in str(error.value) and package in str(error.value)


def test_the_command_line_names_it_too(hide, capsys, tmp_path):
    hide("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for command in (["generate", str(tmp_path / "model.gguf"), "the"], ["info", str(tmp_path / "model.gguf")]):
        assert cli.main(command) == 1
        error = capsys.readouterr().err
        assert "kerasllm[gguf]" in error and error.count("\n") == 1


def test_a_package_that_is_there_and_broken_says_how(monkeypatch):
    def broken(name):
        raise ImportError("no libfoo.so", name="_foo")

    monkeypatch.setattr(extras.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="It fails: no libfoo.so"):
        extras.required("sacrebleu", "bleu")


@pytest.mark.parametrize(
    "installed, name, said",
    [
        (["torch"], "tensorflow", "'tensorflow'. is not installed: set KERAS_BACKEND=torch before"),
        (["jax", "torch"], "tensorflow", "set KERAS_BACKEND=jax, or another that is there, before"),
        ([], "jax", "pip install 'kerasllm.jax.'`, and set KERAS_BACKEND=jax"),
        (["jax"], "openvino", "'openvino'. must be one of 'tensorflow', 'jax', 'torch': set KERAS_BACKEND=jax"),
        (["torch"], "numpy", "'numpy'. must be one of"),
        (["torch"], "x" * 1000, "must be one of"),
    ],
)
def test_a_backend_that_is_missing_or_unknown_says_which_to_set(installed, name, said, monkeypatch):
    monkeypatch.setattr(extras, "is_installed", lambda package: package in installed)
    with pytest.raises((ImportError, ValueError), match=said) as error:
        extras.check_backend(name)
    assert len(str(error.value)) < 300


def test_the_first_use_of_a_class_says_which_backend_to_set_and_a_chat_what_it_needs(tmp_path):
    script = """if True:
        import sys
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {"tensorflow", "jax", "jinja2"}:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Missing())
        import kerasllm
        tokenizer = kerasllm.Tokenizer.train_words(["no Keras is needed"], 40)
        tokenizer.config["chat_template"] = "{{ messages[0].content }}"
        for call in (lambda: kerasllm.GPT, lambda: tokenizer.apply_chat_template([{"role": "user", "content": "no"}])):
            try:
                call()
            except (ImportError, ValueError) as error:
                print(error)
        from kerasllm import cli
        cli._load = lambda *arguments: kerasllm.BERTClassifier
        sys.exit(cli.main(["classify", "folder", "the"]))
    """
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    said = (
        "Keras's default backend ('tensorflow') is not installed: set KERAS_BACKEND=torch before Keras is imported.\n"
    )
    first, second = result.stdout.splitlines(keepends=True)
    assert (result.returncode, first) == (1, said) and "kerasllm[chat]" in second, result.stderr
    assert result.stderr == f"kerasllm: {said}"
