import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from lightune.reports import charts
from lightune.reports.svg import Axis, cells, cut, tick_text

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(\"1\")</script> & 'x'"


def parse(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext(f"{SVG}title")
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text for element in root.iter(f"{SVG}text")]


def every_chart(name: str) -> dict[str, str]:
    return {
        "line": charts.line_chart(name, [charts.Series(name, [(1, 0.2), (2, 0.4)], dots=True, best=2)], name, name),
        "bars": charts.bar_chart(name, [(name, (3, 0)), ("other", (1, 1))], (name, "b")),
        "histogram": charts.histogram(name, [(0, 5, 3), (5, 10, 0)], name, [7]),
        "ranges": charts.range_chart(name, [(name, (0, 10, 20, 100_000))], name),
        "scatter": charts.scatter_chart(name, [charts.Point(23.5, 2.2, name, "0.9"), charts.Point(91, 12, name, "0.9")], name, name),
        "front": charts.front_chart(
            name,
            [
                charts.Candidate(4.2, 0.95, name, name, chosen=True),
                charts.Candidate(90, 0.96, name, name, 1),
                charts.Candidate(5, 0.9, "", name, faint=True),
            ],
            name,
            name,
            most=4.5,
            least=0.95,
        ),
        "intervals": charts.interval_chart(name, [(name, (0.9, 0.8, 0.95))], name),
        "strip": charts.interval_strip(name, 0.9, 0.8, 0.95, 0, 1),
        "calibration": charts.calibration_chart(name, [(0.9, 0.8, 12)]),
        "agreement": charts.agreement_chart(name, [(1.0, 1.5), (2.0, 2.5)]),
        "heat": charts.heat_map(name, [name, "other"], [[3, 1], [0, 5]]),
        "compact heat": charts.heat_map(name, [f"{name}{index}" for index in range(40)], [[1] * 40] * 40),
    }


@pytest.mark.parametrize("name", [HOSTILE, "עברית", "标签", "📮🏳️‍🌈", "a" * 500])
def test_every_chart_is_xml_with_a_title_whatever_the_names(name):
    for svg in every_chart(name).values():
        root = parse(svg)
        assert root.get("aria-label") == name
        assert not list(root.iter(f"{SVG}script"))


def test_no_mark_lies_outside_its_chart():
    for svg in every_chart("name").values():
        root = parse(svg)
        width, height = (float(part) for part in root.get("viewBox").split()[2:])
        for element in root.iter():
            for across, reach in (("x", width), ("x1", width), ("x2", width), ("cx", width), ("y", height), ("cy", height)):
                if across in element.attrib:
                    assert -0.01 <= float(element.get(across)) <= reach + 0.01, (root.get("aria-label"), element.attrib)


@pytest.mark.parametrize(
    ("values", "ends"),
    [((0.11, 4.3), (0, 5)), ((0.838, 0.851), (0.835, 0.855)), ((7, 7), (6, 8)), ((0, 0), (-1, 1)), ((-3, 12), (-5, 15))],
)
def test_ticks_are_round_and_enclose_the_values(values, ends):
    axis = Axis.over(values, 0, 100)
    assert axis.low <= values[0]
    assert axis.high >= values[1]
    assert 2 <= len(axis.ticks) <= 9
    assert (axis.low, axis.high) == pytest.approx(ends)


@pytest.mark.parametrize("values", [(23.5, 90.9), (2.21, 2.21), (1, 100_000), (0.004, 0.02)])
def test_logarithmic_ticks_enclose_the_values(values):
    axis = Axis.over(values, 0, 100, log=True)
    assert axis.low <= values[0] <= values[1] <= axis.high
    assert 2 <= len(axis.ticks) <= 7
    assert axis.place(axis.low) == 0
    assert math.isclose(axis.place(axis.high), 100)


def test_a_curve_fills_its_axis():
    axis = Axis.within([1, 640], 0, 100)
    assert (axis.low, axis.high, axis.ticks[0]) == (0, 640, 0)
    assert (Axis.within([500, 640], 0, 100).low, Axis.within([3, 3], 0, 100).low < 3) == (500, True)


def test_the_best_point_has_a_ring():
    svg = charts.line_chart("t", [charts.Series("dev", [(71, 0.5), (142, 0.7)], dots=True, best=142)], "step", "")
    rings = [circle for circle in parse(svg).iter(f"{SVG}circle") if "ring" in circle.get("class")]
    assert len(rings) == 1
    assert any("best" in title.text for title in parse(svg).iter(f"{SVG}title"))


def test_one_point_still_shows():
    assert len(list(parse(charts.line_chart("t", [charts.Series("dev", [(1, 0.5)])], "step", "")).iter(f"{SVG}circle"))) == 1


def test_small_matrix_has_numbers_and_a_large_one_numbered_rows():
    small = texts(parse(charts.heat_map("t", ["a", "b"], [[31, 2], [0, 17]])))
    assert {"31", "2", "17"} <= set(small)
    large = texts(
        parse(charts.heat_map("t", [f"label {index}" for index in range(77)], [[int(a == b) for a in range(77)] for b in range(77)]))
    )
    assert "label 76  77" in large
    assert "77" in large
    assert "1" in large


def test_confusions_are_told_before_right_answers_when_cells_are_many():
    size = 80
    counts = [[9 if a == b else 1 for a in range(size)] for b in range(size)]
    squares = list(parse(charts.heat_map("t", [str(index) for index in range(size)], counts)).iter(f"{SVG}rect"))
    told = [square for square in squares if square.find(f"{SVG}title") is not None]
    assert len(told) == charts.TOLD_CELLS
    assert all(square.get("class") == "wrong" for square in told)
    assert len(squares) == size * size + 1


def test_bars_are_as_long_as_their_counts():
    rects = list(parse(charts.bar_chart("t", [("a", (30, 10)), ("b", (20, 0))], ("train", "test"))).iter(f"{SVG}rect"))
    widths = [float(rect.get("width")) for rect in rects]
    assert len(widths) == 3
    assert math.isclose(widths[0], 3 * widths[1], rel_tol=0.01)
    assert math.isclose(widths[0], 1.5 * widths[2], rel_tol=0.01)


def stairs(svg: str) -> list[str]:
    return [path.get("d") for path in parse(svg).iter(f"{SVG}path")]


def test_the_line_of_a_front_only_climbs_and_ends_at_the_axis():
    places = [(1.0, 0.80), (2.0, 0.70), (2.0, 0.90), (4.0, 0.85), (8.0, 0.95)]
    candidates = [charts.Candidate(x, y, str(place), "") for place, (x, y) in enumerate(places)]
    (path,) = stairs(charts.front_chart("t", candidates, "MB", "score"))
    assert path.count("V") == 2  # two of the four steps are better than what a lower cost buys
    levels = [float(step.partition("H")[0]) for step in path.split("V")[1:]]
    assert levels == sorted(levels, reverse=True)
    assert path.endswith(f"H{charts.RIGHT - 6:.1f}")
    (falling,) = stairs(charts.front_chart("t", candidates, "MB", "error", lower=True))
    assert falling.count("V") == 1
    assert stairs(charts.front_chart("t", candidates[:1], "MB", "score")) == []


def test_a_front_marks_what_was_chosen_what_is_dominated_and_the_limits():
    candidates = [charts.Candidate(4, 0.9, "7", "seven", chosen=True), charts.Candidate(5, 0.8, "8", "eight", faint=True)]
    root = parse(charts.front_chart("t", candidates, "MB", "score", most=4.5, least=0.85))
    circles = [circle.get("class") for circle in root.iter(f"{SVG}circle")]
    assert circles == ["speck s0", "dot s0", "ring s0"]
    assert [line.get("class") for line in root.iter(f"{SVG}line")].count("limit") == 2
    assert {"at most 4.5", "at least 0.85", "7"} <= set(texts(root))
    assert "8" not in texts(root)
    assert "eight: 5 MB, score 0.8" in [title.text for title in root.iter(f"{SVG}title")]


def test_names_of_a_crowded_front_never_overlap():
    candidates = [charts.Candidate(10 + place / 50, 0.9, f"{place}", "") for place in range(40)]
    root = parse(charts.front_chart("t", candidates, "MB", "score"))
    named = [text for text in root.iter(f"{SVG}text") if text.get("class") == "name"]
    assert 1 <= len(named) < 40


def test_labels_of_equal_bubbles_do_not_overlap():
    points = [charts.Point(23.5, 2.2, "", f"0.{index}", colour=index) for index in range(4)]
    root = parse(charts.scatter_chart("t", points, "MB", "ms"))
    levels = sorted(float(text.get("y")) for text in root.iter(f"{SVG}text") if "".join(text.itertext()).startswith("0."))
    assert len(levels) == 4
    assert all(later - earlier >= 12 for earlier, later in pairwise(levels))


def test_thinning_keeps_the_mean_and_the_order():
    points = [(float(index), index % 2) for index in range(1000)]
    thinned = charts.thin(points, 100)
    assert len(thinned) == 100
    assert all(value == 0.5 for _, value in thinned)
    assert thinned == sorted(thinned)
    assert charts.thin(points[:5], 100) == points[:5]


def test_smoothing_leaves_a_straight_line_straight():
    points = [(float(index), 2.0 * index) for index in range(20)]
    assert charts.smooth(points, 3)[5:15] == points[5:15]


def test_wide_characters_count_twice():
    assert (cells("abc"), cells("标签"), cells("é")) == (3, 4, 1)
    assert cut("card_payment_pending", 10) == "card_paym…"
    assert cut("标签标签", 5) == "标签…"
    assert cut("short", 10) == "short"


def test_tick_text():
    assert [tick_text(value) for value in (12000, 0.00002, -5, 2_500_000, 0.3)] == ["12k", "2e-5", "−5", "2.5M", "0.3"]
