"""The package is built as ARCHITECTURE.md says: few rooms, few arrows between them, no cycle."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

import vlmcache

SOURCE = Path(vlmcache.__file__).parent
MOST_ROOMS = 23
MOST_ARROWS = 107


def _modules() -> dict[str, Path]:
    """Return each module's name without the package's -> its file."""
    modules: dict[str, Path] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = _modules()


def _imports_of(module: str) -> set[str]:
    """Return the modules that one imports, in functions and for types too."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [
                name if _module(name) in MODULES else node.module
                for name in (f"{node.module}.{alias.name}" for alias in node.names)
            ]
        imported.update(name for name in map(_module, names) if name in MODULES)
    return imported - {module}


def _module(name: str) -> str | None:
    """Return a name without the package\'s, `None` for a module of another package."""
    package, _, rest = name.partition(".")
    return rest if package == "vlmcache" else None


IMPORTS = {module: _imports_of(module) for module in MODULES}


BASE = (
    "addresses",
    "arguments",
    "codes",
    "config",
    "config_file",
    "config_values",
    "environment",
    "errors",
    "installing",
    "late",
    "log",
    "names",
    "paths",
    "progress",
    "report",
    "scheduled",
    "threads",
    "units",
)


def _room(module: str) -> str:
    """Return the folder below the package or `commands` that a module lies in.

    Of the modules that lie in none, those that every room needs are one room, and those that
    people import are another.
    """
    parts = module.split(".")
    if parts[0] == "commands":
        return ".".join(parts[:2])
    if module and SOURCE.joinpath(parts[0]).is_dir():
        return parts[0]
    return "base" if module in BASE else "vlmcache"


def _arrows() -> dict[tuple[str, str], list[str]]:
    """Return (room, room that it imports) -> the imports.

    What every room needs is not counted as imported: that would count the rooms again.
    """
    arrows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for module, imports in IMPORTS.items():
        for other in imports:
            if _room(module) != _room(other) != "base":
                arrows[_room(module), _room(other)].append(f"{module or 'vlmcache'} -> {other}")
    return arrows


def _cycles() -> list[list[str]]:
    """Return the groups of modules that import one another, directly or not (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(IMPORTS[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                groups.append(stack[at:])
            del stack[at:]

    for module in sorted(IMPORTS):
        if module not in index:
            visit(module)
    return groups


def test_there_are_few_rooms() -> None:
    rooms = sorted({_room(module) for module in MODULES if module != "commands"})
    assert len(rooms) <= MOST_ROOMS, "\n".join([f"{len(rooms)} rooms:", *rooms])


def test_few_arrows_lead_from_room_to_room() -> None:
    arrows = _arrows()
    lines = [f"{a} -> {b}: {', '.join(sorted(why)[:3])}" for (a, b), why in sorted(arrows.items())]
    assert len(arrows) <= MOST_ARROWS, "\n".join([f"{len(arrows)} arrows:", *lines])


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Imports in functions and under TYPE_CHECKING count."""
    assert _cycles() == []


def test_plans_and_values_of_commands_know_no_other_files_of_commands() -> None:
    pure = {"plan", "values"}
    wrong = [
        f"{module} -> {other}"
        for module, imports in IMPORTS.items()
        if module.startswith("commands.") and module.rpartition(".")[2] in pure
        for other in imports
        if other.startswith("commands.") and other.rpartition(".")[2] not in pure
    ]
    assert wrong == []


def test_only_the_command_line_imports_views() -> None:
    wrong = [
        f"{module} -> {other}"
        for module, imports in IMPORTS.items()
        if not module.startswith("cli.")
        for other in imports
        if other.rpartition(".")[2] == "view"
    ]
    assert wrong == []


def test_no_module_of_the_package_is_taken_for_a_test() -> None:
    names = {module: module.rpartition(".")[2] for module in MODULES}
    assert [
        m for m, name in names.items() if name.startswith("test_") or name.endswith("_test")
    ] == []


def test_no_module_at_the_top_hides_a_public_name() -> None:
    """Importing `vlmcache.x` puts the module in the place of what the package offers as `x`."""
    assert set(vlmcache.__all__) & set(MODULES) == set()


LONGEST_FUNCTION = 50
LONGEST_FILE = 450
LONGEST_CLASS = 250


def _statements(node: ast.AST) -> int:
    """Count statements without docstrings."""
    return sum(
        isinstance(below, ast.stmt)
        and not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant))
        for below in ast.walk(node)
    )


def _lines(source: str, tree: ast.AST) -> int:
    """Count lines without those of docstrings."""
    docs = sum(
        below.value.end_lineno - below.value.lineno + 1
        for below in ast.walk(tree)
        if isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
        and below.value.end_lineno is not None
    )
    return source.count("\n") - docs


def _long() -> list[str]:
    """Return the functions, classes and files that are longer than usual."""
    long = []
    for module, path in MODULES.items():
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        if _lines(source, tree) > LONGEST_FILE:
            long.append(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if _statements(node) - 1 > LONGEST_FUNCTION:
                    long.append(f"{module}.{node.name}")
            elif isinstance(node, ast.ClassDef):
                body = (node.end_lineno or 0) - node.lineno + 1
                if body > LONGEST_CLASS:
                    long.append(f"{module}.{node.name}")
    return long


def test_the_page_says_how_many_statements_the_package_and_its_largest_rooms_have() -> None:
    """In round numbers, so that not every change has to touch the page."""
    sizes: Counter[str] = Counter()
    for path in MODULES.values():
        folder = path.parent.relative_to(SOURCE).as_posix()
        sizes[f"{folder}/"] += _statements(ast.parse(path.read_text(encoding="utf-8")))
    page = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (total,) = re.findall(r"`src/` has ([\d,]+) statements", page)
    assert int(total.replace(",", "")) == pytest.approx(sizes.total(), rel=0.02)
    rows = re.findall(
        r"^\| (?:`([\w/]+/)`|the modules at the top) \| ([\d,]+) \|", page, re.MULTILINE
    )
    stated = {folder or "./": int(number.replace(",", "")) for folder, number in rows}
    assert len(stated) > 10
    assert {folder: sizes[folder] for folder in stated} == pytest.approx(stated, rel=0.05)


# The docstring of each says why it is long.
KNOWN_TO_BE_LONG = frozenset({"api", "api.Cache", "codes", "hub.ranges.Ranges"})


def test_what_is_longer_than_usual_is_known_and_the_list_only_shrinks() -> None:
    assert set(_long()) == KNOWN_TO_BE_LONG


if __name__ == "__main__":  # `python -m tests.test_architecture` draws the figures
    print(f"{len({_room(m) for m in MODULES if m != 'commands'})} rooms, {len(_arrows())} arrows")
    for (room, other), imports in sorted(_arrows().items()):
        print(f"{room} -> {other}: {', '.join(sorted(imports))}")
