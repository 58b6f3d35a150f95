"""Numbers as people read them. What is absent, infinite or not a number becomes a dash."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, TypeGuard

ABSENT = "–"
GAP = "\u00a0"  # between a number and its unit, so that no line breaks there
HASH_DIGITS = 12  # of a sha256 that the page shows
METRIC_NAMES = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "f1": "F1",
    "mcc": "MCC",
    "auroc": "AUROC",
    "ece": "ECE",
    "mse": "MSE",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "chrf": "chrF",
    "bleu": "BLEU",
    "gsm8k": "GSM8K",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
WHOLE_NAMES = {"perplexity": "perplexity per token", "byte_perplexity": "perplexity per byte"}
LOWER_IS_BETTER = {"mse", "mae", "rmse", "ece", "loss", "hamming_loss", *WHOLE_NAMES}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number; true and false are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count_text(value: Any) -> str:
    """12345 → '12,345'."""
    return f"{value:,.0f}" if is_number(value) else ABSENT


def score_text(value: Any) -> str:
    """0.9644 → '0.964'; a score beyond ±100 loses its decimals."""
    if not is_number(value):
        return ABSENT
    return (f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}").replace("-", "−")


def share_text(value: Any) -> str:
    """0.998 → '99.8 %'."""
    return f"{100 * value:.1f}{GAP}%" if is_number(value) else ABSENT


def change_text(value: Any) -> str:
    """0.0021 → '+0.21 %'."""
    return f"{100 * value:+.2f}{GAP}%".replace("-", "−") if is_number(value) else ABSENT


def size_text(value: Any) -> str:
    """Bytes with three digits in decimal units: 23500000 → '23.5 MB'."""
    if not is_number(value):
        return ABSENT
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{_three_digits(value / scale)}{GAP}{unit}"
    return f"{value:.0f}{GAP}B"


def milliseconds_text(value: Any) -> str:
    """2.2134 → '2.21 ms'."""
    return f"{_three_digits(value)}{GAP}ms" if is_number(value) else ABSENT


def pace_text(value: Any, unit: str = "tokens/s") -> str:
    """125.31 → '125 tokens/s'."""
    return f"{_three_digits(value)}{GAP}{unit}" if is_number(value) else ABSENT


def duration_text(seconds: Any) -> str:
    """192.4 → '3 min 12 s'."""
    if not is_number(seconds):
        return ABSENT
    if seconds < 60:
        return f"{_three_digits(seconds)}{GAP}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{GAP}h {minutes}{GAP}min" if hours else f"{minutes}{GAP}min {rest}{GAP}s"


def factor_text(value: Any) -> str:
    """5.42 → '5.4×'."""
    return f"{value:.1f}×" if is_number(value) else ABSENT


def ratio_text(reference: Any, value: Any) -> str:
    """How many times a value fits into the reference, as '5.4×'; nothing where one of them is missing or not positive."""
    return factor_text(reference / value) if is_number(reference) and is_number(value) and value > 0 else ""


def tiny_text(value: Any) -> str:
    """A difference with two digits, however small: 0.0000312 → '3.1e-5'."""
    return f"{value:.2g}".replace("e-0", "e-").replace("-", "−", 1 if value < 0 else 0) if is_number(value) else ABSENT


def interval_text(score: Any) -> str:
    """{'low': 0.95, 'high': 0.977} → '0.950 – 0.977', or nothing where a bound is missing."""
    if not isinstance(score, dict) or not (is_number(score.get("low")) and is_number(score.get("high"))):
        return ""
    return f"{score_text(score['low'])} – {score_text(score['high'])}"


def metric_text(name: str) -> str:
    """'macro_f1' → 'macro F1'."""
    return WHOLE_NAMES.get(name) or " ".join(METRIC_NAMES.get(word, word) for word in name.split("_"))


def moment_text(iso: Any) -> str:
    """'2026-01-02T03:04:05+00:00' → '2 January 2026, 03:04 UTC'; what is no ISO time stays as it is."""
    try:
        moment = datetime.fromisoformat(str(iso))
    except ValueError:
        return str(iso)
    zone = " UTC" if moment.tzinfo else ""
    moment = moment.astimezone(UTC) if moment.tzinfo else moment
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"


def answer_text(value: Any) -> str:
    """A target or an answer of any task as one line: a label, several labels, or a number."""
    if value is None:
        return ABSENT
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value) or "(none)"
    return score_text(value) if isinstance(value, float) else str(value)


def short_text(value: Any, limit: int = 120) -> str:
    """The text in at most `limit` characters; one that is cut ends in an ellipsis."""
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def excerpt(text: Any, limit: int) -> tuple[str, int]:
    """The first `limit` characters of a text, and how many were left out."""
    whole = str(text)
    return whole[:limit], max(0, len(whole) - limit)


def _three_digits(value: float) -> str:
    size = abs(value)
    return f"{value:.2f}" if size < 9.995 else f"{value:.1f}" if size < 99.95 else f"{value:,.0f}"
