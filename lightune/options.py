"""An option is declared once: its type, default, bounds and help make its flag, its TOML key, its check and its line in the docs.

An options class is a frozen dataclass whose fields are made by `option`, with `check(self)` in its `__post_init__`.
A change or target is named by a *spec*: ``lora`` or ``lora:rank=16,alpha=32``, which `parse_spec` turns into a name and a dict.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field
from typing import Any, TypeVar

from lightune.errors import InputError, nearest

T = TypeVar("T")


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """A dataclass field with its help and its bounds: low ≤ value ≤ high, value > above, value in choices."""
    bounds = {"help": help, "low": low, "high": high, "above": above, "choices": tuple(choices) if choices else None}
    return field(default=default, metadata=bounds) if default is not MISSING else field(metadata=bounds)


def check(options: Any) -> None:
    """Check every field of an options object against its type and bounds.

    Raises:
        InputError: naming every field that is wrong, all at once.
    """
    hints = typing.get_type_hints(type(options))
    problems = [
        problem for item in dataclasses.fields(options) if (problem := _problem(item, hints[item.name], getattr(options, item.name)))
    ]
    if problems:
        raise InputError("; ".join(problems) + "." * (not problems[-1].endswith("?")))


def _problem(item: dataclasses.Field[Any], hint: Any, value: Any) -> str | None:
    name, rule = item.name.replace("_", "-"), item.metadata
    if value is None and type(None) in typing.get_args(hint):
        return None
    kinds = tuple(kind for kind in _plain_types(hint) if kind is not type(None))
    numeric = isinstance(value, int) and not isinstance(value, bool) and float in kinds
    if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)) and not numeric:
        return f"{name} is {value!r}, expected {' or '.join(kind.__name__ for kind in kinds)}"
    if rule.get("choices") and value not in rule["choices"]:
        known = [str(choice) for choice in rule["choices"]]
        near = nearest(str(value), known)
        return f"{name} is {value!r}, expected one of {', '.join(known)}{'.' * bool(near)}{near}"
    if rule.get("low") is not None and not value >= rule["low"]:
        return f"{name} is {value!r}, expected at least {rule['low']}"
    if rule.get("high") is not None and not value <= rule["high"]:
        return f"{name} is {value!r}, expected at most {rule['high']}"
    if rule.get("above") is not None and not value > rule["above"]:
        return f"{name} is {value!r}, expected more than {rule['above']}"
    return None


def _plain_types(hint: Any) -> list[type]:
    """The classes that a type hint admits: `tuple[str, ...] | None` gives tuple and NoneType."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in _plain_types(part)]
    origin = typing.get_origin(hint) or hint
    return [origin] if isinstance(origin, type) else []


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An options object from a mapping; an unknown key is an error that names the nearest known one."""
    known = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
    wrong = [
        f"unknown option {key!r} for {where}; known: {', '.join(known) or 'none'}.{nearest(key, known)}"
        for key in values
        if key not in known
    ]
    if wrong:
        raise InputError(" ".join(wrong))
    hints = typing.get_type_hints(cls)
    return cls(**{key: _as_tuples(value) if tuple in _plain_types(hints[key]) else value for key, value in values.items()})


def _as_tuples(value: Any) -> Any:
    """Lists, as JSON and TOML give them, as tuples all the way down."""
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def as_dict(options: Any) -> dict[str, Any]:
    """The fields of an options object that are set, ready for TOML or JSON (None is left out, tuples are lists)."""
    pairs = ((item.name, getattr(options, item.name)) for item in dataclasses.fields(options))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs if value is not None}


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """``lora:rank=16,targets=query+value`` → ("lora", {"rank": 16, "targets": ["query", "value"]})."""
    name, _, rest = spec.partition(":")
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, text = part.partition("=")
        if not equals:
            raise InputError(f"{part!r} in {spec!r} is not KEY=VALUE. Write {name}:key=value,key=value.")
        values[key.strip().replace("-", "_")] = _value(text.strip())
    return name.strip(), values


def format_spec(name: str, options: Any) -> str:
    """The spec of an options object, its defaults left out: the inverse of `parse_spec`."""
    parts = []
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if value != item.default and value is not None:
            parts.append(f"{item.name}={'+'.join(map(str, value)) if isinstance(value, tuple) else value}")
    return f"{name}:{','.join(parts)}" if parts else name


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return [_value(part) for part in text.split("+")] if "+" in text else text
