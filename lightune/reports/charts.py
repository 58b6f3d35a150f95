"""The charts of a report, each from plain values to one SVG as text. Values must be finite; every mark tells its numbers on hover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightune.reports.svg import CHARACTER, Axis, Mark, cells, cut, drawing, frame, mark, tick_text, told, words

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 408, 24, 206
COLOURS = 6  # s0 … s5 in the style sheet
NAMED_CELLS = 25  # up to here a confusion matrix has room for numbers
NAMED_ROWS = 90  # up to here it has room for the names of its rows
TOLD_CELLS = 1500  # so many cells tell their numbers on hover; the rest would only make the page heavy


@dataclass(frozen=True, slots=True)
class Series:
    """A line: points (x, y) by rising x, drawn in colour `colour`, with dots where `dots`, pale where it is only background."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dots: bool = False
    pale: bool = False
    best: float | None = None  # the x of the point to ring


@dataclass(frozen=True, slots=True)
class Point:
    """A bubble: its place, its name and score as text, and how good the score is from 0 to 1. `tip` is its whole name, told on hover."""

    x: float
    y: float
    name: str
    note: str
    size: float = 0.5
    colour: int = 0
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that was tried: its cost and score, a short name beside it and its whole name told on hover; `faint` where another one is
    better in everything, `chosen` where it has the ring."""

    x: float
    y: float
    name: str
    tip: str
    colour: int = 0
    faint: bool = False
    chosen: bool = False


def line_chart(title: str, series: Sequence[Series], x_title: str, y_title: str) -> str:
    """Curves over one pair of axes; at least one series has a point."""
    everything = [point for line in series for point in line.points]
    x = Axis.within([point[0] for point in everything], LEFT, RIGHT)
    y = Axis.over([point[1] for point in everything], BOTTOM, TOP)
    marks = frame(x, y, x_title, y_title)
    for line in series:
        marks += _curve(line, x, y)
    return drawing(WIDTH, HEIGHT, title, marks)


def _curve(line: Series, x: Axis, y: Axis) -> list[Mark]:
    places = [(x.place(a), y.place(b)) for a, b in line.points]
    colour = f"s{line.colour % COLOURS}"
    marks = []
    if len(places) > 1:
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        marks.append(mark("path", d=path, class_=f"line {colour}{' pale' if line.pale else ''}"))
    if line.dots or len(places) == 1:
        for (a, b), (step, value) in zip(places, line.points, strict=True):
            tip = f"{line.name}: {value:.4g} at {tick_text(step)}"
            if step == line.best:
                marks.append(mark("circle", cx=a, cy=b, r=7, class_=f"ring {colour}"))
                tip += " (best, kept)"
            marks.append(told(mark("circle", cx=a, cy=b, r=3, class_=f"dot {colour}"), tip))
    return marks


def bar_chart(title: str, rows: Sequence[tuple[str, Sequence[float]]], parts: Sequence[str]) -> str:
    """One horizontal bar per row, stacked from one value per part, with the total at its end."""
    pitch, names = 21, min(22, max(cells(name) for name, _ in rows))
    left = 12 + names * CHARACTER
    most = max(max(sum(values) for _, values in rows), 1)
    scale = (WIDTH - 52 - left) / most
    marks = []
    for index, (name, values) in enumerate(rows):
        top, edge = 4 + index * pitch, left
        marks.append(told(words(cut(name, names), left - 8, top + 12, "end", class_="name"), name))
        for place, (part, value) in enumerate(zip(parts, values, strict=True)):
            if value:
                bar = mark("rect", x=edge, y=top + 1, width=max(value * scale, 0.75), height=pitch - 7, class_=f"fill s{place % COLOURS}")
                marks.append(told(bar, f"{name}, {part}: {value:,.0f}"))
                edge += value * scale
        marks.append(words(f"{sum(values):,.0f}", edge + 6, top + 12))
    return drawing(WIDTH, 8 + len(rows) * pitch, title, marks)


def histogram(title: str, columns: Sequence[tuple[float, float, float]], x_title: str, limits: Sequence[float] = ()) -> str:
    """A column per (low, high, rows), with a dashed line at every limit inside them."""
    x = Axis.within([edge for low, high, _ in columns for edge in (low, high)], LEFT, RIGHT)
    y = Axis.over([0, *(count for *_, count in columns), 1], BOTTOM, TOP, wanted=4)
    marks = frame(x, y, x_title, "rows")
    for low, high, count in columns:
        left, top = x.place(low), y.place(count)
        column = mark("rect", x=left + 0.4, y=top, width=max(x.place(high) - left - 0.8, 0.6), height=BOTTOM - top, class_="fill s0")
        marks.append(told(column, f"{tick_text(low)} to {tick_text(high)}: {count:,.0f} rows"))
    for limit in limits:
        if x.low < limit < x.high:
            place = x.place(limit)
            marks.append(mark("line", x1=place, x2=place, y1=TOP, y2=BOTTOM, class_="limit"))
            marks.append(words(tick_text(limit), place + 4, TOP + 9, class_="axis"))
    return drawing(WIDTH, HEIGHT, title, marks)


def range_chart(title: str, rows: Sequence[tuple[str, Sequence[float]]], x_title: str) -> str:
    """One row per name and its (least, median, 95th percentile, most), on a logarithmic axis: a line over all, a bar from median to p95."""
    pitch, names = 42, min(16, max(cells(row[0]) for row in rows))
    left, bottom = 22 + names * CHARACTER, 14 + 42 * len(rows)
    x = Axis.over([max(value, 1) for _, values in rows for value in values], left, RIGHT, log=True)
    marks = [mark("line", x1=x.place(tick), x2=x.place(tick), y1=8, y2=bottom, class_="grid") for tick in x.ticks]
    marks += [words(tick_text(tick), x.place(tick), bottom + 15, "middle") for tick in x.ticks]
    marks.append(words(x_title, (left + RIGHT) / 2, bottom + 31, "middle", class_="axis"))
    for index, (name, (least, median, high, most)) in enumerate(rows):
        level = 30 + index * pitch
        start, middle, end, last = (x.place(max(value, 1)) for value in (least, median, high, most))
        tip = f"{name}: least {least:,.0f}, median {median:,.0f}, 95 % up to {high:,.0f}, most {most:,.0f}"
        marks.append(told(words(cut(name, names), left - 12, level + 4, "end", class_="name"), name))
        marks.append(mark("line", x1=start, x2=last, y1=level, y2=level, class_="line s0 pale"))
        marks.append(told(mark("rect", x=middle, y=level - 6, width=max(end - middle, 2), height=12, rx=2, class_="fill s0"), tip))
        marks += [mark("line", x1=place, x2=place, y1=level - 6, y2=level + 6, class_="line s0") for place in (start, last)]
        marks.append(words(f"{median:,.0f}", middle, level - 10, "middle"))
        if end - middle > 34:
            marks.append(words(f"{high:,.0f}", end, level - 10, "middle"))
    return drawing(WIDTH, bottom + 38, title, marks)


def scatter_chart(title: str, points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Bubbles on two logarithmic axes, larger where the score is better, each with its name and score beside it."""
    x = Axis.over([point.x for point in points], LEFT, RIGHT - 14, log=True)
    y = Axis.over([point.y for point in points], BOTTOM, TOP, log=True)
    marks = frame(x, y, x_title, y_title)
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: y.place(point.y)):
        across, down, radius = x.place(point.x), y.place(point.y), 5 + 6 * point.size
        bubble = mark("circle", cx=across, cy=down, r=radius, class_=f"bubble s{point.colour % COLOURS}")
        marks.append(
            told(bubble, f"{point.tip or point.name}: {tick_text(point.x)} {x_title}, {tick_text(point.y)} {y_title}, {point.note}")
        )
        marks.append(_label(point, across, down, radius, taken))
    return drawing(WIDTH, HEIGHT, title, marks)


def _label(point: Point, across: float, down: float, radius: float, taken: list[tuple[float, float, float]]) -> Mark:
    """Name and note beside a bubble, on its left where the right has no room, moved up or down to where no label is yet."""
    name = cut(point.name, 24)
    width = cells(f"{name} {point.note}") * CHARACTER * 1.1
    right = across + radius + 5 + width < WIDTH
    place = across + radius + 5 if right else across - radius - 5
    left = place if right else place - width
    near = [down + sign * step for step in range(0, BOTTOM - TOP, 3) for sign in (1, -1)]
    level = next((level for level in near if TOP < level < BOTTOM - 4 and _free(left, left + width, level, taken)), down)
    taken.append((left, left + width, level))
    label = words(f"{name} " if name else "", place, level + 4, "start" if right else "end", class_="name")
    label.append(mark("tspan", point.note, class_=f"strong ink s{point.colour % COLOURS}"))
    return label


def _free(left: float, right: float, level: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    return not any(abs(level - other) < 13 and left < end and start < right for start, end, other in taken)


def front_chart(
    title: str,
    candidates: Sequence[Candidate],
    x_title: str,
    y_title: str,
    *,
    most: float | None = None,
    least: float | None = None,
    lower: bool = False,
) -> str:
    """Scores against a cost on a logarithmic axis, with a line over the best of each colour at that cost or less.

    most, least: the largest cost and the least score that are allowed, drawn dashed. lower: whether a lower score is better.
    """
    x = Axis.over([*(candidate.x for candidate in candidates), *([most] if most else [])], LEFT, RIGHT - 6, log=True)
    y = Axis.over([*(candidate.y for candidate in candidates), *([least] if least is not None else [])], BOTTOM, TOP)
    marks = [*frame(x, y, x_title, y_title), *_limits(x, y, most, least)]
    for colour in sorted({candidate.colour for candidate in candidates}):
        marks += _stairs([candidate for candidate in candidates if candidate.colour == colour], x, y, lower)
    taken = [(x.place(candidate.x) - 4, x.place(candidate.x) + 4, y.place(candidate.y)) for candidate in candidates if not candidate.faint]
    for candidate in sorted(candidates, key=lambda candidate: (not candidate.faint, candidate.chosen)):
        across, down = x.place(candidate.x), y.place(candidate.y)
        tip = f"{candidate.tip}: {tick_text(float(f'{candidate.x:.3g}'))} {x_title}, {y_title} {candidate.y:.4g}"
        marks += [*_spot(candidate, across, down, tip), *_tag(candidate, across, down, taken)]
    return drawing(WIDTH, HEIGHT, title, marks)


def _spot(candidate: Candidate, across: float, down: float, tip: str) -> list[Mark]:
    colour = f"s{candidate.colour % COLOURS}"
    radius, kind = (3, "speck") if candidate.faint else (4, "dot")
    dot = told(mark("circle", cx=across, cy=down, r=radius, class_=f"{kind} {colour}"), tip)
    return [dot, mark("circle", cx=across, cy=down, r=8, class_=f"ring {colour}")] if candidate.chosen else [dot]


def _limits(x: Axis, y: Axis, most: float | None, least: float | None) -> list[Mark]:
    marks = []
    if most:
        place = x.place(most)
        marks.append(mark("line", x1=place, x2=place, y1=TOP, y2=BOTTOM, class_="limit"))
        right = place > (LEFT + RIGHT) / 2
        marks.append(
            words(f"at most {tick_text(most)}", place - 4 if right else place + 4, BOTTOM - 5, "end" if right else "start", class_="axis")
        )
    if least is not None:
        level = y.place(least)
        marks.append(mark("line", x1=LEFT, x2=x.end, y1=level, y2=level, class_="limit"))
        marks.append(words(f"at least {least:.3g}", LEFT + 4, level + 12, class_="axis"))
    return marks


def _stairs(candidates: Sequence[Candidate], x: Axis, y: Axis, lower: bool) -> list[Mark]:
    """The best score that each cost buys, as steps; nothing for a single candidate."""
    path, best = "", float("-inf")
    for candidate in sorted(candidates, key=lambda candidate: (candidate.x, candidate.y if lower else -candidate.y)):
        worth = -candidate.y if lower else candidate.y
        if worth > best:
            across, down = x.place(candidate.x), y.place(candidate.y)
            path += f"H{across:.1f}V{down:.1f}" if path else f"M{across:.1f} {down:.1f}"
            best = worth
    if len(candidates) < 2:
        return []
    return [mark("path", d=f"{path}H{x.end:.1f}", class_=f"line s{candidates[0].colour % COLOURS} pale")]


def _tag(candidate: Candidate, across: float, down: float, taken: list[tuple[float, float, float]]) -> list[Mark]:
    """The name beside a dot, on the first side where nothing stands yet; none where every side is taken, or beside what is dominated."""
    if not candidate.name or (candidate.faint and not candidate.chosen):
        return []
    width, reach = cells(candidate.name) * CHARACTER, 10 if candidate.chosen else 6
    sides = ((across + reach, down + 4, "start", 0.0), (across - reach, down + 4, "end", 1.0), (across, down - reach - 2, "middle", 0.5))
    for place, level, anchor, share in sides:
        left = place - share * width
        if left > LEFT and left + width < WIDTH and level > TOP and _free(left + 1, left + width, level - 4, taken):
            taken.append((left, left + width, level - 4))
            return [words(candidate.name, place, level, anchor, class_="strong" if candidate.chosen else "name")]
    return []


def interval_chart(title: str, rows: Sequence[tuple[str, tuple[float, float, float]]], x_title: str) -> str:
    """One row per name and its (value, low, high): a dot with its interval, all on one axis."""
    pitch, names = 30, min(22, max(cells(row[0]) for row in rows))
    left, bottom = 14 + names * CHARACTER, 12 + 30 * len(rows)
    x = Axis.over([value for _, bounds in rows for value in bounds], left + 6, RIGHT - 10)
    marks = [mark("line", x1=x.place(tick), x2=x.place(tick), y1=6, y2=bottom, class_="grid") for tick in x.ticks]
    marks += [words(tick_text(tick), x.place(tick), bottom + 15, "middle") for tick in x.ticks]
    marks.append(words(x_title, (left + RIGHT) / 2, bottom + 31, "middle", class_="axis"))
    for index, (name, (value, low, high)) in enumerate(rows):
        level, colour = 24 + index * pitch, f"s{index % COLOURS}"
        marks.append(told(words(cut(name, names), left - 6, level + 4, "end", class_="name"), name))
        marks.append(mark("line", x1=x.place(low), x2=x.place(high), y1=level, y2=level, class_=f"line thick {colour}"))
        dot = mark("circle", cx=x.place(value), cy=level, r=5, class_=f"dot {colour}")
        marks.append(told(dot, f"{name}: {value:.3f}, 95 % interval {low:.3f} to {high:.3f}"))
    return drawing(WIDTH, bottom + 38, title, marks)


def interval_strip(title: str, value: float, low: float, high: float, floor: float, ceiling: float) -> str:
    """A score with its interval between two fixed ends, small enough for a table cell."""
    x = Axis((), floor, ceiling, 4, 116)
    marks = [
        mark("line", x1=4, x2=116, y1=9, y2=9, class_="grid"),
        mark("line", x1=x.place(low), x2=x.place(high), y1=9, y2=9, class_="line thick s0"),
        mark("circle", cx=x.place(value), cy=9, r=4, class_="dot s0"),
    ]
    return drawing(120, 18, title, marks, fixed=True)


def calibration_chart(title: str, bins: Sequence[tuple[float, float, int]]) -> str:
    """Confidence against accuracy per bin (confidence, accuracy, rows); on the dashed diagonal the probability means what it says."""
    x, y = Axis.over((0, 1), LEFT, RIGHT), Axis.over((0, 1), BOTTOM, TOP)
    marks = [*frame(x, y, "probability that the model told", "share that was right"), _diagonal(x, y)]
    most = max(count for *_, count in bins)
    for confidence, accuracy, count in bins:
        place, level = x.place(confidence), y.place(accuracy)
        marks.append(mark("line", x1=place, x2=place, y1=y.place(confidence), y2=level, class_="line s1 pale"))
        dot = mark("circle", cx=place, cy=level, r=3 + 7 * (count / most) ** 0.5, class_="bubble s0")
        marks.append(told(dot, f"{count:,} rows: told {confidence:.3f}, right {accuracy:.3f}"))
    return drawing(WIDTH, HEIGHT, title, marks)


def agreement_chart(title: str, points: Sequence[tuple[float, float]]) -> str:
    """Target against answer, one dot a row; a right answer lies on the dashed diagonal."""
    values = [value for point in points for value in point]
    x, y = Axis.within(values, LEFT, RIGHT), Axis.within(values, BOTTOM, TOP)
    marks = [*frame(x, y, "target", "answer"), _diagonal(x, y)]
    marks += [mark("circle", cx=x.place(target), cy=y.place(answer), r=2.2, class_="speck s0") for target, answer in points]
    return drawing(WIDTH, HEIGHT, title, marks)


def _diagonal(x: Axis, y: Axis) -> Mark:
    return mark("line", x1=x.start, y1=y.start, x2=x.end, y2=y.end, class_="limit")


def heat_map(title: str, labels: Sequence[str], counts: Sequence[Sequence[float]]) -> str:
    """A confusion matrix: rows are what was expected, columns what was answered, darker for a larger share of its row.
    Up to 25 labels have names and numbers, up to 90 numbered names of rows, more only their cells."""
    many, size = len(labels) > NAMED_CELLS, len(labels)
    named = size <= NAMED_ROWS
    cell = max(2, 800 // size) if not named else min(12, 740 / size) if many else min(44, max(24, 480 // size))
    cut_at = min(34 if many else 18, max(cells(name) for name in labels))
    left = (cut_at + (5 if many else 0)) * (4.8 if many else CHARACTER) + 12 if named else 4
    top = 26 if many else 12 + 0.72 * cut_at * CHARACTER
    marks = _cells(labels, counts, cell, left, top)
    if named:
        marks += _numbered_names(labels, cell, left, top, cut_at) if many else _names(labels, cell, left, top, cut_at)
    marks.append(mark("rect", x=left, y=top, width=size * cell, height=size * cell, class_="edge"))
    overhang = 4 if many else 6 + 0.72 * cells(cut(labels[-1], cut_at)) * CHARACTER
    return drawing(left + size * cell + overhang, top + size * cell + 4, title, marks, fixed=True)


def _cells(labels: Sequence[str], counts: Sequence[Sequence[float]], cell: float, left: float, top: float) -> list[Mark]:
    filled = [(count, row, column) for row, line in enumerate(counts) for column, count in enumerate(line) if count]
    filled.sort(key=lambda entry: (entry[1] == entry[2], -entry[0]))  # confusions first, the largest first
    totals = [sum(line) for line in counts]
    marks = []
    for index, (count, row, column) in enumerate(filled):
        share = count / totals[row]
        x, y = left + column * cell, top + row * cell
        right = row == column
        opacity = round(0.12 + 0.88 * share**0.6, 2)
        square = mark("rect", x=x, y=y, width=cell, height=cell, class_="right" if right else "wrong", fill_opacity=opacity)
        if index < TOLD_CELLS:
            outcome = "right" if right else f"answered {labels[column]}"
            square = told(square, f"{labels[row]}, {outcome}: {count:,.0f} of {totals[row]:,.0f}")
        marks.append(square)
        if len(labels) <= NAMED_CELLS:
            ink = "number over" if opacity > 0.55 else "number"
            marks.append(words(tick_text(count), x + cell / 2, y + cell / 2 + 3.8, "middle", class_=ink))
    return marks


def _names(labels: Sequence[str], cell: float, left: float, top: float, limit: int) -> list[Mark]:
    marks = []
    for index, name in enumerate(labels):
        middle = index * cell + cell / 2
        marks.append(told(words(cut(name, limit), left - 7, top + middle + 4, "end", class_="name"), name))
        turned = f"translate({left + middle + 3:.1f} {top - 6:.1f}) rotate(-45)"
        marks.append(told(mark("text", cut(name, limit), class_="name", transform=turned), name))
    return marks


def _numbered_names(labels: Sequence[str], cell: float, left: float, top: float, limit: int) -> list[Mark]:
    marks = []
    for index, name in enumerate(labels):
        middle = index * cell + cell / 2
        marks.append(told(words(f"{cut(name, limit)}  {index + 1}", left - 4, top + middle + 3, "end", class_="small"), name))
        turned = f"translate({left + middle + 2.8:.1f} {top - 4:.1f}) rotate(-90)"
        marks.append(told(mark("text", str(index + 1), class_="small", transform=turned), name))
    return marks


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points by rising x: the mean of each of as many equal stretches."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    return [_mean(points[low:high]) for low, high in pairwise(edges)]


def smooth(points: Sequence[tuple[float, float]], reach: int) -> list[tuple[float, float]]:
    """Each y replaced by the mean of the `reach` points before and after it."""
    middle: Callable[[int], float] = lambda index: _mean(points[max(0, index - reach) : index + reach + 1])[1]
    return [(point[0], middle(index)) for index, point in enumerate(points)]


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(point[0] for point in points) / len(points), sum(point[1] for point in points) / len(points)
