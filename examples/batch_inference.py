"""Run a preset or an exported file over a folder of text files with Ray Data, on one machine or a cluster.

KERAS_BACKEND=torch python examples/batch_inference.py texts out runs/sentiment --task classify
python examples/batch_inference.py texts out runs/package_embedder.tflite --task embed --workers 8

Each line of texts/NAME is a text, and line i of out/NAME.jsonl is what the model makes of line i. Killed, the same
command goes on: parts that are done, in out/parts, are not done again. `pip install 'ray[data]'`.
"""

import argparse
import io
import itertools
import json
import os
import pathlib

import ray

LINES = 1000  # of a part


def main(folder, out, model, task, workers=2, lines=LINES):
    """Write the answers.

    Returns:
        How many texts were answered this time.
    """
    files = sorted(path.resolve() for path in pathlib.Path(folder).iterdir() if path.is_file())
    done, out = pathlib.Path(out, "parts").resolve(), pathlib.Path(out)
    done.mkdir(parents=True, exist_ok=True)
    check_same(done / "run.json", model=os.path.abspath(model), task=task, lines=lines, files=list(map(stamp, files)))
    parts = {path: list_parts(path, done, lines) for path in files}
    left = [part for of_one in parts.values() for part in of_one if not os.path.exists(part["answers"])]
    count = 0
    if left:
        # A worker opens the model once. On a cluster `folder`, `out` and `model` lie where all its machines see them.
        data = ray.data.from_items(left, override_num_blocks=len(left))
        arguments = {"model": os.path.abspath(model), "task": task}
        data = data.map(Worker, fn_constructor_kwargs=arguments, concurrency=min(workers, len(left)), num_cpus=1)
        count = data.sum("count")
    for path, of_one in parts.items():
        write(out / f"{path.name}.jsonl", (line for part in of_one for line in open(part["answers"], encoding="utf-8")))
    return count


def check_same(file, **run):
    """Stop where parts of another run lie in the folder."""
    if file.exists() and json.loads(file.read_text()) != run:
        raise SystemExit(
            f"{file} is of another model, task or other texts: choose another `out`, or remove {file.parent}."
        )
    write(file, [json.dumps(run)])


def stamp(path):
    """What tells whether a file has changed."""
    return [str(path), path.stat().st_size, path.stat().st_mtime_ns]


def list_parts(path, done, lines):
    """The parts of a file, in order: where their lines begin and end, in bytes, and where the answers go."""
    parts = []
    with open(path, "rb") as file:
        while True:
            start = file.tell()
            if not sum(1 for _ in itertools.islice(iter(file.readline, b""), lines)):
                return parts
            answers = done / f"{path.name}.{len(parts):06d}.jsonl"
            parts.append({"source": str(path), "start": start, "stop": file.tell(), "answers": str(answers)})


def write(path, lines):
    """Write a file that is there when all of it is written."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.writelines(lines)
    unfinished.replace(path)


class Worker:
    """A model in a process of its own."""

    def __init__(self, model, task):
        if model.endswith(".tflite"):
            from kerasllm.export.runtime import Runner

            self.answer = getattr(Runner(model), task)
        else:
            import kerasllm

            self.answer = getattr(kerasllm.load(task, model), task)

    def __call__(self, part):
        with open(part["source"], "rb") as file:
            file.seek(part["start"])
            texts = [line.decode().rstrip("\r\n") for line in io.BytesIO(file.read(part["stop"] - part["start"]))]
        answers = self.answer(texts)
        answers = answers.tolist() if hasattr(answers, "tolist") else answers
        write(pathlib.Path(part["answers"]), (json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))
        return {"count": len(texts)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a model over a folder of text files.")
    parser.add_argument("folder", help="of text files, a text in each line")
    parser.add_argument("out", help="folder of the answers")
    parser.add_argument("model", help="a preset, or a file that `export` wrote for LiteRT")
    parser.add_argument("--task", required=True, help="generate, translate, summarize, classify, tag, embed, ...")
    parser.add_argument("--workers", type=int, default=2, help="processes that each hold the model")
    parser.add_argument("--lines", type=int, default=LINES, help="texts of a part, which is done whole or anew")
    print(f"{main(**vars(parser.parse_args()))} answers are new")
