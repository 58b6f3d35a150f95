"""The verbs on a run that generates, as a user types them, and what they say to bad data."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_templates import ENDLESS, GEMMA
from openai import OpenAI
from test_cli import failure
from tiny_conversations import QUICK, flags, write_base, write_echoes

from lightune.cli import main

Capture = pytest.CaptureFixture[str]
SHORT = QUICK | {"epochs": 6.0}
LLAMA_CPP = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_echoes(tmp_path_factory.mktemp("data") / "echo.jsonl")


def fit_arguments(data: Path, base: Path, out: Path, **options: Any) -> list[str]:
    return ["fit", str(data), "--out", str(out), *flags(**(SHORT | {"model": base, "method": "full", "to": "none"} | options))]


@pytest.fixture(scope="module")
def run(data: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without an artefact."""
    folder = tmp_path_factory.mktemp("runs") / "echo"
    assert main(fit_arguments(data, base, folder)) == 0
    return folder


def printed(capture: Capture, *arguments: str) -> Any:
    """The one JSON object that a verb prints."""
    capture.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capture.readouterr().out)


def answers(capture: Capture, *arguments: str) -> list[dict[str, Any]]:
    capture.readouterr()
    assert main(["predict", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capture.readouterr().out.splitlines()]


def test_predict_answers_arguments_stdin_and_files_alike(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["7 lower", "8 film", "9 wider"]
    given = answers(capsys, str(run), *questions)
    assert [set(row) for row in given] == [{"text", "prompt_tokens", "tokens", "finish"}] * 3
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{text}\n" for text in questions)))
    assert answers(capsys, str(run)) == given
    (tmp_path / "lines.txt").write_text("\n".join(questions), encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": text, "completion": "?"}) + "\n" for text in questions))
    for name in ("lines.txt", "rows.jsonl"):
        assert answers(capsys, str(run / "model"), "-i", str(tmp_path / name)) == given
    assert main(["predict", str(run), *questions]) == 0
    assert capsys.readouterr().out.splitlines() == [row["text"] for row in given]


def test_evaluate_scores_answers_of_a_part_and_holds_them_to_a_least(run: Path, tmp_path: Path, capsys: Capture) -> None:
    write_echoes(tmp_path / "train.jsonl", 8, seed=1)
    write_echoes(tmp_path / "test.jsonl", 12, seed=2)
    found = printed(capsys, "evaluate", str(run), str(tmp_path), "--max-tokens", "8")
    assert (found["rows"], found["scores"]["primary"]) == (12, "normalized_match")
    assert found["scores"]["normalized_match"]["value"] > 0.4
    assert printed(capsys, "evaluate", str(run), str(tmp_path), "--part", "train", "--metrics", "bleu", "--max-tokens", "8")["rows"] == 8
    assert main(["evaluate", str(run), str(tmp_path / "test.jsonl"), "--score-rows", "5", "--max-tokens", "8"]) == 0
    assert "5 questions" in capsys.readouterr().out
    assert main(["evaluate", str(run), str(tmp_path), "--at-least", "1.01", "--max-tokens", "8"]) == 1
    assert "expected at least 1.01" in capsys.readouterr().err
    assert "no part 'dev'" in failure(capsys, "evaluate", str(run), str(tmp_path), "--part", "dev")


@LLAMA_CPP
def test_gguf_is_exported_afterwards_and_answers(run: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = answers(capsys, str(copy), "7 lower", "8 film")
    record = printed(capsys, "export", str(copy), "--to", "gguf:type=f16")
    (entry,) = record["artifacts"]
    assert (copy / entry["path"] / "model.gguf").is_file()
    assert entry["tokens_per_second"]["generation"] > 0
    assert [row["text"] for row in answers(capsys, str(copy), "7 lower", "8 film")] == [row["text"] for row in before]
    (row,) = printed(capsys, "bench", str(copy))["rows"]
    assert row["kind"] == "artefact"
    assert row["resident_bytes"] > 1e7
    assert min(row["tokens_per_second"].values()) > 0
    file = copy / entry["path"] / "model.gguf"
    (alone,) = printed(capsys, "bench", str(file))["rows"]
    assert alone["bytes"] == file.stat().st_size < row["bytes"]


def test_bench_tells_tokens_a_second_of_a_model(run: Path, data: Path, capsys: Capture) -> None:
    (row,) = printed(capsys, "bench", str(run), "--data", str(data))["rows"]
    assert row["kind"] == "model"
    assert row["tokens_per_second"]["prompt"] > 0
    assert row["bytes"] > 1e5
    assert main(["bench", str(run), "--words", "5"]) == 0
    assert "answer tokens/s" in capsys.readouterr().out


def test_inspect_counts_the_parts_of_a_model(run: Path, capsys: Capture) -> None:
    model = printed(capsys, "inspect", str(run), "--quick")["model"]
    assert model["blocks"] == 3
    assert sum(part["parameters"] for part in model["parts"]) == model["parameters"]


def test_inspect_shows_what_of_conversations_is_learned(data: Path, base: Path, capsys: Capture) -> None:
    found = printed(capsys, "inspect", str(data), "--model", str(base), "--rows", "2")["conversations"]
    row, _ = found["shown"]
    learned = "".join(token for token, flag in zip(row["tokens"], row["learned"], strict=True) if flag)
    first = json.loads(data.read_text().splitlines()[0])
    assert learned == f"{first['completion']}<|im_end|>\n"
    assert "".join(row["tokens"]).startswith(f"<|im_start|>user\n{first['prompt']}<|im_end|>")
    assert found["ledger"]["train"]["rows"] == 96
    assert found["ledger"]["train"]["supervised"] < found["ledger"]["train"]["tokens"]
    assert main(["inspect", str(data), "--model", str(base), "--rows", "1"]) == 0
    assert f"⟦{learned}⟧" in capsys.readouterr().out


def test_inspect_colours_what_is_learned_in_a_terminal(data: Path, base: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["inspect", str(data), "--model", str(base), "--rows", "1"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[1;32m" in out
    assert "⟦" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quick", "--task", "generate"], "--quick is for models"),
        (["--task", "classify", "--prompt", "prompt"], "--prompt is for conversations"),
        (["--max-length", "8"], "longer than max-length"),
    ],
)
def test_inspect_refuses_what_does_not_belong(data: Path, base: Path, capsys: Capture, options: list[str], message: str) -> None:
    assert message in failure(capsys, "inspect", str(data), *options, *(["--model", str(base)] if "--max-length" in options else []))


def test_report_and_list(run: Path, tmp_path: Path, capsys: Capture) -> None:
    page = Path(printed(capsys, "report", str(run), "--out", str(tmp_path / "page.html"))["report"])
    assert "perplexity" in page.read_text(encoding="utf-8")
    known = printed(capsys, "list")
    assert "generate" in json.dumps(known)
    assert "gguf" in json.dumps(known)


def test_chat_remembers_and_saves(run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["7 lower", "8 film", "/quit", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    saved = tmp_path / "chat.jsonl"
    assert main(["chat", str(run), "--temperature", "0", "--max-tokens", "6", "--save", str(saved)]) == 0
    assert next(said) == "never read"
    (row,) = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"] * 2
    out = capsys.readouterr().out
    assert row["messages"][1]["content"] in out
    assert row["messages"][1]["content"] == answers(capsys, str(run), "7 lower")[0]["text"]


def served_at(process: subprocess.Popen[str]) -> str:
    """The address that a server tells on stderr."""
    assert process.stderr
    for line in process.stderr:
        if found := [word for word in line.split() if word.startswith("http://")]:
            return found[0].rstrip(".,/")
    raise AssertionError("the server ended without an address")


def test_serve_answers_openais_client_and_ends_well(run: Path, capsys: Capture) -> None:
    command = [sys.executable, "-m", "lightune", "serve", f"echo={run}", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            client = OpenAI(base_url=f"{served_at(process)}/v1", api_key="any", max_retries=0, timeout=30)
            with client:
                made = client.chat.completions.create(
                    model="echo", messages=[{"role": "user", "content": "7 lower"}], temperature=0, max_tokens=8
                )
            process.send_signal(signal.SIGTERM)
            assert process.stderr
            process.stderr.read()
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert made.choices[0].message.content == answers(capsys, str(run), "7 lower")[0]["text"]


def step_losses(run: Path) -> list[float]:
    facts = [json.loads(line) for line in (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    return [fact["loss"] for fact in facts if fact["kind"] == "step"]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(run: Path, data: Path, base: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "killed"
    with subprocess.Popen([sys.executable, "-m", "lightune", *fit_arguments(data, base, folder)], stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not list(folder.glob("checkpoints/step-000000[4-9]")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        process.kill()
    assert not (folder / "run.json").exists()
    assert "not finished" in failure(capsys, "predict", str(folder), "7 lower")
    assert main(["fit", "--resume", str(folder)]) == 0
    assert step_losses(folder) == step_losses(run)


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_empty_answers_are_told(base: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = [{"prompt": f"{number} film", "completion": ""} for number in range(20)]
    said = failure(capsys, *fit_arguments(write_jsonl(tmp_path / "rows.jsonl", rows), base, tmp_path / "run"))
    assert "empty" in said or "no answer" in said
    assert not (tmp_path / "run").exists()


def test_some_empty_answers_are_counted(base: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = [{"prompt": f"{number} film", "completion": "film" * (number > 2)} for number in range(20)]
    assert main(["inspect", str(write_jsonl(tmp_path / "rows.jsonl", rows)), "--model", str(base)]) == 0
    assert "3 of 20 rows have an empty answer or none and were left out: rows 1, 2, 3." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("user", "user", "assistant"), "follows another"),
        (("assistant", "user"), "the assistant speaks first"),
        (("user", "system", "assistant"), "a system turn is not the first turn"),
        (("user", "narrator"), "unknown role 'narrator'"),
        (("system", "user", "assistant"), "System role not supported"),
    ],
)
def test_roles_that_cannot_be_are_told(base: Path, tmp_path: Path, capsys: Capture, roles: tuple[str, ...], message: str) -> None:
    (tmp_path / "gemma.jinja").write_text(GEMMA)
    rows = [{"messages": [{"role": role, "content": f"film {number}"} for role in roles]} for number in range(20)]
    command = fit_arguments(write_jsonl(tmp_path / "rows.jsonl", rows), base, tmp_path / "run", template=tmp_path / "gemma.jinja")
    assert message in failure(capsys, *command)


@pytest.mark.parametrize(("template", "message"), [("{% for", "cannot be read"), ("{{ nothing.there }}", "template")])
def test_a_template_that_errs_is_told(data: Path, base: Path, tmp_path: Path, capsys: Capture, template: str, message: str) -> None:
    (tmp_path / "wrong.jinja").write_text(template)
    assert message in failure(capsys, *fit_arguments(data, base, tmp_path / "run", template=tmp_path / "wrong.jinja"))


def test_a_template_without_an_end_token_is_warned_of(data: Path, base: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "endless.jinja").write_text(ENDLESS)
    command = ["inspect", str(data), "--model", str(base), "--template", str(tmp_path / "endless.jinja")]
    assert printed(capsys, *command)["conversations"]["ledger"]["train"]["endless_rows"] == 96
    assert main(fit_arguments(data, base, tmp_path / "run", template=tmp_path / "endless.jinja", epochs=0.1)) == 0
    assert re.search(r"warning: train: \d+ rows have no end token after their last answer", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("policy", "count"), [("drop", "dropped_rows"), ("cut-left", "cut_rows"), ("cut-right", "unsupervised_rows"), ("split", "cut_rows")]
)
def test_rows_that_are_too_long_are_refused_or_counted(base: Path, tmp_path: Path, capsys: Capture, policy: str, count: str) -> None:
    rows = [{"prompt": "film " * (50_000 if number == 7 else 1), "completion": "film"} for number in range(20)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    said = failure(capsys, *fit_arguments(data, base, tmp_path / "run", dev_share=0, test_share=0))
    assert "rows 8 (" in said
    assert "too-long" in said
    ledger = printed(capsys, "inspect", str(data), "--model", str(base), "--too-long", policy)["conversations"]["ledger"]["train"]
    assert ledger[count] == 1
    assert ledger["longest"] > 50_000


@pytest.fixture
def without_jinja(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from lightune.runtime import chat

    chat._compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    yield
    chat._compiled.cache_clear()


@pytest.mark.usefixtures("without_jinja")
def test_a_missing_package_is_named_with_its_extra(run: Path, capsys: Capture) -> None:
    assert "pip install 'lightune[generate]'" in failure(capsys, "predict", str(run), "7 lower")
