"""transformers offers the same classes whether it searched for them or was given the list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.models import needs_torch
from vlmcache.load import class_list

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="nothing is kept there")

KEY = ["transformers-1.0.dist-info", "/somewhere/models", "1"]
FOUND: dict[Any, Any] = {
    "bert": {frozenset(): {"configuration_bert": {"BertConfig"}}},
    "deep": {"er": {frozenset({"torch", "vision"}): {"modeling_er": {"A", "B"}}}},
    frozenset({"torch"}): {"cache_utils": {"Cache"}},
}

PROGRAM = """
import json, sys
from vlmcache.load import class_list
original, searched = class_list._Finder._change, []
def counted(self, module):
    search = module.create_import_structure_from_path
    def count(where):
        if str(where).endswith("models"):
            searched.append(where)
        return search(where)
    module.create_import_structure_from_path = count
    original(self, module)
class_list._Finder._change = counted
before = list(sys.meta_path)
with class_list.kept(sys.argv[1] or None):
    import transformers, transformers.models
from transformers.utils import import_utils
assert [one for one in sys.meta_path if one in before or "class_list" in type(one).__module__] \\
    == before
def sets(value):
    if isinstance(value, dict):
        return sorted([sets(k), sets(v)] for k, v in value.items())
    return sorted(map(str, value)) if isinstance(value, (set, frozenset, list)) else str(value)
seen = [
    sets({name: vars(module)[name] for name in sorted(vars(module)) if name in (
        "_modules", "_class_to_module", "_import_structure", "_object_missing_backend", "__all__"
    )})
    for module in (transformers, transformers.models)
]
print(json.dumps([len(searched), seen]))
"""


def run(home: str) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, home], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    searched, seen = json.loads(done.stdout)
    return searched, seen


@needs_torch
def test_the_classes_are_those_that_a_search_finds(tmp_path: Path) -> None:
    _, expected = run("")
    home = str(tmp_path / "home")
    searched, first = run(home)
    assert searched == 1
    searched, second = run(home)
    assert searched == 0
    assert len(json.dumps(expected)) > 100_000
    assert first == expected
    assert second == expected
    status = (tmp_path / "home" / class_list.FILE).stat()
    assert status.st_mode & 0o777 == 0o600


def keep(home: Path) -> str:
    path = str(home / class_list.FILE)
    class_list._write(path, KEY, FOUND)
    return path


def test_what_is_kept_is_read_again_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = keep(tmp_path / "home")
    assert class_list._read(path, KEY) == FOUND
    assert os.listdir(tmp_path / "home") == [class_list.FILE]


@pytest.mark.parametrize("number", range(3))
def test_another_version_path_or_time_counts_as_another_list(tmp_path: Path, number: int) -> None:
    path = keep(tmp_path)
    other = [*KEY]
    other[number] += "1"
    assert class_list._read(path, other) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"null",
        b"[1, 2]",
        json.dumps([KEY, [["bert", 3]]]).encode(),
        json.dumps([KEY, [[["torch"], [["..os", ["system"]]]]]]).encode(),
        json.dumps([KEY, [["../x", []]]]).encode(),
        json.dumps([KEY, [[["torch"], [["name", ["a.b"]]]]]]).encode(),
        json.dumps([KEY, [[1, 2]]]).encode(),
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    path = keep(tmp_path)
    Path(path).write_bytes(content)
    assert class_list._read(path, KEY) is None


def test_a_file_that_others_may_write_or_that_is_a_link_counts_as_none(tmp_path: Path) -> None:
    path = keep(tmp_path)
    os.chmod(path, 0o620)
    assert class_list._read(path, KEY) is None
    os.chmod(path, 0o600)
    os.rename(path, tmp_path / "real")
    os.symlink(tmp_path / "real", path)
    assert class_list._read(path, KEY) is None
    os.unlink(path)
    os.mkfifo(path)
    assert class_list._read(path, KEY) is None


def test_a_home_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    class_list._write(str(tmp_path / "file" / class_list.FILE), KEY, FOUND)
    assert class_list._read(str(tmp_path / "file" / class_list.FILE), KEY) is None


def test_an_installation_without_metadata_next_to_it_is_searched_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "transformers" / "models").mkdir(parents=True)
    (tmp_path / "transformers" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    assert class_list._key() is None
    (tmp_path / "transformers-1.0.dist-info").mkdir()
    key = class_list._key()
    assert key is not None
    (tmp_path / "transformers" / "models" / "new").mkdir()
    assert class_list._key() != key


names = st.from_regex(r"[A-Za-z_]{1,5}", fullmatch=True)
files = st.dictionaries(names, st.sets(names, max_size=3), max_size=3)
leaves = st.dictionaries(st.frozensets(names, max_size=2), files, max_size=2)


@given(st.recursive(leaves, lambda below: st.dictionaries(names, below, max_size=3)))
def test_any_list_comes_back_as_it_was(found: dict[Any, Any]) -> None:
    assert class_list._unpacked(json.loads(json.dumps(class_list._packed(found)))) == found
