"""Reading data sets: every format, the choice of the column, rows that are broken, files that lie or grow."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anthesis.dataset import Row, open_dataset
from anthesis.dataset.csv_records import MAX_RECORD_LINES, CsvRecords
from anthesis.dataset.lines import LineFile
from anthesis.dataset.read import MAX_TEXT_BYTES
from anthesis.dataset.source import SourceFile
from anthesis.errors import AnthesisError, DataSetError, RequestError
from hostile import forget_peak_kib, peak_kib

TEXTS = ["plain", 'with "quotes", commas', "two\nlines", "Łódź 漢字 😀", " spaces ", ""]


def read(path: Path, skip: int = 0, **options: str) -> list[Row]:
    return list(open_dataset(str(path), **options).rows(skip))


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


TAKEN = """
import re, sys
from pathlib import Path
import pyarrow.parquet
import anthesis.dataset.files, anthesis.dataset.parquet
from anthesis.dataset import open_dataset
def peak_kib(): return int(re.findall(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[0])
before = peak_kib()
for name in sys.argv[1:]:
    for row in open_dataset(name).rows(0):
        assert row.error is None
print(peak_kib() - before)
"""


def taken_kib(*paths: Path) -> int:
    """The most memory that reading these data sets takes, in a process that has not held any before."""
    command = [sys.executable, "-c", TAKEN, *map(str, paths)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "title": f"t{i}", "content": text}) for i, text in enumerate(TEXTS)]
    path = write(tmp_path / "a.jsonl", "\ufeff" + "\r\n".join(lines) + "\n\n\n")
    found = open_dataset(str(path))
    assert (found.column, found.note) == (
        "title",
        "column 'title', the first with text (others: 'id', 'content')",
    )
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
        assert row.error.startswith(f"line {number} ")
        assert reason in row.error
    assert rows[1].error == "line 2 is not valid JSON: Expecting value at character 7"
    assert rows[-2].error == "line 12 is not valid JSON: a number has thousands of digits"


def test_where_no_row_of_the_beginning_can_be_read_the_column_has_to_be_named(tmp_path: Path) -> None:
    for name, head, broken, fine in (("a.jsonl", "", "{\n", '{"t": "fine"}\n'), ("a.csv", "id,t\n", "1\n", "1,fine\n")):
        path = write(tmp_path / name, head + 100 * broken + fine)
        rows = read(path, column="t")
        assert [row.text for row in rows] == [*[None] * 100, "fine"]
        with pytest.raises(RequestError, match=r"none of the first 100 rows can be read.*\(line .*--column"):
            open_dataset(str(path))
        with pytest.raises(RequestError, match="no column 'u'"):
            open_dataset(str(write(path, head + 99 * broken + fine)), column="u")


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


cells = st.text(st.sampled_from('ab"\n, ;é😀'), max_size=6)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=6), st.sampled_from(",;|"))
def test_csv_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], sign: str
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=sign, lineterminator="\n").writerows([["a", "b", "c"], *rows])
    path = write(tmp_path_factory.mktemp("csv") / "a.csv", text.getvalue())
    for place, name in enumerate("abc"):
        for skip in (0, 2):
            assert [row.text for row in read(path, skip, column=name)] == [row[place] for row in rows][skip:]


def test_the_delimiter_is_that_of_the_header_outside_quotes_and_a_tab_in_tsv(tmp_path: Path) -> None:
    assert [row.text for row in read(write(tmp_path / "a.tsv", "a,b,c\td,e\n1\tx,y\n"), column="d,e")] == ["x,y"]
    for header in ('"a, b";c', '"a,\n,""b";c', '\ufeff"a,,"";b";c'):
        assert [row.text for row in read(write(tmp_path / "a.csv", f"{header}\n1;x,y\n"), column="c")] == ["x,y"]


def test_names_of_columns_are_shown_so_that_they_can_be_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'id , title,"a, b"\n1, x,y\n')
    assert [row.text for row in read(path, column="title")] == [" x"]
    with pytest.raises(RequestError, match=r"its columns are: 'id', 'title', 'a, b'$"):
        open_dataset(str(path), column="x")
    path = write(tmp_path / "b.csv", "a\x1b[31mRED,b\nx,y\n")
    name = r"'a\x1b[31mRED'"
    assert open_dataset(str(path)).note == f"column {name}, the first with text (others: 'b')"
    assert open_dataset(str(path), column="a\x1b[31mRED").note == f"column {name}"
    with pytest.raises(RequestError, match="no column") as caught:
        open_dataset(str(path), column="x\x1b")
    assert "\x1b" not in str(caught.value)
    path = write(tmp_path / "c.jsonl", json.dumps({f"{i}": "x" for i in range(1000)}) + "\n")
    with pytest.raises(RequestError, match=r"'19' and 980 more$"):
        open_dataset(str(path), column="x")


def test_broken_csv_rows_are_rows(tmp_path: Path) -> None:
    data = b'id,content\n1,fine\n2\n3,a,b\n\n4,"a"b\n5,\xff\n6,last\n7,a\rb\n8,"a\nb\n",c\n'
    rows = read(write(tmp_path / "a.csv", data), column="content")
    assert [row.text for row in rows] == ["fine", None, None, None, None, "last", None, None]
    assert [row.error for row in rows if row.error] == [
        "line 3 has 1 field where the header has 2",
        "line 4 has 3 fields where the header has 2",
        "line 6 is not valid CSV: a quote within a text is not doubled",
        "line 7 is not UTF-8: invalid start byte at byte 0",
        "line 9 is not valid CSV: a carriage return stands outside quotes",
        "the record of lines 10 to 12 has 3 fields where the header has 2",
    ]


@pytest.mark.parametrize(
    ("lines", "texts", "errors"),
    [
        (["a,1", '"b,2', "c,3", "d,4"], ["1", None, "3", "4"], ["line 3 * line 3 is not closed before the file ends"]),
        (
            ["a,1", '"b,2', "c,3", 'd,"4"', "e,5"],
            ["1", None, "3", "4", "5"],
            ["line 3 * line 3 is not closed before line 5, where a quote within a text is not doubled"],
        ),
        (['a,"1', '2","3', "b,4"], [None, None, "4"], ["line 2 * opened in line 3 *", "line 3 * opened in line 3 *"]),
        (
            ['"a,1', 'b,"2', '2"', "c,3", '"d,4', "e,5"],
            [None, "2\n2", "3", None, "5"],
            ["line 2 * line 2 is not closed before line 3*", "line 6 * line 6 is not closed before the file ends"],
        ),
        (
            ['a,"', *["1,x"] * MAX_RECORD_LINES, '"', "b,2"],
            [None, *["x"] * MAX_RECORD_LINES, None, "2"],
            ["line 2 * within 8,388,608 bytes and 131,072 lines", "line 131075 * before the file ends"],
        ),
        (
            ['a,"', *[f"{'1' * 10_000},x"] * 900, '"', "b,2"],
            [None, *["x"] * 900, None, "2"],
            ["line 2 * within 8,388,608 bytes and 131,072 lines", "line 903 * before the file ends"],
        ),
        (
            ['a,"' + "x" * 1000, "x" * (MAX_TEXT_BYTES - 500) + '"', "b,2"],
            [None, "2"],
            ["the record of lines 2 to 3 is longer than*"],
        ),
        (
            ['a,"', "b,2", "x" * (MAX_TEXT_BYTES + 1), '"', "c,3"],
            [None, "2", None, None, "3"],
            ["line 2 * before line 4, which is longer than*", "line 4 is longer than*", "line 5 * opened in line 5 *"],
        ),
    ],
)  # fmt: skip
def test_a_quote_that_is_not_closed_costs_one_row(
    tmp_path: Path, lines: list[str], texts: list[str | None], errors: list[str]
) -> None:
    path = write(tmp_path / "a.csv", "\n".join(["id,t", *lines]))
    rows = read(path, column="t")
    assert [row.text for row in rows] == texts
    for pattern, row in zip(errors, [row for row in rows if row.error], strict=True):
        assert fnmatchcase(row.error or "", pattern), row.error
    for skip in range(1, len(rows) if len(rows) < 100 else 2):
        assert read(path, skip, column="t") == rows[skip:]


def records_of(lines: list[str]) -> Iterator[list[str] | None]:
    """What Python's reader makes of each record, begun anew behind the first line of a broken one."""
    at = 0
    while at < len(lines):
        reader = csv.reader((f"{line}\n" for line in lines[at:]), strict=True)
        try:
            fields = next(reader)
        except csv.Error:
            yield None
            at += 1
        else:
            if fields:
                yield fields
            at += reader.line_num


@settings(max_examples=1000, derandomize=True, deadline=None, database=None)
@given(st.text(st.sampled_from('""",x\n\n'), max_size=40))
def test_damaged_csv_is_read_as_python_reads_what_follows_each_broken_line(text: str) -> None:
    with tempfile.TemporaryDirectory() as name, LineFile(SourceFile(write(Path(name) / "a", text))) as lines:
        found = [None if record.error else record.fields for record in CsvRecords(lines, b",")]
    wanted = [fields and [field.encode() for field in fields] for fields in records_of(text.split("\n"))]
    assert found == wanted


@pytest.mark.parametrize(
    ("line", "times"),
    [
        ('x",y,"z', 100_000), ('x",y,"z' + "z" * 300, 60_000), ('"', 500_000), ('a,"b', 200_000), ('"a"",', 200_000),
        ('a,"\n' + "x\n" * 1000, 500), ('"' + '""a' * 1_000_000, 4),
    ],
)  # fmt: skip
def test_a_file_full_of_quotes_that_are_not_closed_is_read_as_fast_as_another(
    tmp_path: Path, line: str, times: int
) -> None:
    path = write(tmp_path / "a.csv", "a,b\n" + f"{line}\n" * times + '"')
    before, begin = forget_peak_kib(), time.process_time()
    for _ in open_dataset(str(path), column="a").rows(0):
        pass
    assert time.process_time() - begin < 20  # if each quote were followed to its bound: hours
    assert peak_kib() - before < 200_000


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


def test_parquet_columns_of_every_type_of_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = ["a", "żółć", None, "a", ""]
    columns = {str(kind): pyarrow.array(texts, kind) for kind in
               (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())}  # fmt: skip
    columns |= {
        f"categorical {name}": column.dictionary_encode() for name, column in columns.items() if "v" not in name
    }
    columns |= {"number": pyarrow.array(range(5)), "dates": pyarrow.array([2**60] * 5, pyarrow.timestamp("us"))}
    path = tmp_path / "a.parquet"
    for name, column in columns.items():
        parquet.write_table(pyarrow.table({name: column}), path)
        if name in ("number", "dates"):
            with pytest.raises(RequestError, match="no column with text"):
                open_dataset(str(path))
            assert (
                read(path, column=name)[0].error
                == f"row 0 has a value of type {column.type} as '{name}'; a text is needed"
            )
        else:
            assert [row.text for row in read(path)] == texts
            assert [row.text for row in read(path, 3)] == texts[3:]
    parquet.write_table(pyarrow.table({"t": pyarrow.array([b"fine", b"\xff"]).view(pyarrow.string())}), path)
    assert read(path) == [Row("fine", None), Row(None, "row 1 is not UTF-8: invalid start byte at byte 0")]


def test_a_parquet_file_that_blows_texts_up_takes_little_memory(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    texts = ["x" * 7_500_000] * 64
    parquet.write_table(pyarrow.table({"t": texts}), path, compression="zstd")
    assert path.stat().st_size < 2000
    assert [row.text for row in read(path)] == texts
    assert taken_kib(path) < 200_000
    parquet.write_table(pyarrow.table({"t": ["a" + "é" * MAX_TEXT_BYTES]}), path, compression="zstd")
    assert [row.text for row in read(path)] == ["a" + "é" * (MAX_TEXT_BYTES // 2 - 1)]


def test_a_chunk_of_long_texts_is_never_held_whole() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from anthesis.dataset.parquet import rows_of_cells

    cells = pyarrow.chunked_array([pyarrow.array(["x" * 1_000_000] * 64)])
    tracemalloc.start()
    assert sum(len(row.text or "") for row in rows_of_cells(cells, 0, "t", "a.parquet")) == 64_000_000
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", "\n\n", "has no rows"),
        ("a.jsonl", '[{"t": "a"}]', "JSON array.*jq"),
        ("a.jsonl", '\n \n\ufeff [\n{"t": "a"}\n]'.replace("\ufeff", ""), "JSON array.*jq"),
        ("a.jsonl", '\ufeff[{"t": "' + "a" * MAX_TEXT_BYTES + '"}]', "JSON array.*jq"),
        ("a.jsonl", '{"a": 1}\n', "no column with text .*: 'a'"),
        ("a.jsonl", "\xff\xfe".encode("latin-1") + "{}".encode("utf-16-le"), "UTF-16"),
        ("a.csv", "", "no header.*it is empty"),
        ("a.csv", "a,b,c\n", "has a header and no rows"),
        ("a.csv", ",,\n", "no header.*line 1 names none"),
        ("a.csv", ",a" * 100_000, "no header.*more than 65,536 fields"),
        ("a.csv", "a,a\n", "two columns of one name"),
        ("a.csv", '"a\n', "no header.*the quote opened in line 1 is not closed"),
        ("a.csv", "a,b\n1,2\n", "no column with text"),
        ("a.txt", "", "has no rows"),
        ("a.doc", "x", "not known by its name"),
        ("a.jsonl.gz", "x", "is compressed; decompress it first, for instance with `gunzip -k`"),
        ("a.zip", "x", "is compressed; decompress it first, for instance with `unzip`"),
    ],
)
def test_files_that_hold_no_data_set(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    with pytest.raises(AnthesisError, match=message):
        open_dataset(str(write(tmp_path / name, data)))


def test_places_that_hold_no_data_set(tmp_path: Path) -> None:
    for name, message in (("none.jsonl", "no such file"), ("", "a directory")):
        with pytest.raises(RequestError, match=message):
            open_dataset(str(tmp_path / name))
    for name in ("none.jsonl", "data/none.CSV", "none.jsonl.gz", "data/none.txt.zst", "none.parquet.ZIP"):
        with pytest.raises(RequestError, match="no such file; check the path"):  # and not: of the Hub
            open_dataset(name)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(RequestError, match="no regular file"):
        open_dataset(str(tmp_path / "pipe.jsonl"))
    path = write(tmp_path / "a.jsonl", '{"t": "x", "u": 1}\n')
    with pytest.raises(RequestError, match=r"no column 'v'.*: 't', 'u'"):
        open_dataset(str(path), column="v")
    with pytest.raises(RequestError, match="has a header and no rows"):
        open_dataset(str(write(tmp_path / "a.csv", "a,b\n")), column="a")
    with pytest.raises(RequestError, match="--split"):
        open_dataset(str(path), split="train")


def test_a_line_without_end_is_one_failed_row_and_takes_little_memory(tmp_path: Path) -> None:
    for name, head in (("a.jsonl", b'{"t": "first"}\n'), ("a.csv", b"t,u\nfirst,x\n"), ("a.txt", b"first\n")):
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(head)
            for _ in range(20):
                file.write(b"x" * (MAX_TEXT_BYTES // 4))
            file.write(b"\n" + head.splitlines()[-1] + b"\n")
        tracemalloc.start()
        rows = read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [row.text for row in rows] == ["first", None, "first"]
        assert f"longer than {MAX_TEXT_BYTES:,} bytes" in (rows[1].error or "")
        assert peak < 4 * MAX_TEXT_BYTES
        path.unlink()


def test_texts_as_long_as_allowed_take_little_memory(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet")
    text = "😀" * ((MAX_TEXT_BYTES - 100) // 4)
    paths = [write(tmp_path / name, f"{head}{row}\n{row}\n") for name, head, row in (
        ("a.jsonl", "", f'{{"t": "{text}"}}'), ("a.csv", "t,u\n", f"{text},x"),
        ("b.csv", "t,u\n", f'"{text}\n""",x'), ("a.txt", "", text),
    )]  # fmt: skip
    for path in paths:
        assert len(read(path)[1].text or "") >= len(text)
    assert taken_kib(*paths) < 100_000  # half of what is promised: the caller may hold as much


def changed(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "grows":
        with path.open("ab") as file:
            file.write(b"three\n")
    elif how == "is edited":
        path.write_bytes(data.replace(b"o", b"0"))
    elif how == "is replaced":
        write(path.with_name("new"), data).rename(path)
    else:
        path.unlink()


CHANGES = ("grows", "is edited", "is replaced", "vanishes")


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.parquet"])
def test_a_file_that_changes_is_noticed(tmp_path: Path, name: str, how: str) -> None:
    message = "can't be read: No such file" if how == "vanishes" else "was changed while"
    num_rows = 200_000
    if name.endswith("parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        data = io.BytesIO()
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"o": ["one or two"] * num_rows}), data)
        whole = data.getvalue()
    else:
        line = "one or two," + 10 * "o"
        head, line = {"txt": ("", line), "csv": ("o,p\n", line), "jsonl": ("", f'{{"o": "{line}"}}')}[name[2:]]
        whole = (head + f"{line}\n" * num_rows).encode()
    path = write(tmp_path / name, whole)
    # before its rows are asked for
    dataset = open_dataset(str(path))
    dataset.check_unchanged()
    changed(path, how)
    with pytest.raises(DataSetError, match=message):
        dataset.check_unchanged()
    with pytest.raises(DataSetError, match=message):
        next(dataset.rows(0))
    # while they are read, long before the last
    dataset = open_dataset(str(write(path, whole)))
    rows = dataset.rows(0)
    next(rows)
    changed(path, how)
    with pytest.raises(DataSetError, match=message):
        dataset.check_unchanged()
    before: list[Row] = []
    with pytest.raises(DataSetError, match=message):
        before.extend(rows)
    assert len(before) < num_rows * 0.95
    # and at the end
    dataset = open_dataset(str(write(path, whole)))
    assert sum(1 for _ in dataset.rows(0)) == num_rows


def test_the_identity_tells_contents_apart(tmp_path: Path) -> None:
    whole = b"one\ntwo\n" * 1_000_000
    path = write(tmp_path / "a.txt", whole)
    before = open_dataset(str(path)).identity
    assert open_dataset(str(path)).identity == before
    for at in (0, 100_000, len(whole) - 2):  # of which the second is between the pieces that stand for a larger file
        data = bytearray(whole)
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
