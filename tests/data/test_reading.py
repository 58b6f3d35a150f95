"""`read` over every format, encoding and kind of wrong input."""

from __future__ import annotations

import builtins
import csv
import gzip
import io
import json
from pathlib import Path

import pytest

from lightune.data import Columns, Example, read, read_parts
from lightune.errors import InputError, MissingExtra

ROWS = [("good, really", "pos"), ('she said "no"', "neg"), ("line\nbreak", "neg"), ("😀 שלום عالم", "pos")]


def write_csv(
    path: Path, rows: list[tuple[str, ...]], delimiter: str = ",", encoding: str = "utf-8", header: tuple[str, ...] = ("text", "label")
) -> Path:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerows([header, *rows] if header else rows)
    path.write_bytes(buffer.getvalue().encode(encoding))
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(examples) -> list[tuple[str, object]]:
    return [(example.text, example.target) for example in examples]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_a_delimited_file_is_read_whatever_its_delimiter(tmp_path: Path, delimiter: str) -> None:
    examples = read(write_csv(tmp_path / "a.csv", ROWS, delimiter))
    assert pairs(examples) == ROWS
    assert [example.row for example in examples] == [1, 2, 3, 4]
    assert examples.facts["delimiter"] == delimiter
    assert examples.columns == Columns("classify", "text", None, ("label",))


def test_the_delimiter_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text^label\na,b^x\nc,d^y\ne,f^x\n")
    assert pairs(read(tmp_path / "a.csv", delimiter="^")) == [("a,b", "x"), ("c,d", "y"), ("e,f", "x")]
    with pytest.raises(InputError, match="delimiter is 'ab', expected one character"):
        read(tmp_path / "a.csv", delimiter="ab")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_encodings_are_told_by_their_mark(tmp_path: Path, encoding: str) -> None:
    assert pairs(read(write_csv(tmp_path / "a.csv", ROWS, encoding=encoding))) == ROWS


def test_chinese_and_western_encodings_are_told_by_their_bytes(tmp_path: Path) -> None:
    chinese = [("这个酒店的服务很好，我们都很满意。", "好"), ("房间不干净，不会再来了。", "差"), ("一般", "好")]
    examples = read(write_csv(tmp_path / "zh.csv", chinese, encoding="gb18030"))
    assert pairs(examples) == chinese
    assert "encoding gb18030 (a guess from its bytes)" in examples.facts["told"][0]
    western = [("Das Frühstück war hervorragend – très bien", "gut"), ("Não gostei, café frio", "schlecht"), ("It’s fine", "gut")]
    examples = read(write_csv(tmp_path / "de.csv", western, encoding="cp1252"))
    assert pairs(examples) == western
    assert examples.facts["encoding"] == "cp1252"


def test_an_encoding_that_the_bytes_do_not_tell_must_be_named(tmp_path: Path) -> None:
    russian = [("Очень хороший отель, нам понравилось", "да"), ("Ужасно, больше не приедем", "нет"), ("Так себе", "да")]
    path = write_csv(tmp_path / "ru.csv", russian, encoding="cp1251")
    with pytest.raises(InputError, match=r"line 2 is not utf-8 \(byte 0xce\).*encoding="):
        read(path)
    assert pairs(read(path, encoding="cp1251")) == russian
    with pytest.raises(InputError, match="Unknown encoding 'cp12511'"):
        read(path, encoding="cp12511")
    with pytest.raises(InputError, match="Unknown encoding 'rot13'"):
        read(path, encoding="rot13")


def test_damaged_utf8_is_not_read_as_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\ncafé très bon,a\nété,b\n".encode() + b"dam\xffage,a\n")
    with pytest.raises(InputError, match="line 4 is not utf-8"):
        read(tmp_path / "a.csv")


def test_nul_bytes_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\na,x\nb\0b,y\n")
    with pytest.raises(InputError, match="line 3 has a NUL byte"):
        read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes("text,label\na,x\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="encoding='utf-16-le'"):
        read(tmp_path / "b.csv")
    assert pairs(read(tmp_path / "b.csv", encoding="utf-16-le")) == [("a", "x")]


def test_broken_json_lines_are_all_named(tmp_path: Path) -> None:
    good = '{"text": "a", "label": "x"}\n'
    (tmp_path / "a.jsonl").write_text(good + "{broken\n" + good + "[1]\n\n" + "oops\n" * 11)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.jsonl")
    assert "lines that are broken JSON: 2, 6, 7, 8, 9, 10, 11, 12, 13, 14, ... (12 in all)" in str(caught.value)
    assert "lines that are no JSON object: 4" in str(caught.value)


def test_ragged_rows_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"a\nb",x\nc,d,y\ne,y\nf\n')
    with pytest.raises(InputError, match="rows with other than 2 fields: line 4 has 3, line 6 has 1"):
        read(tmp_path / "a.csv")


def test_an_open_quote_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\na,x\n"b,y\nc,x\n')
    with pytest.raises(InputError, match="quotes of the row after line 2 are not closed"):
        read(tmp_path / "a.csv")


def test_quotes_escaped_by_a_backslash_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"she said \\"no\\", twice",x\n"b",y\n')
    examples = read(tmp_path / "a.csv")
    assert examples[0].text == 'she said "no", twice'
    assert "quotes are escaped by a backslash" in examples.facts["told"][0]


def test_quotes_in_a_tab_file_without_quoting_are_letters(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n" Hello , he said .\tx\nplain\ty\nend "\ty\n"all of it"\tx\n')
    examples = read(tmp_path / "a.tsv")
    assert [example.text for example in examples] == ['" Hello , he said .', "plain", 'end "', '"all of it"']


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("good film,pos\nbad film,neg\nfine film,pos\n", ("column1", "column2")),
        ("1,good film\n0,bad film\n1,fine film\n", ("column1", "column2")),
        ("I liked it.,pos\nnot me,neg\n", ("column1", "column2")),
        ("text,label\ngood film,pos\ntext,label\n", ("text", "label")),
        ("v1,v2,,\nham,Hello there you,,\nspam,Win a prize now,,\nham,See you,,\n", ("v1", "v2", "column3", "column4")),
        (",text,label\n0,good film,pos\n1,bad film,neg\n2,ok,pos\n", ("column1", "text", "label")),
        ("text,text,label\na b,c d,x\ne f,g h,y\n", ("text", "text.2", "label")),
    ],
)
def test_a_missing_header_is_noticed(tmp_path: Path, content: str, names: tuple[str, ...]) -> None:
    (tmp_path / "a.csv").write_text(content)
    examples = read(tmp_path / "a.csv")
    assert tuple(examples.facts["columns"]) == names
    assert examples.facts["header"] == (names[:2] != ("column1", "column2"))
    assert {example.target for example in examples} <= {"pos", "neg", "1", "0", "label", "ham", "spam", "x", "y"}


@pytest.mark.parametrize(
    ("suffixes", "content"),
    [
        (".json .jsonl .ndjson none", '{"text": "a", "label": "x"}\n\n{"text": "b", "label": "y"}\n'),
        (".json .jsonl none", '[{"text": "a", "label": "x"},\n {"text": "b", "label": "y"}]'),
        (".json", '{"data": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]}'),
        (".json", '{"text": ["a", "b"], "label": ["x", "y"]}'),
        (".json", '{"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}'),
    ],
)
def test_json_is_read_in_every_form(tmp_path: Path, suffixes: str, content: str) -> None:
    for suffix in suffixes.split():
        path = tmp_path / f"a{suffix.removeprefix('none')}"
        path.write_text(content)
        assert pairs(read(path)) == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize(
    "content", ['[{"text": "a"', '[{"text": "a"} {"text": "b"}]', '[{"text": "a"}] x', "[1, 2]", "[" * 100_000, '{"a": 1}', '"text"']
)
def test_broken_json_is_an_input_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json"):
        read(tmp_path / "a.json")


def test_a_json_array_longer_than_the_window_is_read_whole(tmp_path: Path) -> None:
    rows = [{"text": f"{index} " + "x" * 3000, "label": index % 2} for index in range(400)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert pairs(read(tmp_path / "a.json")) == [(row["text"], str(row["label"])) for row in rows]


def test_a_text_of_a_million_characters_is_read(tmp_path: Path) -> None:
    long = "word, " * 200_000
    assert read(write_csv(tmp_path / "a.csv", [(long, "x"), ("short", "y")]))[0].text == long


def test_gzip_and_zstandard_are_read_and_a_cut_one_is_refused(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    plain = write_csv(tmp_path / "a.csv", ROWS * 500).read_bytes()
    frames = zstandard.compress(plain[:1000]) + zstandard.compress(plain[1000:])
    for name, packed in (("a.csv.gz", gzip.compress(plain)), ("b.csv.zst", zstandard.compress(plain)), ("c.csv.zst", frames)):
        (tmp_path / name).write_bytes(packed)
        examples = read(tmp_path / name)
        assert pairs(examples) == ROWS * 500
        assert examples.facts["compression"] in ("gzip", "zstandard")
        for cut in (packed[:-1], packed[: len(packed) // 2], packed[:5], b"no archive at all"):
            (tmp_path / name).write_bytes(cut)
            with pytest.raises(InputError, match=r"is truncated, or is no (gzip|zstandard) file"):
                read(tmp_path / name)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.split(".")[0] in ("zstandard", "pyarrow", "datasets"):
            raise ImportError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    for name, extra in (("a.csv.zst", "zst"), ("a.parquet", "train")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(MissingExtra, match=rf"lightune\[{extra}\]"):
            read(tmp_path / name)
    with pytest.raises(MissingExtra, match=r"lightune\[train\]"):
        read("hub:owner/name")


def test_wrong_paths_are_input_errors(tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv", ROWS)
    with pytest.raises(InputError, match=r"There is no file .*review\.csv\. Did you mean 'reviews.csv'"):
        read(tmp_path / "review.csv")
    with pytest.raises(InputError, match="its folder does not exist"):
        read(tmp_path / "nowhere" / "a.csv")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json.bak").write_text("{}")
    with pytest.raises(InputError, match=r"is a folder and no data set: it holds config\.json\.bak"):
        read(tmp_path / "model")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="is empty"):
        read(tmp_path / "empty.csv")
    for content in ("text,label\n", "\n\n"):
        (tmp_path / "header.csv").write_text(content)
        with pytest.raises(InputError, match="has no rows"):
            read(tmp_path / "header.csv")
    with pytest.raises(InputError, match="A source of type int cannot be read"):
        read(3)
    for nothing in ([], {}, ([], [])):
        with pytest.raises(InputError, match="has no rows"):
            read(nothing)


def test_a_wrong_column_names_the_nearest(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ROWS)
    with pytest.raises(InputError) as caught:
        read(path, text="txt", label="lable")
    assert "no column 'txt' for the text. Did you mean 'text'?" in str(caught.value)
    assert "no column 'lable' for the label. Did you mean 'label'?" in str(caught.value)


def test_values_become_labels_as_the_user_knows_them() -> None:
    rows = [{"text": "a", "label": value} for value in (1, 2.0, 0.5, True, "Yes ", None, "")]
    examples = read(rows, task="classify")
    assert [example.target for example in examples] == ["1", "2", "0.5", "true", "Yes", None, None]
    assert examples.facts["unlabelled"] == 2
    assert "2 of 7 rows have no label." in examples.facts["told"]
    assert "Blanks around 1 labels were removed." in examples.facts["told"]


def test_a_label_column_that_is_all_empty_is_an_error(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("a", ""), ("b", " ")])
    with pytest.raises(InputError, match="all 2 rows are empty in 'label'"):
        read(path, label="label")
    assert [example.target for example in read(path, labelled=False)] == [None, None]


def test_bad_values_are_named_by_row() -> None:
    rows = [{"text": "a", "score": 1.5}, {"text": ["b"], "score": "3,5"}, {"text": "c", "score": float("inf")}]
    with pytest.raises(InputError) as caught:
        read(rows, task="regress", label="score", text="text")
    assert "column 'score' is no finite number, such as 3.5 with a decimal point: row 2, row 3" in str(caught.value)
    assert "column 'text' is list, expected a text: row 2" in str(caught.value)


def test_half_characters_are_replaced_and_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud83d b", "label": "x"}\n{"text": "\\ud83d\\ude00", "label": "y"}\n')
    examples = read(tmp_path / "a.jsonl")
    assert [example.text for example in examples] == ["a \ufffd b", "😀"]
    assert any("lone surrogate" in sentence for sentence in examples.facts["told"])


def test_rows_are_counted_as_lines_in_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "a", "label": "x"}\n\n{"text": "b", "label": "y"}\n')
    examples = read(tmp_path / "a.jsonl")
    assert [example.row for example in examples] == [2, 4]
    assert examples.facts["blank_lines"] == 2


def test_a_text_file_is_one_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text, here\n\nanother\n")
    examples = read(tmp_path / "a.txt", labelled=False)
    assert list(examples) == [Example("one text, here", None, None, 1), Example("another", None, None, 3)]
    with pytest.raises(InputError, match="No column looks like labels"):
        read(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("good film\tpos\nbad film\tneg\nfine film\tpos\n")
    assert read(tmp_path / "b.txt").labels == ("neg", "pos")


def test_lists_dicts_and_frames_are_read() -> None:
    pandas = pytest.importorskip("pandas")
    numpy = pytest.importorskip("numpy")
    expected = [("a", "1"), ("b", "0"), ("c", "1")]
    assert pairs(read((["a", "b", "c"], [1, 0, 1]))) == expected
    assert pairs(read((["a", "b", "c"], numpy.array([1, 0, 1])))) == expected
    assert pairs(read({"text": ["a", "b", "c"], "label": [1, 0, 1]})) == expected
    assert pairs(read(pandas.DataFrame({"text": ["a", "b", "c"], "label": [1, 0, 1]}))) == expected
    missing = read(
        pandas.DataFrame({"text": ["a", None, "c"], "label": [1, None, 1], "day": pandas.to_datetime(["2020-01-01", None, None])}),
        text="text",
        label="label",
    )
    assert pairs(missing) == [("a", "1"), ("", None), ("c", "1")]
    paired = read(([("a", "b"), ("c", "d")], ["x", "y"]))
    assert paired.columns.task == "pair"
    assert paired[1] == Example("c", "d", "y", 2)
    with pytest.raises(InputError, match="2 texts and 1 labels"):
        read((["a", "b"], ["x"]))
    with pytest.raises(InputError, match="different lengths"):
        read({"text": ["a"], "label": []})
    with pytest.raises(InputError, match="Row 2 of the list is str"):
        read([{"text": "a", "label": "x"}, "b"])


def test_parquet_arrow_and_saved_datasets_keep_label_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    saved = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    saved.save_to_disk(tmp_path / "one")
    saved.to_parquet(tmp_path / "a.parquet")
    datasets.DatasetDict({"validation": saved, "train": saved}).save_to_disk(tmp_path / "both")
    expected = [("a", "good"), ("b", "bad"), ("c", None)]
    arrow = next((tmp_path / "one").glob("*.arrow"))
    for source in (saved, tmp_path / "one", tmp_path / "a.parquet", arrow):
        assert pairs(read(source)) == expected
    parts = read_parts(tmp_path / "both")
    assert list(parts) == ["train", "dev"]
    assert pairs(parts["dev"]) == expected
    tagged = datasets.Features({"text": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=["a", "b"]))})
    several = datasets.Dataset.from_dict({"text": ["x", "y"], "labels": [[0, 1], []]}, features=tagged)
    several.to_parquet(tmp_path / "b.parquet")
    for source in (several, tmp_path / "b.parquet"):
        assert [example.target for example in read(source)] == [("a", "b"), ()]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_file_that_is_no_parquet_is_an_input_error(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(b"PAR1 no, it is not")
    with pytest.raises(InputError, match="is no readable"):
        read(tmp_path / name)


def test_a_hub_name_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*names: object, **options: object) -> object:
        asked.append((names, options))
        if names[0] == "no/such":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist")
        return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert pairs(read("hub:nyu-mll/glue:sst2@abc")) == [("a", "x"), ("b", "y")]
    assert asked == [(("nyu-mll/glue", "sst2"), {"revision": "abc"})]
    with pytest.raises(InputError, match="hub:no/such cannot be loaded"):
        read("hub:no/such")


def test_a_split_column_gives_the_parts(tmp_path: Path) -> None:
    rows = [("a", "x", "train"), ("b", "y", "train"), ("c", "x", "validation"), ("d", "y", "test")]
    path = write_csv(tmp_path / "a.csv", rows, header=("text", "label", "split"))
    examples = read(path)
    assert examples.facts["parts"] == {"train": 2, "dev": 1, "test": 1}
    assert len(examples) == 4
    assert [example.row for example in read(path, part="valid")] == [3]
    assert {part: len(each) for part, each in read_parts(path).items()} == {"train": 2, "dev": 1, "test": 1}
    with pytest.raises(InputError, match="part is 'training set'"):
        read(path, part="training set")
    with pytest.raises(InputError, match="has no part 'test'"):
        read(write_csv(tmp_path / "b.csv", ROWS), part="test")


def test_a_folder_with_files_named_after_parts_is_a_data_set(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": 1.5, "extra": 1}, {"text": "b", "label": 2.25, "extra": 0}])
    write_jsonl(tmp_path / "validation.jsonl", [{"text": "c", "label": 1}])
    parts = read_parts(tmp_path)
    assert parts["train"].columns == parts["dev"].columns
    assert parts["dev"][0].target == 1.0
    assert "has the parts train, dev; this is train" in read(tmp_path).facts["told"][-1]
    write_csv(tmp_path / "val.csv", ROWS)
    with pytest.raises(InputError, match=r"val\.csv and validation\.jsonl are both dev"):
        read(tmp_path)


def test_a_test_part_without_labels_is_unlabelled(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    for rows in ([{"text": "c"}, {"text": "d"}], [{"text": "c", "label": None}, {"text": "d", "label": ""}]):
        write_jsonl(tmp_path / "test.jsonl", rows)
        parts = read_parts(tmp_path)
        assert list(parts) == ["train", "unlabelled"]
        assert pairs(parts["unlabelled"]) == [("c", None), ("d", None)]
    table = write_csv(
        tmp_path / "all.csv", [("a", "x", "train"), ("b", "y", "train"), ("c", "", "test")], header=("text", "label", "split")
    )
    assert list(read_parts(table)) == ["train", "unlabelled"]


def test_limit_keeps_the_first_rows_and_says_so(tmp_path: Path) -> None:
    examples = read(write_csv(tmp_path / "a.csv", ROWS), limit=2)
    assert pairs(examples) == ROWS[:2]
    assert examples.facts["told"][-1] == "Only the first 2 of 4 rows are used, as asked."
    with pytest.raises(InputError, match="limit is 0"):
        read(tmp_path / "a.csv", limit=0)


def test_another_file_can_be_read_by_the_same_columns(tmp_path: Path) -> None:
    train = read(write_csv(tmp_path / "a.csv", [("a", "b", "x"), ("c", "d", "y")], header=("first", "second", "label")))
    assert train.columns.task == "pair"
    again = read(
        write_csv(tmp_path / "b.csv", [("e", "f", "")], header=("first", "second", "label")), **train.columns.arguments(), labelled=False
    )
    assert again.columns == train.columns
    assert again[0] == Example("e", "f", None, 1)
