import json

import pytest
from test_page import HOSTILE, Page, check_page

from lightune.errors import InputError
from lightune.reports import write_inspection

PARTS = ("token table", "other embeddings", "attention", "feed-forward", "norms", "head and rest", "tokenizer")
KNOBS = {
    "none": "onnx",
    "depth": "depth=1/2",
    "ffn": "ffn=1/2",
    "heads": "heads=1/2",
    "hidden": "hidden=1/2",
    "vocab": "vocab=1/4",
    "int8": "onnx-int8",
}


def make_facts(name="minilm", *, measured=True, spared=True):
    """Facts as `inspect` finds them."""
    parts = [
        {
            "part": part,
            "parameters": 10**place,
            "bytes": 4 * 10**place,
            "share": 0.1,
            "flops": 10**place,
            "milliseconds": place / 10 if measured else None,
        }
        for place, part in enumerate(PARTS)
    ]
    savings = [
        {
            "knob": knob,
            "spec": spec,
            "bytes": 91_000_000 - place * 9_000_000,
            "milliseconds": 8.0 - place / 2,
            "lost": place / 20,
            "note": "",
        }
        for place, (knob, spec) in enumerate(KNOBS.items())
    ]
    savings.append(
        {"knob": "int4", "spec": "onnx-int4", "bytes": None, "milliseconds": None, "lost": None, "note": "int4 is not possible here."}
    )
    curves = {knob: [[0.0, 0.0], [0.5, 0.2], [1.0, 1.0]] for knob in ("depth", "ffn", "heads", "hidden", "vocab")}
    blocks = [{"block": place, "influence": 0.3, "share": 0.5, "half_of_heads": 0.2, "half_of_ffn": 0.1} for place in range(2)]
    return {
        "name": name, "type": "bert", "blocks": 6, "hidden": 384, "heads": 12, "vocabulary": 30522, "longest_input": 512, "decoder": False,
        "length": 32, "batch": 1, "threads": 1, "runtime": "onnxruntime 1.32.0", "parameters": 22_565_376, "bytes": 90_727_585,
        "flops": 688_915_968, "milliseconds": 8.2 if measured else None, "parts": parts,
        "importance": {"rows": 256, "curves": curves, "blocks": blocks} if spared else None, "savings": savings if measured else [], "notes": [],
    }  # fmt: skip


def test_the_page_tells_parts_savings_and_what_can_be_spared(tmp_path):
    path = write_inspection(make_facts(), tmp_path / "model.html")
    page = Page(path)
    check_page(page)
    assert page.sections == ["parts", "savings", "importance"]
    for text in (*PARTS, "22.6M", "90.7\u00a0MB", "8.20\u00a0ms", "689 MFLOP", "32 tokens, batch 1, 1 thread, fp32 in onnxruntime 1.32.0"):
        assert text in page.text
    for text in ("1.1× smaller", "onnx-int8", "int4 is not possible here.", "Measured on 256 labelled rows", "block 1"):
        assert text in page.text
    titles = [drawing[drawing.index("<title>") + 7 : drawing.index("</title>")] for drawing in page.drawings]
    assert titles == [
        "Share of each part in percent",
        "Share of bytes saved, % by each knob alone",
        "Share of milliseconds saved, % by each knob alone",
        "Importance that is lost as more is removed",
        "Share of all influence by block, in percent",
    ]


def test_what_was_not_measured_is_left_out(tmp_path):
    page = Page(write_inspection(make_facts(measured=False, spared=False), tmp_path / "model.html"))
    check_page(page)
    assert page.sections == ["parts"]
    assert "latency" not in page.text
    facts = {**make_facts(measured=False, spared=False), "notes": ["It is busy."]}
    assert "It is busy." in Page(write_inspection(facts, tmp_path / "other.html")).text


def test_facts_can_come_from_json(tmp_path):
    facts = json.loads(json.dumps(make_facts()))
    assert write_inspection(facts, tmp_path / "a.html").read_bytes() == write_inspection(make_facts(), tmp_path / "b.html").read_bytes()


def test_the_bars_of_a_part_add_up_to_a_hundred(tmp_path):
    page = Page(write_inspection(make_facts(), tmp_path / "model.html"))
    (drawing,) = [drawing for drawing in page.drawings if "Share of each part" in drawing]
    assert drawing.count(">100<") == 3


def test_names_are_shown_and_never_run(tmp_path):
    facts = make_facts(HOSTILE)
    facts["savings"][1]["note"] = HOSTILE
    page = Page(write_inspection(facts, tmp_path / "model.html"))
    check_page(page)
    assert page.text.count(HOSTILE) >= 2


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write_inspection(make_facts(), tmp_path / "no" / "folder" / "model.html")
