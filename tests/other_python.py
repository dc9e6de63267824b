"""Interpreters for `python=`, that do something before what they are asked for."""

from __future__ import annotations

import sys
from pathlib import Path

OBEYS = """
import sys
option, code = sys.argv[1], sys.argv[2]
assert option == "-c"
sys.argv[:3] = [option]
exec(code)
"""


def other_python(directory: Path, text: str, interpreter: str = sys.executable) -> str:
    """A Python that does what `text` says before what it is asked for; or another interpreter, that does no more."""
    path = directory / "python"
    path.write_text(f"#!{interpreter}\n{text}\n" + (OBEYS if interpreter == sys.executable else ""))
    path.chmod(0o755)
    return str(path)
