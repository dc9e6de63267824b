"""Habits of this code base that no linter checks: the direction of imports, docstrings, file sizes, foreign paths.

Each check is a function from source text to complaints, "file:line: what is wrong"; it is tried on a bad sample here
before it judges the project.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "anthesis"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400

# Who may import whom: a module imports from its own top-level name and from lines above it. "" is anthesis/__init__.py.
ORDER = (
    ("_native", "cgroups", "columns", "errors", "fingerprint", "json_text", "regular_file", "units"),
    ("atomic", "config", "cores", "fit", "memory", "native", "prompts", "records"),
    ("host",),
    ("quantize",),
    ("program",),
    ("models",),
    ("checkpoint",),
    ("tokenizer",),
    ("parallel",),
    ("devices",),
    ("engine",),
    ("completion", "intake", "scoring"),
    ("llm",),
    ("",),
    ("hf", "plan"),
    ("bench",),
    ("evaluate",),
    ("dataset",),
    ("schema",),
    ("report",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}

Function = ast.FunctionDef | ast.AsyncFunctionDef


# --- the direction of imports ----------------------------------------------------------------------------------------


def import_complaints(path: str, source: str) -> list[str]:
    """Upward and sideways imports in `path` (relative to the package), wherever in the module they stand."""
    parts = Path(path).with_suffix("").parts
    own = "" if parts == ("__init__",) else parts[0]
    if own not in RANK:
        return [f"{path}:1: {own!r} has no place in the order of imports; give it one in ORDER"]
    complaints = []
    for line, target in _imported(ast.parse(source)):
        if target not in RANK:
            complaints.append(f"{path}:{line}: imports anthesis.{target}, which has no place in ORDER")
        elif target != own and RANK[target] >= RANK[own]:
            complaints.append(
                f"{path}:{line}: {own or 'anthesis'} imports {target or 'anthesis'}, which is not below it"
            )
    return complaints


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, top-level name below anthesis) of each import of our own modules."""
    node: Any
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "anthesis":
            submodules = [f"anthesis.{alias.name}" for alias in node.names]
            names = [name if name.split(".")[1] in RANK else "anthesis" for name in submodules]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            argument = node.args[0]
            names = [argument.value] if isinstance(argument, ast.Constant) else []
        for name in names:
            if name == "anthesis" or name.startswith("anthesis."):
                yield node.lineno, name.removeprefix("anthesis").removeprefix(".").split(".")[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("config.py", "from anthesis.llm import LLM"),
        ("program/ir.py", "import anthesis.models.bloom"),
        ("devices/cpu/device.py", "def f():\n    from anthesis.engine.engine import Engine"),
        ("devices/cpu/device.py", "from anthesis import engine"),
        ("engine/engine.py", "from anthesis import LLM"),
        ("bench/measure.py", "from anthesis.dataset.read import rows"),
        ("models/bloom.py", "import importlib\nimportlib.import_module('anthesis.cli')"),
        ("utils.py", ""),
        ("errors.py", "from anthesis.utils import helper"),
    ],
)
def test_the_import_check_finds(path: str, source: str) -> None:
    (complaint,) = import_complaints(path, source)
    line = max(1, len(source.splitlines()))
    assert complaint.startswith(f"{path}:{line}: ")


def test_the_import_check_lets_downward_imports_pass() -> None:
    source = (
        "import json\nfrom anthesis.errors import X\nfrom anthesis import native\nfrom anthesis.devices.cpu import y"
    )
    assert import_complaints("devices/cpu/device.py", source) == []
    assert import_complaints("cli/bench.py", "from anthesis import LLM, __version__") == []


def test_imports_go_downwards_only() -> None:
    _expect_none(c for path in MODULES for c in import_complaints(str(path.relative_to(PACKAGE)), path.read_text()))


# --- docstrings ------------------------------------------------------------------------------------------------------

# Arrays by name (Mapping[str, Array]) have no one shape: their names are those of the program, which says it.
ARRAY = re.compile(r"^(?!(?:Mutable)?Mapping\b|dict\b).*(?:\b(?:ND)?Array\b|\bndarray\b|\bTensor\b)")
_SIZE = r"(?:\.\.\.|(?:\d+ )?[A-Z]\w*|\d+)"
_SIZES = rf"{_SIZE}(?:\s*(?:\+|-|\*|//?)\s*{_SIZE})*"
SHAPE = re.compile(rf"\((?:\.\.\.|{_SIZES},|{_SIZES}(?:, {_SIZES})+)?\)")
DTYPE = re.compile(r"\b(?:u?int(?:4|8|16|32|64)|b?float(?:16|32|64)|fp(?:8|16|32|64)|bf16|bool|integers?|dtype)\b")
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Source|Attributes|Example|Note):", re.MULTILINE)
ERRORS = frozenset(
    node.name for node in ast.parse((PACKAGE / "errors.py").read_text()).body if isinstance(node, ast.ClassDef)
)


def docstring_complaints(path: str, source: str, elsewhere: Mapping[str, ast.ClassDef] | None = None) -> list[str]:
    """What the docstrings of a module, of its public classes, functions and methods leave unsaid.

    A method without one inherits that of the method it overrides; `elsewhere` are classes of other modules, by name.
    """
    tree = ast.parse(source)
    complaints = [] if ast.get_docstring(tree) else [f"{path}:1: the module has no docstring"]
    if Path(path).stem.startswith("_") and not Path(path).stem.startswith("__"):
        return complaints
    for node in _public(tree, {**(elsewhere or {}), **classes(tree)}):
        complaints += [f"{path}:{node.lineno}: {node.name} {complaint}" for complaint in _node_complaints(node)]
    return complaints


def classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    """The classes a module defines, by name."""
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _public(parent: ast.Module | ast.ClassDef, known: Mapping[str, ast.ClassDef]) -> Iterator[Function | ast.ClassDef]:
    for node in parent.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if not decorators.isdisjoint({"overload", "typing.overload", f"{node.name}.setter"}):
            continue
        inherits = isinstance(parent, ast.ClassDef) and node.name in _documented_by_bases(parent, known)
        if ast.get_docstring(node) or not inherits:
            yield node
        if isinstance(node, ast.ClassDef):
            yield from _public(node, known)


def _documented_by_bases(node: ast.ClassDef, known: Mapping[str, ast.ClassDef]) -> set[str]:
    """Names of the methods that a class's bases, and theirs, have documented."""
    names: set[str] = set()
    for base in node.bases:
        definition = known.get(ast.unparse(base).split("[")[0].split(".")[-1])
        if definition is not None:
            names |= {m.name for m in definition.body if isinstance(m, Function) and ast.get_docstring(m)}
            names |= _documented_by_bases(definition, known)
    return names


def _node_complaints(node: Function | ast.ClassDef) -> Iterator[str]:
    docstring = ast.get_docstring(node)
    if not docstring:
        yield "has no docstring"
        return
    if docstring.splitlines()[1:2] not in ([], [""]):
        yield "has a summary that runs over one line"
    if isinstance(node, Function):
        sections = _sections(docstring)
        yield from _array_complaints(node, docstring, sections)
        for name in sorted(_raised(node) & ERRORS):
            if name not in sections.get("Raises", ""):
                yield f"raises {name} and has no line about it under Raises:"


def _sections(docstring: str) -> dict[str, str]:
    """Text by heading; what stands before the first heading is under ""."""
    pieces = SECTION.split(docstring)
    return {"": pieces[0]} | dict(zip(pieces[1::2], pieces[2::2], strict=True))


def _array_complaints(node: Function, docstring: str, sections: dict[str, str]) -> Iterator[str]:
    """Each array that goes in or comes out needs a shape and a type, where it is described or in the summary."""
    arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    described = _entries(sections["Args"]) if "Args" in sections else {}
    for argument in arguments:
        if argument.annotation and ARRAY.search(ast.unparse(argument.annotation)):
            text = described.get(argument.arg, sections[""])
            yield from (f"takes {argument.arg} and does not say its {lack}" for lack in _lacks(text))
    if node.returns and ARRAY.search(ast.unparse(node.returns)):
        text = sections.get("Returns") or sections.get("Yields") or sections[""]
        yield from (f"returns an array and does not say its {lack}" for lack in _lacks(text))


def _lacks(text: str) -> Iterator[str]:
    if not SHAPE.search(text):
        yield 'shape, like "(R, E)"'
    if not DTYPE.search(text):
        yield 'type, like "float32"'


def _entries(section: str) -> dict[str, str]:
    """The description of each argument; "a, b: text" describes both."""
    entries: dict[str, str] = {}
    pieces = re.split(r"^ {4}\**(\w+(?:, \**\w+)*):", section, flags=re.MULTILINE)
    for names, text in zip(pieces[1::2], pieces[2::2], strict=True):
        entries |= dict.fromkeys(re.split(r", \**", names), text)
    return entries


def _raised(function: Function) -> set[str]:
    """Names of the exceptions it raises itself."""
    raises = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc]
    return {ast.unparse(exc.func if isinstance(exc, ast.Call) else exc).split(".")[-1] for exc in raises}


GOOD = '''
"""A module."""

def scale(x: Array, row_scale: NDArray[np.float32], name: str) -> tuple[Array, int]:
    """Rows of x, each times its own number.

    Args:
        x: (R, 2 * E // W) float32.
        row_scale: (R,) float32.
        name: what errors call it.

    Returns:
        (R, 2 * E // W) float32 and the number of rows.

    Raises:
        ConfigError: another number of rows.
    """
    raise ConfigError("...")

def total(x: Array) -> float:
    """Sum of all numbers of x, (...) of any dtype."""

def run(weights: Mapping[str, Array]) -> dict[str, Array]:
    """What comes out of the program."""

class Device:
    """A device."""

    def _private(self, x: Array): ...
'''


def test_the_docstring_check_lets_good_docstrings_pass() -> None:
    assert docstring_complaints("good.py", GOOD) == []


@pytest.mark.parametrize(
    ("good", "bad", "complaint"),
    [
        ('"""A module."""', "", "bad.py:1: the module has no docstring"),
        ('"""A device."""', "", "Device has no docstring"),
        ("_private", "public", "public has no docstring"),
        ("each times", "each\n    times", "scale has a summary that runs over one line"),
        ("x: (R, 2 * E // W) float32", "x: rows, float32", "scale takes x and does not say its shape"),
        ("x: (R, 2 * E // W) float32", "x: (R, 2 * E // W)", "scale takes x and does not say its type"),
        ("row_scale: (R,) float32", "row_scale: (some) float32", "takes row_scale and does not say its shape"),
        ("        (R, 2 * E // W) float32 and", "        float32 and", "returns an array and does not say its shape"),
        ("        (R, 2 * E // W) float32 and", "        (R, E) and", "returns an array and does not say its type"),
        ("        ConfigError: another", "        When there is another", "scale raises ConfigError"),
        ("    Raises:\n        ConfigError: another number of rows.\n", "", "scale raises ConfigError"),
        ("x, (...) of any dtype", "x", "total takes x and does not say its shape"),
    ],
)  # fmt: skip
def test_the_docstring_check_finds(good: str, bad: str, complaint: str) -> None:
    assert good in GOOD
    complaints = docstring_complaints("bad.py", GOOD.replace(good, bad, 1))
    assert any(complaint in c for c in complaints), complaints


def test_a_docstring_is_inherited_only_from_the_method_it_stands_on() -> None:
    base = ast.parse('class Kind:\n    def cost(self):\n        """Bytes."""\n    def bare(self): ...')
    methods = "    def cost(self): ...\n    def bare(self): ...\n    def new(self): ..."
    source = f'"""M."""\nclass A(Kind):\n    """A."""\n{methods}'
    complaints = docstring_complaints("a.py", source, classes(base))
    assert complaints == ["a.py:5: bare has no docstring", "a.py:6: new has no docstring"]


def test_docstrings_say_what_is_needed() -> None:
    sources = {str(path.relative_to(PACKAGE)): path.read_text() for path in MODULES}
    elsewhere = {name: node for source in sources.values() for name, node in classes(ast.parse(source)).items()}
    _expect_none(c for path, source in sources.items() for c in docstring_complaints(path, source, elsewhere))


# --- devices ---------------------------------------------------------------------------------------------------------

DEVICE_NAMES = frozenset({"cpu", "cuda", "hpu", "reference", "reference-fp64"})


def device_complaints(path: str, source: str) -> list[str]:
    """Comparisons with a device's name: what differs between devices, a device says of itself."""
    complaints = []
    node: Any
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            # a collection of names, to be asked later whether a device is in it
            parts = [node.value] if isinstance(node.value, ast.Tuple | ast.List | ast.Set) else []
        names = {constant.value for part in parts for constant in _constants(part)} & DEVICE_NAMES
        complaints += [f"{path}:{node.lineno}: asks for the device {name!r} by name" for name in sorted(names)]
    return complaints


def _constants(node: ast.expr) -> Iterator[ast.Constant]:
    """Those that stand in an expression as they are, or in a collection in it."""
    if isinstance(node, ast.Constant):
        yield node
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for element in node.elts:
            yield from _constants(element)


@pytest.mark.parametrize(
    "source",
    [
        'if device == "cuda":\n    pass',
        'if "cpu" != info.name:\n    pass',
        'x = 1 if name in ("cpu", f()) else 2',
        'HOSTS = ("auto", "reference")',
        'CARDS: frozenset[str] = {"hpu"}',
        'match name:\n    case "reference-fp64":\n        pass',
    ],
)
def test_the_device_check_finds(source: str) -> None:
    (complaint,) = device_complaints("bench/measure.py", source)
    assert complaint.startswith("bench/measure.py:")


def test_the_device_check_lets_names_pass() -> None:
    source = 'open_device("cpu")\nif kind == "bf16" or device in DATASHEETS:\n    note = {"weights": "cpu"}'
    assert device_complaints("bench/measure.py", source) == []


def test_only_devices_know_their_names() -> None:
    modules = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] != "devices"]
    _expect_none(c for path in modules for c in device_complaints(str(path.relative_to(PACKAGE)), path.read_text()))


# --- files -----------------------------------------------------------------------------------------------------------

# Directories of some one machine. A path that starts with a variable, a host or a letter is another matter.
MACHINE_PATH = re.compile(r"(?<![\w.:/)}~$*-])/(?:work|home|root|tmp|Users|scratch|mnt)/[\w.]")


def path_complaints(path: str, source: str) -> list[str]:
    """Lines that name a directory which exists on somebody's machine only."""
    lines = enumerate(source.splitlines(), start=1)
    return [f"{path}:{number}: names a path of one machine" for number, line in lines if MACHINE_PATH.search(line)]


@pytest.mark.parametrize("directory", ["work", "home", "root", "tmp", "Users"])
def test_the_path_check_finds(directory: str) -> None:
    assert path_complaints("a.md", f"fine\nsee '/{directory}/somebody/model'") == [
        "a.md:2: names a path of one machine"
    ]
    assert path_complaints("a.md", f"https://example.org/{directory}/page and $ROOT/{directory}/x") == []


def test_no_file_names_a_path_of_one_machine() -> None:
    _expect_none(c for name, text in _tracked_texts() for c in path_complaints(name, text))


def _tracked_texts() -> Iterator[tuple[str, str]]:
    """(name, text) of every text file that git tracks."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in data:
            yield name, data.decode()


def size_complaints(path: str, source: str) -> list[str]:
    """A file that passes 400 lines is probably two."""
    lines = len(source.splitlines())
    return [f"{path}:{lines}: is longer than {MAX_LINES} lines; it is probably two files"] if lines > MAX_LINES else []


def test_the_size_check_finds() -> None:
    assert size_complaints("long.py", "\n" * 400) == []
    assert size_complaints("long.py", "\n" * 401) == ["long.py:401: is longer than 400 lines; it is probably two files"]


def test_files_are_small() -> None:
    files = [*(ROOT / "src").rglob("*.py*"), *(ROOT / "native").rglob("*.[ch]pp")]
    sources = [file for file in files if file.suffix != ".pyc"]
    _expect_none(c for file in sources for c in size_complaints(str(file.relative_to(ROOT)), file.read_text()))


def _expect_none(complaints: Iterator[str]) -> None:
    found = list(complaints)
    if found:
        pytest.fail(f"{len(found)} complaints:\n" + "\n".join(found), pytrace=False)
