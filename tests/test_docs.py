"""The docs tell the truth: the reference is fresh, links lead somewhere, commands parse, marked code runs, examples are short and run."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_floors import FLOORS
from tiny_conversations import write_base

import lightune
from lightune import cli, models
from lightune.data import checks, columns, read_conversations, split_conversations
from lightune.recipes import TrainOptions
from lightune.runtime import answers
from lightune.tasks import TASKS, find_task

ROOT = Path(__file__).parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
names = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(path: Path, language: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every fenced block whose opening says exactly `language`."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(rf"^```{re.escape(language)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start()) + 1, found[1]


def load_module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_fresh() -> None:
    script = load_module("make_reference", ROOT / "scripts" / "make_reference.py")
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == script.make_page(), "docs/reference.md is stale: run python scripts/make_reference.py"


# -------------------------------------------------------------------------------------------------------------------------------- links


def anchors(path: Path) -> set[str]:
    """The anchors that a Markdown page's headings make, as code hosts make them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@names
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href|srcset)="([^"]+)"', text)
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = urllib.parse.unquote(link).partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page != "index.md" and f"({page})" not in index] == []


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_tree_names_every_module(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    modules = [path.name + "/" * path.is_dir() for path in (ROOT / "lightune").iterdir() if not path.name.startswith(("_", "."))]
    assert [module for module in [*modules, "__init__.py", "__main__.py"] if not re.search(rf"[ │─]{re.escape(module)} ", text)] == []


def test_the_floors_are_those_that_are_tested() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    told = {int(floor): set(re.findall(r"`(\w+)`", modules)) for floor, modules in rows}
    assert told == {number: floor - {"__main__"} for number, floor in enumerate(FLOORS)}


# ----------------------------------------------------------------------------------------------------------------------------- commands


STOPS = {"|", "||", "&&", "&", ";", ">", ">>", "<"}


def commands(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and arguments of every call of lightune in a page's shell blocks, whatever starts it."""
    for start, block in blocks(path, "sh"):
        for place, line in enumerate(re.sub(r"\\\n\s*", " ", block).splitlines(), start + 1):
            words = shlex.split(line, comments=True)
            if "lightune" in words:
                arguments = words[words.index("lightune") + 1 :]
                end = next((number for number, word in enumerate(arguments) if word in STOPS), len(arguments))
                yield place, arguments[:end]


@names
def test_commands_parse(path: Path) -> None:
    for line, arguments in commands(path):
        try:
            command, bound, _ = cli.app.parse_args(arguments, exit_on_error=False, print_error=False)
        except Exception as error:
            pytest.fail(f"{path.name}:{line}: lightune {shlex.join(arguments)}: {error}")
        extra = set(bound.arguments.get("columns", {})) - {"task", "text", "pair", "label", "delimiter", "encoding"}
        assert callable(command)
        assert not extra, f"{path.name}:{line}: inspect takes no {', '.join(extra)}"


def test_the_commands_of_the_readme_are_found() -> None:
    verbs = {arguments[0] for _, arguments in commands(ROOT / "README.md")}
    assert {"fit", "predict", "evaluate", "bench", "report", "inspect"} <= verbs


# --------------------------------------------------------------------------------------------------------------------------------- code


@names
def test_marked_code_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"__name__": "docs"}
    for line, block in blocks(path, "python run"):
        exec(compile("\n" * line + block, str(path), "exec"), space)


def test_the_table_of_findings_is_whole() -> None:
    """Every code that a check can give stands in data.md, and no other."""
    tree = ast.parse(Path(checks.__file__).read_text(encoding="utf-8"))
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    codes = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") in ("Finding", "_at_rows")
            and isinstance(node.args[1], ast.Constant)
        ):
            codes.add(node.args[1].value)
    codes |= {word for word in words if re.fullmatch(r"(near-)?leak|(id|constant)-column", word)}
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([a-z-]+)` \| (?:error|warning|note)", page, re.MULTILINE)
    assert sorted(told) == sorted(codes)


def page_module(page: str, name: str, folder: Path) -> ModuleType:
    """The file that a page's worked example shows: the block that begins with a comment of its path."""
    for _, block in blocks(ROOT / "docs" / page, "python"):
        if block.startswith(f"# {name}\n"):
            path = folder / Path(name).name
            path.write_text(block, encoding="utf-8")
            return load_module(name.removesuffix(".py").replace("/", "."), path)
    raise AssertionError(f"{page} shows no file {name}")


def test_the_worked_method_runs(tiny_source: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_models

    from lightune.methods import METHODS
    from lightune.training import Training

    page_module("add-a-method.md", "lightune/methods/gains.py", tmp_path)
    line = next(
        block for _, block in blocks(ROOT / "docs" / "add-a-method.md", "python") if block.startswith("METHODS: dict[str, str] = {")
    )
    for name, title in re.findall(r'"(\w+)": "(\w+)"', line):  # the one file and the one line are all that is needed
        monkeypatch.setitem(METHODS, name, title)
    rows = tiny_models.make_rows(48)
    model = tiny_models.start(tiny_source("bert"), rows, method="gains:last=1")
    assert {name for name in model.trainable() if not name.startswith("head.")} == {"backbone.encoder.layer.1.gain"}
    before = model.logits(rows)
    for _ in Training(model, rows, rows[:16], TrainOptions(epochs=2, device="cpu", precision="fp32")).steps():
        pass
    model.save(tmp_path / "model")
    again = models.load(tmp_path / "model")
    assert np.abs(model.logits(rows) - before).max() > 1e-3
    assert np.allclose(again.logits(rows), model.logits(rows), atol=1e-5)


def test_the_worked_task_runs(tiny_source: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_models

    from lightune.data import Example, read
    from lightune.evaluation import evaluate
    from lightune.methods import make_method
    from lightune.training import Training

    page_module("add-a-task.md", "lightune/tasks/grade.py", tmp_path)
    monkeypatch.setitem(TASKS, "grade", "Grade")
    monkeypatch.setattr(answers, "KINDS", (*answers.KINDS, "grade"))
    monkeypatch.setattr(columns, "TASKS", (*columns.TASKS, "grade"))
    rows = [Example(row.text, None, str(1 + len(row.text) % 5), row.row) for row in tiny_models.make_rows(60)]
    assert read([{"text": row.text, "stars": row.target} for row in rows], task="grade")[0].target == rows[0].target
    model = models.start(tiny_source("bert"), find_task("grade").describe(rows), max_length=24)
    model.apply(make_method("full"))
    for _ in Training(model, rows, rows[:20], TrainOptions(epochs=1, device="cpu", precision="fp32")).steps():
        pass
    model.save(tmp_path / "model")
    scores = evaluate(models.load(tmp_path / "model"), rows, resamples=2)
    assert model.answers.labels == ("1", "2", "3", "4", "5")
    assert scores.primary == "kappa"
    assert -1 <= scores["kappa"] <= 1


# ----------------------------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "runtime_only"], ids=lambda path: path.name)
def test_examples_name_columns_that_make_their_task(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example's data are read and split as `fit` would; the fit itself is left out."""
    read: list[str] = []

    def fit(data: object, out: str, **options: object) -> None:
        if options.get("task") == "generate":
            split_conversations(read_conversations(data), seed=0)
            read.append("generate")
            raise SystemExit
        named = {name: value for name, value in options.items() if name in ("task", "text", "pair", "label")}
        examples = lightune.read(data, **named)
        lightune.split(examples, seed=0)
        read.append(examples.columns.task)
        raise SystemExit

    monkeypatch.setattr(lightune, "fit", fit, raising=False)
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(path))
    assert read == [path.stem]


@pytest.mark.slow
def test_examples_run(tiny_source: Callable, tmp_path: Path) -> None:
    """From fit to the runtime alone, on a tiny base."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    decoder = write_base(tmp_path / "decoder", max_position_embeddings=256)
    for command in (["generate.py", str(decoder)], ["classify.py", str(tiny_source("bert").folder)], ["runtime_only.py"]):
        arguments = [sys.executable, str(ROOT / "examples" / command[0]), *command[1:]]
        done = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    assert "torch loaded: False" in done.stdout
