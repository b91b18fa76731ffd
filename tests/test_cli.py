"""The command line, in this process: what it prints and how it ends."""

import io
import itertools
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

import kerasllm
from kerasllm import cli
from kerasllm.generation import scoring

TEXTS = ["the cat sees the dog", "a dog wants the book", "the king has a horse"]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{{ mood }}"


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


class Shouting:
    """Stands in for every model: its answers are the texts in capitals; texts of more than 12 characters are errors."""

    arguments = {"labels": ["a", "b", "c"], "vocabulary_size": 9, "max_sequence_length": 12}
    tokenizer_prefixes = {"tokenizer": ""}
    generation_defaults = kerasllm.GenerationConfig()

    def __init__(self):
        self.calls = []

    def required_tokenizer(self):
        return None

    required_output_tokenizer = required_tokenizer

    def answers(self, texts, name="texts"):
        self.calls.append(list(texts))
        for i, text in enumerate(texts):
            if len(text) > 12:
                raise ValueError(f"{name}[{i}] ({text!r:.20})\nis too long")
        return [text.upper().replace("|", "\n") for text in texts]

    def generate(self, texts, batch_size, first_index, num_return_sequences=1, **options):
        answers = [f"{first_index + i} {text}" for i, text in enumerate(self.answers(texts))]
        return answers if num_return_sequences == 1 else [[a, "x\ty"] for a in answers]

    def classify(self, texts, top_k, truncate, verbose):
        texts = [text[:12] for text in texts] if truncate else texts
        return [[{"label": text, "score": 0.5}] * top_k for text in self.answers(texts)]

    def embed(self, texts, truncate, verbose):
        return np.array([[len(text), 0.5] for text in self.answers(texts)], "float32")

    def tag(self, texts, verbose):
        row = {"entity": "X", "word": "a\tb", "start": 0, "end": 1, "score": 1.0}
        return [[row] * text.count("A") for text in self.answers(texts)]

    def fill_mask(self, texts, top_k, verbose):
        row = {"score": 0.25, "token": 3, "token_str": "t", "sequence": "s"}
        return [[[row] * top_k] * 2 for _ in self.answers(texts)]

    def score(self, texts):
        return [scoring.Score(np.arange(3), np.full(2, -np.log(2), "float32")) for _ in self.answers(texts)]

    def answer(self, questions, contexts, verbose=False):
        if isinstance(contexts, str):
            return {"answer": contexts}
        return [{"answer": text} for text in self.answers(contexts)]


@pytest.fixture
def fake(monkeypatch):
    """A model in place of every source."""
    model = Shouting()
    monkeypatch.setattr(cli, "_load", lambda task, source, **arguments: model)
    return model


def piped(monkeypatch, data):
    """Let bytes be the standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))


BAD = "\ufeffgrüße\r\n\nok\nfar too long a line\n  \nnul\0\n".encode() + b"\xff\xfe\nlast|one"


def test_each_line_has_one_line_of_output_whatever_is_wrong_with_it(fake, capsys, monkeypatch):
    errors = {
        1: "line 2: it is blank",
        3: "line 4: texts[0] ('far too long a line) is too long",
        4: "line 5: it is blank",
        6: "line 7: it is not in utf-8: invalid start byte",
    }
    expected = {
        "classify": "GRÜSSE\t0.5000\n\nOK\t0.5000\n\n\nNUL\0\t0.5000\n\nLAST\\nONE\t0.5000\n",
        # Each line has the random numbers of its own place, whatever the batches.
        "generate": "0 GRÜSSE\n\n1 OK\n\n\n3 NUL\0\n\n4 LAST\\nONE\n",
    }
    for command in expected:
        for batch_size in (1, 2, 3, 32):
            piped(monkeypatch, BAD)
            code, printed, error = run(capsys, command, "folder", "--batch-size", batch_size)
            assert (code, printed) == (1, expected[command])
            assert error.splitlines() == [f"kerasllm: {message}" for message in errors.values()]
    piped(monkeypatch, BAD)
    code, printed, _ = run(capsys, "classify", "folder", "--json")
    objects = [json.loads(line) for line in printed.splitlines()]
    assert code == 1 and len(objects) == 8 and "grüße" in printed
    assert [("error" in x, "output" in x) for x in objects] == [(i in errors, i not in errors) for i in range(8)]
    assert objects[7] == {"input": "last|one", "output": [{"label": "LAST\nONE", "score": 0.5}]}
    piped(monkeypatch, "aß\n".encode("latin-1"))
    assert run(capsys, "classify", "folder", "--encoding", "latin-1") == (0, "ASS\t0.5000\n", "")
    piped(monkeypatch, "aß\n\nb".encode("utf-16"))
    assert run(capsys, "classify", "folder", "--encoding", "utf-16")[:2] == (1, "ASS\t0.5000\n\nB\t0.5000\n")
    piped(monkeypatch, b"")
    assert run(capsys, "classify", "folder") == (0, "", "")


def test_each_command_writes_one_line_for_a_text(fake, capsys, monkeypatch):
    for arguments, line in [
        (["embed", "folder", "abc"], "3 0.5"),
        (["classify", "folder", "far too long a text", "--truncate", "--top-k", 2], "FAR TOO LONG\t0.5000\t" * 2),
        (["tag", "folder", "a b a"], "X\ta\\tb\t0\t1\t1.0000\t" * 2),
        (["tag", "folder", "none"], ""),
        (["fill-mask", "folder", "x", "--top-k", 2], "0.2500\tt\ts\t" * 4),
        (["score", "folder", "x"], "-1.38629\t2"),
        (["generate", "folder", "--num-return-sequences", 2, "x"], "0 X\tx\\ty"),
        (["answer", "folder", "why?", "--context", "a|b"], "a|b"),
    ]:
        assert run(capsys, *arguments) == (0, line.removesuffix("\t") + "\n", ""), arguments
    piped(monkeypatch, b"a\n\nfar too long a line\nb\n")
    code, printed, error = run(capsys, "answer", "folder", "why?", "--lines")
    assert (code, printed, error.count("\n")) == (1, "A\n\n\nB\n", 2)


def test_lines_are_read_and_written_batch_by_batch(fake, capsys, monkeypatch):
    def endless():
        for i in itertools.count():
            assert len(fake.calls) >= i // 2, "read ahead of what is wanted"
            yield b"line\n"

    class Full(io.StringIO):
        def write(self, text):
            if len(fake.calls) == 3:
                raise BrokenPipeError
            return super().write(text)

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    stream = Full()
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=endless(), isatty=lambda: False))
    monkeypatch.setattr("sys.stdout", stream)
    assert cli.main(["classify", "folder", "--batch-size", "2"]) == 0
    assert len(stream.getvalue().splitlines()) == 4

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "classify", interrupted)
    assert cli.main(["classify", "folder", "x"]) == 130


def test_what_is_wrong_with_every_line_is_said_once(fake, capsys, monkeypatch, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, message in [
        (["generate", "folder", "--batch-size", 0], "batch_size (0) must be a positive whole number"),
        (["classify", "folder", "--batch-size", -1], "batch_size (-1) must be a positive"),
        (["classify", "folder", "--top-k", 0], "top_k (0) must be a positive"),
        (["classify", "folder", "--top-k", 4], "top_k (4) must be at most the number of labels (3)"),
        (["fill-mask", "folder", "--top-k", 10], "top_k (10) must be at most the number of symbols (9)"),
        (["generate", "folder", "--temperature", -1], "temperature (-1.0) must be"),
        (["answer", "folder", "why?", "--context", "x", "--lines"], "--context and --lines exclude each other"),
        (["answer", "folder", "why?\udcff", "--context", "x"], "question ('why?"),
        (["convert", "folder", tmp_path / "full"], "exists already; --force replaces"),
        (["export", "folder", "out.tflite", "--max-length", 0], "max_length (0) must be a positive"),
        (["export", "folder", "out", "--max-length", 5], "max_length (5) is for TFLite files"),
    ]:
        piped(monkeypatch, b"a\nb\nc\n")
        code, printed, error = run(capsys, *arguments)
        assert (code, printed, error.count("\n")) == (1, "", 1) and message in error, arguments
    assert not fake.calls
    for arguments in (["classify", "folder", "x", "--temperature", "1"], ["embed", "folder", "--encoding", "base64"]):
        with pytest.raises(SystemExit) as exit:
            cli.main(arguments)
        assert exit.value.code == 2
    capsys.readouterr()
    commands = [["--version"], *([name, "--help"] for name in cli.EXAMPLES)]
    for arguments in commands:
        with pytest.raises(SystemExit) as exit:
            cli.main(arguments)
        printed = capsys.readouterr().out
        assert exit.value.code == 0
        expected = kerasllm.__version__ if arguments == ["--version"] else f"kerasllm {arguments[0]} "
        assert expected in printed.partition("example:")[2] or expected in printed and len(arguments) == 1


def test_texts_are_cut_to_the_tokens_that_the_model_reads(fake, capsys):
    tokenizer = kerasllm.Tokenizer.train_wordpiece(TEXTS, 80)
    fake.tokenizer = fake.source_tokenizer = tokenizer
    fake.max_sequence_length = 12
    fake.translate = lambda texts, **options: texts
    long = "the cat sees the dog, a dog wants the book, the king has a horse"
    assert run(capsys, "translate", "folder", long, "short") == (0, f"{long}\nshort\n", "")
    code, printed, _ = run(capsys, "translate", "folder", long, "short", "--truncate")
    cut, short = printed.splitlines()
    assert (code, short) == (0, "short") and long.startswith(cut) and len(tokenizer.encode(cut)) == 12
    assert len(tokenizer.encode(long[: len(cut) + 2])) > 12


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
    mood = json.dumps({"mood": "kind"})
    code, printed, _ = run(
        capsys, "chat", folder, "--system", "king", "--max-new-tokens", 3, "--template-arguments", mood
    )
    messages, answers = [{"role": "system", "content": "king"}], ""
    for text in ("the cat", "a dog"):
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": model.chat(messages, max_new_tokens=3, mood="kind")})
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
    assert ".tflite (litert), .litertlm (litertlm), .gguf (gguf)" in error and "mediapipe, gguf, onnx" in error


def test_errors_are_one_line_and_an_exit_code(gpt, capsys):
    _, folder = gpt
    code, printed, error = run(capsys, "generate", folder, "a", "--top-p", 2)
    assert (code, printed) == (1, "") and error.startswith("kerasllm: top_p (2.0) must be") and error.count("\n") == 1
    code, _, error = run(capsys, "classify", folder, "a")
    assert code == 1 and "can be opened as GPT: none can classify" in error
    code, _, error = run(capsys, "info", folder + "/nothing")
    assert code == 1 and "nothing" in error
    for arguments in (
        *(["generate"], ["fly", folder], ["generate", folder, "a", "--top-k", "many"]),
        ["chat", folder, "a", "--template-arguments", "[1]"],
    ):
        with pytest.raises(SystemExit) as exit:
            cli.main(arguments)
        assert exit.value.code == 2


def test_a_process_reads_and_writes_utf8_in_any_locale_and_needs_no_backend_to_start():
    script = """if True:
        import sys
        from kerasllm import cli
        class Model:
            arguments = {"labels": ["x"]}
            required_tokenizer = staticmethod(lambda: None)
            classify = staticmethod(lambda texts, **_: [[{"label": text.upper(), "score": 1.0}] for text in texts])
        cli._load = lambda *_: Model
        code = cli.main()
        assert not {"keras", "tokenizers"} & set(sys.modules), "imported"
        sys.exit(code)
    """
    command = [sys.executable, "-X", "utf8=0", "-c", script, "classify", "folder"]
    result = subprocess.run(
        [*command, "--json", "--batch-size", "2"],
        input="größe\n日本\n".encode() + b"\xff\n" + "naïve".encode(),
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    )
    lines = [json.loads(line) for line in result.stdout.decode("utf-8").splitlines()]
    assert [line.get("output", [{"label": None}])[0]["label"] for line in lines] == ["GRÖSSE", "日本", None, "NAÏVE"]
    assert result.returncode == 1 and result.stderr.decode().startswith("kerasllm: line 3: it is not in utf-8")
    assert result.stderr.count(b"\n") == 1, result.stderr


def test_a_task_opens_the_class_that_does_it(gpt):
    _, folder = gpt
    assert isinstance(kerasllm.load("generate", folder), kerasllm.GPT)
    with pytest.raises(ValueError, match="task .'fly'. must be None or one of 'generate'"):
        kerasllm.load("fly", folder)


def test_a_corpus_is_tokenized_with_a_presets_tokenizer(gpt, tmp_path, capsys):
    model, folder = gpt
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in TEXTS))
    (tmp_path / "b.txt").write_text("\n".join(TEXTS))
    command = "tokenize", tmp_path / "a.jsonl", tmp_path / "b.txt", tmp_path / "out", "--tokenizer", folder
    code, out, errors = run(capsys, *command)
    assert code == 1 and out == "" and "a.jsonl, line 1" in errors and "'text'" in errors
    code, out, errors = run(capsys, *command, "--field", "body")
    assert code == 1 and "was begun with another field" in errors
    code, out, errors = run(capsys, *command[:3], tmp_path / "two", *command[4:], "--field", "body")
    assert code == 0 and "100%, 6 documents" in errors
    tokens = kerasllm.training.TokenFile(tmp_path / "two")
    assert [model.tokenizer.decode(row) for row in tokens] == [*TEXTS, *TEXTS]
    code, out, errors = run(capsys, *command[:3], tmp_path / "two", *command[4:])
    assert code == 1 and "--force replaces it" in errors
    (tmp_path / "train.en").write_text(f"{TEXTS[0]}\n\n")
    command = "tokenize", tmp_path / "train.en", tmp_path / "en", "--tokenizer", folder, "--blank-lines"
    assert run(capsys, *command, "keep")[0] == 0 and len(kerasllm.training.TokenFile(tmp_path / "en")) == 2
    code, out, errors = run(capsys, *command, "error", "--force")
    assert code == 1 and "train.en, line 2 is blank" in errors
