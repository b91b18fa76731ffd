"""The command line, in this process: what it prints and how it ends."""

import io
import json
import subprocess
import sys

import pytest

import kerasllm
from kerasllm import cli

TEXTS = ["the cat sees the dog", "a dog wants the book", "the king has a horse"]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """The folder of a tiny GPT that chats."""
    tokenizer = kerasllm.Tokenizer.train_bpe(TEXTS, 300)
    tokenizer.config["chat_template"] = TEMPLATE
    model = kerasllm.GPT(tokenizer.vocabulary_size, 1, 2, 8, max_sequence_length=64, tokenizer=tokenizer)
    folder = tmp_path_factory.mktemp("presets") / "gpt"
    model.save_to_preset(folder)
    return model, str(folder)


def run(capsys, *arguments):
    """The exit code and what was printed."""
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_generate_prints_what_the_model_generates(gpt, capsys, monkeypatch):
    model, folder = gpt
    options = dict(max_new_tokens=4, temperature=0.7, seed=3)
    wanted = model.generate(TEXTS[:2], **options)
    flags = ["--max-new-tokens", 4, "--temperature", 0.7, "--seed", 3]
    assert run(capsys, "generate", folder, *TEXTS[:2], *flags) == (0, "".join(f"{text}\n" for text in wanted), "")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS[:2]) + "\n"))
    code, printed, _ = run(capsys, "generate", folder, *flags, "--json")
    assert [json.loads(line) for line in printed.splitlines()] == [
        {"input": text, "output": output} for text, output in zip(TEXTS, wanted, strict=False)
    ]


def test_chat_streams_answers_and_remembers(gpt, capsys, monkeypatch):
    model, folder = gpt
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n\na dog\n"))
    code, printed, _ = run(capsys, "chat", folder, "--system", "king", "--max-new-tokens", 3)
    messages, answers = [{"role": "system", "content": "king"}], ""
    for text in ("the cat", "a dog"):
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": model.chat(messages, max_new_tokens=3)})
        answers += messages[-1]["content"] + "\n"
    assert (code, printed) == (0, answers)


def test_info_and_convert_tell_and_write_what_a_source_holds(gpt, capsys, tmp_path):
    model, folder = gpt
    code, printed, _ = run(capsys, "info", folder, "--json")
    facts = json.loads(printed)
    assert (code, facts["family"], facts["class_names"]) == (0, "gpt2", ["GPT"])
    assert facts["num_parameters"] == model.count_params() and facts["tokenizer_files"]
    code, printed, _ = run(capsys, "info", folder)
    assert f"num_parameters: {model.count_params()}\n" in printed and "  hidden_dim: 8\n" in printed
    assert run(capsys, "convert", folder, tmp_path / "half", "--dtype", "bfloat16")[0] == 0
    code, printed, _ = run(capsys, "info", tmp_path / "half", "--json")
    assert json.loads(printed)["dtypes"] == {"bfloat16": model.count_params()}


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["out"], {"format": "tf_saved_model"}),
        (["out.2"], {"format": "tf_saved_model"}),
        (["out.litertlm", "--max-length", 32], {"format": "litertlm", "max_length": 32}),
        (["out.tflite", "--format", "mediapipe"], {"format": "mediapipe"}),
        (
            ["out.tflite", "--quantize", "float16", "--strings", "--signatures", "decode", "forward"],
            {"format": "litert", "quantize": "float16", "strings": True, "signatures": ["decode", "forward"]},
        ),
    ],
)
def test_export_hands_its_options_to_the_model(flags, expected, gpt, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(kerasllm.GPT, "export", lambda model, path, **options: calls.append((path, options)))
    assert run(capsys, "export", gpt[1], *flags) == (0, "", "")
    assert calls == [(flags[0], expected)]


def test_an_ending_of_no_format_is_refused(capsys):
    code, _, error = run(capsys, "export", "missing", "out.tflight")
    assert code == 1 and "OUT ('out.tflight')" in error
    assert ".tflite (litert), .litertlm (litertlm)" in error and "mediapipe, onnx" in error


def test_errors_are_one_line_and_an_exit_code(gpt, capsys):
    _, folder = gpt
    code, printed, error = run(capsys, "generate", folder, "a", "--top-p", 2)
    assert (code, printed) == (1, "") and error.startswith("kerasllm: top_p (2.0) must be") and error.count("\n") == 1
    code, _, error = run(capsys, "classify", folder, "a")
    assert code == 1 and "can be opened as GPT: none can classify" in error
    code, _, error = run(capsys, "info", folder + "/nothing")
    assert code == 1 and "nothing" in error
    for arguments in (["generate"], ["fly", folder], ["generate", folder, "a", "--top-k", "many"]):
        with pytest.raises(SystemExit) as exit:
            cli.main(arguments)
        assert exit.value.code == 2


def test_help_needs_no_backend():
    script = "import sys; sys.argv[1:] = ['--help']; from kerasllm import cli\ntry: cli.main()\nfinally: "
    script += "assert not {'keras', 'tokenizers'} & set(sys.modules), 'imported'"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0 and "fill-mask" in result.stdout, result.stderr


def test_a_task_opens_the_class_that_does_it(gpt):
    _, folder = gpt
    assert isinstance(kerasllm.load("generate", folder), kerasllm.GPT)
    with pytest.raises(ValueError, match="task .'fly'. must be None or one of 'generate'"):
        kerasllm.load("fly", folder)
