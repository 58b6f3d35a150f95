"""Imports go one way: every module imports lower floors and its own alone, and what must run without torch does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import lightune

ROOT = Path(lightune.__file__).parent
FLOORS = (
    {"errors", "requirements"},
    {"options"},
    {"recipes", "precision"},
    {
        "runtime",
        "grids",
        "vocabularies",
        "data",
        "metrics",
        "judging",
        "sandbox",
        "architectures",
        "sources",
        "catalogue",
        "wheels",
        "headers",
        "onnx_weights",
    },
    {"tasks", "methods", "supervision", "kernels", "token_losses", "dimensions", "renumbering"},
    {"networks", "optimizers", "steps", "halves"},
    {"models"},
    {"development"},
    {
        "training",
        "generation",
        "caching",
        "selftraining",
        "evaluation",
        "language_evaluation",
        "examination",
        "benchmarking",
        "importance",
        "augmentation",
        "distillation",
        "reconstruction",
        "token_distillation",
        "contrast",
        "adapters",
        "simulation",
        "mixtures",
        "switching",
    },
    {"runs", "exports"},
    {"exporting", "costs", "probes"},
    {"reports"},
    {"preparation", "planning", "journal", "language_planning", "proving", "students"},
    {"shrinking", "blending", "choosing", "language", "language_students", "language_shrinking"},
    {"fitting", "comparing", "predictors", "harness", "serving", "chatting", "inspection", "anatomy", "knobs", "profiling", "listing"},
    {"terminal", "cli", "__main__"},
)
NO_TORCH = {
    "errors", "requirements", "options", "recipes", "precision", "grids", "data", "metrics", "runtime", "tasks", "supervision", "evaluation", "language_evaluation", "examination", "judging", "sandbox", "harness", "sources", "catalogue", "wheels", "headers", "onnx_weights", "runs",
    "reports", "listing", "predictors", "serving", "chatting", "inspection", "terminal", "cli", "benchmarking", "costs", "__init__", "__main__",
}  # fmt: skip
NO_NUMPY = {
    "errors",
    "requirements",
    "options",
    "recipes",
    "precision",
    "sources",
    "catalogue",
    "wheels",
    "headers",
    "onnx_weights",
    "runs",
    "terminal",
    "cli",
    "__init__",
    "__main__",
}
HEAVY = {
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "onnx",
    "onnxscript",
    "datasets",
    "pyarrow",
    "pandas",
    "sklearn",
    "scipy",
    "psutil",
}


@dataclass(frozen=True)
class Import:
    """A module that is imported by another; `lazy` inside a function."""

    by: str
    name: str
    lazy: bool


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below `lightune`: "data.reading", "data" for its __init__."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def top(name: str) -> str:
    return name.partition(".")[0]


@cache
def imports() -> tuple[Import, ...]:
    """Every import of every module, those for type checkers left out; own modules as below `lightune`, others by their full name."""
    return tuple(found for by, path in modules().items() for found in _imports(by, ast.parse(path.read_text(encoding="utf-8"))))


def _imports(by: str, tree: ast.AST, lazy: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (Import(by, alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{by} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("lightune.") in modules() and whole.startswith("lightune.")
                yield Import(by, whole if is_module or node.module == "lightune" else str(node.module), lazy)
        yield from _imports(by, node, lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def own() -> Iterator[Import]:
    """Imports of the package's own modules."""
    for found in imports():
        if found.name.startswith("lightune."):
            yield Import(found.by, found.name.removeprefix("lightune."), found.lazy)


def test_every_module_stands_on_one_floor() -> None:
    placed = [name for floor in FLOORS for name in floor]
    assert len(placed) == len(set(placed))
    assert {top(name) for name in modules()} - {"__init__"} <= set(placed)


def test_modules_import_lower_floors_and_their_own_alone() -> None:
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    wrong = [
        f"{found.by} imports {found.name}"
        for found in own()
        if found.by != "__init__" and found.name != "__version__" and height[top(found.by)] < height[top(found.name)]
    ]
    assert wrong == []


def test_nothing_inside_imports_the_root_but_for_its_version() -> None:
    roots = {
        found.name for found in imports() if found.name == "lightune" or (found.name.startswith("lightune.") and found.name.count(".") == 1)
    }
    assert {name.removeprefix("lightune.") for name in roots} - {top(name) for name in modules()} <= {"__version__"}


def test_the_runtime_needs_nothing_but_errors_and_options() -> None:
    assert {top(found.name) for found in own() if top(found.by) == "runtime"} <= {"runtime", "errors", "options"}


def test_there_is_no_cycle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for found in own():
        if found.name in graph and found.by != "__init__":
            graph[found.by].add(found.name)
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for other in sorted(graph[name]):
                if not other.startswith(f"{name}.") and not name.startswith(f"{other}."):  # a package and its own files
                    walk(other, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


@pytest.mark.parametrize(("who", "banned"), [(NO_TORCH, HEAVY), (NO_NUMPY, {"numpy"})])
def test_light_modules_import_nothing_heavy_when_they_are_imported(who: set[str], banned: set[str]) -> None:
    at_once: dict[str, set[str]] = {name: set() for name in modules()}
    for found in imports():
        if not found.lazy:
            inside = found.name.removeprefix("lightune.") if found.name.startswith("lightune.") else None
            at_once[found.by].add(inside if inside in at_once else found.name)  # type: ignore[arg-type]

    def reached(name: str, seen: set[str]) -> set[str]:
        if name in seen:
            return set()
        seen.add(name)
        parents = {name.rpartition(".")[0]} - {""}  # importing a file runs its package too
        return {top(other) for other in at_once[name] if other not in at_once}.union(
            *(reached(other, seen) for other in (at_once[name] | parents) if other in at_once)
        )

    wrong = {name: sorted(heavy) for name in modules() if top(name) in who and (heavy := reached(name, set()) & banned)}
    assert wrong == {}


@pytest.mark.parametrize(
    "code",
    [
        "import lightune",
        "from lightune.cli import main; assert main(['--help']) == 0",
        "from lightune.cli import main; assert main(['fit', '--help']) == 0",
    ],
    ids=["import", "help", "fit-help"],
)
def test_importing_and_help_load_neither_torch_nor_numpy(code: str) -> None:
    check = f"{code}\nimport sys\nprint([name for name in ('torch', 'numpy', 'transformers', 'onnxruntime') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_runtime_loads_without_torch() -> None:
    code = "import lightune.runtime, sys; assert not {'torch', 'transformers', 'sklearn', 'pandas'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_every_public_name_exists_where_it_is_declared() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(lightune._HOMES) == set(lightune.__all__)
    assert set(lightune.__all__) <= set(dir(lightune))
