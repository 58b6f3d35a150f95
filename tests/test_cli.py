"""The command line as a user meets it: what it prints where, its exit codes, and what it says to a mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models

from lightune.cli import main
from lightune.sources import Source

Capture = pytest.CaptureFixture[str]


def write_rows(path: Path, count: int = 90, task: str = "classify", seed: int = 0) -> Path:
    """A JSON Lines file of sentences with labels."""
    with open(path, "w", encoding="utf-8") as file:
        for row in tiny_models.make_rows(count, task, seed):
            values = {"text": row.text, "label": list(row.target) if isinstance(row.target, tuple) else row.target}
            file.write(json.dumps(values | ({"pair": row.pair} if row.pair else {})) + "\n")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_source: Callable[[str], Source]) -> Path:
    """A finished run on a tiny base, with both exports."""
    folder = tmp_path_factory.mktemp("cli")
    data = write_rows(folder / "moods.jsonl", 200)
    base = str(tiny_source("bert").folder)
    assert (
        main(
            [
                "fit",
                str(data),
                "--model",
                base,
                "--epochs",
                "15",
                "--rate",
                "0.01",
                "--to",
                "onnx",
                "onnx-int8",
                "--out",
                str(folder / "run"),
            ]
        )
        == 0
    )
    return folder / "run"


def failure(capture: Capture, *arguments: str) -> str:
    """What a command that must fail with 2 says, in one message without a traceback."""
    assert main(list(arguments)) == 2
    said = capture.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.count("error:") == 1
    return said.err[said.err.index("error:") :]


def test_fit_writes_the_whole_run(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    expected = {
        "recipe.toml",
        "environment.json",
        "data.json",
        "steps.jsonl",
        "model",
        "artifacts",
        "evaluation.json",
        "run.json",
        "report.html",
        "card.md",
    }
    assert names == expected
    record = json.loads((finished / "run.json").read_text())
    assert record["learned"]
    assert record["scores"]["accuracy"]["value"] > 0.8
    assert [entry["target"] for entry in record["artifacts"]] == ["onnx", "onnx-int8"]
    for entry in record["artifacts"]:
        assert (finished / entry["path"] / "model.onnx").is_file()
        assert entry["parity"]["agree"] >= 0.9
        assert entry["milliseconds"]["p50"] > 0
        assert entry["resident_bytes"] > 1e7
    assert record["artifacts"][0]["parity"]["max_abs"] < 1e-3


def test_the_recipe_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    assert main(["fit", "--recipe", str(finished / "recipe.toml"), "--to", "none", "--out", str(tmp_path / "again")]) == 0
    losses = [
        [json.loads(line)["loss"] for line in (run / "steps.jsonl").read_text().splitlines()] for run in (finished, tmp_path / "again")
    ]
    assert losses[0] == losses[1]


def test_predict_keeps_the_order_of_arguments_stdin_and_files(
    finished: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["the food was lovely", "a bad room", "very slow staff", "", "מלון 🏨 " * 50]
    assert main(["predict", str(finished), *texts, "--json"]) == 0
    given = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["label"] for answer in given[:3]] == ["happy", "sad", "tired"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{text}\n" for text in texts)))
    assert main(["predict", str(finished), "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == given
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts[:3]), encoding="utf-8")
    assert main(["predict", str(finished / "model"), "-i", str(tmp_path / "texts.csv")]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["happy", "sad", "tired"]


def test_evaluate_gives_model_and_artefact_the_same_metrics(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    data = write_rows(tmp_path / "new.jsonl", 60, seed=3)
    found = []
    for target in (finished / "model", finished / "artifacts" / "onnx"):
        assert main(["evaluate", str(target), str(data), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["scores"] == found[1]["scores"]
    assert found[0]["rows"] == 60
    assert main(["evaluate", str(finished), str(data), "--at-least", "1.01"]) == 1
    assert "expected at least 1.01" in capsys.readouterr().err


def test_every_verb_gives_one_json_object(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    data = str(write_rows(tmp_path / "rows.jsonl", 40))
    commands = [
        ["inspect", data], ["inspect", str(finished), "--quick"], ["bench", str(finished), str(finished / "model"), "--data", data], ["list"], ["doctor"],
        ["report", str(finished), str(finished), "--out", str(tmp_path / "page.html")], ["export", str(finished), "--to", "onnx"],
    ]  # fmt: skip
    for command in commands:
        assert main([*command, "--json"]) == 0, command
        assert isinstance(json.loads(capsys.readouterr().out), dict)
        if command[0] not in ("export", "report"):
            assert main(command) == 0
            assert capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_names_that_do_not_exist_are_told_with_the_nearest(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    data = str(write_rows(tmp_path / "rows.jsonl"))
    out = str(tmp_path / "run")
    assert "'lora'" in failure(capsys, "fit", data, "--method", "loar", "--out", out)
    assert "'rank'" in failure(capsys, "fit", data, "--method", "lora:rnk=4", "--out", out)
    assert "'onnx-int8'" in failure(capsys, "fit", data, "--to", "onxx-int8", "--out", out)
    assert "--method" in failure(capsys, "fit", data, "--methd", "lora")
    assert "'rows.jsonl'" in failure(capsys, "fit", str(tmp_path / "rowz.jsonl"), "--out", out)
    assert "'label'" in failure(capsys, "fit", data, "--label", "lable", "--out", out)
    assert "'minilm'" in failure(capsys, "fit", data, "--model", "minlm", "--out", out)
    assert "adamw" in failure(capsys, "fit", data, "--optimizer", "adamm", "--out", out)
    assert "no recipe file" in failure(capsys, "fit", "--recipe", str(tmp_path / "none.toml"))
    assert "does not exist" in failure(capsys, "predict", str(tmp_path / "nothing"), "text")
    assert "No data" in failure(capsys, "fit")
    assert "epochs is -1.0" in failure(capsys, "fit", data, "--epochs", "-1")
    assert not Path(out).exists()


BAD_DATA: dict[str, tuple[str, bytes, str]] = {
    "empty": ("rows.csv", b"", "empty"),
    "header only": ("rows.csv", b"text,label\n", "no rows"),
    "one label": ("rows.csv", b"text,label\n" + b"".join(b"some text %d,yes\n" % n for n in range(30)), "label"),
    "no bytes of text": ("rows.csv", b"text,label\nab\x00c,yes\nd,no\n", "NUL"),
    "broken JSON": ("rows.jsonl", b'{"text": "a", "label": "x"}\n{"text": \n{"text": "b", "label": "y"}\n', "2"),
    "ragged": ("rows.csv", b"text,label\n" + b"a,b\n" * 20 + b"a,b,c,d\n", "22"),
    "wrong bytes": ("rows.csv", b"text,label\n" + b"caf\xff\xfe\x81\x8d,yes\nd,no\n" * 3, "encoding"),
}


@pytest.mark.parametrize("kind", sorted(BAD_DATA))
def test_bad_data_is_one_message_and_leaves_nothing(
    kind: str, tmp_path: Path, capsys: Capture, tiny_source: Callable[[str], Source]
) -> None:
    name, content, word = BAD_DATA[kind]
    (tmp_path / name).write_bytes(content)
    said = failure(capsys, "fit", str(tmp_path / name), "--model", str(tiny_source("bert").folder), "--out", str(tmp_path / "run"))
    assert word.lower() in said.lower()
    assert not (tmp_path / "run").exists()


def test_a_label_that_train_lacks_is_refused(tmp_path: Path, capsys: Capture, tiny_source: Callable[[str], Source]) -> None:
    train, test = write_rows(tmp_path / "train.jsonl"), tmp_path / "test.jsonl"
    test.write_text('{"text": "the room", "label": "unheard"}\n{"text": "food", "label": "sad"}\n')
    said = failure(
        capsys, "fit", str(train), "--test", str(test), "--model", str(tiny_source("bert").folder), "--out", str(tmp_path / "run")
    )
    assert "unheard" in said


def test_a_run_folder_that_exists_is_left_alone(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    data = str(write_rows(tmp_path / "rows.jsonl"))
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert "--overwrite" in failure(capsys, "fit", data, "--out", str(finished))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_long_and_foreign_texts_work_and_cuts_are_counted(tmp_path: Path, capsys: Capture, tiny_source: Callable[[str], Source]) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    with open(data, "a", encoding="utf-8") as file:
        for text in ("good " * 20_000, "😀🏳️‍🌈 lovely", "שלום עולם bad"):
            file.write(json.dumps({"text": text, "label": "happy"}) + "\n")
    command = [
        "fit",
        str(data),
        "--model",
        str(tiny_source("bert").folder),
        "--epochs",
        "1",
        "--to",
        "none",
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["truncated_tokens"] >= 19_000


def test_a_tampered_artefact_is_refused(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    import shutil

    copy = tmp_path / "artifact"
    shutil.copytree(finished / "artifacts" / "onnx", copy)
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    assert "model.onnx" in failure(capsys, "predict", str(copy), "text")


def test_a_folder_that_is_no_model_is_told(tmp_path: Path, capsys: Capture) -> None:
    data = str(write_rows(tmp_path / "rows.jsonl"))
    (tmp_path / "folder").mkdir()
    assert "config.json" in failure(capsys, "fit", data, "--model", str(tmp_path / "folder"), "--out", str(tmp_path / "run"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "gguf" in failure(capsys, "fit", data, "--model", str(tmp_path / "x.gguf"), "--out", str(tmp_path / "run")).lower()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path, capsys: Capture, finished: Path) -> None:
    from lightune.errors import InputError
    from lightune.runs import Run

    (tmp_path / "steps.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left"):
        Run(tmp_path).append("steps.jsonl", {"step": 1, "text": "x" * 100_000})


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_told(tmp_path: Path, capsys: Capture) -> None:
    data = str(write_rows(tmp_path / "rows.jsonl"))
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "Cannot write" in failure(capsys, "fit", data, "--out", str(tmp_path / "locked" / "run"))


def test_a_run_folder_that_is_a_file_is_told(tmp_path: Path, capsys: Capture) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    assert "not empty" in failure(capsys, "fit", str(data), "--out", str(data))


def run_and_tell_imports(*arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "lightune", *arguments], capture_output=True, text=True)
    return done, {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_help_and_version_need_nothing_heavy() -> None:
    for arguments in (["--help"], ["fit", "--help"], ["--version"]):
        done, loaded = run_and_tell_imports(*arguments)
        assert not loaded & {"torch", "transformers", "numpy", "onnxruntime", "sklearn"}
        assert done.returncode == 0
        assert done.stdout


@pytest.mark.parametrize("verb", ["fit", "compare"])
def test_a_file_that_is_not_there_is_told_before_anything_heavy_is_imported(verb: str) -> None:
    done, loaded = run_and_tell_imports(verb, "nothere.csv")
    assert done.returncode == 2
    assert "There is no file nothere.csv" in done.stderr
    assert not loaded & {"torch", "transformers", "onnxruntime", "sklearn"}
