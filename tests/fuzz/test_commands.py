"""Any command with any arguments on any heap: one answer, no traceback, nothing touched outside."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder, CachedRepo, fingerprint
from tests.kit.commands import run_here
from tests.kit.hostile import examples
from tests.kit.rooms import OLD, settle
from vlmcache.cache.usage import Usage
from vlmcache.change import known
from vlmcache.cli import main as cli
from vlmcache.cli.register import COMMANDS, document_type, stream_types
from vlmcache.commands.doctor import doctor
from vlmcache.commands.remove import remove
from vlmcache.errors import ExitCode
from vlmcache.show.document import schema_of, schema_of_stream

FILES = {"config.json": b"{}", "a/model.safetensors": b"weights" * 50}


class Place(NamedTuple):
    """A working folder with a cache beside it, and what must stay as it is."""

    folder: Path
    outside: Path

    @property
    def cache(self) -> Path:
        return self.folder / "hub"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("commands")
    outside = tmp_path_factory.mktemp("outside")
    (outside / "precious/deep").mkdir(parents=True)
    (outside / "precious/deep/file").write_bytes(b"precious")
    (outside / "old.incomplete").write_bytes(b"precious too")
    for path in (outside / "old.incomplete", outside / "precious/deep/file"):
        os.utime(path, (0, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(folder / "hub"))
        patch.setenv("HF_HOME", str(folder / "hf"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Looking through all processes takes longer than all else here.
        patch.setattr(remove, "who_uses", lambda *_: Usage())
        patch.setattr(known, "who_uses", lambda *_: Usage())
        patch.setattr(doctor, "_seen_by_torch", lambda devices, _: devices)
        yield Place(folder, outside)


def put(repo: CachedRepo, name: str, content: bytes) -> None:
    path = repo.folder / name
    if not path.exists() or path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def lead_out(path: Path, outside: Path) -> None:
    """Put a link to a place outside where something else belongs."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)


def named(repo: CachedRepo, name: bytes) -> None:
    os.makedirs(os.path.join(os.fsencode(repo.folder), name), exist_ok=True)


HEAPS: dict[str, Callable[[CachedRepo, Path], object]] = {
    "revision": lambda repo, _: repo.revision(FILES),
    "detached": lambda repo, _: repo.revision({"config.json": b"{1}"}, refs=()),
    "shared": lambda repo, _: repo.revision({"w.bin": b"w" * 99}, shared=["w.bin"]),
    "copies": lambda repo, _: repo.revision({"c.json": b"{2}"}, link="copy"),
    "partial": lambda repo, _: repo.partial(age=OLD),
    "orphan": lambda repo, _: repo.orphan_blob(),
    "stray": lambda repo, _: repo.stray_file(),
    "ref to nothing": lambda repo, _: repo.ref_to_missing_commit("v/1"),
    "ref with a newline": lambda repo, _: put(repo, "refs/main", b"a" * 40 + b"\n"),
    "ref that leaves": lambda repo, _: put(repo, "refs/main", b"../../../outside"),
    "ref of junk": lambda repo, _: put(repo, "refs/\x1b[31m", b"\xff\0\x1b"),
    "tree of junk": lambda repo, _: put(repo, f"trees/{'a' * 40}.json", b"[" * 9000),
    "tree that leaves": lambda repo, _: put(
        repo,
        f"trees/{'a' * 40}.json",
        json.dumps(
            {
                "format_version": 1,
                "files": {"../../x": {"size": 1 << 62, "blob_id": "../x"}},
            }
        ).encode(),
    ),
    "snapshot of junk": lambda repo, _: put(repo, f"snapshots/{'a' * 40}/config.json", b"\xff"),
    "index that leaves": lambda repo, _: put(
        repo,
        f"snapshots/{'b' * 40}/model.safetensors.index.json",
        b'{"weight_map": {"a": "../../../../../outside/precious/deep/file"}}',
    ),
    "weights of junk": lambda repo, _: put(
        repo, f"snapshots/{'b' * 40}/model.safetensors", b"\x10\0\0\0\0\0\0\0{}              "
    ),
    "odd names": lambda repo, _: named(repo, b"snapshots/\xff\n\x1b]0;x\x07"),
    "deep": lambda repo, _: named(repo, b"/".join([b"snapshots", b"c" * 40] + [b"d"] * 70)),
    "link to a snapshot": lambda repo, out: lead_out(repo.snapshots / ("d" * 40), out / "precious"),
    "link to blobs": lambda repo, out: lead_out(repo.blobs, out),
    "link to refs": lambda repo, out: lead_out(repo.refs, out / "precious"),
    "link to trees": lambda repo, out: lead_out(repo.trees, out),
    "link to a blob": lambda repo, out: lead_out(
        repo.blobs / ("e" * 40), out / "precious/deep/file"
    ),
    "link to locks": lambda repo, out: lead_out(repo.cache.root / ".locks", out),
    "link to the store": lambda repo, out: lead_out(repo.cache.root / "blobs", out),
    "link to leftovers": lambda repo, out: lead_out(repo.cache.root / ".vlmcache-leftovers", out),
    "link in leftovers": lambda repo, out: lead_out(
        repo.cache.root / ".vlmcache-leftovers/part-1" / repo.folder.name / "snapshots", out
    ),
    "link to a repo": lambda repo, out: lead_out(repo.cache.root / "models--org--out", out),
    "pipe as ref": lambda repo, _: pipe(repo.refs / "pipe"),
    "pipe as tree": lambda repo, _: pipe(repo.trees / f"{'f' * 40}.json"),
}


def pipe(path: Path) -> None:
    if not path.parent.is_symlink() and not os.path.lexists(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)


def heap_up(place: Place, heap: list[tuple[str, str]]) -> None:
    """Make the cache anew from these parts; those that no longer fit are left out."""
    for path in place.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    work = place.folder / "work"
    work.mkdir()
    os.chdir(work)
    (work / "config.yaml").write_text(
        "models: {one: {repo: org/one}, odd: {repo: org/odd, revision: v/1, precision: int8}}\n"
        "vlmcache: {min_free: 0}\n"
    )
    (work / "file").write_bytes(b"\x00 some file")
    builder = CacheBuilder(place.cache)
    for kind, repo in heap:
        try:
            HEAPS[kind](builder.repo(repo), place.outside)
        except OSError:
            continue
    settle(place.cache)


REPOS = ("org/one", "org/odd")
HEAP = st.lists(st.tuples(st.sampled_from(sorted(HEAPS)), st.sampled_from(REPOS)), max_size=7)

WORDS = st.sampled_from(
    [
        *("one", "odd", "org/one", "org/odd@v/1", "org/one@main", "one@", "@main", "datasets/a/b"),
        *("models--org--one", "../hub", "file", "work", ".", "-", "", "a\\b", "x" * 300),
        *("\x1b[31m", "\udcff", "é\u202e", "0", "-1", "1e9", "9" * 400, "1GB", "30d", "size>1"),
        *("name=\x07", "used>9999y", "name", "fp16", "int8,x", "main", "..", "all", "cpu", "nan"),
        *("s3x:", "http:", "127.0.0.1:x", ":99999", "*.json", "[", "yes"),
    ]
)


@cache
def parameters(command: str) -> list[Any]:
    """Return what a command takes, as Typer knows it."""
    found = cli._Commands().get_command(None, command)
    return [one for one in found.params if one.name != "help"]


@cache
def validator(command: str) -> Any:
    lines = stream_types(command)
    schema = (
        schema_of_stream(command, lines) if lines else schema_of(command, document_type(command))
    )
    return jsonschema.Draft202012Validator(schema)


FORCED = {
    # What would else wait for somebody, serve for ever, or load models.
    "watch": ["--once"],
    "load-test": ["--history"],
    "serve": ["nobody/nothing"],
}
LEFT_OUT = {("watch", "listen"), ("load-test", "synthetic")}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(sorted(COMMANDS)))
    line = [command, *FORCED.get(command, [])]
    words: list[str] = []
    for one in parameters(command):
        if (command, one.name) in LEFT_OUT:
            continue
        if one.param_type_name == "argument":
            words += draw(st.lists(WORDS, min_size=int(one.required), max_size=2))
        elif draw(st.integers(0, 9)) == 0 or (one.name in ("json", "yes") and draw(st.booleans())):
            line.append(draw(st.sampled_from([*one.opts, *one.secondary_opts])))
            if not one.is_flag:
                line.append(draw(WORDS))
    if draw(st.integers(0, 9)) == 0:
        line.append(draw(WORDS))
    if words and words[0].startswith("-") and words[0] != "-":
        line.append("--")
    return line + words


@examples(120)
@given(HEAP, command_lines())
def test_every_command_answers_in_its_form_and_touches_nothing_outside(
    place: Place, heap: list[tuple[str, str]], line: list[str]
) -> None:
    heap_up(place, heap)
    before = fingerprint(place.outside)
    done = run_here(*line)
    assert fingerprint(place.outside) == before
    ExitCode(done.code)
    for text in (done.out, done.err):
        assert "Traceback" not in text
        assert "internal error" not in text
    assert not {c for c in done.err if not c.isprintable()} - {"\n"}
    options = line[: line.index("--")] if "--" in line else line
    if "--json" in options:
        lines = done.out.splitlines() if COMMANDS[line[0]].lines else [done.out]
        for document in map(json.loads, lines):
            assert document["schema"] == f"vlmcache.{line[0]}/1"
            if line[0] != "schema":
                validator(line[0]).validate(document)
        assert document.get("exit_code", 0) == done.code
    else:
        assert not {c for c in done.out if not c.isprintable()} - {"\n"}
        # What doctor finds wrong is its answer, not a failure of it.
        if done.code and (line[0], done.code) != ("doctor", ExitCode.DAMAGE):
            assert re.search(r"^error: [^\n]+\n(hint: [^\n]+\n)?\Z", done.err, re.MULTILINE)
