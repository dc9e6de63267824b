"""Models of the Hugging Face Hub.

A model that is completely in the cache of `huggingface_hub` is used from there without asking the network, so that a
start takes no round trip and a run tomorrow uses the weights of today; `hf download` updates it. A copy is complete
when it has config.json, all weights, and each file of `_EXPECTED` either itself or as an empty file of its name in
the cache's `.no_exist`, where `huggingface_hub` notes that a commit lacks a file. Other programs often fetch weights
only: then the small files are fetched once, of the same commit, and what does not exist is noted. Layout of the cache:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache. Variables of `huggingface_hub` (HF_HOME, HF_TOKEN,
HF_HUB_OFFLINE, HF_ENDPOINT, ...) have their effect.

Weights are fetched by `_fetch_blob`, since `huggingface_hub` (2.4) begins a download that was cut off from its start.
"""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from anthesis.checkpoint.safetensors import INDEX_NAME, SINGLE_NAME
from anthesis.checkpoint.torch_bin import INDEX_NAME as BIN_INDEX_NAME
from anthesis.checkpoint.torch_bin import SINGLE_NAME as BIN_SINGLE_NAME
from anthesis.checkpoint.torch_bin import check_torch, weight_files
from anthesis.errors import AnthesisError, CheckpointError, RequestError, UnsupportedError, first_line

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_SMALL_FILES = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "vocab.*",
                "merges.txt", "chat_template*", "added_tokens.json", INDEX_NAME)  # fmt: skip
_EXPECTED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
_WEIGHT_FILES = (SINGLE_NAME, "model-*-of-*.safetensors")
_BIN_FILES = (BIN_SINGLE_NAME, "pytorch_model-*-of-*.bin")
_CONNECT_S = 5.0
_MAX_PLAIN_BYTES = 50_000_000_000
"""Of a file that the Hub gives out over plain HTTP."""


def looks_like_hub_id(model: str) -> bool:
    """Whether a name can be a model of the Hub: `name`, `owner/name` or `owner/name/file.gguf`."""
    if model.endswith(".gguf"):
        return re.fullmatch(rf"{_PART}/{_PART}/{_PART}", model) is not None
    return re.fullmatch(rf"{_PART}(/{_PART})?", model) is not None


def hub_path(model: str) -> Path:
    """The local copy of a model of the Hub, fetched where the cache lacks it.

    Args:
        model: `name`, `owner/name`, or `owner/name/file.gguf` for one file of a repository with several.

    Returns:
        A directory with config.json and safetensors, or a GGUF file.

    Raises:
        RequestError: there is no such model, it is private or gated, or it has several GGUF files and none was chosen.
        CheckpointError: it is not in the cache and can't be fetched.
    """
    repository, file = (model.rsplit("/", 1)[0], model.rsplit("/", 1)[1]) if model.endswith(".gguf") else (model, None)
    path = _cached(repository, file) or _fetched(repository, file)
    if path.is_dir() and _lacking(path):
        _complete(repository, path)
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps huggingface_hub from logging its own tries, of which our errors and warnings say what comes of them.

    Its progress bars stay, but in a terminal only: they are no text for a file (HF_HUB_DISABLE_PROGRESS_BARS decides
    otherwise).
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils import logging as hub_logging

    without_bars = not (
        sys.stderr.isatty() or are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    )
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.CRITICAL)
    if without_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)
        if without_bars:
            enable_progress_bars()


def check_reachable() -> None:
    """Finds out within seconds that the Hub can't be reached, where huggingface_hub tries for half a minute.

    Raises:
        OSError: no connection.
    """
    from huggingface_hub import constants

    endpoint = urlsplit(constants.ENDPOINT)
    proxies = getproxies_environment()
    if constants.HF_HUB_OFFLINE or endpoint.hostname is None or {endpoint.scheme, "all"} & set(proxies):
        return
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    # of each family one address: a host with many is reached at any of them or at none
    found = socket.getaddrinfo(endpoint.hostname, port, type=socket.SOCK_STREAM)
    addresses = {family: str(address[0]) for family, _, _, _, address in reversed(found)}
    errors: list[OSError] = []
    for address in addresses.values():
        try:
            socket.create_connection((address, port), _CONNECT_S / len(addresses)).close()
            return
        except OSError as error:
            errors.append(error)
    raise OSError(f"{endpoint.hostname}: {errors[-1].strerror or errors[-1]}") from errors[-1]


def _lacking(snapshot: Path) -> list[str]:
    """The expected files of which it is not known that they don't exist."""
    known_absent = snapshot.parent.parent / ".no_exist" / snapshot.name
    return [name for name in _EXPECTED if not (snapshot / name).is_file() and not (known_absent / name).is_file()]


@quiet()
def _complete(repository: str, snapshot: Path) -> None:
    """Fetches the small files that a copy lacks, of its own commit; warns where that can't be done."""
    from huggingface_hub import constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    reason = "HF_HUB_OFFLINE is set"
    try:
        if not constants.HF_HUB_OFFLINE:
            check_reachable()
            for name in _lacking(snapshot):
                try:
                    hf_hub_download(repository, name, revision=snapshot.name)
                except LocalEntryNotFoundError:
                    raise
                except EntryNotFoundError:  # huggingface_hub has noted it
                    continue
            snapshot_download(repository, revision=snapshot.name, allow_patterns=list(_SMALL_FILES))
            return
    except (LocalEntryNotFoundError, HFValidationError) as error:
        reason = _unasked(error)
    except network_errors() as error:
        reason = _unasked(error)
    warnings.warn(
        f"the copy of {repository} in the Hub cache may be incomplete: it has no {', '.join(_lacking(snapshot))} "
        f"({reason}); `hf download {repository}` completes it",
        stacklevel=2,
    )


def _cache_folder(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _cached(repository: str, file: str | None) -> Path | None:
    folder = _cache_folder(repository)
    if not (folder / "refs" / "main").is_file():
        return None
    directory = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    if file:
        return directory / file if (directory / file).is_file() else None
    if (directory / "config.json").is_file():
        try:
            weight_files(directory)
        except AnthesisError:  # an incomplete copy
            return None
        return directory
    files = sorted(directory.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


@quiet()
def _fetched(repository: str, file: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        check_reachable()
        info = HfApi().model_info(repository)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        patterns = () if file else _weight_patterns(repository, names)
        if patterns == _BIN_FILES:
            check_torch(repository)
        file = None if patterns else _one_gguf(repository, names, file)
        for name in [file] if file else [name for name in names if any(fnmatch(name, p) for p in patterns)]:
            _fetch_blob(repository, info.sha or "main", name)
        if file:
            return Path(hf_hub_download(repository, file))
        return Path(snapshot_download(repository, allow_patterns=[*_SMALL_FILES, BIN_INDEX_NAME, *patterns]))
    except GatedRepoError as error:
        raise RequestError(
            f"{repository} is gated: ask for access at https://huggingface.co/{repository}, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise RequestError(
            f"there is no file, directory or Hub model {repository!r}, or it is private: check the name; "
            "for a private model set HF_TOKEN"
        ) from error
    except HFValidationError as error:
        raise RequestError(f"{repository!r} can't be the name of a Hub model: {error}") from error
    except OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"{repository} is not (completely) in the Hub cache and HF_HUB_OFFLINE is set: unset it, fetch the model "
            f"with `hf download {repository}`, or name a directory, a .gguf file or random:NAME"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(_unreachable(repository, error)) from error
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"{repository} was changed while it was fetched ({first_line(error)}): run the same command again"
        ) from error
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", None) not in (401, 403):
            raise CheckpointError(_unreachable(repository, error)) from error
        raise RequestError(
            f"the Hub refuses {repository} ({first_line(error)}): check that HF_TOKEN is valid and may read it"
        ) from error
    except network_errors() as error:
        raise CheckpointError(_unreachable(repository, error)) from error


def network_errors() -> tuple[type[Exception], ...]:
    """What a failing connection raises: versions of huggingface_hub differ in the library they use, loaded by now."""
    return (OSError, *(sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules))


def _unreachable(repository: str, error: Exception) -> str:
    return (
        f"{repository} is neither a file nor a directory nor in the Hub cache, and the Hub could not be reached "
        f"({first_line(error)}): check the connection, or name a directory, a .gguf file or random:NAME"
    )


def _unasked(error: Exception) -> str:
    return f"the Hub could not be asked, which HF_HUB_OFFLINE=1 would spare: {first_line(error)}"


def _weight_patterns(repository: str, names: list[str]) -> tuple[str, ...]:
    """Which files hold the weights of a repository that is a directory for us; none where it is not."""
    if "config.json" not in names:
        return ()
    if SINGLE_NAME in names or INDEX_NAME in names:
        return _WEIGHT_FILES
    has_bin = BIN_SINGLE_NAME in names or BIN_INDEX_NAME in names
    return _BIN_FILES if has_bin and not _ggufs(names) else ()


def _ggufs(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".gguf") and "/" not in name]


def _one_gguf(repository: str, names: list[str], file: str | None) -> str:
    files = _ggufs(names)
    if file in files:
        return file
    if file:
        there = f"; it has {', '.join(files)}" if files else ", nor any other GGUF file"
        raise RequestError(f"{repository} has no file {file!r}{there}")
    if len(files) == 1:
        return files[0]
    if files:
        raise RequestError(f"{repository} has several GGUF files; choose one, as {repository}/FILE: {', '.join(files)}")
    raise UnsupportedError(
        f"{repository} holds no model that is read: it needs config.json with {SINGLE_NAME}, {INDEX_NAME}, "
        f"{BIN_SINGLE_NAME} or {BIN_INDEX_NAME}, or a .gguf file; choose another repository"
    )


def _fetch_blob(repository: str, commit: str, name: str) -> None:
    """Fetches a file into the cache's blobs, where huggingface_hub then finds it; goes on where a try was cut off."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    url = hf_hub_url(repository, name, revision=commit)
    found = get_hf_file_metadata(url)
    if not found.size or found.size > _MAX_PLAIN_BYTES or not re.fullmatch(r"\w+", found.etag or ""):
        return  # huggingface_hub does it its own way
    folder = _cache_folder(repository)
    blob = folder / "blobs" / str(found.etag)
    partial = blob.with_name(f"{blob.name}.incomplete")
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / folder.name / f"{blob.name}.lock"  # huggingface_hub's own
    for directory in (blob.parent, lock.parent):
        directory.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        if partial.exists() and partial.stat().st_size > found.size:
            partial.unlink()
        with partial.open("ab") as file:
            had = file.tell()
            if had < found.size:
                headers = build_hf_headers()
                http_get(url, file, resume_size=had, headers=headers, expected_size=found.size, displayed_filename=name)
        # The tag of a large file is its SHA-256; two tries' bytes joined deserve the look.
        if had and len(blob.name) == 64 and _sha256(partial) != blob.name:
            partial.unlink()  # so that huggingface_hub fetches it anew
        else:
            partial.replace(blob)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()
