"""Hub ids: the cache, being offline, what is not an id. No network: huggingface_hub itself, in processes of its own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.hub import looks_like_hub_id
from anthesis.errors import RequestError

SCRIPT = """
import sys, warnings
from anthesis.checkpoint.hub import hub_path
warnings.showwarning = lambda message, *_, **__: print("warning:", message)
from anthesis.errors import AnthesisError
try:
    print(hub_path(sys.argv[1]))
except AnthesisError as error:
    print(type(error).__name__, error)
"""


def hub_path(model, cache, **environment):
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    variables |= {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache)} | environment
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model], env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Retrying" not in done.stderr
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
def hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers as the Hub does for one repository, at one commit; gives its address and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            headers, status, body = {"X-Repo-Commit": COMMIT}, 200, b""
            name = self.path.partition(f"/resolve/{COMMIT}/")[2]
            if name in files:
                body = files[name]
                headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
            elif name or not self.path.startswith("/api/models/owner/"):
                status, headers["X-Error-Code"] = 404, "EntryNotFound"
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
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


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
