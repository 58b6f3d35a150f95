import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_artifacts import LABELS, make_artifact, make_table

from lightune.errors import InputError, IntegrityError
from lightune.runtime import Predictor, load, manifest
from lightune.runtime.answers import Answers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load(make_artifact(tmp_path_factory.mktemp("artifacts") / "tiny"), threads=1)


def test_logits_are_what_the_network_computes(predictor: Predictor) -> None:
    table = make_table(3)
    assert np.allclose(predictor.logits(["good film", ""]), [table[[2, 4, 6, 3]].mean(axis=0), table[[2, 3]].mean(axis=0)], atol=1e-6)
    assert predictor.logits(["good"]).dtype == np.float32


def test_the_order_is_kept_whatever_the_lengths_and_batches(predictor: Predictor) -> None:
    texts = ["good " * (number * 7 % 13) for number in range(50)]
    alone = np.concatenate([predictor.logits([text]) for text in texts])
    for batch in (1, 3, 32):
        assert np.allclose(predictor.logits(texts, batch), alone, atol=1e-6)


def test_every_form_of_example(predictor: Predictor) -> None:
    rows = predictor.logits(["good", SimpleNamespace(text="good", pair=None), ("good", None)])
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


def test_answers_name_the_labels(predictor: Predictor) -> None:
    (answer,) = predictor.predict(["good"])
    assert answer["label"] in LABELS
    assert answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())
    assert predictor.predict([]) == []
    assert (predictor.base, predictor.name, predictor.precision) == ("words", "tiny", "fp32")


def test_hard_texts(predictor: Predictor) -> None:
    before = predictor.truncated_tokens
    answers = predictor.predict(["good " * 20_000, "😀 שלום", "", "\x00", "x" * 100_000, "\ud800"])
    assert all(np.isfinite(answer["probability"]) for answer in answers)
    assert predictor.truncated_tokens - before == 20_002 - 16


def test_a_stream_keeps_the_order_and_reads_no_further_than_it_must(predictor: Predictor) -> None:
    read = []

    def texts() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield "good " * (number % 5)

    stream = predictor.stream(texts(), chunk=8)
    first = next(stream)
    assert len(read) == 8
    everything = [first, *stream]
    assert [answer["probability"] for answer in everything] == pytest.approx(
        [answer["probability"] for answer in predictor.predict(["good " * (number % 5) for number in range(100)])]
    )


def test_a_model_of_pairs_wants_pairs(tmp_path: Path) -> None:
    predictor = load(make_artifact(tmp_path / "artifact", Answers("pair", ("no", "yes")), types=True), threads=1)
    plain, typed = make_table(2)[[2, 4, 3, 5, 3]].mean(axis=0), 2 / 5
    assert np.allclose(predictor.logits([("good", "bad")]), plain + typed, atol=1e-6)
    with pytest.raises(InputError, match=r"Example 1 is one text, 'bad'.*Give \(text, pair\)"):
        predictor.predict([("good", "bad"), "bad"])
    with pytest.raises(InputError, match="Example 0 is one text"):
        predictor.predict(["good"])


def test_a_model_of_numbers(tmp_path: Path) -> None:
    predictor = load(make_artifact(tmp_path / "artifact", Answers("regress", (), center=3.0)), threads=1)
    assert predictor.predict(["good"])[0]["value"] == pytest.approx(3.0 + make_table(1)[[2, 4, 3]].mean(), abs=1e-5)


def rewrite_task(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps({**values, **changes}))
    manifest.write(folder, "0.0.0")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 9}, "format 9, expected 1"),
        ({"answers": {"kind": "classify"}}, "does not describe a task"),
        ({"tokenizer": {"length": 3}}, "does not describe a task"),
        ({"tokenizer": {"max_length": 1}}, "does not describe a task"),
        ({"answers": Answers("classify", ("a", "b")).to_dict()}, r"logits \[3\].*describes.*logits \[2\]"),
        ({"tokenizer": {"max_length": 9, "inputs": ["input_ids"]}}, "inputs"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path: Path, changes: dict, told: str) -> None:
    folder = make_artifact(tmp_path / "artifact")
    rewrite_task(folder, **changes)
    with pytest.raises(IntegrityError, match=told):
        load(folder)


def test_a_file_that_onnxruntime_cannot_read(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    (folder / "model.onnx").write_bytes(b"no model")
    manifest.write(folder, "0.0.0")
    with pytest.raises(IntegrityError, match=r"cannot load .*model\.onnx"):
        load(folder)


def test_threads_are_counted_from_one(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    with pytest.raises(InputError, match="threads is 0"):
        load(folder, threads=0)
    assert load(folder).predict(["good"]) == load(folder, threads=2).predict(["good"])


def test_it_runs_where_there_is_no_torch(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    program = """
import sys
for name in ("torch", "transformers", "datasets", "sklearn", "pandas", "onnx", "onnxscript"):
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, sys.argv[2])
import lightune.runtime
assert "onnxruntime" not in sys.modules, "importing the runtime loads onnxruntime"
print(lightune.runtime.load(sys.argv[1]).predict(["good film"])[0]["label"])
"""
    done = subprocess.run([sys.executable, "-c", program, folder, ROOT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in LABELS
    assert done.stderr == ""
