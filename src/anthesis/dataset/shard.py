"""A share of a data set's rows: shard i of S has the rows i, i + S, i + 2 S and so on.

So the shards are of one size, however the long rows are spread, and nobody needs to know how many rows there are.
"""

from __future__ import annotations

from dataclasses import dataclass

from anthesis.errors import RequestError, check_counts

MAX_SHARDS = 100_000
"""Each is some files in one directory."""


@dataclass(frozen=True)
class Shard:
    """Which rows.

    Attributes:
        index: from 0.
        count: of shards that there are.

    Raises:
        RequestError: a number out of its range.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        check_counts(num_shards=self.count)
        if self.count > MAX_SHARDS:
            raise RequestError(f"num_shards is {self.count:,}; it must be at most {MAX_SHARDS:,}")
        if not 0 <= self.index < self.count:
            raise RequestError(f"shard is {self.index}; of {self.count} shards they are 0 to {self.count - 1}")

    def row(self, place: int) -> int:
        """The number of its row at this place, both from 0."""
        return self.index + place * self.count

    def rows_of(self, total: int) -> int:
        """How many of the first `total` rows are its own."""
        return max(0, -((self.index - total) // self.count))


WHOLE = Shard(0, 1)
"""All rows."""
