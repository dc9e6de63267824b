"""Data sets of the Hub: what is fetched, from where, and again without a network; what is said where that fails.

No network: the library itself, in processes of its own, asks a server that answers as the Hub does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from command_line import Terminal
from local_server import served

if importlib.util.find_spec("datasets") is None:
    pytest.skip("needs the extra datasets", allow_module_level=True)
import pyarrow
import pyarrow.parquet

SCRIPT = """
import json, logging, sys
logging.getLogger("anthesis").addHandler(handler := logging.Handler())
said = []
handler.emit = lambda record: said.append(record.getMessage())
from anthesis.dataset import open_dataset
from anthesis.errors import AnthesisError
assert not {"datasets", "pyarrow", "pandas", "torch"} & set(sys.modules)
asked = json.loads(sys.argv[1])
for options in asked if isinstance(asked, list) else [asked]:
    try:
        data = open_dataset(**options)
        rows = [[row.text, row.error] for row in data.rows(0)]
        data.check_unchanged()
        later = [[row.text, row.error] for row in data.rows(2)]
        assert later == rows[2:]
        sys.modules["anthesis.dataset.hub"].CHUNK_ROWS = 7
        assert [[row.text, row.error] for row in data.rows(1, 3)] == rows[1::3]
        found = {"rows": rows, "note": data.note, "identity": data.identity, "num_rows": data.num_rows}
    except AnthesisError as error:
        found = {"error": f"{type(error).__name__} {error}"}
    print(json.dumps(found | {"said": said}))
    said.clear()
assert "torch" not in sys.modules
"""
DEAD = "http://127.0.0.1:9"
COMMIT, CONVERTED, EDITED = ("0123456789" * 4, "abcdef0123" * 4, "fedcba9876" * 4)


def parquet(texts: list[str | None], **columns: list[Any]) -> bytes:
    file = io.BytesIO()
    table = {"label": list(range(len(texts))), "content": texts, "title": [f"t{i}" for i in range(len(texts))]}
    pyarrow.parquet.write_table(pyarrow.table({**table, **columns}), file)
    return file.getvalue()


TRAIN = [f"row {i} żółć 漢字" for i in range(600)]
TEST: list[str | None] = ["a", None, "c"]
NEWS = {"data/train-00000-of-00001.parquet": parquet([*TRAIN]), "data/test-00000-of-00001.parquet": parquet(TEST)}
CLASSES = "---\ndataset_info:\n  features:\n  - {name: label, dtype: {class_label: {names: {'0': no, '1': yes}}}}\n"
CLASSES += "  - {name: content, dtype: string}\n---\n"
TWO = "---\nconfigs:\n- {config_name: one, data_files: one.jsonl}\n- {config_name: two, data_files: two.jsonl}\n---\n"
DEFAULT = TWO.replace("data_files: two.jsonl", "data_files: two.jsonl, default: true")
LINES = {f"{name}.jsonl": f'{{"content": "{name}"}}\n'.encode() for name in ("one", "two")}
TRAP = b"import os\nos.abort()\n"
Files = dict[str, bytes]
REPOSITORIES: dict[str, dict[str, Files]] = {
    "owner/news": {COMMIT: NEWS, EDITED: NEWS | {"README.md": b"# New words\n"}},
    "owner/one": {COMMIT: {"only.jsonl": b'{"content": "x"}\n', "README.md": b"# One\n"}},
    "owner/no-train": {COMMIT: {"test.jsonl": b'{"content": "x"}\n', "validation.jsonl": b'{"content": "x"}\n'}},
    "owner/classes": {
        COMMIT: {"README.md": CLASSES.encode(), "train.csv": b"label,content\n0,first\n1,second\n0,third\n"}
    },
    "owner/two": {COMMIT: LINES | {"README.md": TWO.encode()}},
    "owner/default": {COMMIT: LINES | {"README.md": DEFAULT.encode()}},
    "owner/script": {
        COMMIT: {"script.py": TRAP, "data.tar": b"x"},
        CONVERTED: {
            "default/train/0000.parquet": parquet(["first"]),
            "default/train/0001.parquet": parquet(["second", "third"]),
            "default/test/0000.parquet": parquet(TEST),
            ".gitattributes": b"",
        },
    },
    "owner/scripts": {
        COMMIT: {"scripts.py": TRAP},
        CONVERTED: {f"{name}/train/0000.parquet": parquet([name]) for name in ("one", "two")},
    },
    "owner/bare-script": {COMMIT: {"bare-script.py": TRAP}},
    "owner/empty": {COMMIT: {"README.md": b"# Empty\n"}},
    "owner/mixed": {COMMIT: {"train-1.jsonl": b'{"content": "x"}\n', "train-2.jsonl": b'{"other": 3}\n'}},
    "owner/damaged": {COMMIT: {"train.parquet": b"PAR1" + b"\xff" * 100}},
}


@contextmanager
def hub(main: str = COMMIT) -> Iterator[tuple[str, list[str]]]:
    """A server with the data sets above, whose branch main is at a commit; gives its address and what was asked."""
    asked: list[str] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        parts = path.split("?")[0].strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[api:]
        name, rest = "/".join(parts[1:3]), parts[3:]
        if name in ("owner/private", "owner/gated"):
            return 401, {"X-Error-Code": "GatedRepo" if name == "owner/gated" else "RepoNotFound"}, b""
        if (parts[:1], name in REPOSITORIES) != (["datasets"], True):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        commits, action, revision = REPOSITORIES[name], rest[:1], unquote(rest[1]) if rest[1:] else "main"
        commit = {"refs/convert/parquet": CONVERTED, "main": main if main in commits else COMMIT}.get(
            revision, revision
        )
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files, headers, inside = commits[commit], {"X-Repo-Commit": commit}, unquote("/".join(rest[2:]))
        if not api:
            if inside not in files:
                return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
            return 200, headers | {"ETag": f'"{hashlib.sha256(files[inside]).hexdigest()}"'}, files[inside]
        if action in ([], ["revision"]):
            found: Any = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
        else:
            folders = {folder.as_posix() for file in files for folder in Path(file).parents} - {"."}
            entries: list[dict[str, Any]] = [
                {"type": "file", "path": f, "size": len(files[f]), "oid": f"{len(f)}"} for f in files
            ]
            entries += [{"type": "directory", "path": folder, "oid": "0"} for folder in sorted(folders)]
            if action == ["paths-info"]:
                found = [entry for entry in entries if entry["path"] in body["paths"]]
            else:
                found = [e for e in entries if e["path"].startswith(f"{inside}/" if inside else "")]
                if "recursive=true" not in path.lower():
                    found = [e for e in found if Path(e["path"]).parent == Path(inside)]
                if inside and not found:
                    return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
        return 200, headers, json.dumps(found).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(f"{self.command} {self.path}")
            form: dict[str, Any] = {}
            if sent:
                form = json.loads(sent)
            status, headers, body = answer(self.path, form)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_GET  # noqa: N815

    with served(Handler) as address:
        yield address, asked


def environment_of(home: Path, **more: str) -> dict[str, str]:
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    return variables | {"HF_HOME": str(home)} | more


def read(home: Path, *asked: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    """What one process finds, for each of the arguments of `open_dataset`; stderr must stay empty."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked)], env=environment_of(home, **environment),
        capture_output=True, text=True, timeout=120, check=False, cwd=home,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(asked)
    return found


def texts(found: dict[str, Any]) -> list[str | None]:
    assert "error" not in found, found
    return [text for text, _ in found["rows"]]


def error_of(found: dict[str, Any]) -> str:
    assert "error" in found and "\n" not in found["error"], found
    return str(found["error"])


READ: list[dict[str, Any]] = [
    {"name": "owner/news"}, {"name": "owner/news", "split": "train"}, {"name": "owner/news", "split": "test"},
    {"name": "owner/news", "split": "test", "column": "title"}, {"name": "owner/classes"},
    {"name": "owner/classes", "column": "label"}, {"name": "owner/one"}, {"name": "owner/two", "subset": "two"},
    {"name": "owner/two", "subset": "one"}, {"name": "owner/default"}, {"name": "owner/script"},
    {"name": "owner/scripts", "subset": "two"},
]  # fmt: skip
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "owner/news", "split": "no"}, "owner/news has no split 'no'; choose with --split: train, test"),
    ({"name": "owner/no-train"}, "owner/no-train has no split 'train'; choose with --split: validation, test"),
    ({"name": "owner/news", "column": "text"}, "owner/news has no column 'text' in its features; its columns are"),
    ({"name": "owner/two"}, "owner/two has several subsets; choose with --subset: one, two"),
    ({"name": "owner/two", "subset": "no"}, "owner/two has no subset 'no'; choose with --subset: one, two"),
    ({"name": "owner/news", "subset": "no"}, "owner/news has no subset 'no'; choose with --subset: default"),
    ({"name": "owner/scripts"}, "owner/scripts has several subsets; choose with --subset: one, two"),
    ({"name": "owner/scripts", "subset": "no"}, "owner/scripts has no subset 'no'; choose with --subset: one, two"),
    ({"name": "owner/script", "split": "no"}, "owner/script has no split 'no'; choose with --split: test, train"),
    ({"name": "owner/bare-script"}, "owner/bare-script comes as a program, which is not run, and the Hub has no"),
    ({"name": "owner/empty"}, "owner/empty has no files that are read as rows: "),
    ({"name": "owner/damaged"}, "the files of owner/damaged can't be read: "),
    ({"name": "owner/mixed"}, "the files of owner/mixed can't be read: Couldn't cast other: int64 "),
    ({"name": "owner/gated"}, "owner/gated is gated: ask for access at https://huggingface.co/datasets/owner/gated"),
    ({"name": "owner/private"}, "no data set of the Hub 'owner/private', or it is private: check the name"),
    ({"name": "owner/absent"}, "no data set of the Hub 'owner/absent', or it is private: check the name"),
    ({"name": "absent"}, "no data set of the Hub 'absent', or it is private: check the name"),
    ({"name": "owner/a--b"}, "'owner/a--b' can't be the name of a data set of the Hub: "),
    ({"name": "json"}, "there is no file and no data set of the Hub 'json'"),
]
Online = tuple[Path, list[dict[str, Any]], list[str]]


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Online:
    """A cache, what the process that filled it found for READ and REFUSED, and what it asked the Hub."""
    home = tmp_path_factory.mktemp("home")
    (home / "stray.json").write_text('{"content": "not asked for"}')
    with hub() as (address, requests):
        return home, read(home, *READ, *[options for options, _ in REFUSED], HF_ENDPOINT=address), requests


def test_rows_splits_subsets_and_columns(online: Online) -> None:
    _, every, requests = online
    by_itself, chosen, test, title, classes, labels, one, two, _, default, script, scripts = found = every[: len(READ)]
    assert by_itself == chosen
    assert (texts(chosen), chosen["num_rows"]) == (TRAIN, 600)
    assert chosen["note"] == "split train; column 'content', the first with text (others: 'label', 'title')"
    assert test["rows"] == [["a", None], [None, "row 1 has null as 'content'; a text is needed"], ["c", None]]
    assert (texts(title), title["note"]) == (["t0", "t1", "t2"], "split test; column 'title'")
    assert (texts(classes), classes["identity"]["column"]) == (["first", "second", "third"], "content")  # no ClassLabel
    assert labels["rows"][0] == [None, "row 0 has a value of type int64 as 'label'; a text is needed"]
    assert (texts(one), texts(two), texts(default)) == (["x"], ["two"], ["two"])
    assert default["note"].startswith("subset two, split train; ")
    assert two["note"].startswith("split train; ")
    assert (texts(script), texts(scripts)) == (["first", "second", "third"], ["two"])
    assert not any("/test/" in line for line in requests if "/resolve/" in line and "owner/script/" in line)
    assert len({json.dumps(one["identity"]) for one in found}) == len(READ) - 1
    for one, name in ((script, "script"), (scripts, "scripts")):
        own_copy = "comes as a program, which is not run; read is the Hub's own copy, refs/convert/parquet"
        assert one["said"] == [f"owner/{name} {own_copy}"]
    assert all(one["said"] == [] for one in found[:-2])


def test_what_is_refused(online: Online) -> None:
    for (_, message), found in zip(REFUSED, online[1][len(READ) :], strict=True):
        assert message in error_of(found)
        assert error_of(found).startswith("DataSetError the files" if "can't be read" in message else "RequestError")
        assert found["said"] == []


ABSENT, MISSING = {"name": "owner/absent"}, "DataSetError owner/absent is not (completely) in the cache of data sets"


@pytest.mark.parametrize("variable", ["HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_it_is_the_same(online: Online, variable: str, tmp_path: Path) -> None:
    home, found, _ = online
    others: list[dict[str, Any]] = [{"name": "owner/two"}, {"name": "owner/two", "subset": "no"}, ABSENT]
    if variable == "HF_HUB_OFFLINE":  # as if the script's download, which ends with this file, had been cut off
        home = Path(shutil.copytree(home, tmp_path / "home", symlinks=True))
        (first,) = home.glob("hub/datasets--owner--scripts/snapshots/*/two/train/0000.parquet")
        first.unlink()
    with hub() as (address, requests):
        again = read(home, *READ, *others, **{variable: "1", "HF_ENDPOINT": address})
        assert requests == []
    if variable == "HF_HUB_OFFLINE":
        assert "DataSetError owner/scripts is not (completely) in the cache" in error_of(again[len(READ) - 1])
        again[len(READ) - 1] = found[len(READ) - 1]
    assert again[: len(READ)] == found[: len(READ)]
    for one in again[len(READ) : -1]:
        assert re.match(r"RequestError owner/two: .* cache.*one.*two.*; choose with --subset", error_of(one))
    assert error_of(again[-1]) == f"{MISSING} (HF_DATASETS_OFFLINE or HF_HUB_OFFLINE is set): go online, or name a file"


def test_where_the_hub_is_unreachable_it_is_the_same(online: Online) -> None:
    home, found, _ = online
    begin = time.monotonic()
    *again, absent = read(home, *READ, ABSENT, HF_ENDPOINT=DEAD)
    assert time.monotonic() - begin < 20  # of which the imports take most
    reason = "(the Hub could not be reached: 127.0.0.1: Connection refused)"
    for before, one in zip(found, again, strict=False):
        assert one | {"said": 0} == before | {"said": 0}
        assert one["said"][-1].endswith(f"from the cache of data sets {reason}")
    assert error_of(absent) == f"{MISSING} {reason}: go online, or name a file"


def test_another_commit_with_the_same_rows_is_the_same_request(online: Online) -> None:
    with hub(main=EDITED) as (address, requests):
        assert read(online[0], READ[0], HF_ENDPOINT=address) == online[1][:1]
        assert any(EDITED in line for line in requests)


def test_progress_bars_in_a_terminal_only(tmp_path: Path) -> None:
    with hub() as (address, _):
        sized = 'stty cols 100 rows 30; exec "$@"'  # tqdm draws nothing in a terminal of no width
        asked = json.dumps({"name": "owner/news"})
        seen = Terminal(["sh", "-c", sized, "sh", sys.executable, "-c", SCRIPT, asked],
                        **environment_of(tmp_path, HF_ENDPOINT=address))  # fmt: skip
        assert seen.finish() == 0
        assert "Generating train split" in seen.output
