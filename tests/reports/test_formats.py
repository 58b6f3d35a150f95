import math

import pytest

from lightune.reports import formats

NBSP = "\u00a0"


@pytest.mark.parametrize(
    ("tell", "value", "text"),
    [
        (formats.count_text, 12345, "12,345"),
        (formats.count_text, 0, "0"),
        (formats.score_text, 0.96449, "0.964"),
        (formats.score_text, -0.25, "−0.250"),
        (formats.score_text, 1234.5, "1,234"),
        (formats.share_text, 0.998, f"99.8{NBSP}%"),
        (formats.size_text, 23_512_204, f"23.5{NBSP}MB"),
        (formats.size_text, 999, f"999{NBSP}B"),
        (formats.size_text, 1_213_000_000, f"1.21{NBSP}GB"),
        (formats.milliseconds_text, 2.2134, f"2.21{NBSP}ms"),
        (formats.milliseconds_text, 11.94, f"11.9{NBSP}ms"),
        (formats.duration_text, 192.4, f"3{NBSP}min 12{NBSP}s"),
        (formats.duration_text, 59.4, f"59.4{NBSP}s"),
        (formats.duration_text, 7262, f"2{NBSP}h 1{NBSP}min"),
        (formats.factor_text, 5.42, "5.4×"),
        (formats.change_text, 0.00214, f"+0.21{NBSP}%"),
        (formats.change_text, -0.05, f"−5.00{NBSP}%"),
        (formats.pace_text, 125.31, f"125{NBSP}tokens/s"),
        (formats.pace_text, 0.82, f"0.82{NBSP}tokens/s"),
        (formats.tiny_text, 0.0000312, "3.1e-5"),
        (formats.tiny_text, -0.02, "−0.02"),
    ],
)
def test_numbers_read_well(tell, value, text):
    assert tell(value) == text


@pytest.mark.parametrize(
    "tell",
    [
        formats.count_text,
        formats.score_text,
        formats.share_text,
        formats.size_text,
        formats.milliseconds_text,
        formats.duration_text,
        formats.factor_text,
        formats.tiny_text,
        formats.change_text,
        formats.pace_text,
    ],
)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, "many", True])
def test_what_is_no_number_is_a_dash(tell, value):
    assert tell(value) == formats.ABSENT


def test_metric_names_keep_their_capitals():
    assert [formats.metric_text(name) for name in ("macro_f1", "mcc", "average_precision")] == ["macro F1", "MCC", "average precision"]
    assert [formats.metric_text(name) for name in ("rougeL", "byte_perplexity")] == ["ROUGE-L", "perplexity per byte"]


def test_interval_needs_both_bounds():
    assert formats.interval_text({"low": 0.95, "high": 0.977}) == "0.950 – 0.977"
    assert formats.interval_text({"low": 0.95, "high": None}) == ""
    assert formats.interval_text(None) == ""


def test_moment_is_told_in_utc_and_other_text_stays():
    assert formats.moment_text("2026-01-02T05:04:05+02:00") == "2 January 2026, 03:04 UTC"
    assert formats.moment_text("yesterday") == "yesterday"


def test_answers_of_every_task():
    assert formats.answer_text("spam") == "spam"
    assert formats.answer_text(["storm", "flood"]) == "storm, flood"
    assert formats.answer_text([]) == "(none)"
    assert formats.answer_text(4.25) == "4.250"


def test_cut_text_says_so():
    assert formats.short_text("a" * 200, 10) == "a" * 9 + "…"
    assert formats.excerpt("abcdef", 4) == ("abcd", 2)
