"""Versions of huggingface_hub are known in one module, which names what it has in place of each."""

from __future__ import annotations

import ast
from pathlib import Path

import huggingface_hub
import pytest

import vlmcache
from vlmcache.hub import library

SOURCE = Path(vlmcache.__file__).parent
MODULE = SOURCE / "hub/library.py"
LIBRARIES = ("huggingface_hub", "hf_xet")


def imports(tree: ast.AST) -> list[tuple[ast.AST, str]]:
    """Return what is imported, by a statement or by `import_module`."""
    found: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found += [(node, f"{node.module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found += [(node, str(arg.value)) for arg in node.args if isinstance(arg, ast.Constant)]
    return [(node, name) for node, name in found if name.partition(".")[0] in LIBRARIES]


def test_no_other_module_names_the_client() -> None:
    """Not even for types: a version may have no such module."""
    names = {
        path.relative_to(SOURCE).as_posix(): [
            name for _, name in imports(ast.parse(path.read_text()))
        ]
        for path in SOURCE.rglob("*.py")
        if path != MODULE
    }
    assert {path: found for path, found in names.items() if found} == {}


def test_what_is_private_is_done_without_where_a_version_does_not_have_it() -> None:
    tree = ast.parse(MODULE.read_text())
    guarded = {
        id(below)
        for block in ast.walk(tree)
        if isinstance(block, ast.Try | ast.With) and "ImportError" in ast.unparse(block)
        for below in ast.walk(block)
    }
    private = [
        (node, name) for node, name in imports(tree) if any(p[0] == "_" for p in name.split("."))
    ]
    assert private
    assert [name for node, name in private if id(node) not in guarded] == []


def test_a_client_of_an_applications_own_class_is_of_the_library_that_it_derives_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, http = library.session()
    own = type("OwnClient", (type(shared),), {"__module__": __name__})
    with own() as session:
        monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
        assert library.session() == (session, http)
