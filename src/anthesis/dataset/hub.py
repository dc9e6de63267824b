"""Data sets of the Hugging Face Hub.

A data set of the Hub is downloaded once into the cache of the `datasets` library, as a file that is mapped, not read;
from then on it needs no network (HF_DATASETS_OFFLINE=1 or HF_HUB_OFFLINE=1 don't even ask). Code that comes with a data
set is never run: the Hub's own parquet copy takes its place.
"""

from __future__ import annotations

import hashlib
import logging
import pkgutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anthesis.checkpoint.hub import check_reachable, network_errors, quiet
from anthesis.dataset.parquet import CHUNK_ROWS, is_text_type, needs_extra, rows_of_cells
from anthesis.dataset.read import MOST_NAMES, Row, choose_column, no_rows
from anthesis.errors import AnthesisError, DataSetError, RequestError, few, first_line

_SAMPLED_ROWS = 256
_CONVERTED = "refs/convert/parquet"
"""Where the Hub keeps its own parquet copy of a data set: SUBSET/SPLIT/0000.parquet and so on, without a README."""
logger = logging.getLogger("anthesis")


class HubDataSet:
    """A data set of the Hub: see `DataSet`.

    Args:
        name: `owner/name` or `name`.
        column: as asked for, or None.
        split: None: the only one, or train.
        subset: None: the only one, or the one that the data set calls its default.

    Raises:
        RequestError: no such data set, split, subset or column; or it is private.
        DataSetError: it can't be fetched or read.
        UnsupportedError: the extra is not installed.
    """

    def __init__(self, name: str, column: str | None, split: str | None, subset: str | None) -> None:
        try:
            import datasets
            import pyarrow
        except ImportError as error:
            raise needs_extra(error) from error
        self._errors: tuple[type[Exception], ...] = (pyarrow.ArrowException, OSError)
        self.description = name + (f", subset {subset}" if subset else "")
        data, found = _load(datasets, name, subset, split)
        types = data.features.arrow_schema
        is_text = {
            key: isinstance(feature, datasets.Value) and is_text_type(types.field(key).type)
            for key, feature in data.features.items()
        }
        chosen, note = choose_column(name, column, is_text, "its features")
        self.column: str | None = chosen
        by_itself = "" if subset or found == "default" else f"subset {found}, "
        self.note = f"{by_itself}split {data.split}; {note}"
        self.num_rows: int | None = len(data)
        if not self.num_rows:
            raise no_rows(name, f"no rows in split {data.split}")
        self._texts: Any = data.select_columns([chosen]).with_format("arrow")  # which decodes no pictures
        self.identity: dict[str, Any] = {
            "name": name,
            "subset": found,
            "split": str(data.split),
            "column": chosen,
            "num_rows": self.num_rows,
            "sampled_sha256": self._sampled_sha256(),
        }

    def rows(self, skip: int, step: int = 1) -> Iterator[Row]:
        """See `DataSet.rows`.

        Raises:
            DataSetError: the cache can't be read any more.
        """
        for first in range(skip, len(self._texts), CHUNK_ROWS):
            behind = (first - skip) % step  # a row that is asked for
            yield from self._rows(first, first + CHUNK_ROWS, -behind % step, step)

    def check_unchanged(self) -> None:
        """See `DataSet.check_unchanged`; what is mapped from the cache stays as it is."""

    def share_read(self) -> float | None:
        """See `DataSet.share_read`; the number of rows is known."""
        return None

    def _rows(self, begin: int, end: int, skip: int = 0, step: int = 1) -> Iterator[Row]:
        try:
            cells = self._texts[begin:end].column(0)  # mapped, not copied
        except self._errors as error:
            raise DataSetError(f"{self.description}: row {begin} can't be read: {first_line(error)}") from error
        yield from rows_of_cells(cells, begin, self.column, self.description, skip, step)

    def _sampled_sha256(self) -> str:
        """Of up to 256 rows, spread evenly: a commit that only changes the README leaves it as it was."""
        size = len(self._texts)
        count = min(size, _SAMPLED_ROWS)
        digest = hashlib.sha256()
        for i in range(count):
            place = i * (size - 1) // max(count - 1, 1)
            for row in self._rows(place, place + 1):
                digest.update(f"{row!r}\n".encode())
        return digest.hexdigest()


def _load(datasets: Any, name: str, subset: str | None, split: str | None) -> tuple[Any, str]:
    """One split, mapped from the cache of the library, which fetches what it lacks; and the name of its subset."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    if name in {module.name for module in pkgutil.iter_modules(datasets.packaged_modules.__path__)}:
        # to the library a format, whose files it looks for in the working directory
        raise RequestError(f"there is no file and no data set of the Hub {name!r}")
    without_network = None
    if datasets.config.HF_HUB_OFFLINE or constants.HF_HUB_OFFLINE:
        without_network = "HF_DATASETS_OFFLINE or HF_HUB_OFFLINE is set"
    else:
        try:
            check_reachable()
        except OSError as error:
            without_network = f"the Hub could not be reached: {first_line(error)}"
    try:
        with quiet(), _library(datasets, offline=without_network is not None):
            data, found = _split_of_subset(datasets, name, subset, split, without_network)
    except AnthesisError:
        raise
    except HFValidationError as error:
        raise RequestError(f"{name!r} can't be the name of a data set of the Hub: {first_line(error)}") from error
    except datasets.exceptions.DatasetBuildError as error:
        cause = error.__cause__ or error
        reason = textwrap.shorten(str(cause) or type(cause).__name__, 300)  # of several lines, the first says little
        raise DataSetError(f"the files of {name} can't be read: {reason}") from error
    except (*network_errors(), datasets.exceptions.DatasetsError) as error:
        reason = without_network or f"could not be fetched: {first_line(error).split(' either: ')[-1]}"
        raise DataSetError(
            f"{name} is not (completely) in the cache of data sets ({reason}): go online, or name a file"
        ) from error
    if without_network and "OFFLINE" not in without_network:
        logger.warning("%s is read from the cache of data sets (%s)", name, without_network)
    return data, found


def _split_of_subset(
    datasets: Any, name: str, subset: str | None, split: str | None, without_network: str | None
) -> tuple[Any, str]:
    """See `_load`, without the errors of the network."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        try:
            found = datasets.load_dataset(name, subset)
        except RuntimeError as error:
            if "script" not in str(error):
                raise
            return _converted(datasets, name, subset, split, offline=False)
        except (OSError, ValueError):
            if without_network:
                try:
                    return _converted(datasets, name, subset, split, offline=True)
                except LocalEntryNotFoundError:
                    pass
            raise
    except AnthesisError:  # of `_converted`
        raise
    except (datasets.exceptions.DatasetNotFoundError, RepositoryNotFoundError) as error:
        if isinstance(error, GatedRepoError) or "is a gated dataset" in str(error):
            raise RequestError(
                f"{name} is gated: ask for access at https://huggingface.co/datasets/{name}, then set HF_TOKEN"
            ) from error
        raise RequestError(
            f"there is no file and no data set of the Hub {name!r}, or it is private: check the name; for a private "
            "one set HF_TOKEN"
        ) from error
    except (datasets.exceptions.DataFilesNotFoundError, datasets.data_files.EmptyDatasetError) as error:
        raise RequestError(f"{name} has no files that are read as rows: {first_line(error)}") from error
    except (ValueError, RuntimeError) as error:  # a subset that doesn't exist or has to be chosen
        if isinstance(error, (OSError, HFValidationError)):  # some are of both kinds
            raise
        if without_network:
            if subset is None and "multiple" not in str(error):
                raise OSError(first_line(error)) from error  # nothing of it is in the cache
            reason = " ".join(str(error).split("\nPlease")[0].split())
            raise RequestError(f"{name}: {reason}; choose with --subset ({without_network})") from error
        subsets = datasets.get_dataset_config_names(name)
        if subset in subsets or (subset is None and len(subsets) == 1):
            raise DataSetError(f"the files of {name} can't be read: {first_line(error)}") from error
        raise RequestError(_no_subset(name, subset, subsets)) from error
    chosen = _choose_split(name, split, found)
    return found[chosen], str(found[chosen].info.config_name)


def _converted(datasets: Any, name: str, subset: str | None, split: str | None, *, offline: bool) -> tuple[Any, str]:
    """See `_load`: of the Hub's own parquet copy, which `datasets` would take for one subset."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    where: dict[str, Any] = {"repo_id": name, "repo_type": "dataset", "revision": _CONVERTED}
    if offline:
        folder = Path(snapshot_download(**where, allow_patterns=[], local_files_only=True))
        # the first of a split is fetched last: where it is missing, so may be others
        names = [file.relative_to(folder).as_posix() for file in folder.glob("*/*/*.parquet")
                 if (file.parent / "0000.parquet").exists()]  # fmt: skip
    else:
        try:
            names = HfApi().list_repo_files(**where)
        except RevisionNotFoundError:
            names = []
    files: dict[str, dict[str, list[str]]] = {}
    for file in sorted(names):
        if file.endswith(".parquet") and file.count("/") == 2:
            files.setdefault(file.split("/")[0], {}).setdefault(file.split("/")[1], []).append(file)
    if not files and offline:
        raise LocalEntryNotFoundError(f"the cache has no complete split of {name}")
    if not files:
        raise RequestError(
            f"{name} comes as a program, which is not run, and the Hub has no parquet copy of it: name a file"
        )
    if subset not in files:
        if subset is not None or len(files) > 1:
            raise RequestError(_no_subset(name, subset, files))
        subset = next(iter(files))
    chosen = _choose_split(name, split, files[subset])
    logger.warning("%s comes as a program, which is not run; read is the Hub's own copy, %s", name, _CONVERTED)
    paths = [hf_hub_download(filename=file, local_files_only=offline, **where)
             for file in reversed(files[subset][chosen])]  # fmt: skip
    return datasets.Dataset.from_parquet(paths[::-1], split=datasets.NamedSplit(chosen.replace("-", "_"))), subset


@contextmanager
def _library(datasets: Any, *, offline: bool) -> Iterator[None]:
    """Keeps `datasets` from logging, from drawing bars where there is no terminal, and from asking while offline."""
    from huggingface_hub import constants

    log, verbosity = datasets.utils.logging, datasets.utils.logging.get_verbosity()
    switches: list[tuple[Any, bool]] = [(held, held.HF_HUB_OFFLINE) for held in (datasets.config, constants)]
    without_bars = not (
        sys.stderr.isatty()
        or datasets.are_progress_bars_disabled()
        or datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None
    )
    log.set_verbosity(logging.CRITICAL)
    if without_bars:
        datasets.disable_progress_bars()
    for held, before in switches:
        held.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        for held, before in switches:
            held.HF_HUB_OFFLINE = before
        log.set_verbosity(verbosity)
        if without_bars:
            datasets.enable_progress_bars()


def _choose_split(name: str, split: str | None, splits: Iterable[str]) -> str:
    names = list(splits)
    if split is None:
        split = names[0] if len(names) == 1 else "train"
    if split not in names:
        raise RequestError(f"{name} has no split {split!r}; choose with --split: {few(names, MOST_NAMES)}")
    return split


def _no_subset(name: str, subset: str | None, subsets: Iterable[str]) -> str:
    which = "several subsets" if subset is None else f"no subset {subset!r}"
    return f"{name} has {which}; choose with --subset: {few(list(subsets), MOST_NAMES)}"
