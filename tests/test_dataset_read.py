"""Reading data sets: every format, the choice of the column, rows that are broken, files that lie or grow."""

from __future__ import annotations

import csv
import json
import os
import tracemalloc
from pathlib import Path

import pytest

from anthesis.dataset import Row, open_dataset
from anthesis.dataset.lines import MAX_LINE_BYTES
from anthesis.errors import AnthesisError, DataSetError, RequestError

TEXTS = ["plain", 'with "quotes", commas', "two\nlines", "Łódź 漢字 😀", " spaces ", ""]


def read(path: Path, skip: int = 0, **options: str) -> list[Row]:
    return list(open_dataset(str(path), **options).rows(skip))


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "title": f"t{i}", "content": text}) for i, text in enumerate(TEXTS)]
    path = write(tmp_path / "a.jsonl", "\ufeff" + "\r\n".join(lines) + "\n\n\n")
    found = open_dataset(str(path))
    assert (found.column, found.note) == ("title", "column title, the first with text (others: id, content)")
    assert [row.text for row in read(path, column="content")] == TEXTS
    for skip in range(len(TEXTS) + 2):
        assert [row.text for row in read(path, skip, column="content")] == TEXTS[skip:]


def test_broken_rows_are_rows(tmp_path: Path) -> None:
    lines: list[bytes] = [
        b'{"t": "fine"}', b'{"t": ', b"[1]", b'"text"', b'{"t": null}', b'{"t": 3}', b'{"t": ["a"]}', b'{"u": "x"}',
        b'{"t": "\xff"}', b"null", b"[" * 100_000, b'{"t": ' + b"9" * 5000 + b"}", b'{"t": "last"}',
    ]  # fmt: skip
    rows = read(write(tmp_path / "a.jsonl", b"\n".join(lines)), column="t")
    assert len(rows) == len(lines)
    assert [row.text for row in rows] == ["fine", *[None] * 11, "last"]
    reasons = ["not valid JSON", "is an array", "is a string", "null as 't'", "a number as 't'", "an array as 't'",
               "no 't'", "not UTF-8", "is null", "nested too deeply", "not valid JSON"]  # fmt: skip
    for number, (row, reason) in enumerate(zip(rows[1:-1], reasons, strict=True), start=2):
        assert row.error is not None
        assert f"line {number} " in row.error
        assert reason in row.error


def test_csv(tmp_path: Path) -> None:
    for name, delimiter in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["id", "content", "tag"])
            writer.writerows([i, text, "x"] for i, text in enumerate(TEXTS))
        assert open_dataset(str(path)).column == "content"
        assert [row.text for row in read(path)] == TEXTS
        assert [row.text for row in read(path, 3)] == TEXTS[3:]


def test_broken_csv_rows_are_rows(tmp_path: Path) -> None:
    data = b'id,content\n1,fine\n2\n3,a,b\n\n4,"a"b\n5,\xff\n6,last\n7,"not closed\n8,x\n'
    rows = read(write(tmp_path / "a.csv", data), column="content")
    assert [row.text for row in rows] == ["fine", None, None, None, None, "last", None]
    for row, reason in zip(rows[1:5], ("1 fields", "3 fields", "not valid CSV", "not UTF-8"), strict=True):
        assert row.error is not None
        assert reason in row.error
    assert "unexpected end of data" in (rows[-1].error or "")


def test_plain_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\n\nthree\r\nvierzehn Wörter".encode() + b"\n\xff\n")
    rows = read(path)
    assert [row.text for row in rows] == ["one", "", "three", "vierzehn Wörter", None]
    assert rows[-1].error == "line 5 is not UTF-8: invalid start byte at byte 0"
    with pytest.raises(RequestError, match="plain text"):
        open_dataset(str(path), column="x")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    texts = [*TEXTS, None]
    table = pyarrow.table({"id": list(range(7)), "content": texts})
    parquet.write_table(table, path, row_group_size=2)
    assert (open_dataset(str(path)).column, open_dataset(str(path)).num_rows) == ("content", 7)
    for skip in range(8):
        assert [row.text for row in read(path, skip)] == texts[skip:]
    assert read(path)[-1].error == "row 6 has null as 'content'; a text is needed"
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) - 1):
        with pytest.raises(DataSetError, match=r"a\.parquet"):
            read(write(path, whole[:size]))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", "\n\n", "no column with text"),
        ("a.jsonl", '[{"t": "a"}]', "JSON array.*jq"),
        ("a.jsonl", '{"a": 1}\n', "no column with text .*: a"),
        ("a.jsonl", "\xff\xfe".encode("latin-1") + "{}".encode("utf-16-le"), "UTF-16"),
        ("a.csv", "", "no header"),
        ("a.csv", "a,a\n", "two columns of one name"),
        ("a.csv", '"a\n', "no header"),
        ("a.csv", "a,b\n1,2\n", "no column with text"),
        ("a.txt", "", "is empty"),
        ("a.doc", "x", "not known by its name"),
    ],
)
def test_files_that_hold_no_data_set(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    with pytest.raises(AnthesisError, match=message):
        open_dataset(str(write(tmp_path / name, data)))


def test_places_that_hold_no_data_set(tmp_path: Path) -> None:
    for name, message in (("none.jsonl", "no such data set"), ("", "a directory")):
        with pytest.raises(RequestError, match=message):
            open_dataset(str(tmp_path / name))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(RequestError, match="no regular file"):
        open_dataset(str(tmp_path / "pipe.jsonl"))
    path = write(tmp_path / "a.jsonl", '{"t": "x", "u": 1}\n')
    with pytest.raises(RequestError, match=r"no column 'v'.*: t, u"):
        open_dataset(str(path), column="v")
    with pytest.raises(RequestError, match="--split"):
        open_dataset(str(path), split="train")


def test_a_line_without_end_is_one_failed_row_and_takes_little_memory(tmp_path: Path) -> None:
    for name, head in (("a.jsonl", b'{"t": "first"}\n'), ("a.csv", b"t,u\nfirst,x\n"), ("a.txt", b"first\n")):
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(head)
            for _ in range(20):
                file.write(b"x" * (MAX_LINE_BYTES // 4))
            file.write(b"\n" + head.splitlines()[-1] + b"\n")
        tracemalloc.start()
        rows = read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [row.text for row in rows] == ["first", None, "first"]
        assert f"longer than {MAX_LINE_BYTES:,} bytes" in (rows[1].error or "")
        assert peak < 4 * MAX_LINE_BYTES
        path.unlink()


def test_a_file_that_grows_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo\n")
    rows = open_dataset(str(path)).rows(0)
    assert next(rows).text == "one"
    with path.open("a") as file:
        file.write("three\n")
    with pytest.raises(DataSetError, match="was changed while"):
        list(rows)


def test_the_identity_tells_contents_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo\n" * 1_000_000)
    before = open_dataset(str(path)).identity
    assert open_dataset(str(path)).identity == before
    for at in (0, 8_000_000 - 2):
        data = bytearray(path.read_bytes())
        data[at] += 1
        assert open_dataset(str(write(path, bytes(data)))).identity != before


@pytest.mark.slow
def test_ten_million_rows_start_at_once(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("wb") as file:
        for start in range(0, 10_000_000, 100_000):
            file.write(b"".join(b'{"id": %d, "content": "row %d"}\n' % (i, i) for i in range(start, start + 100_000)))
    tracemalloc.start()
    rows = open_dataset(str(path)).rows(0)
    assert next(rows).text == "row 0"
    assert next(open_dataset(str(path)).rows(9_999_999)).text == "row 9999999"
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
