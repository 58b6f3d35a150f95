"""What a page says about the answers: labels, confusions, how far a probability can be believed, the worst errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightune.reports import charts
from lightune.reports.figures import Figure
from lightune.reports.formats import answer_text, count_text, excerpt, is_number, score_text, share_text, short_text
from lightune.reports.records import Record

TEXT_LIMIT = 600  # characters of one text that the page shows
LABEL_ROWS = 300  # labels that the table shows
MATRIX_LABELS = 300  # beyond this a confusion matrix is only its most confused pairs
PAIR_ROWS = 20
AGREEMENT_POINTS = 1200
ERROR_COLUMNS = 25


def tabulate_labels(record: Record) -> dict[str, Any]:
    """Precision, recall and F1 of every label, the hardest first; with thresholds where the task has them."""
    labels = sorted(record.evaluation.get("labels") or [], key=lambda row: (row.get("f1") or 0, -(row.get("support") or 0)))
    thresholds = record.evaluation.get("thresholds") or {}
    rows = [
        {
            "label": short_text(row.get("label")),
            **{name: score_text(row.get(name)) for name in ("precision", "recall", "f1")},
            "share": max(0.0, min(1.0, row["f1"])) if is_number(row.get("f1")) else 0.0,
            "support": count_text(row.get("support")),
            "threshold": score_text(thresholds[row.get("label")]) if is_number(thresholds.get(row.get("label"))) else "",
        }
        for row in labels[:LABEL_ROWS]
    ]
    return {"rows": rows, "left_out": len(labels) - len(rows), "thresholds": bool(thresholds)} if rows else {}


def show_confusion(record: Record) -> dict[str, Any]:
    """The confusion matrix, and for more than 25 labels the pairs that are confused most."""
    matrix = record.evaluation.get("confusion") or {}
    labels, counts = [short_text(label) for label in matrix.get("labels") or []], matrix.get("counts") or []
    if not labels or not any(any(line) for line in counts):
        return {}
    figure = None
    if len(labels) <= MATRIX_LABELS:
        note = "Rows: what was expected. Columns: what the model answered. The darker, the larger its share of the row."
        svg = charts.heat_map(f"Confusion matrix of {len(labels)} labels", labels, counts)
        figure = Figure("Confusion matrix", svg, note=note, fixed=True)
    pairs = rank_confusions(labels, counts) if len(labels) > charts.NAMED_CELLS else []
    return {"figure": figure, "pairs": pairs[:PAIR_ROWS], "left_out": max(0, len(pairs) - PAIR_ROWS), "labels": len(labels)}


def rank_confusions(labels: Sequence[str], counts: Sequence[Sequence[float]]) -> list[dict[str, str]]:
    """Every wrong cell of the matrix as expected, answered, count and share of its row, the largest first."""
    wrong = [(count, row, column) for row, line in enumerate(counts) for column, count in enumerate(line) if count and row != column]
    wrong.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    return [
        {"expected": labels[row], "answered": labels[column], "count": count_text(count), "share": share_text(count / sum(counts[row]))}
        for count, row, column in wrong
    ]


def show_calibration(record: Record) -> dict[str, Any]:
    """How far the told probabilities can be believed: expected error, temperature and chart."""
    facts = record.evaluation.get("calibration") or {}
    bins = [part for part in facts.get("bins") or [] if part.get("count") and is_number(part.get("confidence"))]
    if not bins:
        return {}
    points = [(part["confidence"], part["accuracy"], part["count"]) for part in bins]
    svg = charts.calibration_chart("Told probability against share of right answers", points)
    note = "On the dashed line a probability means what it says. Larger dots hold more rows."
    warmth = facts.get("temperature")
    figures = [Figure("Calibration", svg, note=note), *_draw_confidence(bins)]
    return {"ece": score_text(facts.get("ece")), "temperature": f"{warmth:.2f}" if is_number(warmth) else "", "figures": figures}


def _draw_confidence(bins: Sequence[dict[str, Any]]) -> list[Figure]:
    whole = (part for part in bins if is_number(part.get("low")) and is_number(part.get("high")))
    columns = [(part["low"], part["high"], part["count"]) for part in whole]
    if not columns:
        return []
    title = "How sure it is"
    return [Figure(title, charts.histogram(title, columns, "probability of its answer"))]


def draw_agreement(record: Record) -> list[Figure]:
    """Target against answer of a regression, and how large its errors are."""
    pairs = (record.evaluation.get("regression") or {}).get("points") or []
    points = [(target, value) for target, value in pairs if is_number(target) and is_number(value)]
    if not points:
        return []
    shown = points[:: -(-len(points) // AGREEMENT_POINTS)]
    note = "" if len(shown) == len(points) else f"{count_text(len(shown))} of {count_text(len(points))} rows are drawn, evenly chosen."
    agreed = Figure("Target and answer", charts.agreement_chart("Target against answer", shown), note=note)
    errors = [value - target for target, value in points]
    widest = max(map(abs, errors)) or 1.0
    width = 2 * widest / ERROR_COLUMNS
    counts = [0] * ERROR_COLUMNS
    for error in errors:
        counts[min(int((error + widest) / width), ERROR_COLUMNS - 1)] += 1
    columns = [(index * width - widest, (index + 1) * width - widest, count) for index, count in enumerate(counts)]
    return [agreed, Figure("Errors", charts.histogram("Errors", columns, "answer minus target"))]


def list_worst(record: Record) -> list[dict[str, Any]]:
    """The errors with the largest loss, where answers are chosen and not written. A long text is cut, and the page says by how much."""
    found: list[dict[str, Any]] = []
    if record.generates:
        return found
    for error in record.evaluation.get("worst") or []:
        texts = [excerpt(error[name], TEXT_LIMIT) for name in ("text", "pair") if error.get(name) is not None]
        found.append(
            {
                "row": count_text(error.get("row")),
                "texts": [{"text": text, "cut": count_text(left) if left else ""} for text, left in texts],
                "target": short_text(answer_text(error.get("target"))),
                "answer": short_text(answer_text(error.get("answer"))),
                "probability": share_text(error["probability"]) if is_number(error.get("probability")) else "",
                "loss": score_text(error["loss"]) if is_number(error.get("loss")) else "",
            }
        )
    return found
