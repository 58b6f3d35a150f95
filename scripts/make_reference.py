"""Writes docs/reference.md from the code: verbs and flags, options, methods, public Python names, the keys of run.json.

python scripts/make_reference.py           write the file
python scripts/make_reference.py --check   exit with 1 where the file is stale
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import lightune
from lightune import benchmarking, cli, exporting, fitting, listing, methods, recipes, runtime, tasks

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference.md"
HEADER = "# Reference\n\nThis page is made by `scripts/make_reference.py` from the code. Do not edit it.\n"
CONTENTS = """
[Command line](#command-line) · [Options](#options) · [Methods](#methods) · [Tasks](#tasks) · [Export targets](#export-targets) ·
[Python](#python) · [run.json](#runjson)
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
    "epochs": "passes over the training data that were made",
    "steps": "steps that were made",
    "peak_resident_bytes": "largest resident memory of the process up to the end of training",
    "weights_bytes": "size of model/weights.safetensors: the tensors that differ from the base",
    "precision": "fp32 or bf16",
    "device": "cpu, cuda or mps",
    "scores": "`primary` names the main metric; every metric has value, low and high (95 % bootstrap interval)",
    "dev_scores": "the same on the development data, without intervals; null without such data",
    "budget": "null (reserved)",
    "met": "null (reserved)",
    "artifacts": "one entry for each exported file, see below",
    "stopped": "finished, early where patience ended the training, or time where the seconds of a comparison did",
    "learned": "false where an alarm was raised",
    "alarms": "sentences about a run that did not learn",
    "reference": "the model in PyTorch on one thread, measured as artefacts are",
    "self_training": "with `--self-training`: what every round did",
    "loss_before": "generate: the loss of development answers before training; null without such rows",
    "ledger": "generate: what became of the rows of each part, see `supervision.Ledger`",
    "choice": "with `--method auto`: the trials, and why the method was chosen",
}
ARTIFACT_KEYS = {
    "target": "export target",
    "path": "folder, relative to the run",
    "sha256": "sha256 of its manifest.json",
    "parity": "`max_abs`: largest difference of a logit; `agree`: share of equal answers; `rows`: on how many development rows",
    "scores": "the test scores of the exported file, as in `scores` above; null without labelled rows",
    "spared": "matrices and tables that have more bits than the target says, because the plain file did not answer as its model does",
    "kept": "its main score divided by the model's; null where that is not possible",
}
MEASURED_KEYS = {
    "milliseconds": "latency of one text on one thread, from text to logits: p50, p95, with batch and length (median tokens)",
    "examples_per_second": "throughput: value, at batch",
    "resident_bytes": "peak resident memory of a fresh process that opens the artefact and answers; null for the model",
    "bytes": "size of the artefact's folder; of the model, its parameters in fp32",
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
    parts = (HEADER, CONTENTS, *_verbs(), *_options(), *_methods(), *_tasks(), *_targets(), *_python(), *_run_json())
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
        shown = [item for item in arguments if verb != "fit" or not _is_option(item)]
        yield _table(("argument", "type", "default", "meaning"), [_flag_row(item) for item in shown])
        if verb == "fit":
            yield "and one flag for every option [below](#options), but for `train`, which is DATA.\n"


def _is_option(argument: Any) -> bool:
    return any(str(group.name).endswith(" options") for group in argument.parameter.group or ())


def _spelled(argument: Any) -> str:
    name = argument.name + ("..." if argument.token_count()[1] else "")
    return name if argument.required else f"[{name}]"


def _flag_row(argument: Any) -> tuple[str, str, str, str]:
    """One argument of a verb: its names, its type, its default and its help."""
    text, default = argument.parameter.help or "", ""
    if argument.field_info.kind is inspect.Parameter.VAR_KEYWORD:  # the verb hands these on: its help names them
        return ", ".join(f"`--{word}`" for word in text.split(", ")), "text", "", "as for fit"
    names = ", ".join(f"`{name}`" for name in argument.names if not name.startswith("--no-"))
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
    words = {
        "str": "text",
        "int": "whole number",
        "float": "number",
        "list[str]": "texts",
        "tuple[str, ...]": "texts",
        "dict[str, str]": "text",
    }
    return words.get(text, text)


def _options() -> Iterator[str]:
    yield "\n## Options\n\nWhat a recipe file (TOML), a flag of `fit` and a keyword of `lightune.fit` are called. A flag has `-` for `_`."
    for cls, place in (
        (recipes.Recipe, "top of the recipe"),
        (recipes.DataOptions, "`[data]`"),
        (recipes.TrainOptions, "`[train]`"),
        (recipes.AnswerOptions, "`[answers]`"),
    ):
        yield f"\n### {cls.__name__}: {place}\n"
        yield _table(("option", "type", "default", "bounds", "meaning"), list(_option_rows(cls)))


def _option_rows(cls: type) -> Iterator[tuple[str, ...]]:
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if "help" in item.metadata:
            default = "" if item.default in (None, "", ()) else f"`{_plain(item.default)}`"
            yield f"`{item.name}`", _type_name(hints[item.name]), default, _bounds(item.metadata), item.metadata["help"]


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)


def _bounds(rule: Any) -> str:
    words = {"low": "≥ {:g}", "high": "≤ {:g}", "above": "> {:g}"}
    found = [form.format(rule[name]) for name, form in words.items() if rule.get(name) is not None]
    return ", ".join([*found, *map(str, rule.get("choices") or ())])


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
    found = {name: tasks.find_task(name) for name in {**tasks.TASKS, **tasks.GENERATIVE}}
    yield _table(("task", "main metric", "what"), [(f"`{name}`", f"`{cls.primary}`", _first_line(cls)) for name, cls in found.items()])


def _targets() -> Iterator[str]:
    yield "\n## Export targets\n"
    ((_, columns, rows),) = listing.tables("targets")
    yield _table(tuple(columns), [(f"`{name}`", *rest) for name, *rest in rows])
    yield "How each is checked: [export and runtime](export-and-runtime.md).\n"


def _python() -> Iterator[str]:
    yield "\n## Python\n"
    for module, names in ((lightune, lightune.__all__), (runtime, runtime.__all__)):
        yield f"### {module.__name__}\n"
        yield _table(
            ("name", "what"), [(f"`{name}{_signature(getattr(module, name))}`", _first_line(getattr(module, name))) for name in names]
        )
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
        plain = (
            value.__func__
            if isinstance(value, (classmethod, staticmethod))
            else getattr(value, "fget", None) or getattr(value, "func", value)
        )
        if name.startswith("_") or not inspect.isfunction(plain) or not plain.__doc__:
            continue
        is_property = isinstance(value, (property, cached_property))
        call = "" if is_property else _signature(plain).replace("(self, ", "(").replace("(self)", "()").replace("(cls, ", "(")
        yield f"`{name}{call}`", _first_line(plain)


def _first_line(value: Any) -> str:
    """The first paragraph of a docstring on one line; of an exception or a type without one, nothing."""
    text = inspect.getdoc(value) or ""
    return " ".join(text.split("\n\n")[0].split())


def _run_json() -> Iterator[str]:
    yield "\n## run.json\n\nWhat `lightune fit` writes into the run folder and prints with `--json`.\n"
    yield _explained(_keys_of(fitting), RUN_KEYS)
    yield "\nAn entry of `artifacts`:\n"
    yield _explained(_keys_of(exporting), ARTIFACT_KEYS)
    yield "\nand, there and in `reference`:\n"
    yield _explained(_keys_of(benchmarking), MEASURED_KEYS)


def _keys_of(module: Any) -> list[str]:
    """The keys that a module writes into a record: of the dict that its describing function returns, and those added to `record` later."""
    found: list[Any] = []
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.FunctionDef) and node.name in ("_describe", "export", "measure"):
            found += [
                key
                for item in ast.walk(node)
                if isinstance(item, ast.Return) and isinstance(item.value, ast.Dict)
                for key in item.value.keys
            ]
        elif isinstance(node, ast.Assign):
            match node.targets[0], node.value:
                case ast.Name(id="record"), ast.BinOp(right=ast.Dict(keys=keys)):
                    found += keys
                case ast.Subscript(value=ast.Name(id="record"), slice=key), _:
                    found.append(key)
    return list(dict.fromkeys(str(key.value) for key in found if isinstance(key, ast.Constant)))


def _explained(keys: list[str], meanings: dict[str, str]) -> str:
    """The keys with their meanings as a table, if each has a meaning and each meaning a key."""
    if wrong := set(keys) ^ set(meanings):
        raise SystemExit(
            f"run.json: {', '.join(sorted(wrong))}: in the code or explained in this script, but not both. Correct the script."
        )
    return _table(("key", "meaning"), [(f"`{key}`", meanings[key]) for key in keys])


def _table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(headers)} |", "|" + "---|" * len(headers)]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
