"""Hub ids: the cache, being offline, what is not an id. No network: huggingface_hub itself, in processes of its own."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.hub import looks_like_hub_id
from anthesis.errors import RequestError
from command_line import Terminal
from local_server import served

SCRIPT = """
import os, sys, warnings
from anthesis.checkpoint.hub import hub_path
from huggingface_hub.utils import are_progress_bars_disabled
sys.modules.update(dict.fromkeys(os.environ.get("WITHOUT", "").split(), None))
warnings.showwarning = lambda message, *_, **__: print("warning:", message)
from anthesis.errors import AnthesisError
before = are_progress_bars_disabled()
try:
    print(hub_path(sys.argv[1]))
except AnthesisError as error:
    print(type(error).__name__, error)
assert are_progress_bars_disabled() == before
"""


def environment_of(cache, **more):
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    return variables | {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache)} | more


def hub_path(model, cache, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model], env=environment_of(cache, **environment), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


EXPECTED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
COMMIT = "0123456789" * 4


def cached(cache: Path, repository: str, *files: str) -> Path:
    """A repository in huggingface_hub's documented layout."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    for file in files:
        (snapshot / file).write_text("{}")
    return snapshot


def test_a_cached_model_needs_no_network(tmp_path):
    snapshot = cached(tmp_path, "owner/single", "config.json", "model.safetensors", *EXPECTED)
    assert hub_path("owner/single", tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == str(snapshot)
    shards = cached(tmp_path, "bare", "config.json", "model-1.safetensors", "tokenizer.json")
    known_absent = shards.parent.parent / ".no_exist" / COMMIT
    known_absent.mkdir(parents=True)
    for name in ("generation_config.json", "tokenizer_config.json"):
        (known_absent / name).touch()
    index = {"weight_map": {"w": "model-1.safetensors"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    assert hub_path("bare", tmp_path, HF_HUB_OFFLINE="1") == str(shards)
    one = cached(tmp_path, "owner/one-gguf", "a.gguf")
    assert hub_path("owner/one-gguf", tmp_path, HF_HUB_OFFLINE="1") == str(one / "a.gguf")
    two = cached(tmp_path, "owner/two-ggufs", "a.gguf", "b.gguf")
    assert hub_path("owner/two-ggufs/b.gguf", tmp_path, HF_HUB_OFFLINE="1") == str(two / "b.gguf")


@contextmanager
def hub(files: dict[str, bytes], **way) -> Iterator[tuple[str, list[str]]]:
    """A server that answers as the Hub does for one repository, at one commit; gives its address and what was asked.

    `way` changes how: refuse={path's beginning: (status, error code)}, stop=(bytes of a body, event to wait for before
    the connection is closed), once for the first body that is longer.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            asked.append(f"{self.command} {self.path} {wanted}".strip())
            headers, status, body = {"X-Repo-Commit": COMMIT}, 200, b""
            name = self.path.split("/", 5)[-1] if "/resolve/" in self.path else ""
            refused = next((why for start, why in way.get("refuse", {}).items() if self.path.startswith(start)), None)
            if refused:
                status, headers["X-Error-Code"] = refused
            elif name in files:
                body = files[name]
                headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
                if wanted:
                    first = int(wanted.removeprefix("bytes=").removesuffix("-"))
                    headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
                    status, body = 206, body[first:]
            elif name or not self.path.startswith("/api/models/owner/"):
                status, headers["X-Error-Code"] = 404, "EntryNotFound" if name else "RepoNotFound"
            elif "/tree/" in self.path:
                body = json.dumps(
                    [{"type": "file", "path": f, "size": len(files[f]), "oid": "0"} for f in files]
                ).encode()
            else:
                names = [{"rfilename": file} for file in files]
                body = json.dumps({"id": "owner/part", "sha": COMMIT, "siblings": names}).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "GET":
                return
            if "stop" in way and len(body) > way["stop"][0]:
                size, event = way.pop("stop")
                self.wfile.write(body[:size])
                event.wait(60)
                self.close_connection = True
            else:
                self.wfile.write(body)

    with served(Handler) as address:
        yield address, asked


MODEL = dict.fromkeys(("config.json", *EXPECTED), b"{}")
LARGE = random.Random(0).randbytes(24 << 20)  # huggingface_hub writes 10 MiB at a time
CHUNK = 10 << 20


@pytest.mark.parametrize("damaged", [False, True])
def test_a_killed_download_goes_on_where_it_was(tmp_path, damaged):
    killed = threading.Event()
    with hub(MODEL | {"model.safetensors": LARGE}, stop=(15 << 20, killed)) as (address, asked):
        command = [sys.executable, "-c", SCRIPT, "owner/whole"]
        process = subprocess.Popen(command, env=environment_of(tmp_path, HF_ENDPOINT=address), stdout=subprocess.PIPE)
        deadline = time.monotonic() + 60
        partial = tmp_path / "models--owner--whole" / "blobs" / f"{hashlib.sha256(LARGE).hexdigest()}.incomplete"
        while not partial.exists() or partial.stat().st_size < CHUNK:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.communicate()
        killed.set()
        if damaged:
            with partial.open("r+b") as file:
                file.write(b"else")
        assert partial.stat().st_size == CHUNK
        asked.clear()
        path = Path(hub_path("owner/whole", tmp_path, HF_ENDPOINT=address))
        weights = [line for line in asked if line.startswith("GET") and "model.safetensors" in line]
        assert weights[0].endswith(f"model.safetensors bytes={CHUNK}-")
        assert len(weights) == 1 + damaged  # what has the wrong checksum is fetched anew
        assert (path / "model.safetensors").read_bytes() == LARGE
        assert not partial.exists()
        asked.clear()
        assert hub_path("owner/whole", tmp_path, HF_ENDPOINT=address) == str(path)
        assert asked == []


def test_a_connection_that_is_cut_is_taken_up_again(tmp_path):
    cut = threading.Event()
    cut.set()
    with hub({"a.gguf": LARGE}, stop=(15 << 20, cut)) as (address, asked):
        path = hub_path("owner/one", tmp_path, HF_ENDPOINT=address)
        assert Path(path).read_bytes() == LARGE
        assert any(f"a.gguf bytes={CHUNK}-" in line for line in asked)


def test_a_progress_bar_in_a_terminal_only(tmp_path):
    with hub(MODEL | {"model.safetensors": LARGE}) as (address, _):
        sized = 'stty cols 100 rows 30; exec "$@"'  # tqdm draws nothing in a terminal of no width
        command = ["sh", "-c", sized, "sh", sys.executable, "-c", SCRIPT, "owner/whole"]
        seen = Terminal(command, **environment_of(tmp_path / "a", HF_ENDPOINT=address))
        assert seen.finish() == 0
        assert re.search(r"model.safetensors: +\d+%.*MB/s", seen.output)
        hub_path("owner/whole", tmp_path / "b", HF_ENDPOINT=address)  # which asserts that stderr is empty


BINS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def test_pytorch_weights_are_fetched_where_there_are_no_others(tmp_path):
    index = json.dumps({"weight_map": dict(zip("ab", BINS, strict=True))}).encode()
    sharded = MODEL | dict.fromkeys(BINS, b"w") | {"pytorch_model.bin.index.json": index}
    others = dict.fromkeys(("tf_model.h5", "training_args.bin", "optimizer.bin", "pytorch_lora.bin"), b"x")
    for i, files in enumerate((sharded, MODEL | {"pytorch_model.bin": b"w"})):
        with hub(files | others) as (address, asked):
            path = hub_path("owner/bins", tmp_path / str(i), HF_ENDPOINT=address)
            assert {file.name for file in Path(path).iterdir()} == set(files)
            assert hub_path("owner/bins", tmp_path / str(i), HF_HUB_OFFLINE="1") == path
            assert asked
    with hub(sharded | {"model.safetensors": b"w"}) as (address, _):
        path = hub_path("owner/both", tmp_path / "both", HF_ENDPOINT=address)
        assert not set(BINS) & {file.name for file in Path(path).iterdir()}
    with hub(sharded) as (address, asked):
        found = hub_path("owner/bins", tmp_path / "none", HF_ENDPOINT=address, WITHOUT="torch")
        assert found.startswith("UnsupportedError owner/bins holds PyTorch weights")
        assert "anthesis[torch]" in found
        assert not any(".bin" in line for line in asked)


@pytest.mark.parametrize(
    ("model", "refuse", "messages"),
    [
        ("owner/m", {"/api/": (401, "RepoNotFound")}, ["no file, directory or Hub model 'owner/m'", "set HF_TOKEN"]),
        ("owner/m", {"/api/": (404, "RepoNotFound")}, ["check the name", "set HF_TOKEN"]),
        ("owner/m", {"/api/": (403, "GatedRepo")}, ["is gated: ask for access at https://", "then set HF_TOKEN"]),
        ("owner/m", {"/owner/m/resolve": (403, "GatedRepo")}, ["is gated: ask for access"]),
        ("owner/m/a.gguf", {"/owner/m/resolve": (401, "GatedRepo")}, ["is gated: ask for access"]),
        ("owner/m", {"/owner/m/resolve": (403, "")}, ["the Hub refuses owner/m", "403", "HF_TOKEN is valid"]),
        ("owner/m", {"/owner/m/resolve": (404, "EntryNotFound")}, ["changed while it was fetched", "again"]),
        ("owner/m", {"/owner/m/resolve": (500, "")}, ["could not be reached", "500"]),
        ("owner/m/b.gguf", {}, ["owner/m has no file 'b.gguf'; it has a.gguf, c.gguf"]),
        ("else/m", {}, ["no file, directory or Hub model 'else/m'"]),
    ],
)
def test_what_the_hub_refuses(tmp_path, model, refuse, messages):
    files = MODEL | {"model.safetensors": b"w", "a.gguf": b"g", "c.gguf": b"g"}
    with hub(files, refuse=refuse) as (address, _):
        found = hub_path(model, tmp_path, HF_ENDPOINT=address)
    assert found.startswith(("RequestError", "CheckpointError"))
    assert "\n" not in found
    for message in messages:
        assert message in found


def test_repositories_without_a_model(tmp_path):
    with hub({"README.md": b"x", "pytorch_model.bin": b"w"}) as (address, _):
        assert "needs config.json with" in hub_path("owner/m", tmp_path, HF_ENDPOINT=address)
        assert "nor any other GGUF file" in hub_path("owner/m/a.gguf", tmp_path, HF_ENDPOINT=address)
    with hub(MODEL | {"a.gguf": b"g", "b.gguf": b"g", "pytorch_model.bin": b"w"}) as (address, _):
        assert "choose one, as owner/m/FILE: a.gguf, b.gguf" in hub_path("owner/m", tmp_path, HF_ENDPOINT=address)


def test_a_copy_of_the_weights_alone_is_completed_once(tmp_path):
    snapshot = cached(tmp_path, "owner/part", "config.json", "model.safetensors")
    stored = {name: name.encode() for name in ("tokenizer.json", "merges.txt", "README.md", "tokenizer_config.json")}
    with hub({"config.json": b"{}", "model.safetensors": b"not to be fetched", **stored}) as (address, asked):
        assert hub_path("owner/part", tmp_path, HF_ENDPOINT=address) == str(snapshot)
        assert asked
        assert not any("model.safetensors" in line for line in asked)
        for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt"):
            assert (snapshot / name).read_text() == name
        assert not (snapshot / "README.md").exists()
        assert not (snapshot / "generation_config.json").exists()
        assert (snapshot / "model.safetensors").read_text() == "{}"
        asked.clear()
        assert hub_path("owner/part", tmp_path, HF_ENDPOINT=address) == str(snapshot)
        assert asked == []


def test_offline_a_copy_of_the_weights_alone_is_said_to_be_one(tmp_path):
    snapshot = cached(tmp_path, "owner/part", "config.json", "model.safetensors", "generation_config.json")
    warning, path = hub_path("owner/part", tmp_path, HF_HUB_OFFLINE="1").splitlines()
    assert path == str(snapshot)
    assert "owner/part" in warning
    assert "may be incomplete: it has no tokenizer.json, tokenizer_config.json (HF_HUB_OFFLINE" in warning
    assert "hf download owner/part" in warning


def test_an_unreachable_hub_does_not_stop_a_model_whose_weights_are_there(tmp_path):
    snapshot = cached(tmp_path, "owner/part", "config.json", "model.safetensors")
    warning, path = hub_path("owner/part", tmp_path, HF_ENDPOINT="http://127.0.0.1:9").splitlines()
    assert path == str(snapshot)
    assert "may be incomplete" in warning


def test_offline_without_a_complete_copy(tmp_path):
    cached(tmp_path, "owner/partial", "config.json")
    for model in ("owner/partial", "owner/absent", "absent", "owner/absent/x.gguf"):
        found = hub_path(model, tmp_path, HF_HUB_OFFLINE="1")
        assert found.startswith("CheckpointError")
        assert "HF_HUB_OFFLINE" in found
        assert "hf download" in found


def test_unreachable_hub(tmp_path):
    begin = time.monotonic()
    found = hub_path("owner/absent", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert time.monotonic() - begin < 10  # huggingface_hub itself tries again and again, for some 20 s
    assert found.startswith("CheckpointError owner/absent")
    assert "could not be reached" in found
    assert "127.0.0.1: Connection refused" in found
    assert "\n" not in found


@pytest.mark.slow  # for huggingface_hub tries again and again
def test_a_proxy_is_left_to_be_tried_in_silence(tmp_path):
    proxied = {"HF_ENDPOINT": "http://hub.invalid", "http_proxy": "http://127.0.0.1:9"}
    found = hub_path("owner/absent", tmp_path, **proxied)
    assert "could not be reached" in found
    assert "hub.invalid" not in found  # it is the proxy's to find


@pytest.mark.parametrize("model", ["gpt2", "owner/name", "owner/name.v2", "owner/name/file.Q4_0.gguf"])
def test_ids(model):
    assert looks_like_hub_id(model)


@pytest.mark.parametrize("model", ["/no/dir", "./x", "../x", "a/b/c", "~/x", "x.gguf", "dir/x.gguf", "a b", "", "x/"])
def test_paths_that_do_not_exist(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not looks_like_hub_id(model)
    if model:
        with pytest.raises(RequestError, match="no such file or directory"):
            open_checkpoint(model)
