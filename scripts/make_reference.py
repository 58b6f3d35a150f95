"""Writes docs/reference.md from the code: verbs and flags, options, methods, public Python names, the keys of run.json.

    python scripts/make_reference.py           write the file
    python scripts/make_reference.py --check   exit with 1 where the file is stale
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightune
from lightune import cli, exporting, fitting, methods, optimizers, recipes, runtime, tasks

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference.md"
HEADER = "# Reference\n\nThis page is made by `scripts/make_reference.py` from the code. Do not edit it.\n"
CONTENTS = """
[Command line](#command-line) · [Options](#options) · [Methods](#methods) · [Tasks](#tasks) · [Export targets](#export-targets) ·
[Optimizers](#optimizers) · [Python](#python) · [run.json](#runjson)
"""
# Meaning of every key of run.json; the keys themselves are read from the code, and one without a meaning here is an error.
RUN_KEYS = {
    "format": "version of this file's form",
    "lightune": "version that wrote it",
    "created": "when, in UTC",
    "name": "file or catalogue name of the training data",
    "task": "classify, pair, multilabel or regress",
    "base": "the pretrained model",
    "base_sha256": "sha256 of its weights",
    "method": "how it was adapted, as a spec",
    "changes": "the changes applied to the base, in order: name and options",
    "examples": "rows of train, dev and test",
    "truncated_tokens": "tokens that the length limit cut off, over all parts",
    "trainable_parameters": "parameters that were trained, the head's included",
    "total_parameters": "all parameters",
    "seconds": "wall-clock of the training loop, evaluations included",
    "tokens_per_second": "training tokens per second",
    "examples_per_second": "training examples per second",
    "peak_resident_bytes": "largest resident memory of the process",
    "precision": "fp32 or bf16",
    "device": "cpu, cuda or mps",
    "scores": "`primary` names the main metric; every metric has value, low and high (95 % bootstrap interval)",
    "dev_scores": "the same on the development data, without intervals; null without such data",
    "budget": "null (reserved)",
    "met": "null (reserved)",
    "artifacts": "one entry for each exported file, see below",
    "stopped": "finished, or early where patience ended the training",
    "learned": "false where an alarm was raised",
    "alarms": "sentences about a run that did not learn",
    "reference": "the model in PyTorch on one thread, measured as artefacts are",
}
ARTIFACT_KEYS = {
    "target": "export target",
    "path": "folder, relative to the run",
    "sha256": "sha256 of its manifest.json",
    "parity": "`max_abs`: largest difference of a logit; `agree`: share of equal answers; on up to 256 development rows",
    "scores": "the test scores of the exported file, as in `scores` above; null without labelled rows",
    "kept": "its main score divided by the model's; null where that is not possible",
}


def main() -> int:
    """Write the page, or compare it."""
    page = make_page()
    if "--check" in sys.argv[1:]:
        fresh = REFERENCE.is_file() and REFERENCE.read_text(encoding="utf-8") == page
        sys.stdout.write("" if fresh else "docs/reference.md is stale: run python scripts/make_reference.py\n")
        return 0 if fresh else 1
    REFERENCE.write_text(page, encoding="utf-8")
    return 0


def make_page() -> str:
    """The whole page as Markdown."""
    parts = (HEADER, CONTENTS, *_verbs(), *_options(), *_methods(), *_tasks(), *_targets(), *_optimizers(), *_python(), *_run_json())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).strip() + "\n"


def _verbs() -> Iterator[str]:
    yield "\n## Command line\n"
    yield "Every verb has `--help`. Results go to stdout, progress and warnings to stderr."
    yield "Exit code 0: good. 1: a check failed. 2: bad input or usage. 130: stopped by a signal.\n"
    for verb in cli.app:
        if verb.startswith("-"):
            continue
        command = cli.app[verb]
        arguments = list(command.assemble_argument_collection())
        named = [_spelled(item) for item in arguments if item.field_info.kind is inspect.Parameter.POSITIONAL_ONLY]
        yield f"### {' '.join([f'lightune {verb}', *named])}\n\n{command.help}\n"
        rows = [_flag_row(item) for item in arguments]
        yield _table(("argument", "type", "default", "meaning"), [row for row in rows if row])


def _spelled(argument: Any) -> str:
    name = argument.name + ("..." if argument.token_count()[1] else "")
    return name if argument.required else f"[{name}]"


def _flag_row(argument: Any) -> tuple[str, str, str, str]:
    """One argument of a verb: its names, its type, its default and its help."""
    names = ", ".join(f"`{name}`" for name in argument.names if not name.startswith("--no-"))
    text, default = argument.parameter.help or "", ""
    if found := re.search(r" ?\[default: ([^\]]*)\]", text):  # an options class, or a default that the verb works out
        default, text = found[1], text.replace(found[0], "")
    elif argument.field_info.default not in (inspect.Parameter.empty, None, False):
        default = str(argument.field_info.default)
    return names, _type_name(argument.hint), f"`{default}`" if default else "", text


def _type_name(hint: Any) -> str:
    if hint is bool:
        return "switch"
    text = getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint)
    text = text.replace(" | None", "").replace("None | ", "")
    words = {"str": "text", "int": "whole number", "float": "number", "list[str]": "texts", "tuple[str, ...]": "texts", "dict[str, str]": "text"}
    return words.get(text, text)


def _options() -> Iterator[str]:
    yield "\n## Options\n\nWhat a recipe file (TOML), a flag of `fit` and a keyword of `lightune.fit` are called. A flag has `-` for `_`."
    for cls, place in ((recipes.Recipe, "top of the recipe"), (recipes.DataOptions, "`[data]`"), (recipes.TrainOptions, "`[train]`")):
        yield f"\n### {cls.__name__}: {place}\n"
        yield _table(("option", "type", "default", "bounds", "meaning"), list(_option_rows(cls)))


def _option_rows(cls: type) -> Iterator[tuple[str, ...]]:
    hints = inspect.get_annotations(cls, eval_str=True)
    for item in dataclasses.fields(cls):
        if "help" in item.metadata:
            default = "" if item.default in (None, "", ()) else f"`{_plain(item.default)}`"
            yield f"`{item.name}`", _type_name(hints[item.name]), default, _bounds(item.metadata), item.metadata["help"]


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)


def _bounds(rule: Any) -> str:
    words = {"low": "≥ {:g}", "high": "≤ {:g}", "above": "> {:g}"}
    found = [form.format(rule[name]) for name, form in words.items() if rule.get(name) is not None]
    return ", ".join([*found, *(rule.get("choices") or ())])


def _methods() -> Iterator[str]:
    yield "\n## Methods\n\n`--method NAME` or `--method NAME:option=value,option=value`; the task's head is always trained.\n"
    found = {name: methods.find_method(name) for name in methods.METHODS}
    yield _table(("method", "rate", "what"), [(f"`{name}`", f"{cls.rate:g}", _first_line(cls)) for name, cls in found.items()])
    for name, cls in found.items():
        if rows := list(_option_rows(cls)):
            yield f"\n### Options of {name}\n"
            yield _table(("option", "type", "default", "bounds", "meaning"), rows)


def _tasks() -> Iterator[str]:
    yield "\n## Tasks\n"
    found = {name: tasks.find_task(name) for name in tasks.TASKS}
    yield _table(("task", "main metric", "what"), [(f"`{name}`", f"`{cls.primary}`", _first_line(cls)) for name, cls in found.items()])


def _targets() -> Iterator[str]:
    from lightune.exports import EXPORTS

    yield "\n## Export targets\n\n" + ", ".join(f"`{name}`" for name in EXPORTS) + ". See [export and runtime](export-and-runtime.md).\n"


def _optimizers() -> Iterator[str]:
    yield "\n## Optimizers\n\n`--optimizer NAME` or `--optimizer NAME:option=value`. They are those of `torch.optim`, and take its options:\n"
    yield ", ".join(f"`{name}`" for name in sorted(optimizers.OPTIMIZERS)) + ".\n"


def _python() -> Iterator[str]:
    yield "\n## Python\n"
    for module, names in ((lightune, lightune.__all__), (runtime, runtime.__all__)):
        yield f"### {module.__name__}\n"
        yield _table(("name", "what"), [(f"`{name}{_signature(getattr(module, name))}`", _first_line(getattr(module, name))) for name in names])
        for name in names:
            value = getattr(module, name)
            if inspect.isclass(value) and (rows := list(_members(value))):
                yield f"\n#### {module.__name__}.{name}\n"
                yield _table(("member", "what"), rows)


def _signature(value: Any) -> str:
    """The names of a function's arguments; a class is shown without."""
    if inspect.isclass(value):
        return ""
    found = []
    for item in inspect.signature(value).parameters.values():
        if item.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in found and not any(name.startswith("*") for name in found):
            found.append("*")
        mark = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(item.kind, "")
        found.append(mark + item.name)
    return f"({', '.join(found)})"


def _members(cls: type) -> Iterator[tuple[str, str]]:
    """The public methods and properties that a class itself defines and describes."""
    for name, value in vars(cls).items():
        plain = value.__func__ if isinstance(value, (classmethod, staticmethod)) else getattr(value, "fget", None) or getattr(value, "func", value)
        if name.startswith("_") or not inspect.isfunction(plain) or not plain.__doc__:
            continue
        call = _signature(plain).replace("(self, ", "(").replace("(self)", "()").replace("(cls, ", "(") if plain is value or not hasattr(value, "fget") else ""
        yield f"`{name}{call}`", _first_line(plain)


def _first_line(value: Any) -> str:
    """The first paragraph of a docstring on one line; of an exception or a type without one, nothing."""
    text = inspect.getdoc(value) or ""
    return " ".join(text.split("\n\n")[0].split())


def _run_json() -> Iterator[str]:
    yield "\n## run.json\n\nWhat `lightune fit` writes into the run folder and prints with `--json`.\n"
    written = _keys_of(fitting)
    yield _table(("key", "meaning"), [(f"`{key}`", RUN_KEYS[key]) for key in _explained(written, RUN_KEYS)])
    entry = [key for key in ("target", "path", "sha256", "parity", "scores", "kept") if key in _keys_of(exporting)]
    yield "\nAn entry of `artifacts`:\n"
    rows = [(f"`{key}`", ARTIFACT_KEYS[key]) for key in _explained(entry, ARTIFACT_KEYS)]
    yield _table(("key", "meaning"), rows)
    benchmarking = importlib.import_module("lightune.benchmarking")
    yield f"\nand what was measured ({_first_line(benchmarking.measure)[:-1].lower()}): see [export and runtime](export-and-runtime.md).\n"


def _keys_of(module: Any) -> list[str]:
    """Every text key that a module writes into `record` or into the dict of its function that describes a run or an artefact."""
    tree = ast.parse(inspect.getsource(module))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("_describe", "export"):
            dicts = [item.value for item in ast.walk(node) if isinstance(item, ast.Return) and isinstance(item.value, ast.Dict)]
            found += [key.value for each in dicts for key in each.keys if isinstance(key, ast.Constant)]
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp) and isinstance(node.value.right, ast.Dict) and _names(node, "record"):
            found += [key.value for key in node.value.right.keys if isinstance(key, ast.Constant)]
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript) and _names(node, "record"):
            found += [node.targets[0].slice.value] if isinstance(node.targets[0].slice, ast.Constant) else []
    return list(dict.fromkeys(map(str, found)))


def _names(node: ast.Assign, name: str) -> bool:
    target = node.targets[0]
    return isinstance(target, ast.Name) and target.id == name or isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name) and target.value.id == name


def _explained(keys: list[str], meanings: dict[str, str]) -> list[str]:
    """The keys, if each has a meaning and each meaning a key."""
    if wrong := set(keys) ^ set(meanings):
        raise SystemExit(f"run.json: {', '.join(sorted(wrong))} are in the code or in RUN_KEYS but not in both. Correct RUN_KEYS.")
    return keys


def _table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(headers)} |", "|" + "---|" * len(headers)]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
