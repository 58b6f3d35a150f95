"""User's text made safe inside YAML and Markdown, as the HTML templates make it safe by themselves."""

from __future__ import annotations

import html
import json
import re
from typing import Any

from lightune.reports.formats import is_number

MARKDOWN = re.compile(r"([\\`*_{}\[\]|#~$])")
UNSAFE_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")


def quoted(value: Any) -> str:
    """A YAML scalar: any text in double quotes, a number as it is."""
    if is_number(value):
        return repr(round(value, 6))
    text = json.dumps(str(value), ensure_ascii=False)
    return UNSAFE_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def plain(value: Any) -> str:
    """User's text on one Markdown line, in which nothing is markup."""
    return html.escape(MARKDOWN.sub(r"\\\1", " ".join(str(value).split())), quote=False)


def fenced(text: Any, language: str = "") -> str:
    """A Markdown block of code; its fence is longer than any that the text itself has."""
    longest = max((len(run) for run in re.findall("`+", str(text))), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
