"""The plan of a pull: all that is missing and nothing that is there, from values alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder, CachedRepo
from vlmcache.cache.scan import scan
from vlmcache.cache.state import Blob, ByClass, CacheState, File, Partial, Repo, Revision, TreeFile
from vlmcache.change.plan import Fetch, Link, Plan, WriteRef
from vlmcache.commands.pull.plan import FileSelection, Listing, plan_pull
from vlmcache.errors import UsageError

COMMIT = "c" * 40
NAMES = ["config.json", "model.safetensors", "a/b/c.txt", "tokenizer.json"]
ETAGS = [letter * 64 for letter in "abcd"]


@st.composite
def listings(draw: st.DrawFn) -> dict[str, TreeFile]:
    """Return listings in which files of the same hash have the same size."""
    sizes = {etag: draw(st.integers(0, 100)) for etag in ETAGS}
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    chosen = {name: draw(st.sampled_from(ETAGS)) for name in names}
    return {
        name: TreeFile(130, "1" * 40, lfs_sha256=etag, lfs_size=sizes[etag])
        for name, etag in chosen.items()
    }


@st.composite
def caches(draw: st.DrawFn, listing: dict[str, TreeFile]) -> CacheState:
    """Return states of a cache that hold some of a listing, complete or not."""
    sizes = {file.etag: file.content_size for file in listing.values()}
    blobs: dict[str, Blob] = {}
    partials: list[Partial] = []
    for etag, size in sizes.items():
        held = draw(st.sampled_from(["no", "whole", "short", "partial", "locked"]))
        if held in ("whole", "short"):
            length = size if held == "whole" else size // 2
            blobs[etag] = Blob(1, 0, length, 4096, etag, 1, 1, 0)
        elif held != "no":
            name = f"{etag}.incomplete" if draw(st.booleans()) else f"{etag}.0123abcd.incomplete"
            length = draw(st.integers(0, 120))
            locked = held == "locked"
            partials.append(Partial(1, 0, length, 4096, name, etag, f"/x/{name}", locked))
    files = tuple(
        File(1, 0, blobs[file.etag].size, 0, name, "link", file.etag, 1, 1, 0)
        for name, file in listing.items()
        if file.etag in blobs and draw(st.booleans())
    )
    refs = {"main": draw(st.sampled_from([COMMIT, "d" * 40]))} if draw(st.booleans()) else {}
    snapshot = f"/cache/models--org--name/snapshots/{COMMIT}"
    revisions = (Revision(COMMIT, snapshot, tuple(refs), files, 0),) if files else ()
    path = "/cache/models--org--name"
    repo = Repo(
        "org/name", "model", "models--org--name", path, refs, revisions, blobs, tuple(partials), (),
        ByClass(), (),
    )  # fmt: skip
    repos = (repo,) if draw(st.booleans()) else ()
    return CacheState("/cache", True, repos, {}, False, (), ByClass(), (), 0.0)


@given(data=st.data())
def test_a_plan_is_complete_and_says_nothing_twice(data: st.DataObject) -> None:
    listing = data.draw(listings())
    state = data.draw(caches(listing))
    plan = plan_pull(state, "org/name", "main", Listing(COMMIT, listing), listing)
    repo = state.repo("org/name")
    blobs = repo.blobs if repo else {}
    fetches = [action for action in plan.actions if isinstance(action, Fetch)]
    links = [action for action in plan.actions if isinstance(action, Link)]
    fetched = {fetch.etag for fetch in fetches}
    assert len(fetched) == len(fetches)
    held = {
        file.name: file for revision in (repo.revisions if repo else ()) for file in revision.files
    }
    planned = {fetch.file for fetch in fetches} | {link.file for link in links}
    assert len(planned) == len(fetches) + len(links)
    for name, file in listing.items():
        whole = file.etag in blobs and blobs[file.etag].size == file.content_size
        assert (file.etag in fetched) <= (not whole)
        if not whole:
            assert file.etag in fetched
        right = whole and name in held
        assert (name in planned) == (not right)
    assert [fetch.size for fetch in fetches] == sorted((f.size for f in fetches), reverse=True)
    assert all(0 <= fetch.have <= fetch.size for fetch in fetches)
    assert plan.needs == sum(fetch.size - fetch.have for fetch in fetches)
    writes = [action for action in plan.actions if isinstance(action, WriteRef)]
    assert bool(writes) == (repo is None or repo.refs.get("main") != COMMIT)
    assert not writes or plan.actions[-1] is writes[0]


def test_a_pinned_commit_writes_no_ref() -> None:
    listing = {"config.json": TreeFile(2, "a" * 40)}
    state = CacheState("/cache", False, (), {}, False, (), ByClass(), (), 0.0)
    plan = plan_pull(state, "org/name", COMMIT, Listing(COMMIT, listing), listing)
    assert [type(action) for action in plan.actions] == [Fetch]


MANY = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "m.gguf"]


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (FileSelection(), {"config.json", "model.safetensors"}),
        (FileSelection(every=True), set(MANY)),
        (FileSelection(include=("*.gguf",)), {"m.gguf"}),
        (FileSelection(include=("onnx/",)), {"onnx/model.onnx"}),
        (FileSelection(exclude=("*.json",)), {"model.safetensors"}),
        (FileSelection(include=("*.bin", "*.json"), exclude=("c*",)), {"pytorch_model.bin"}),
        (FileSelection(every=True, exclude=("onnx/*",)), set(MANY) - {"onnx/model.onnx"}),
    ],
)
def test_patterns_choose_as_the_client_does(selection: FileSelection, chosen: set[str]) -> None:
    assert selection.choose("org/name", MANY).wanted == chosen


@pytest.mark.parametrize(
    "selection",
    [FileSelection(include=("*.pth",)), FileSelection(exclude=("*",))],
    ids=["none", "all"],
)
def test_patterns_that_leave_nothing_are_a_usage_error(selection: FileSelection) -> None:
    with pytest.raises(UsageError):
        selection.choose("org/name", MANY)


FILES = {"config.json": b"{}", "model.safetensors": b"x" * 5000}
DAMAGE: dict[str, Callable[[CachedRepo], object]] = {
    "dangling link": lambda repo: repo.dangling_link("config.json"),
    "missing blob": lambda repo: repo.missing_blob("model.safetensors"),
    "truncated blob": lambda repo: repo.truncated_blob("model.safetensors"),
    "empty blob": lambda repo: repo.empty_blob("model.safetensors"),
    "ref with a newline": lambda repo: repo.ref_with_newline(),
    "ref to a missing commit": lambda repo: repo.ref_to_missing_commit(),
    "ref that is a folder": lambda repo: repo.ref_folder(),
    "no snapshots": lambda repo: repo.missing_snapshots(),
    "empty snapshot": lambda repo: repo.empty_snapshot(repo.latest),
}


def plan_for(cache: Path, repo: CachedRepo) -> Plan:
    listing = {
        name: TreeFile(file.size, file.git_oid, file.lfs_sha256, file.size)
        for name, file in repo.revisions[repo.latest].items()
    }
    return plan_pull(scan(cache), "org/name", "main", Listing(repo.latest, listing), listing)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_that_the_scan_sees_is_repaired_by_the_plan(tmp_path: Path, kind: str) -> None:
    repo = CacheBuilder(tmp_path).repo("org/name")
    repo.revision(FILES)
    assert plan_for(tmp_path, repo).actions == ()
    DAMAGE[kind](repo)
    assert plan_for(tmp_path, repo).actions != ()


def test_what_another_revision_holds_is_linked_and_not_fetched(tmp_path: Path) -> None:
    repo = CacheBuilder(tmp_path).repo("org/name")
    repo.revision(FILES)
    new = CacheBuilder(tmp_path / "other").repo("org/name")
    new.revision(FILES | {"config.json": b'{"a": 1}'})
    listing = {
        name: TreeFile(file.size, file.git_oid, file.lfs_sha256, file.size)
        for name, file in new.revisions[new.latest].items()
    }
    plan = plan_pull(scan(tmp_path), "org/name", "main", Listing(new.latest, listing), listing)
    kinds = {(type(a), getattr(a, "file", None)) for a in plan.actions}
    assert kinds == {
        (Fetch, "config.json"),
        (Link, "model.safetensors"),
        (WriteRef, None),
    }
    assert plan.needs == 8


def test_a_blob_of_the_shared_store_is_linked_and_not_fetched(tmp_path: Path) -> None:
    donor = CacheBuilder(tmp_path).repo("org/donor")
    donor.revision(FILES, shared=["model.safetensors"])
    file = donor.file("model.safetensors")
    listing = {"model.safetensors": TreeFile(130, file.git_oid, file.lfs_sha256, file.size)}
    for xet_hash, kind in ((file.xet_hash, Link), (None, Fetch)):
        one = TreeFile(130, file.git_oid, file.lfs_sha256, file.size, xet_hash)
        plan = plan_pull(
            scan(tmp_path),
            "org/name",
            COMMIT,
            Listing(COMMIT, {"model.safetensors": one}),
            listing,
        )
        assert [type(action) for action in plan.actions] == [kind]
