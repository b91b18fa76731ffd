"""kerasllm on the command line: a model's tasks from arguments or pipes to plain text or JSON.

    kerasllm generate SOURCE "Once upon a time" --temperature 0.8
    cat reviews.txt | kerasllm classify SOURCE --json

Texts are arguments, or else the lines of the standard input. Errors go to the standard error in one line, with the
exit code 1; arguments that cannot be parsed have 2.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
import typing

from kerasllm.generation.config import GenerationConfig

EXPORT_FORMATS = ("tf_saved_model", "litert", "litertlm", "mediapipe", "onnx", "openvino")
FORMAT_OF = {".tflite": "litert", ".litertlm": "litertlm", ".onnx": "onnx", ".xml": "openvino"}
SOURCE = "a preset's folder, a .gguf file or hf://organisation/name"


def main(argv=None):
    """Run a command.

    Args:
        argv: list of arguments. Default: those of the process.

    Returns:
        The exit code.
    """
    arguments = parser().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if arguments.backend:
        os.environ["KERAS_BACKEND"] = arguments.backend
    try:
        arguments.command(arguments)
        sys.stdout.flush()
    except (ValueError, FloatingPointError, ImportError, OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError):  # `kerasllm ... | head`: nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"kerasllm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parser():
    """The parser of all commands."""
    root = argparse.ArgumentParser("kerasllm", description="Language models for Keras 3.")
    commands = root.add_subparsers(metavar="command", required=True)

    def add(name, command, help):
        parser = commands.add_parser(name, help=help, description=help)
        parser.set_defaults(command=command)
        parser.add_argument("--backend", metavar="NAME", help="Keras's backend, in place of KERAS_BACKEND")
        parser.add_argument("source", metavar="SOURCE", help=SOURCE)
        return parser

    def add_task(name, run, show, help):
        parser = add(name, lambda arguments: _run_task(arguments, name.replace("-", "_"), run, show), help)
        parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text; default: each line of the input")
        parser.add_argument("--batch-size", type=int, default=32, help="texts at a time")
        parser.add_argument("--json", action="store_true", help="print an object for each text, one to a line")
        return parser

    _add_generation_options(add_task("generate", _generate, _show_texts, "continue prompts"))
    _add_generation_options(add_task("translate", _translate, _show_texts, "translate texts"))
    _add_generation_options(add_task("summarize", _summarize, _show_texts, "summarize texts"))

    chat = add("chat", _chat, "answer messages as they are typed, or one")
    chat.add_argument("message", metavar="MESSAGE", nargs="?", help="default: each line of the input, as one chat")
    chat.add_argument("--system", help="what the model is told first")
    _add_generation_options(chat)

    fill_mask = add_task("fill-mask", _fill_mask, _show_rows("score", "token_str", "sequence"), "fill masks in texts")
    fill_mask.add_argument("--top-k", type=int, default=5, help="proposals for each mask")
    classify = add_task("classify", _classify, _show_rows("label", "score"), "classify texts")
    classify.add_argument("--top-k", type=int, default=1, help="labels for each text")
    add_task("tag", _tag, _show_rows("entity", "word", "start", "end", "score"), "find entities in texts")
    add_task("embed", _embed, _show_vector, "embed texts")

    answer = add("answer", _answer, "answer a question from a context")
    answer.add_argument("question", metavar="QUESTION")
    answer.add_argument("--context", help="default: the whole input")
    answer.add_argument("--json", action="store_true", help="print an object")

    info = add("info", _info, "say what a source holds, without loading it")
    info.add_argument("--json", action="store_true", help="print an object")
    convert = add("convert", _convert, "write a source as a preset's folder, as transformers has it where it can")
    convert.add_argument("folder", metavar="FOLDER")
    convert.add_argument("--dtype", help="of the weights, such as bfloat16")
    export = add("export", _export, "write a model as a file that runs without kerasllm")
    export.add_argument("path", metavar="OUT", help="a SavedModel's folder, or a .tflite or .litertlm file")
    export.add_argument("--format", choices=EXPORT_FORMATS, help="default: what the ending of OUT says")
    export.add_argument("--quantize", metavar="KIND", help="dynamic_int8 or another that the format has")
    export.add_argument("--max-length", type=int, metavar="N", help="most tokens of a text in a TFLite file")
    export.add_argument("--strings", action="store_true", help="with functions that take and give strings")
    export.add_argument("--signatures", nargs="+", metavar="NAME", help="the functions; default: all that there are")
    return root


def _add_generation_options(parser):
    group = parser.add_argument_group("generation", "Fields of kerasllm.GenerationConfig, whose docstring says more.")
    for field in dataclasses.fields(GenerationConfig):
        option = {"dest": field.name, "default": argparse.SUPPRESS}
        kinds = {field.type, *typing.get_args(field.type)}
        if field.type is bool:
            option["action"] = "store_true"
        elif field.type is tuple:
            option |= {"action": "append", "metavar": "TEXT"}
        elif field.name == "early_stopping":
            option |= {
                "type": lambda text: {"true": True, "false": False}.get(text, text),
                "metavar": "true|false|never",
            }
        elif numbers := kinds & {int, float}:
            option |= {"type": numbers.pop(), "metavar": "N"}
        else:
            continue  # logit_bias
        group.add_argument("--" + field.name.replace("_", "-"), **option)


def _generation_options(arguments):
    names = {field.name for field in dataclasses.fields(GenerationConfig)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def _load(task, source, **arguments):
    import kerasllm

    return kerasllm.load(task, source, **arguments)


def _run_task(arguments, task, run, show):
    model = _load(task, arguments.source)
    texts = iter(arguments.texts or filter(None, (line.rstrip("\n") for line in sys.stdin)))
    while batch := list(itertools.islice(texts, arguments.batch_size)):
        for text, output in zip(batch, run(model, batch, arguments), strict=True):
            if arguments.json:
                print(json.dumps({"input": text, "output": output}, ensure_ascii=False))
            else:
                show(output)
        sys.stdout.flush()


def _generate(model, texts, arguments):
    return model.generate(texts, **_generation_options(arguments))


def _translate(model, texts, arguments):
    return model.translate(texts, **_generation_options(arguments))


def _summarize(model, texts, arguments):
    return model.summarize(texts, **_generation_options(arguments))


def _fill_mask(model, texts, arguments):
    return model.fill_mask(texts, top_k=arguments.top_k)


def _classify(model, texts, arguments):
    return model.classify(texts, top_k=arguments.top_k)


def _tag(model, texts, arguments):
    return model.tag(texts)


def _embed(model, texts, arguments):
    return model.embed(texts).tolist()


def _show_texts(texts):
    for text in [texts] if isinstance(texts, str) else texts:
        print(text)


def _show_rows(*fields):
    """A function that prints dicts, in however deep lists, as lines of tab-separated fields."""

    def show(rows):
        for row in rows:
            if isinstance(row, list):
                show(row)
            else:
                values = [row[field] for field in fields]
                print(*(f"{value:.4f}" if isinstance(value, float) else value for value in values), sep="\t")

    return show


def _show_vector(vector):
    print(*(f"{value:.6g}" for value in vector))


def _chat(arguments):
    model, options = _load("chat", arguments.source), _generation_options(arguments)
    messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
    for text in [arguments.message] if arguments.message else _typed_lines():
        messages.append({"role": "user", "content": text})
        answer = ""
        for piece in model.stream(messages, **options):
            print(piece, end="", flush=True)
            answer += piece
        print(flush=True)
        messages.append({"role": "assistant", "content": answer})


def _typed_lines():
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def _answer(arguments):
    context = arguments.context or sys.stdin.read()
    answer = _load("answer", arguments.source).answer(arguments.question, context)
    print(json.dumps(answer, ensure_ascii=False) if arguments.json else answer["answer"])


def _info(arguments):
    from kerasllm import checkpoints

    facts = dataclasses.asdict(checkpoints.describe(arguments.source))
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False, default=str))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:", *(f"  {key}: {entry}" for key, entry in value.items()), sep="\n")
        else:
            print(f"{name}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}")


def _convert(arguments):
    options = {"dtype": arguments.dtype} if arguments.dtype else {}
    _load(None, arguments.source, **options).save_to_preset(arguments.folder)


def _format_of(path):
    """The format that a path's ending says; a SavedModel is a folder without one, or with a number such as "v1.2"."""
    ending = os.path.splitext(path)[1]
    if ending[1:].isalpha() and ending not in FORMAT_OF:
        endings = ", ".join(f"{key} ({value})" for key, value in FORMAT_OF.items())
        raise ValueError(
            f"OUT ({path!r}) has an ending of no format: {endings}, or none (tf_saved_model). "
            f"--format names one of {', '.join(EXPORT_FORMATS)}."
        )
    return FORMAT_OF.get(ending, "tf_saved_model")


def _export(arguments):
    format = arguments.format or _format_of(arguments.path)
    given = {name: getattr(arguments, name) for name in ("quantize", "max_length", "signatures", "strings")}
    options = {name: value for name, value in given.items() if value}
    _load(None, arguments.source).export(arguments.path, format=format, **options)


if __name__ == "__main__":
    sys.exit(main())
