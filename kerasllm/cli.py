"""kerasllm on the command line: a model's tasks from arguments or pipes to plain text or JSON.

    kerasllm generate SOURCE "Once upon a time" --temperature 0.8
    cat reviews.txt | kerasllm classify SOURCE --json

Texts are arguments, or else the lines of the standard input, read and answered some at a time. Each has one line of
output: an empty one, or with --json an object with `error`, where it cannot be answered, and a message on the standard
error. Errors are one line each and lead to the exit code 1; arguments that cannot be parsed have 2, Ctrl-C has 130.
"""

import argparse
import codecs
import dataclasses
import json
import os
import sys
import time
import warnings
from pathlib import Path

import kerasllm
from kerasllm.arguments import check_positive
from kerasllm.evaluation.judging import TASKS, evaluate
from kerasllm.generation.config import OPTIONS, GenerationConfig
from kerasllm.text import lines
from kerasllm.text.corpora import BLANK_LINES, SAMPLE_BY
from kerasllm.text.cutting import cut
from kerasllm.text.prompts import find_prompt
from kerasllm.writing import PREFIX

EXPORT_FORMATS = ("tf_saved_model", "litert", "litertlm", "mediapipe", "gguf", "onnx", "openvino")
FORMAT_OF = {".tflite": "litert", ".litertlm": "litertlm", ".gguf": "gguf", ".onnx": "onnx", ".xml": "openvino"}
SOURCE = "a preset's folder, a .gguf file or hf://organisation/name"
PROGRESS_SECONDS = 5  # from one message to the next
EXAMPLES = {
    "generate": 'kerasllm generate gpt2 "Once upon a time" --max-new-tokens 40 --temperature 0.8',
    "translate": "kerasllm translate opus-mt-en-de --num-beams 4 < sentences.txt > saetze.txt",
    "summarize": "kerasllm summarize bart-large-cnn --truncate --json < articles.txt",
    "chat": 'kerasllm chat SmolLM2-135M-Instruct.Q4_1.gguf "What is the capital of France?"',
    "fill-mask": 'kerasllm fill-mask bert-base-uncased "Paris is the [MASK] of France." --top-k 3',
    "classify": "kerasllm classify sentiment --truncate < reviews.txt | cut -f 1 | sort | uniq -c",
    "tag": 'kerasllm tag bert-ner "Angela Merkel was born in Hamburg." --json',
    "embed": "kerasllm embed all-MiniLM-L6-v2 < sentences.txt > vectors.txt",
    "score": "kerasllm score gpt2 < sentences.txt | sort -n",
    "answer": 'kerasllm answer bert-squad "Who wrote it?" < page.txt',
    "evaluate": "kerasllm evaluate sentiment reviews.csv --task classify --column text=review --json scores.json",
    "info": "kerasllm info hf://HuggingFaceTB/SmolLM2-135M",
    "convert": "kerasllm convert model.gguf folder --dtype bfloat16",
    "tokenize": "kerasllm tokenize articles/ more.jsonl.gz articles.tokens --tokenizer gpt2 --sample-by document",
    "export": "kerasllm export gpt2 gpt2.tflite --quantize dynamic_int8 --max-length 512",
}
"""For each command what its help shows."""


def main(argv=None):
    """Run a command.

    Args:
        argv: list of arguments. Default: those of the process.

    Returns:
        The exit code.
    """
    lines.use_utf8()
    arguments = _parsed(parser(), [lines.redecoded(x) for x in (sys.argv[1:] if argv is None else argv)])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if arguments.backend:
        os.environ["KERAS_BACKEND"] = arguments.backend
    try:
        for name in ("question", "context", "system", *TEXTS):
            value = getattr(arguments, name, None) or ()
            for text in [value] if isinstance(value, str) else value:
                lines.check_readable(name, text)
        all_well = arguments.command(arguments)
        lines.flush()
        return 1 if all_well is False else 0
    except KeyboardInterrupt:
        lines.abandon()
        return 130
    except BrokenPipeError:  # `kerasllm ... | head`: nobody reads on
        lines.abandon()
        return 0
    except (ValueError, FloatingPointError, ImportError, MemoryError, OSError, RuntimeError) as error:
        lines.complain(str(error) or type(error).__name__)
        lines.abandon()
        return 1


def _parsed(root, argv):
    """The arguments; texts may also stand behind options, where argparse does not look for them."""
    arguments, rest = root.parse_known_args(argv)
    plain = argv[argv.index("--") + 1 :] if "--" in argv else []
    rest = [x for x in rest if x != "--"]
    are_texts = all(x in plain or not x.startswith("-") for x in rest)
    if are_texts and hasattr(arguments, "texts"):
        arguments.texts += rest
    elif are_texts and len(rest) == 1 and getattr(arguments, "message", "") is None:
        [arguments.message] = rest
    elif rest:
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def parser():
    """The parser of all commands."""
    root = argparse.ArgumentParser("kerasllm", description="Language models for Keras 3.")
    root.add_argument("--version", action="version", version=f"kerasllm {kerasllm.__version__}")
    commands = root.add_subparsers(metavar="command", required=True)

    def add(name, command, help, more="", reads_source=True):
        parser = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}. {more}",
            epilog=f"example:\n  {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(command=command)
        parser.add_argument("--backend", metavar="NAME", help="Keras's backend, in place of KERAS_BACKEND")
        if reads_source:
            parser.add_argument("source", metavar="SOURCE", help=SOURCE)
        return parser

    def add_task(name, run, show, help, ready=_needs_tokenizer, fields=""):
        task = name.replace("-", "_")
        parser = add(name, lambda arguments: _run_task(arguments, task, ready, run, show), help, ONE_LINE + fields)
        parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text; default: each line of the input")
        parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts at a time")
        _add_encoding(parser)
        parser.add_argument("--json", action="store_true", help="print an object for each text, one to a line")
        return parser

    def add_writing(name, run, help):
        parser = add_task(name, run, _show_texts, help, _ready_to_write, BREAKS)
        _add_generation_options(parser)
        return parser

    def add_truncate(parser):
        parser.add_argument("--truncate", action="store_true", help="cut texts that are too long for the model")

    add_writing("generate", _generate, "continue prompts")
    add_truncate(add_writing("translate", _translate, "translate texts"))
    add_truncate(add_writing("summarize", _summarize, "summarize texts"))

    chat = add("chat", _chat, "answer messages as they are typed, or one", "Answers are printed as they are written.")
    chat.add_argument("message", metavar="MESSAGE", nargs="?", help="default: each line of the input, as one chat")
    chat.add_argument("--system", help="what the model is told first")
    _add_encoding(chat)
    chat.add_argument("--json", action="store_true", help="print an object for each message, one to a line")
    chat.add_argument(
        "--template-arguments", metavar="JSON", type=_json_object, default={}, help='such as {"enable_thinking": false}'
    )
    _add_generation_options(chat)

    show = _show_rows("score", "token_str", "sequence")
    fill_mask = add_task("fill-mask", _fill_mask, show, "fill masks in texts", _ready_to_fill, show.help)
    fill_mask.add_argument("--top-k", type=int, default=5, metavar="K", help="proposals for each mask")
    show = _show_rows("label", "score")
    classify = add_task("classify", _classify, show, "classify texts", _ready_to_classify, show.help)
    classify.add_argument("--top-k", type=int, default=1, metavar="K", help="labels for each text")
    add_truncate(classify)
    show = _show_rows("entity", "word", "start", "end", "score")
    add_truncate(add_task("tag", _tag, show, "find entities in texts", fields=show.help))
    embed = add_task("embed", _embed, _show_vector, "embed texts", _ready_to_embed)
    add_truncate(embed)
    embed.add_argument("--prompt", metavar="TEXT", help="what is set before each text")
    embed.add_argument("--prompt-name", metavar="NAME", help="the model's prompt of this name, in its place")
    more = (
        "Its log-probability in nats and its perplexity, parted by a tab; for a translator a text is a source, a tab\n"
    )
    add_task("score", _score, _show_score, "say how probable texts are", _ready_to_write, f"{more}and its translation.")

    answer = add("answer", _answer, "answer a question from a context")
    answer.add_argument("question", metavar="QUESTION")
    answer.add_argument("--context", help="default: the whole input")
    answer.add_argument("--lines", action="store_true", help="each line of the input is a context; an answer for each")
    _add_encoding(answer)
    answer.add_argument("--json", action="store_true", help="print an object")

    more = "DATA has named columns; of each task these, and perhaps those in brackets:\n\n  " + "\n  ".join(
        f"{task}: {', '.join(n if its.is_needed else f'[{n}]' for n, its in TASKS[task].columns.items())}"
        for task in TASKS
    )
    evaluate = add("evaluate", _evaluate, "judge a model by a file of examples", more)
    help = ".jsonl, .csv or .tsv; two text files, source and target, to translate; a text file for language-model"
    evaluate.add_argument("data", metavar="DATA", nargs="+", help=help)
    evaluate.add_argument("--task", choices=TASKS, required=True, help="what the model is to do")
    help = "the data calls a column of the task otherwise"
    evaluate.add_argument("--column", type=_column, action="append", default=[], metavar="NAME=ITS", help=help)
    evaluate.add_argument("--limit", type=int, metavar="N", help="the most rows; default: all")
    evaluate.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows at a time")
    help = "draws for the 95 %% intervals; default: 1000, 0 for none"
    evaluate.add_argument("--resamples", type=int, default=1000, metavar="N", help=help)
    evaluate.add_argument("--json", metavar="FILE", help="write the figures, and what was written, there too")
    group = evaluate.add_argument_group("options of tasks", "kerasllm.evaluate says which task has which.")
    for name, its in JUDGING.items():
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, default=argparse.SUPPRESS, **its)
    _add_generation_options(evaluate)

    info = add("info", _info, "say what a source holds, without loading it")
    info.add_argument("--json", action="store_true", help="print an object")
    convert = add("convert", _convert, "write a source as a preset's folder, as transformers has it where it can")
    convert.add_argument("folder", metavar="FOLDER")
    convert.add_argument("--dtype", help="of the weights, such as bfloat16")
    convert.add_argument("--force", action="store_true", help="replace what FOLDER holds already")
    more = "OUT is for kerasllm.training.TokenFile. The same command goes on where one was interrupted."
    tokenize = add("tokenize", _tokenize, "write a corpus as token ids, for training", more, reads_source=False)
    tokenize.add_argument("corpus", metavar="CORPUS", nargs="+", help="text or JSONL files, .gz or not, or folders")
    tokenize.add_argument("path", metavar="OUT", help="the folder to write")
    tokenize.add_argument("--tokenizer", metavar="SOURCE", required=True, help=f"that of {SOURCE}")
    help = "what a document of a text file is: line (default), paragraph or document, the whole file"
    tokenize.add_argument("--sample-by", choices=SAMPLE_BY, default=SAMPLE_BY[0], help=help)
    help = "what blank lines are: none (skip, default), empty documents (keep, for parallel text) or an error"
    tokenize.add_argument("--blank-lines", choices=BLANK_LINES, default=BLANK_LINES[0], help=help)
    tokenize.add_argument("--field", metavar="NAME", default="text", help="of JSONL, the entry with the text")
    tokenize.add_argument("--force", action="store_true", help="replace OUT")
    _add_encoding(tokenize)
    export = add("export", _export, "write a model as a file that runs without kerasllm")
    export.add_argument("path", metavar="OUT", help="a SavedModel's folder, or a .tflite, .litertlm or .gguf file")
    export.add_argument("--format", choices=EXPORT_FORMATS, help="default: what the ending of OUT says")
    export.add_argument("--quantize", metavar="KIND", help="dynamic_int8 or another that the format has")
    export.add_argument("--max-length", type=int, metavar="N", help="most tokens of a text in a TFLite file")
    export.add_argument("--strings", action="store_true", help="with functions that take and give strings")
    export.add_argument("--signatures", nargs="+", metavar="NAME", help="the functions; default: all that there are")
    return root


ONE_LINE = """
Each text has one line of output, in the order of the texts: an empty one, or with --json an object with "error",
where it cannot be answered, and a message on the standard error; the exit code is 1 then. A blank line is no text.
"""
BREAKS = (
    "Line feeds in what the model writes are printed as \\n; several sequences are parted by tabs. --json is exact."
)


TEXTS = [field.name for field in dataclasses.fields(GenerationConfig) if field.type is tuple]
# How the options of generation are written, by their types; those of other types, such as dicts, are left to Python.
OPTION_TYPES = {
    bool: {"action": "store_true"},
    tuple: {"action": "append", "metavar": "TEXT"},
    bool | str: {"type": lambda text: {"true": True, "false": False}.get(text, text), "metavar": "true|false|never"},
    **{kind: {"type": int, "metavar": "N"} for kind in (int, int | None)},
    **{kind: {"type": float, "metavar": "N"} for kind in (float, float | None)},
}


# The options of `kerasllm.evaluate` that are not those of generation.
JUDGING = {
    "label_ids": {"action": "store_true", "help": "labels are numbers, not names"},
    "scheme": {"metavar": "NAME", "help": "of entities' labels: IOB2, IOBES, ..."},
    "stride": {"type": int, "metavar": "N", "help": "tokens that two windows of a long text share"},
    "window": {"type": int, "metavar": "N", "help": "the most tokens of a window"},
    "max_answer_length": {"type": int, "metavar": "N", "help": "the most tokens of an answer"},
    "allow_no_answer": {"action": "store_true", "help": "questions may have no answer"},
    "truncate": {"action": "store_true", "help": "cut texts that are too long for the model"},
    "tokenize": {"metavar": "NAME", "help": "sacrebleu's, of BLEU: 13a, zh, char, ..."},
    "lowercase": {"action": "store_true", "help": "cases are alike in BLEU"},
    "use_stemmer": {
        "type": lambda text: {"true": True, "false": False}.get(text, text),
        "metavar": "true|false",
        "help": "of ROUGE",
    },
}


def _column(text):
    """A pair NAME=ITS, for argparse."""
    name, is_pair, its = text.partition("=")
    if not (name and is_pair and its):
        raise ValueError
    return name, its


def _add_encoding(parser):
    parser.add_argument(
        "--encoding", type=_encoding, default="utf-8", metavar="NAME", help="of the input; default: utf-8"
    )


def _encoding(name):
    try:
        "a".encode(name)  # of text: there are others, such as base64
        return codecs.lookup(name).name
    except (LookupError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} is no known encoding") from error


def _json_object(text):
    """A dict written in JSON, for argparse."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def _add_generation_options(parser):
    group = parser.add_argument_group("generation", "Fields of kerasllm.GenerationConfig, whose docstring says more.")
    for field in dataclasses.fields(GenerationConfig):
        if field.type in OPTION_TYPES:
            flag, its = "--" + field.name.replace("_", "-"), OPTION_TYPES[field.type]
            group.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, **its)


def _generation_options(arguments):
    return {name: value for name, value in vars(arguments).items() if name in OPTIONS}


def _load(task, source, **arguments):
    return kerasllm.load(task, source, **arguments)


def _run_task(arguments, task, ready, run, show):
    check_positive("batch_size", arguments.batch_size)
    model = _load(task, arguments.source)
    ready(model, arguments)

    def write(text, output, error):
        if arguments.json:
            lines.write_json({"input": text.text, **({"output": output} if error is None else {"error": error})})
        else:
            print("" if error else show(output))
        if error:
            lines.complain(f"{text.place}: {error}")

    is_typed = not arguments.texts and sys.stdin is not None and sys.stdin.isatty()
    return lines.answer(
        lines.of_arguments(arguments.texts) if arguments.texts else lines.of_stream(sys.stdin, arguments.encoding),
        lambda texts, first: run(model, texts, first, arguments),
        write,
        1 if is_typed else arguments.batch_size,
    )


# What is wrong with every text is said once, before the first is read.


def _needs_tokenizer(model, arguments):
    model.required_tokenizer()


def _ready_to_write(model, arguments):
    model.required_output_tokenizer()
    GenerationConfig.merged(None, defaults=model.generation_defaults, **_generation_options(arguments))


def _ready_to_fill(model, arguments):
    model.required_tokenizer()
    _check_top_k(arguments.top_k, "symbols", model.arguments["vocabulary_size"])


def _ready_to_classify(model, arguments):
    model.required_tokenizer()
    _check_top_k(arguments.top_k, "labels", len(model.arguments["labels"]))


def _check_top_k(top_k, things, limit):
    check_positive("top_k", top_k)
    if top_k > limit:
        raise ValueError(f"top_k ({top_k}) must be at most the number of {things} ({limit}).")


def _ready_to_embed(model, arguments):
    model.required_tokenizer()
    find_prompt(model.arguments, arguments.prompt, arguments.prompt_name)


# Functions (model, texts, place of the first, arguments) -> an output for each text.


def _generate(model, texts, first, arguments):
    return model.generate(texts, batch_size=len(texts), first_index=first, **_generation_options(arguments))


def _translate(model, texts, first, arguments, method="translate"):
    if arguments.truncate:
        texts = [cut(model.source_tokenizer, text, model.max_sequence_length) for text in texts]
    options = _generation_options(arguments)
    return getattr(model, method)(texts, batch_size=len(texts), first_index=first, **options)


def _summarize(model, texts, first, arguments):
    return _translate(model, texts, first, arguments, "summarize")


def _fill_mask(model, texts, first, arguments):
    return model.fill_mask(texts, top_k=arguments.top_k, verbose=False)


def _classify(model, texts, first, arguments):
    return model.classify(texts, top_k=arguments.top_k, truncate=arguments.truncate, verbose=False)


def _tag(model, texts, first, arguments):
    if arguments.truncate:
        texts = [cut(model.tokenizer, text, model.arguments["max_sequence_length"]) for text in texts]
    return model.tag(texts, verbose=False)


def _embed(model, texts, first, arguments):
    given = {"prompt": arguments.prompt, "prompt_name": arguments.prompt_name}
    prompt = {name: value for name, value in given.items() if value is not None}
    return model.embed(texts, truncate=arguments.truncate, verbose=False, **prompt).tolist()


def _score(model, texts, first, arguments):
    if "tokenizer" in model.tokenizer_prefixes:
        scores = model.score(texts)
    else:
        pairs = [text.split("\t") for text in texts]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("a text must be a source, a tab and its translation.")
        scores = model.score(*map(list, zip(*pairs, strict=True)))
    return [{"log_probability": score.log_probability, "perplexity": score.perplexity} for score in scores]


# Outputs as lines.


def _show_texts(texts):
    if isinstance(texts, str):
        return lines.escaped(texts)
    return "\t".join(lines.escaped(text, tabs=True) for text in texts)


def _show_rows(*fields):
    """A function that makes a line of dicts, in however deep lists: their fields one after the other, with tabs."""

    def show(rows):
        flat = [show(row) if isinstance(row, list) else shown(row) for row in rows]
        return "\t".join(part for part in flat if part)

    def shown(row):
        values = [row[field] for field in fields]
        values = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in values]
        return "\t".join(lines.escaped(value, tabs=True) for value in values)

    show.help = f"A line holds {', '.join(fields)}, and so on for each, parted by tabs."
    return show


def _show_vector(vector):
    return " ".join(f"{value:.6g}" for value in vector)


def _show_score(score):
    return f"{score['log_probability']:.6g}\t{score['perplexity']:.6g}"


def _chat(arguments):
    model, options = _load("chat", arguments.source), _generation_options(arguments) | arguments.template_arguments
    _ready_to_write(model, arguments)
    messages, all_well = [{"role": "system", "content": arguments.system}] if arguments.system else [], True
    is_typed = arguments.message is None and sys.stdin is not None and sys.stdin.isatty()
    texts = lines.of_stream(sys.stdin, arguments.encoding)
    for text in (
        lines.of_arguments([arguments.message]) if arguments.message is not None else _prompted(texts, is_typed)
    ):
        if text.error == lines.BLANK and arguments.message is None:
            continue
        asked, answer, error = [*messages, {"role": "user", "content": text.text}], "", text.error
        try:
            for piece in model.stream(asked, **options) if error is None else ():
                answer += piece
                if not arguments.json:
                    print(piece, end="", flush=True)
            messages = asked if error else [*asked, {"role": "assistant", "content": answer}]
        except (ValueError, FloatingPointError) as problem:
            error = lines.one_line(problem)
        if arguments.json:
            lines.write_json({"input": text.text, **({"output": answer} if error is None else {"error": error})})
        else:
            print()
        lines.flush()
        if error is not None:
            messages, all_well = asked[:-1], False
            lines.complain(f"{text.place}: {error}")
    return all_well


def _prompted(texts, is_typed):
    while True:
        if is_typed:
            print("> ", end="", flush=True)
        text = next(texts, None)
        if text is None:
            return
        yield text


def _answer(arguments):
    if arguments.context is not None and arguments.lines:
        raise ValueError("--context and --lines exclude each other: the lines are of the input.")

    def show(answer):
        return lines.escaped(answer["answer"])

    def run(model, texts, first, arguments):
        return model.answer([arguments.question] * len(texts), texts, verbose=False)

    if arguments.lines:
        arguments.texts, arguments.batch_size = [], 32
        return _run_task(arguments, "answer", _needs_tokenizer, run, show)
    context = lines.read_all(sys.stdin, arguments.encoding) if arguments.context is None else arguments.context
    answer = _load("answer", arguments.source).answer(arguments.question, context)
    if arguments.json:
        lines.write_json(answer)
    else:
        print(show(answer))
    return True


def _evaluate(arguments):
    names = {*JUDGING, *OPTIONS} - {"seed"}
    options = {name: value for name, value in vars(arguments).items() if name in names}
    if len(dict(arguments.column)) < len(arguments.column):
        raise ValueError("--column must name a column once.")
    told = time.monotonic()

    def progress(done, total):
        nonlocal told
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            lines.complain(f"{done:,} of {total:,} rows")

    data = arguments.data[0] if len(arguments.data) == 1 else arguments.data
    report = evaluate(
        arguments.source,
        data,
        arguments.task,
        columns=dict(arguments.column),
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        resamples=arguments.resamples,
        seed=getattr(arguments, "seed", 0),
        progress=progress,
        **options,
    )
    print(report)
    lines.flush()
    if arguments.json is not None:
        report.save(arguments.json)


def _info(arguments):
    from kerasllm import checkpoints

    facts = dataclasses.asdict(checkpoints.describe(arguments.source))
    if arguments.json:
        lines.write_json(facts, default=str)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:", *(f"  {key}: {entry}" for key, entry in value.items()), sep="\n")
        else:
            print(f"{name}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}")


def _convert(arguments):
    folder = Path(arguments.folder)
    is_free = not folder.exists() or (folder.is_dir() and all(p.name.startswith(PREFIX) for p in folder.iterdir()))
    if not arguments.force and not is_free:
        raise ValueError(f"folder ({arguments.folder!r}) exists already; --force replaces what it holds.")
    options = {"dtype": arguments.dtype} if arguments.dtype else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        _load(None, arguments.source, **options).save_to_preset(arguments.folder)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            lines.complain(warning.message)


def _tokenize(arguments):
    from kerasllm.checkpoints.presets import tokenizer_folder
    from kerasllm.text.token_files import TokenFile

    if not arguments.force and os.path.lexists(arguments.path):
        raise ValueError(f"OUT ({arguments.path!r}) exists already; --force replaces it.")
    started = time.monotonic()

    def show(read, size, documents, tokens):
        rate = tokens / max(time.monotonic() - started, 1e-9)
        lines.complain(f"{read / max(size, 1):.0%}, {documents:,} documents, {tokens:,} tokens, {rate:,.0f} tokens/s")

    with tokenizer_folder(arguments.tokenizer) as folder:
        tokenizer = kerasllm.Tokenizer.from_folder(folder)
    how = arguments.sample_by, arguments.field, arguments.encoding, arguments.force
    TokenFile.write(arguments.path, arguments.corpus, tokenizer, *how, show, arguments.blank_lines)


def _format_of(path):
    """The format that a path's ending says; a SavedModel is a folder without one, or with a number such as "v1.2"."""
    ending = os.path.splitext(path)[1]
    if any(letter.isalpha() for letter in ending) and ending not in FORMAT_OF:
        endings = ", ".join(f"{key} ({value})" for key, value in FORMAT_OF.items())
        raise ValueError(
            f"OUT ({path!r}) has an ending of no format: {endings}, or none (tf_saved_model). "
            f"--format names one of {', '.join(EXPORT_FORMATS)}."
        )
    return FORMAT_OF.get(ending, "tf_saved_model")


def _export(arguments):
    format = arguments.format or _format_of(arguments.path)
    given = {name: getattr(arguments, name) for name in ("quantize", "max_length", "signatures", "strings")}
    options = {name: value for name, value in given.items() if value is not None and value is not False}
    if "max_length" in options:
        check_positive("max_length", options["max_length"])
        if format == "tf_saved_model":
            raise ValueError(
                f"max_length ({options['max_length']}) is for TFLite files: a SavedModel has no fixed sizes."
            )
    _load(None, arguments.source).export(arguments.path, format=format, **options)


if __name__ == "__main__":
    sys.exit(main())
