"""Hub ids: the cache, being offline, what is not an id. No network: huggingface_hub itself, in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.hub import looks_like_hub_id
from anthesis.errors import RequestError

SCRIPT = """
import sys
from anthesis.checkpoint.hub import hub_path
from anthesis.errors import AnthesisError
try:
    print(hub_path(sys.argv[1]))
except AnthesisError as error:
    print(type(error).__name__, error)
"""


def hub_path(model, cache, **environment):
    variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    variables |= {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache)} | environment
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model], env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def cached(cache: Path, repository: str, *files: str) -> Path:
    """A repository in huggingface_hub's documented layout."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    for file in files:
        (snapshot / file).write_text("{}")
    return snapshot


def test_a_cached_model_needs_no_network(tmp_path):
    snapshot = cached(tmp_path, "owner/single", "config.json", "model.safetensors")
    assert hub_path("owner/single", tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == str(snapshot)
    shards = cached(tmp_path, "bare", "config.json", "model-1.safetensors")
    index = {"weight_map": {"w": "model-1.safetensors"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    assert hub_path("bare", tmp_path, HF_HUB_OFFLINE="1") == str(shards)
    one = cached(tmp_path, "owner/one-gguf", "a.gguf")
    assert hub_path("owner/one-gguf", tmp_path, HF_HUB_OFFLINE="1") == str(one / "a.gguf")
    two = cached(tmp_path, "owner/two-ggufs", "a.gguf", "b.gguf")
    assert hub_path("owner/two-ggufs/b.gguf", tmp_path, HF_HUB_OFFLINE="1") == str(two / "b.gguf")


def test_offline_without_a_complete_copy(tmp_path):
    cached(tmp_path, "owner/partial", "config.json")
    for model in ("owner/partial", "owner/absent", "absent", "owner/absent/x.gguf"):
        found = hub_path(model, tmp_path, HF_HUB_OFFLINE="1")
        assert found.startswith("CheckpointError")
        assert "HF_HUB_OFFLINE" in found
        assert "hf download" in found


@pytest.mark.slow  # huggingface_hub itself tries again and again, for some 20 s
def test_unreachable_hub(tmp_path):
    found = hub_path("owner/absent", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert found.startswith("CheckpointError owner/absent")
    assert "could not be reached" in found
    assert "\n" not in found


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
