"""What an hour of a device costs, and what tokens cost by it."""

from __future__ import annotations

import csv
import datetime
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anthesis.errors import RequestError, printable
from anthesis.json_text import MAX_BYTES
from anthesis.regular_file import read_regular
from anthesis.report.line import Line

COLUMNS = ("device", "usd_per_hour", "source", "date")
COMMAND_LINE = "--price"

_RUN = re.compile(r"[^\W\d_]+|\d+")
_SHARED_MACHINE = "workers of shards may have been on one machine at the same time, so its hours are not known"


@dataclass(frozen=True, kw_only=True)
class Price:
    """What an hour of a device costs.

    Attributes:
        name: the lines it is for have it in the device's name or description, as whole words.
        usd_per_hour: of one device; of the whole machine where the device is its processor.
        source: who says so: "--price", or what a file has.
        date: of the price, ISO 8601; None where it came by --price.
    """

    name: str
    usd_per_hour: float
    source: str
    date: str | None = None


def read_prices(values: Iterable[str]) -> list[Price]:
    """The prices that --price names.

    Args:
        values: each NAME=USD, or a csv file with the columns device, usd_per_hour, source, date.

    Raises:
        RequestError: neither, a price that is none, a file that can't be read, or two prices for one name.
    """
    found: dict[str, Price] = {}
    for value in values:
        for price in _of_value(value):
            other = found.setdefault(normalised(price.name), price)
            if other.usd_per_hour != price.usd_per_hour:
                raise RequestError(
                    f"two prices for {printable(price.name)!r}: {other.usd_per_hour:g} ({printable(other.source)}) and "
                    f"{price.usd_per_hour:g} ({printable(price.source)}) USD an hour; give one"
                )
    return list(found.values())


def normalised(text: str) -> str:
    """Without case and punctuation: "A100-80GB" and "a100 80gb" are the same."""
    return "".join(c for c in text.casefold() if c.isalnum())


def price_of(line: Line, prices: Sequence[Price]) -> Price | None:
    """The price for a line's device: the longest of the names that its name or description contains."""
    described = line.device_description or line.processor  # a row that failed does not say on which device
    texts = [text for text in (line.device, described) if text]
    fitting = [price for price in prices if any(_is_in(price.name, text) for text in texts)]
    return max(fitting, key=lambda price: len(normalised(price.name)), default=None)


def _is_in(name: str, text: str) -> bool:
    """Whether a text has the name in it, as whole words: "a100" is in "A100-80GB", and "a10" is not.

    Runs of letters and of digits have to be the same; what stands between them, or nothing, does not matter.
    """
    between = r"[\W_]*".join(map(re.escape, _RUN.findall(name.casefold())))
    return re.search(rf"(?<![^\W_]){between}(?![^\W_])", text.casefold()) is not None


def with_price(line: Line, price: Price | None) -> Line:
    """The line with what its tokens and its job cost: price / 3600 x devices x seconds.

    The ranks of a processor share their machine, which has one price. Sessions of a data set may have had different
    numbers of devices.
    """
    if price is None:
        return line
    line = replace(line, usd_per_hour=price.usd_per_hour, price_source=price.source, price_date=price.date)
    if not line.is_usable or line.total_s is None:
        return line
    if line.is_on_processor and line.shards is not None:
        return replace(line, price_note=_SHARED_MACHINE)
    devices_s = line.total_s if line.is_on_processor else line.devices_s or line.total_s * (line.devices or 1)
    per_job = price.usd_per_hour / 3600 * devices_s
    per_token = per_job / line.total_s / line.tokens_per_s if line.tokens_per_s and line.tokens_per_s > 0 else None
    return replace(
        line,
        usd_per_job=per_job,
        usd_per_million_tokens=None if per_token is None else per_token * 1e6,
    )


def check_used(prices: Sequence[Price], lines: Sequence[Line]) -> None:
    """Refuses a price of the command line that is no line's.

    Raises:
        RequestError: its name is in no line's device.
    """
    used = {price.name for line in lines if (price := price_of(line, prices)) is not None}
    for price in prices:
        if price.source == COMMAND_LINE and price.name not in used:
            devices = sorted({printable(line.place) for line in lines if line.place})
            raise RequestError(
                f"--price {printable(price.name)}={price.usd_per_hour:g} is for none of the rows; their devices are: "
                f"{', '.join(devices) or 'unknown'}"
            )


def _of_value(value: str) -> list[Price]:
    name, equals, number = value.rpartition("=")
    if equals and not os.path.exists(value):
        where = f"--price {printable(value)}"
        return [Price(name=_name(name, where), usd_per_hour=_usd(number, where), source=COMMAND_LINE)]
    return _of_file(Path(value))


def _of_file(path: Path) -> list[Price]:
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise RequestError(
            f"--price {printable(str(path))} is neither NAME=USD nor a file that can be read: "
            f"{error.strerror or error}; write for instance --price h100=2.50"
        ) from error
    except ValueError as error:
        raise RequestError(f"{path} is no file of prices: {printable(str(error))}") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    prices = []
    try:
        header = [cell.strip() for cell in next(rows, [])]
        if sorted(header) != sorted(COLUMNS):
            raise RequestError(
                f"{path}, line 1: the columns are {printable(', '.join(header)) or 'missing'}; needed are "
                f"{', '.join(COLUMNS)}"
            )
        for cells in rows:
            if any(cell.strip() for cell in cells):
                prices.append(_of_cells(header, cells, f"{path}, line {rows.line_num}"))
    except csv.Error as error:
        raise RequestError(f"{path}, line {rows.line_num}: not csv: {error}") from error
    return prices


def _of_cells(header: list[str], cells: list[str], where: str) -> Price:
    if len(cells) != len(header):
        raise RequestError(f"{where}: {len(cells)} cells; {len(header)} are needed: {', '.join(header)}")
    row = {title: cell.strip() for title, cell in zip(header, cells, strict=True)}
    for title in COLUMNS:
        if not row[title]:
            raise RequestError(f"{where}: {title} is empty; every price needs one")
    try:
        datetime.date.fromisoformat(row["date"])
    except ValueError:
        raise RequestError(f"{where}: date is {printable(row['date'])!r}; write it as 2026-01-31") from None
    return Price(
        name=_name(row["device"], where),
        usd_per_hour=_usd(row["usd_per_hour"], where),
        source=row["source"],
        date=row["date"],
    )


def _name(text: str, where: str) -> str:
    if not normalised(text):
        raise RequestError(f"{where}: the name of a device is needed, such as h100")
    return text.strip()


def _usd(text: str, where: str) -> float:
    try:
        usd = float(text)
    except ValueError:
        usd = math.nan
    if not 0 < usd < math.inf:
        raise RequestError(f"{where}: {printable(text)!r} is no price; USD per hour is a number above 0, such as 2.50")
    return usd
