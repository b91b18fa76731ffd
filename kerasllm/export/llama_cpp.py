"""llama.cpp on a GGUF file, in a process of its own: what it makes of texts, and how it continues them.

`python -m kerasllm.export.llama_cpp < request.json` prints the answer; `run` starts it. Needs the package xllamacpp.
"""

import json
import os
import subprocess
import sys
import urllib.request


def run(path, texts, prompts, num_tokens):
    """Ask llama.cpp.

    Args:
        path: of a GGUF file.
        texts: list of strings to cut into tokens.
        prompts: list of strings to continue, greedily, with float32 caches.
        num_tokens: of each continuation.

    Returns:
        A dict: `ids`, a list of ids for each text; `texts`, one for each prompt.

    Raises:
        RuntimeError: llama.cpp cannot open the file, or ends.
    """
    request = {"path": str(path), "texts": list(texts), "prompts": list(prompts), "num_tokens": num_tokens}
    child = subprocess.run(
        [sys.executable, "-m", "kerasllm.export.llama_cpp"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if child.returncode:
        raise RuntimeError(f"llama.cpp cannot run {path}: {child.stderr[-2000:]}")
    return json.loads(child.stdout.splitlines()[-1])


def answer(path, texts, prompts, num_tokens):
    """What `run` returns, in this process."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx, parameters.n_gpu_layers, parameters.n_parallel, parameters.warmup = 512, 0, 1, False
    # Its threads turn while they wait: with one for each core they hold up whatever else runs there.
    parameters.cpuparams.n_threads = max(1, (os.cpu_count() or 1) // 2)
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(parameters)

    def ask(what, **content):
        request = urllib.request.Request(f"{server.listening_address}/{what}", json.dumps(content).encode())
        with urllib.request.urlopen(request) as response:
            return json.load(response)["tokens"]

    def ids_of(text):
        return ask("tokenize", content=text, add_special=True, parse_special=True)

    options = {"n_predict": num_tokens, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    continued = [ask("completion", prompt=ids_of(prompt), **options) for prompt in prompts]
    return {"ids": [ids_of(text) for text in texts], "texts": continued}


if __name__ == "__main__":
    print("\n" + json.dumps(answer(**json.load(sys.stdin))))
