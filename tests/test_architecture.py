"""Who may import whom, where backends are named, and that what is public is documented."""

import ast
import graphlib
import importlib
import inspect
import pathlib

import kerasllm

ROOT = pathlib.Path(kerasllm.__file__).parent
BACKENDS = {"tensorflow", "jax", "torch"}
# They import TensorFlow, or stand in for it.
ONLY_IN_EXPORT = {"tensorflow_text", "keras_nlp", "keras_hub", "ai_edge_litert", "litert_lm", "litert_lm_builder"}

# Each part of kerasllm and the parts it may import. All may import those of FOUNDATION, which import nothing of ours.
FOUNDATION = {"arguments", "constructors", "extras", "json_files", "lazy", "packages", "processes", "stack", "writing"}
LOWEST = {"backend", "text", "metrics", "datasets", "pretrained", "checkpoints"}
WITHOUT_KERAS = {"packages", "text", "tasks", "metrics", "datasets", "pretrained", "evaluation"}
MIDDLE = {"layers", "training", "generation"}
ARROWS = {
    **{part: set() for part in FOUNDATION | LOWEST},
    "datasets": {"text"},
    "checkpoints": {"backend", "text", "generation"},  # torch reads its own files; GGUF files hold SentencePiece models
    "tasks": {"text"},
    "evaluation": {"text", "metrics", "generation"},  # the fields of a `GenerationConfig`
    **{part: {"backend", "text"} for part in MIDDLE},
    "training": {"backend", "text", "metrics"},
    "distribution": {"backend"},
    "models": MIDDLE | {"backend", "text", "checkpoints", "tasks", "distribution"},
    **{part: LOWEST | MIDDLE | {"tasks", "models", "evaluation"} for part in ("export", "cli", "plots")},
}
RUNNER = "kerasllm.export.runtime"  # what applications import
# `model.export(...)` is a method of every model: the one import that points upwards, made when it is called.
UPWARDS = ("kerasllm.models.base", "export")


def module_name(path):
    parts = ("kerasllm", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(), str(path)) for path in sorted(ROOT.rglob("*.py"))}
PACKAGES = {module_name(path) for path in ROOT.rglob("__init__.py")}


def part(module):
    """The part of kerasllm that a module belongs to: the name in ARROWS."""
    return module.split(".")[1] if "." in module else module


def root(name):
    return name.partition(".")[0]


def imports(module):
    """The full names that a module imports, wherever in the file."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: imports are written with their full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(module):
    """The modules of kerasllm that a module imports."""
    for name in imports(module):
        if root(name) == "kerasllm":
            yield name if name in TREES else name.rpartition(".")[0]


def test_imports_follow_the_arrows():
    wrong = []
    for module in TREES.keys() - {"kerasllm"}:
        assert part(module) in ARROWS, f"say in ARROWS whom {part(module)} may import"
        allowed = ARROWS[part(module)] | FOUNDATION | {"kerasllm", part(module)}
        if module == UPWARDS[0]:
            allowed = allowed | {UPWARDS[1]}
        wrong += [f"{module} imports {m}" for m in imported_modules(module) if part(m) not in allowed]
    assert not wrong


def test_text_metrics_and_datasets_work_without_keras():
    wrong = [m for m in TREES if part(m) in WITHOUT_KERAS and "keras" in map(root, imports(m))]
    assert not wrong


def test_a_runner_reaches_no_module_that_imports_keras():
    reached, left = set(), [RUNNER]
    while left:
        module = left.pop()
        reached.add(module)
        left += set(imported_modules(module)) - reached
    assert {"kerasllm.tasks.completing", "kerasllm.generation.sequences"} <= reached
    assert not [module for module in reached if "keras" in map(root, imports(module))]


def test_no_import_goes_in_a_circle():
    graph = {module: set(imported_modules(module)) - {module} for module in TREES}
    graph[UPWARDS[0]] = {m for m in graph.get(UPWARDS[0], ()) if part(m) != UPWARDS[1]}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_names_are_imported_from_the_file_that_defines_them():
    """A package's lazy names are for users: looked up during an import, they could close a circle."""
    wrong = [
        f"{module} imports {name}"
        for module in TREES
        for name in imports(module)
        if name not in TREES and name.rpartition(".")[0] in PACKAGES
    ]
    assert not wrong


def test_only_backend_and_export_know_the_backends():
    wrong = []
    for module in TREES:
        if part(module) not in {"backend", "export", "extras"}:
            wrong += [f"{module} imports {name}" for name in imports(module) if root(name) in BACKENDS | ONLY_IN_EXPORT]
            wrong += [
                f"{module}, line {node.lineno}: {ast.unparse(node)}"
                for node in ast.walk(TREES[module])
                if asks_for_the_backend(node)
            ]
    assert not wrong


def asks_for_the_backend(node):
    if isinstance(node, ast.Call):
        function = ast.unparse(node.func)
        return function.endswith("backend.backend") or function in {"keras.config.backend", "backend.name"}
    return isinstance(node, ast.Constant) and node.value in BACKENDS


def test_every_public_name_is_documented():
    undocumented = []
    for package in sorted(PACKAGES):
        for name in importlib.import_module(package).__all__:
            value = getattr(importlib.import_module(package), name)
            # A class without a docstring would show its parent's.
            if not (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__):
                undocumented.append(f"{package}.{name}")
            if inspect.isclass(value):
                undocumented += [f"{package}.{name}.{method}" for method in undocumented_methods(value)]
    assert not undocumented


def undocumented_methods(cls):
    """Public methods and properties without a docstring; those that override one mean what it means."""
    for name, member in vars(cls).items():
        is_method = inspect.isroutine(member) or isinstance(member, property)
        overrides = any(hasattr(base, name) for base in cls.__bases__)
        if is_method and not name.startswith("_") and not overrides and not member.__doc__:
            yield name
