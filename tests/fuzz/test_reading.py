"""Whatever is in what is read from outside: a value comes of it, a finding, or an error of ours."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import subprocess
import tarfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder, fingerprint, model_files
from tests.kit.commands import is_failure, run_here
from tests.kit.hostile import TEXTS, as_json, examples, mutated, spoiled
from tests.kit.pulls import config
from vlmcache.cache import layout
from vlmcache.cache.completeness import judge
from vlmcache.cache.memory import estimate
from vlmcache.cache.scan import scan
from vlmcache.cache.state import TreeFile
from vlmcache.cache.weights import read_header
from vlmcache.change.names import NamingOptions, find_targets
from vlmcache.commands.backup.backup import backup
from vlmcache.commands.backup.contents import SavedBlob, SavedRepo, restore_problem
from vlmcache.commands.backup.restore import restore
from vlmcache.commands.backup.tar import Reader
from vlmcache.commands.status.filters import parse_filter
from vlmcache.commands.status.values import RepoStatus
from vlmcache.config import (
    CacheLocation,
    Environment,
    Session,
    find_model,
    load_config,
    locate_cache,
    own_home,
    read_environment,
    side_caches,
)
from vlmcache.errors import ConfigError, ExitCode, VlmcacheError
from vlmcache.home.copies import list_copies
from vlmcache.hub.listing import check_names
from vlmcache.load.report import LoadReport
from vlmcache.load.saved import compared, read_report
from vlmcache.show.document import document
from vlmcache.units import parse_duration, parse_size

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
ROW = RepoStatus("org/name", "model", "", "cached", 5, 5, (), {}, 0, NOW, None)
COMMIT = "a" * 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def session(root: Path) -> Session:
    location = CacheLocation(str(root), "test")
    return Session(Environment({}, frozenset(), ""), config(), location)


def encodes(value: msgspec.Struct) -> None:
    """Assert that a value can be printed as the JSON of a command."""
    json.loads(document("status", value, ExitCode.DONE, None))


YAML_VALUES = st.sampled_from(
    [
        "auto",
        "null",
        "''",
        "!!int ''",
        "!!float ''",
        "!!bool maybe",
        "!!timestamp never",
        "!!binary x",
        "!!python/object:os.system {}",
        "!!set {a, b}",
        "!!omap [a]",
        "2026-02-30",
        "&a [*a]",
        "&a {x: *a}",
        "{? [a] : b}",
        "{<<: [{a: b}, 1]}",
        "{<<: *a}",
        "1e999GB",
        "9" * 400,
        "9" * 5000,
        "0x" + "f" * 5000,
        "1:" * 300 + "1",
        '"\\ud800"',
        '"\\0"',
        '"\\e[31m"',
        "org/name",
        "../..",
        "[" * 3000,
        "fp16",
        "8bit",
        "-.inf",
        "10GB",
        "true",
    ]
)
YAML_KEYS = st.sampled_from(
    [
        "model_path",
        "repo",
        "revision",
        "precision",
        "device_map",
        "trust_remote_code",
        "expected_size",
        "expected_memory",
        "min_free",
        "comfortable_free",
        "max_size",
        "<<",
        "? [x]",
        '"\\ud800"',
    ]
)
YAML = st.builds(
    lambda name, fields, limits: (
        f"models:\n  {name}:\n    repo: org/name\n"
        + "".join(f"    {key}: {value}\n" for key, value in fields.items())
        + "vlmcache:\n  min_free: 0\n"
        + "".join(f"  {key}: {value}\n" for key, value in limits.items())
    ).encode("utf-8", "surrogatepass"),
    YAML_VALUES | st.just("key"),
    st.dictionaries(YAML_KEYS, YAML_VALUES, max_size=3),
    st.dictionaries(YAML_KEYS, YAML_VALUES, max_size=2),
)


@examples(100)
@given(YAML | YAML.flatmap(spoiled))
def test_config_yaml_is_read_or_refused_with_its_name(place: Path, content: bytes) -> None:
    path = place / "config.yaml"
    path.write_bytes(content)
    environment = read_environment({"HOME": "/nowhere"}, str(place / "empty"))
    try:
        found = load_config(str(path), environment)
    except ConfigError as error:
        told = error.message
    else:
        told = found.path
        encodes(found)
        for key in found.models:
            find_model(found, key)
    assert told.startswith(str(path))


DOTENV = st.lists(
    st.builds(
        lambda name, value: f"{name}={value}\n",
        st.sampled_from(
            ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "PATH", "export X"]
        ),
        TEXTS
        | st.sampled_from(['"a\\x00"', "'unclosed", "~/x", "$HOME/x", "~nobody/x", "${X:-y}"]),
    ),
    max_size=4,
).map(lambda lines: "".join(lines).encode("utf-8", "surrogatepass"))


@examples(150)
@given(DOTENV | DOTENV.flatmap(spoiled))
def test_a_dotenv_names_a_cache_or_is_refused(place: Path, content: bytes) -> None:
    folder = place / "dotenv"
    folder.mkdir(exist_ok=True)
    (folder / ".env").write_bytes(content)
    with contextlib.suppress(VlmcacheError):
        environment = read_environment({"HOME": "/nowhere"}, str(folder))
        assert set(environment.from_file) <= set(environment.variables) - {"PATH"}
        location = locate_cache(None, environment)
        own_home(environment)
        side_caches(environment)
        encodes(scan(location.dir))


def _tree(names: dict[str, int]) -> dict[str, Any]:
    return {
        "format_version": 1,
        "files": {
            name: {"size": size, "blob_id": "b" * 40, "lfs_sha256": "c" * 64, "lfs_size": size}
            for name, size in names.items()
        },
    }


INDEX = {"metadata": {"total_size": 8}, "weight_map": {"a": "one.safetensors"}}
HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "X9", "shape": [2, 3], "data_offsets": [8, 8]},
}


def with_length(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(8)


WEIGHTS = as_json(HEADER).map(with_length) | as_json(HEADER).map(with_length).flatmap(spoiled)


@examples(200)
@given(WEIGHTS)
def test_a_safetensors_header_is_read_or_a_value_error(place: Path, content: bytes) -> None:
    path = place / "x.safetensors"
    path.write_bytes(content)
    try:
        tensors = read_header(str(path))
    except ValueError:
        return
    for precision in ("fp32", "int8", "int4"):
        assert 0 <= estimate(tensors, {}, precision, accelerator=True).weights < 1 << 63


@pytest.fixture(scope="module")
def heap(place: Path) -> CacheBuilder:
    """A cache with a model whose weights and one blob are in the shared store."""
    cache = CacheBuilder(place / "hub")
    files = {**model_files(), "model.safetensors.index.json": json.dumps(INDEX).encode()}
    repo = cache.repo("org/name")
    repo.revision(files, shared=["model.safetensors"], xet={"model.safetensors": "ab" * 32})
    return cache


def _ref(heap: CacheBuilder) -> Path:
    return heap.repo("org/name").refs / "main"


def _listing(heap: CacheBuilder) -> Path:
    return next(heap.repo("org/name").trees.iterdir())


def _index(heap: CacheBuilder) -> Path:
    snapshot = next(heap.repo("org/name").snapshots.iterdir())
    return snapshot / "model.safetensors.index.json"


def _manifest(heap: CacheBuilder) -> Path:
    return heap.shared_blob("ab" * 32).with_name("ab" * 32 + ".refs")


FILES_OF_A_CACHE: dict[str, tuple[Callable[[CacheBuilder], Path], st.SearchStrategy[bytes]]] = {
    "ref": (
        _ref,
        st.binary(max_size=60)
        | (TEXTS | st.just(COMMIT)).map(lambda text: text.encode("utf-8", "surrogatepass")),
    ),
    "tree": (_listing, as_json(_tree({"config.json": 7, "model.safetensors": 8, "../x": 1}))),
    "index": (_index, as_json(INDEX)),
    "manifest": (
        _manifest,
        st.binary(max_size=60)
        | st.lists(TEXTS, max_size=3).map(
            lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
        ),
    ),
}


@pytest.mark.parametrize("kind", FILES_OF_A_CACHE)
@examples(80)
@given(st.data())
def test_a_file_of_the_cache_becomes_a_value_or_a_finding(
    heap: CacheBuilder, kind: str, data: st.DataObject
) -> None:
    find, contents = FILES_OF_A_CACHE[kind]
    path = find(heap)
    before = path.read_bytes()
    try:
        path.write_bytes(data.draw(contents))
        state = scan(heap.root)
        encodes(state)
        for revision in ("main", COMMIT, "v1/2"):
            encodes(judge(state.repo("org/name"), revision))
        assert sum(1 for repo in state.repos) == 1
    finally:
        path.write_bytes(before)


RECORD = {
    "format": "vlmcache.move-record/1",
    "cache": "/cache/hub",
    "destination": "/mnt/away/hub",
    "drive": {"mount_point": "/mnt/away", "type": "ext4", "source": "/dev/sdz9", "uuid": "1-2"},
}


@examples(80)
@given(as_json(RECORD) | st.binary(max_size=60))
def test_a_record_of_a_move_says_where_a_model_is_or_nothing(place: Path, content: bytes) -> None:
    locks = place / "moved/.locks"
    locks.mkdir(parents=True, exist_ok=True)
    link = place / "moved/models--org--name"
    if not link.is_symlink():
        link.symlink_to("/mnt/away/hub/models--org--name")
    (locks / "models--org--name.moved.json").write_bytes(content)
    state = scan(place / "moved")
    encodes(state)
    repo = state.repo("org/name")
    assert repo is not None
    assert repo.away is None or repo.away.destination == "/mnt/away/hub"
    assert not state.strays


COPY = {
    "repo": "org/name",
    "commit": COMMIT,
    "precision": "int8",
    "versions": {"bitsandbytes": "1"},
    "made_at": "2026-01-01T00:00:00Z",
    "files": {"model.safetensors": {"size": 8, "sha256": "a" * 64, "mtime_ns": 1}},
}


@examples(100)
@given(as_json(COPY))
def test_a_kept_copys_manifest_is_read_or_left_out(place: Path, content: bytes) -> None:
    folder = place / "own/quantized/models--org--name" / COMMIT / "int8-1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vlmcache.json").write_bytes(content)
    for copy in list_copies(str(place / "own")):
        encodes(copy)


SPREAD = {"median": 1.0, "min": 0.5, "max": 2.0, "count": 3}
REPORT = {
    "schema": "vlmcache.load-test/1",
    "machine": {
        "system": "Linux-6",
        "cpu": "x",
        "cores": 2,
        "memory": 8,
        "accelerators": [],
        "filesystem": None,
        "disk": None,
        "versions": {"torch": "2"},
    },
    "results": [
        {
            "model": "m",
            "precision": "fp16",
            "device": "cpu",
            "loader": "plain",
            "bytes": 8,
            "trials": [],
            "cold": SPREAD,
            "warm": SPREAD,
            "disk_limit_seconds": 1.0,
            "efficiency": 0.5,
        }
    ],
}


@examples(150)
@given(as_json(REPORT))
def test_a_load_report_is_compared_or_refused(place: Path, content: bytes) -> None:
    from vlmcache.load.view import show

    path = place / "old.json"
    path.write_bytes(content)
    with contextlib.suppress(VlmcacheError):
        earlier = read_report(str(path))
        now = msgspec.convert(REPORT, LoadReport)
        report = compared(now, earlier)
        encodes(report)
        show(report, verbose=True)


EXPRESSIONS = st.from_regex(r"[a-z]{0,5}(>=|<|=|!=)?[0-9.]{0,6}[A-Za-z]{0,3}", fullmatch=True)


@examples(300)
@given(EXPRESSIONS | TEXTS | st.text(max_size=20), st.sampled_from(["9", "99999999999999999", "."]))
def test_sizes_durations_and_filters_are_numbers_or_refused(text: str, digits: str) -> None:
    for one in (text, digits * 40 + text, f"size>{digits}{text}", f"used<{digits * 9}y"):
        with contextlib.suppress(ValueError):
            assert parse_size(one) >= 0
        with contextlib.suppress(ValueError):
            assert parse_duration(one) >= 0
        with contextlib.suppress(VlmcacheError):
            keeps = parse_filter(one, NOW)
            keeps(ROW)


@examples(200)
@given(st.lists(TEXTS | st.sampled_from("@/:"), max_size=4).map("".join))
def test_a_models_name_means_something_or_is_refused(heap: CacheBuilder, text: str) -> None:
    state = scan(heap.root)
    with contextlib.suppress(VlmcacheError):
        find_model(config(), text, ["org/name"])
    with contextlib.suppress(VlmcacheError):
        find_targets(state, config(), [text], NamingOptions(folder=str(heap.root)))


@pytest.fixture(scope="module")
def saved(place: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    cache = CacheBuilder(place / "saving")
    cache.repo("org/name").revision({"config.json": b"{}", "w.bin": b"weights" * 9})
    backup(session(cache.root), str(place / "saved.tar"))
    with tarfile.open(place / "saved.tar") as tar:
        return [(one, stream.read() if (stream := tar.extractfile(one)) else b"") for one in tar]


@st.composite
def archives(draw: st.DrawFn, members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Draw a backup with another manifest, other members, or other bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, (info, content) in enumerate(members):
            if number == 0 and draw(st.booleans()):
                content = json.dumps(draw(mutated(json.loads(content)))).encode()
            one = tarfile.TarInfo(info.name)
            one.type, one.linkname = info.type, info.linkname
            what = draw(st.integers(0, 30))
            if what == 0:
                continue
            if what == 1:
                one.name = draw(TEXTS).replace("\0", "").encode("utf-8", "replace").decode()
            if what == 2:
                one.type = draw(st.sampled_from([tarfile.SYMTYPE, tarfile.DIRTYPE, b"z", b"5"]))
            if what == 3:
                one.linkname = "/etc/passwd"
            if what == 4:
                one.pax_headers = {"size": draw(st.sampled_from(["-1", "x", "9" * 30]))}
            one.size = len(content) if one.isreg() else 0
            tar.addfile(one, io.BytesIO(content))
    data = stream.getvalue()
    return draw(spoiled(data)) if draw(st.booleans()) else data


@examples(150)
@given(st.data())
def test_a_backup_is_restored_or_refused_and_leads_nowhere(
    place: Path, saved: list[tuple[tarfile.TarInfo, bytes]], data: st.DataObject
) -> None:
    folder = place / "restoring"
    (folder / "new").mkdir(parents=True, exist_ok=True)
    path = place / "hostile.tar"
    path.write_bytes(data.draw(archives(saved)))
    with contextlib.suppress(VlmcacheError):
        restore(session(folder / "new"), str(path))
    assert [one.name for one in folder.iterdir()] == ["new"]
    for name, entry in fingerprint(folder / "new").items():
        assert entry[0] != "link" or not entry[3].startswith("/"), name


def extended(kind: bytes, length: int) -> bytes:
    """Return an extended header of an archive that says it has a length, and nothing after it."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, length
    return info.tobuf(tarfile.GNU_FORMAT)


def small(kind: bytes, content: bytes) -> bytes:
    return extended(kind, len(content)) + content + bytes(-len(content) % 512)


BOMBS: dict[str, bytes] = {
    **{
        f"{name} of {length} bytes": extended(kind, length)
        for name, kind in (
            ("a pax header", tarfile.XHDTYPE),
            ("a pax header for all", tarfile.XGLTYPE),
            ("a GNU name", tarfile.GNUTYPE_LONGNAME),
            ("a GNU link", tarfile.GNUTYPE_LONGLINK),
            ("a header of Solaris", tarfile.SOLARIS_XHDTYPE),
        )
        for length in (100_000, 1 << 36)
    },
    "5,000 pax headers": small(tarfile.XHDTYPE, b"11 a=bcdef\n") * 5000,
    "5,000 GNU names": small(tarfile.GNUTYPE_LONGNAME, b"x\0") * 5000,
    "a pax number of 9,000 digits": small(tarfile.XHDTYPE, b"9" * 9_000 + b" a=b\n"),
    "a pax header of no letters": small(tarfile.XHDTYPE, b"20 hdrcharset=\xff\xff\xff\n"),
    "a sparse file": extended(tarfile.GNUTYPE_SPARSE, 0),
    "a sparse file by pax": small(
        tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    )
    + extended(tarfile.REGTYPE, 512)
    + b"9999999\n" * 64,
}


class Endless(io.RawIOBase):
    """A stream that never ends, and fails the test if much of it is read."""

    def __init__(self, begin: bytes) -> None:
        self._begin = io.BytesIO(begin)
        self.count = 0

    def readable(self) -> bool:
        return True

    def read(self, count: int = -1, /) -> bytes:
        self.count += max(count, 0)
        assert 0 <= count <= 1 << 24, f"{count} bytes are read at once"
        assert self.count < 1 << 26, "too much is read"
        block = self._begin.read(count)
        return block + bytes(count - len(block))


@pytest.mark.parametrize("where", ["first", "after the manifest"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_of_any_length_is_refused_before_it_is_read(
    saved: list[tuple[tarfile.TarInfo, bytes]], bomb: str, where: str
) -> None:
    content = b""
    if where != "first":
        info, manifest = saved[0]
        content = info.tobuf(tarfile.PAX_FORMAT) + manifest + bytes(-len(manifest) % 512)

    def read() -> None:
        reader = Reader(Endless(content + BOMBS[bomb]))  # type: ignore[arg-type]
        reader.restore(reader.manifest.repos[0], None, frozenset(), lambda *_: None)

    with pytest.raises(VlmcacheError) as refused:
        read()
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 300


BOMBED = SavedRepo("model", "org/name", {"a" * 64: SavedBlob(1, "a" * 64)}, {}, {}, {})


@pytest.mark.parametrize(
    "name",
    ["d/" * 101 + "x", "d/" * 1900 + "x", "x" * 4001, "/" * 10_000_000, "d/" * 5_000_000 + "x"],
    ids=["101 folders", "1,900 folders", "long", "slashes", "5 million folders"],
)
def test_a_name_of_many_folders_is_refused_in_one_line(name: str) -> None:
    snapshots = {COMMIT: {name: "a" * 64, "y": "a" * 64}}
    problem = restore_problem(msgspec.structs.replace(BOMBED, snapshots=snapshots))
    assert problem is not None
    assert len(problem) < 200
    listed = TreeFile(1, "a" * 40)
    with pytest.raises(VlmcacheError) as refused:
        check_names("org/name", {name: listed, "y": listed})
    assert len(refused.value.message) < 200


@examples(200)
@given(st.sets(st.lists(st.sampled_from("ab-.") | TEXTS, min_size=1, max_size=4).map("/".join)))
def test_a_listing_names_no_file_that_is_a_folder_too(names: set[str]) -> None:
    folders = {name[:at] for name in names for at, letter in enumerate(name) if letter == "/"}
    hostile = {
        "it leaves the repo's folder",
        "it has an empty part",
        "it is in more than 100 folders",
    }
    bad = bool(hostile & set(map(layout.file_name_problem, names)) or names & folders)
    problem = layout.listing_problem(names)
    assert (problem is not None) == bad
    assert problem is None or problem[0] in names


DEEP_LINES = ("verify", "clean --dry-run", "doctor", "backup saved/", "move there")


@pytest.mark.parametrize(
    ("where", "lines"),
    [
        ("snapshot", ["status"]),
        ("staged", ["move there"]),
        *(
            pytest.param(where, DEEP_LINES, marks=pytest.mark.full)
            for where in ("snapshot", "refs", "repo", "root")
        ),
    ],
)
def test_a_folder_deep_in_a_cache_ends_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, lines: list[str]
) -> None:
    repo = CacheBuilder(tmp_path / "hub").repo("org/name")
    repo.revision({"config.json": b"{}"})
    staged = tmp_path / "there/.vlmcache-moving" / repo.folder.name
    staged.mkdir(parents=True)
    tops = {"refs": repo.refs, "repo": repo.folder, "root": repo.folder.parent, "staged": staged}
    monkeypatch.chdir(tops.get(where) or next(repo.snapshots.iterdir()))
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    Path("file").write_bytes(b"deep")
    monkeypatch.chdir(tmp_path)
    try:
        for line in lines:
            done = run_here(*line.split(), "--cache-dir", str(tmp_path / "hub"))
            assert "internal error" not in done.err, done.err
            # On a busy machine there are lines about how far it is.
            said = [line for line in done.err.splitlines() if not line.startswith("vlmcache: ")]
            assert not said or is_failure("\n".join(said) + "\n"), done.err
    finally:
        # What pytest removes folders with calls itself for each folder.
        subprocess.run(["rm", "-rf", str(tmp_path / "hub"), str(tmp_path / "there")], check=True)
