"""Marks, axes and text of a drawing. Colours are classes of the page's style sheet, so that a drawing follows light and dark."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

Mark = ElementTree.Element
CHARACTER = 6.3  # pixels that one narrow character of the charts' 11-pixel type takes in the widest usual font


def mark(tag: str, text: str = "", children: Iterable[Mark] = (), **attributes: str | float) -> Mark:
    """One SVG element. `class_` stands for class, `stroke_width` for stroke-width; numbers keep two decimals."""
    element = ElementTree.Element(tag, {name.rstrip("_").replace("_", "-"): _plain(value) for name, value in attributes.items()})
    element.text = text or None
    element.extend(children)
    return element


def told(shape: Mark, tip: str) -> Mark:
    """The shape with a text that shows on hover and is read aloud."""
    shape.insert(0, mark("title", tip))
    return shape


def drawing(width: float, height: float, title: str, marks: Iterable[Mark], fixed: bool = False) -> str:
    """A whole SVG as text. It fills the width of its box, or keeps its own pixels where `fixed` (its box then scrolls)."""
    size = {"width": _plain(width), "height": _plain(height)} if fixed else {}
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_plain(width)} {_plain(height)}",
            "role": "img",
            "aria-label": title,
            **size,
        },
    )
    root.append(mark("title", title))
    root.extend(marks)
    return ElementTree.tostring(root, encoding="unicode")


def words(text: str, x: float, y: float, anchor: str = "start", **attributes: str | float) -> Mark:
    """A line of text that starts, is centred or ends at `x`."""
    if anchor != "start":
        attributes["text_anchor"] = anchor
    return mark("text", text, (), x=x, y=y, **attributes)


def cells(text: str) -> int:
    """How many narrow characters wide a text is: Chinese, Japanese, Korean and emoji count twice, combining marks not at all."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, limit: int) -> str:
    """The text, or its beginning and an ellipsis where it is wider than `limit` narrow characters."""
    if cells(text) <= limit:
        return text
    kept = ""
    for character in text:
        if cells(kept + character) > limit - 1:
            break
        kept += character
    return kept.rstrip() + "…"


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high` along the pixels from `start` to `end`, with ticks at round values."""

    ticks: tuple[float, ...]
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, log: bool = False, wanted: int = 5) -> Axis:
        """The axis whose round ticks enclose all `values` (finite, and positive where `log`)."""
        ticks = _log_ticks(min(values), max(values)) if log else _even_ticks(min(values), max(values), wanted)
        return cls(tuple(ticks), ticks[0], ticks[-1], start, end, log)

    @classmethod
    def within(cls, values: Sequence[float], start: float, end: float, wanted: int = 6) -> Axis:
        """The axis that ends where the `values` end, so that a curve fills its chart; it begins at 0 where they begin near it."""
        wide, low, high = cls.over(values, start, end, wanted=wanted), min(values), max(values)
        if high <= low:
            return wide
        low = 0.0 if 0 < low < 0.2 * high else low
        ticks = [0.0, *wide.ticks] if low == 0 else wide.ticks
        return cls(tuple(dict.fromkeys(tick for tick in ticks if low <= tick <= high)), low, high, start, end)

    def place(self, value: float) -> float:
        """The pixel of a value; values beyond the ends stay at the ends."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        share = math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)
        return self.start + share * (self.end - self.start)


def frame(x: Axis, y: Axis, x_title: str, y_title: str = "") -> list[Mark]:
    """Grid lines, tick labels and titles of a chart whose axes meet at lower left."""
    marks = []
    for tick in y.ticks:
        level = y.place(tick)
        marks.append(mark("line", x1=x.start, x2=x.end, y1=level, y2=level, class_="grid"))
        marks.append(words(tick_text(tick), x.start - 6, level + 3.5, "end"))
    for tick in x.ticks:
        marks.append(words(tick_text(tick), x.place(tick), y.start + 16, "middle"))
    marks.append(words(x_title, (x.start + x.end) / 2, y.start + 32, "middle", class_="axis"))
    if y_title:
        marks.append(words(y_title, x.start, y.end - 9, class_="axis"))
    return marks


def tick_text(value: float) -> str:
    """12000 → '12k', 0.00002 → '2e-5'."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:.6g}".replace("e-0", "e-").replace("-", "−", 1 if value < 0 else 0)


def _even_ticks(low: float, high: float, wanted: int) -> list[float]:
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: give it room on both sides
        room = abs(high) / 10 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    nice = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    first = max(index for index, value in enumerate(nice) if value <= low * (1 + 1e-9))
    last = min(index for index, value in enumerate(nice) if value >= high * (1 - 1e-9))
    chosen = nice[first : max(last, first + 1) + 1]
    return chosen if len(chosen) <= 7 else [chosen[0], *(tick for tick in chosen[1:-1] if math.log10(tick) % 1 < 1e-9), chosen[-1]]


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
