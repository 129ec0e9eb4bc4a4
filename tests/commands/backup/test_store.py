"""Stores in a folder: only what is missing is written, and many machines can share one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.caches import CacheBuilder, CachedRepo
from tests.kit.faulty import FAULTS, Fault, Subject, fault_name, try_every
from tests.kit.pulls import Listener, config, lies
from tests.kit.stores import contents, restored, store_lies
from vlmcache.cache import layout
from vlmcache.commands.backup import backup, restore
from vlmcache.commands.backup import store as store_module
from vlmcache.commands.backup.places import Folder
from vlmcache.commands.backup.values import (
    Amount,
    Backup,
    BackupError,
    BackupOptions,
    ChangedRef,
    Restored,
    RestoreOptions,
)
from vlmcache.config import CacheLocation, Environment, Session
from vlmcache.errors import UnknownModelError, UsageError, VlmcacheError
from vlmcache.progress import Progress

WEIGHTS = "model.safetensors"
FILES = {
    "config.json": b'{"model_type": "x"}',
    WEIGHTS: os.urandom(300_000),
    "sub/copy.json": b'{"model_type": "x"}',
}
BYTES = 300_019
FEW = {"sub/model.safetensors": b"weights" * 1000}


def session(root: Path) -> Session:
    location = CacheLocation(str(root), "test")
    return Session(Environment({}, frozenset(), ""), config(), location)


def save(cache: CacheBuilder, store: Path | str, *models: str, **options: Any) -> Backup:
    return backup.backup(session(cache.root), f"{store}/", models, BackupOptions(**options))


def bring(
    store: Path | str,
    root: Path,
    *models: str,
    progress: Progress | None = None,
    **options: Any,
) -> Restored:
    return restore.restore(session(root), f"{store}/", models, RestoreOptions(**options), progress)


def machine(tmp_path: Path, name: str) -> CacheBuilder:
    return CacheBuilder(tmp_path / name / "hub")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def repo(cache: CacheBuilder) -> CachedRepo:
    repo = cache.repo("org/name")
    repo.revision({**FILES, "config.json": b"{}"}, refs=["v1"])
    repo.revision(FILES)
    return repo


def test_what_was_saved_comes_back_as_it_was(
    cache: CacheBuilder, repo: CachedRepo, store: Path, tmp_path: Path
) -> None:
    cache.repo("org/data", "dataset").revision({"data.csv": b"1,2"})
    saved = save(cache, store)
    assert saved.uploaded == Amount(4, BYTES + 2 + 3)
    assert saved.skipped == Amount()
    value = bring(store, tmp_path / "new")
    assert value.problem is None
    assert restored(tmp_path / "new") == restored(cache.root)
    assert lies(tmp_path / "new") == []
    assert store_lies(contents(store)) == []


def test_only_what_is_missing_in_a_store_is_written(
    cache: CacheBuilder, repo: CachedRepo, store: Path
) -> None:
    save(cache, store)
    before = contents(store)
    again = save(cache, store)
    assert (again.uploaded, again.skipped, again.refs) == (Amount(), Amount(3, BYTES + 2), ())
    assert contents(store) == before
    repo.revision({**FILES, "new.json": b"new"})
    cache.repo("org/other").revision(FILES)
    more = save(cache, store)
    assert more.uploaded == Amount(1, 3)
    assert {name for name in contents(store) if name.startswith("blobs/")} - set(before) == {
        f"blobs/{repo.file('new.json').etag[:2]}/{repo.file('new.json').etag}"
    }


def test_several_machines_share_a_store_and_the_last_one_moves_the_refs(
    store: Path, tmp_path: Path
) -> None:
    one, two = machine(tmp_path, "one"), machine(tmp_path, "two")
    old = one.repo("org/name").revision(FILES)
    new = two.repo("org/name").revision({**FILES, "config.json": b"{2}"})
    two.repo("org/two").revision({"config.json": b"{}"})
    save(one, store)
    changed = save(two, store)
    assert changed.uploaded == Amount(2, 5)
    assert changed.refs[0] == ChangedRef("org/name", "main", old, new)
    bring(store, tmp_path / "new")
    folder = tmp_path / "new/models--org--name"
    assert sorted(os.listdir(folder / "snapshots")) == sorted([old, new])
    assert (folder / "refs/main").read_text() == new
    assert (tmp_path / "new/models--org--two/refs/main").exists()


def test_a_revision_is_the_union_of_what_machines_had_of_it(store: Path, tmp_path: Path) -> None:
    one, two = machine(tmp_path, "one"), machine(tmp_path, "two")
    one.repo("org/name").revision(FILES, downloaded=["config.json"])
    two.repo("org/name").revision(FILES, downloaded=[WEIGHTS], tree=False)
    save(one, store)
    save(two, store)
    whole = machine(tmp_path, "whole")
    repo = whole.repo("org/name")
    commit = repo.revision(FILES, downloaded=["config.json", WEIGHTS])
    # With a listing of its own name, the client takes such a snapshot for a broken one.
    (repo.trees / f"{commit}.json").rename(repo.trees / f"{commit}.vlmcache.json")
    bring(store, tmp_path / "new")
    assert restored(tmp_path / "new") == restored(whole.root)
    # A part of what is known adds nothing.
    before = contents(store)
    save(whole, store)
    save(one, store)
    assert contents(store).keys() - before.keys() == {
        name for name in contents(store) if name not in before
    }
    assert save(one, store).uploaded == Amount()


def test_two_machines_that_save_at_once_come_out_right(store: Path, tmp_path: Path) -> None:
    caches = [machine(tmp_path, name) for name in ("one", "two", "three")]
    for number, cache in enumerate(caches):
        cache.repo("org/name").revision({**FILES, "own.json": b"%d" % number})
    failures: list[BaseException] = []

    def run(cache: CacheBuilder) -> None:
        try:
            save(cache, store)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store_lies(contents(store)) == []
    value = bring(store, tmp_path / "new")
    assert value.problem is None
    assert len(os.listdir(tmp_path / "new/models--org--name/snapshots")) == 3
    assert not [path for path in store.rglob("*") if layout.is_temporary(path.name)]


def test_tidying_passes_over_a_temporary_that_its_writer_has_just_renamed(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, renamed = store / "old.0a0a0a0a.tmp", store / "new.0b0b0b0b.tmp"
    store.mkdir()
    for path in (left, renamed):
        path.touch()
        os.utime(path, (0, 0))
    folder = Folder(str(store))
    entries = list(folder._entries(""))
    monkeypatch.setattr(folder, "_entries", lambda _: entries)
    renamed.rename(store / "new")
    folder.tidy()
    assert os.listdir(store) == ["new"]


def test_only_what_is_asked_for_is_restored(
    cache: CacheBuilder, repo: CachedRepo, store: Path, tmp_path: Path
) -> None:
    cache.repo("org/data", "dataset").revision({"data.csv": b"1,2"})
    save(cache, store)
    new = tmp_path / "new"
    assert bring(store, new, "org/name@main").repos == ("org/name",)
    assert os.listdir(new / "models--org--name/snapshots") == [repo.latest]
    assert sorted(os.listdir(new / "models--org--name/refs")) == ["main"]
    bring(store, new, "datasets/org/data", f"org/name@{repo.refs.joinpath('v1').read_text()[:8]}")
    assert restored(new).keys() - restored(cache.root).keys() == set()
    with pytest.raises(UnknownModelError) as caught:
        bring(store, new, "org/nam")
    assert caught.value.hint == "did you mean org/name?"
    with pytest.raises(UnknownModelError, match="no revision v9"):
        bring(store, new, "org/name@v9")


def test_content_of_several_repos_travels_once(
    cache: CacheBuilder, store: Path, tmp_path: Path
) -> None:
    cache.repo("org/one").revision(FILES)
    cache.repo("org/two").revision(FILES)
    assert save(cache, store).uploaded.size == BYTES
    value = bring(store, tmp_path / "new")
    assert value.receipt is not None
    assert value.plan.needs == 2 * BYTES
    assert value.receipt.fetched == BYTES
    assert restored(tmp_path / "new") == restored(cache.root)


def test_what_is_there_is_skipped_and_what_is_damaged_replaced(
    cache: CacheBuilder, repo: CachedRepo, store: Path
) -> None:
    save(cache, store)
    right = restored(cache.root)
    assert bring(store, cache.root).plan.needs == 0
    repo.flipped_bit(WEIGHTS)
    repo.missing_blob("config.json")
    planned = bring(store, cache.root, dry_run=True)
    assert planned.receipt is None
    assert planned.plan.needs == BYTES
    assert planned.skipped == Amount(1, 2)
    bring(store, cache.root)
    assert restored(cache.root) == right


def test_a_restore_continues_within_a_blob_even_if_its_partial_is_wrong(
    cache: CacheBuilder, repo: CachedRepo, store: Path
) -> None:
    save(cache, store)
    right = restored(cache.root)
    data = FILES[WEIGHTS]
    for beginning, fetched in ((data[:200_000], 100_000), (b"x" * 200_000, 400_000)):
        etag = repo.file(WEIGHTS).etag
        repo.blob(WEIGHTS).unlink()
        repo.partial(etag, data=beginning, old_style=True, age=10)
        value = bring(store, cache.root)
        assert value.receipt is not None
        assert value.receipt.fetched == fetched
        assert restored(cache.root) == right


def test_a_restore_waits_for_the_download_of_the_same_blob(
    cache: CacheBuilder, repo: CachedRepo, store: Path, tmp_path: Path
) -> None:
    from huggingface_hub.utils._fixes import WeakFileLock

    save(cache, store)
    new = tmp_path / "new"
    etag = repo.file(WEIGHTS).etag
    lock = new / ".locks/models--org--name" / f"{etag}.lock"
    lock.parent.mkdir(parents=True)
    listener = Listener()
    with WeakFileLock(lock):
        thread = threading.Thread(target=bring, args=(store, new), kwargs={"progress": listener})
        thread.start()
        while not listener.notes:
            time.sleep(0.01)
        assert not (new / "models--org--name/blobs" / etag).exists()
        assert list(new.glob("models--org--name/refs/*")) == []
    thread.join()
    assert restored(new) == restored(cache.root)


def test_verify_finds_what_is_damaged_in_a_store_and_repairs_it(
    cache: CacheBuilder, repo: CachedRepo, store: Path, tmp_path: Path
) -> None:
    save(cache, store)
    etag = repo.file(WEIGHTS).etag
    blob = store / "blobs" / etag[:2] / etag
    blob.write_bytes(b"x" * 300_000)
    assert save(cache, store).uploaded == Amount()
    value = bring(store, tmp_path / "new")
    failure = value.problem
    assert failure is not None
    assert failure.exit_code == 4
    assert etag in failure.message
    assert lies(tmp_path / "new") == []
    assert save(cache, store, verify=True).uploaded == Amount(1, 300_000)
    assert bring(store, tmp_path / "new").problem is None
    assert restored(tmp_path / "new") == restored(cache.root)
    # A wrong length shows without reading.
    blob.write_bytes(b"short")
    assert save(cache, store).uploaded == Amount(1, 300_000)


def test_a_dry_run_says_what_would_be_saved_and_writes_nothing(
    cache: CacheBuilder, repo: CachedRepo, store: Path
) -> None:
    planned = save(cache, store, dry_run=True)
    assert planned.dry_run
    assert not store.exists()
    done = save(cache, store)
    assert (done.uploaded, done.skipped, done.refs) == (
        planned.uploaded,
        planned.skipped,
        planned.refs,
    )
    repo.revision({**FILES, "config.json": b"{1}"})
    before = contents(store)
    again = save(cache, store, dry_run=True)
    assert (again.uploaded, again.skipped.blobs) == (Amount(1, 3), done.uploaded.blobs)
    assert [ref.ref for ref in again.refs] == ["main"]
    assert contents(store) == before


def test_damage_of_one_repo_does_not_keep_the_others(
    cache: CacheBuilder, repo: CachedRepo, store: Path, tmp_path: Path
) -> None:
    cache.repo("org/other").revision({"config.json": b"{other}"})
    save(cache, store)
    etag = repo.file(WEIGHTS).etag
    (store / "blobs" / etag[:2] / etag).unlink()
    part = (
        CacheBuilder(tmp_path / "new").repo("org/name").partial(etag, data=b"begun", old_style=True)
    )
    value = bring(store, tmp_path / "new")
    assert value.problem is not None
    assert part.read_bytes() == b"begun"
    assert value.receipt is not None
    assert [one.result for one in value.receipt.outcomes].count("failed") == 1
    assert (tmp_path / "new/models--org--other/refs/main").exists()
    assert not (tmp_path / "new/models--org--name/refs/main").exists()
    assert lies(tmp_path / "new") == []


def test_what_is_damaged_in_the_cache_is_not_saved(
    cache: CacheBuilder, repo: CachedRepo, store: Path
) -> None:
    repo.flipped_bit(WEIGHTS, 250_000)
    with pytest.raises(BackupError, match="damaged"):
        save(cache, store)
    assert store_lies(contents(store)) == []
    assert not (store / "repos").exists()


def test_a_store_is_made_only_in_an_empty_place(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="neither a store nor empty"):
        save(cache, used)
    with pytest.raises(UsageError, match="in the cache"):
        save(cache, cache.root / "store")
    with pytest.raises(UsageError, match="not a store"):
        bring(used, tmp_path / "new")
    with pytest.raises(UsageError, match="no such folder"):
        bring(tmp_path / "nowhere", tmp_path / "new")
    assert os.listdir(used) == ["notes.txt"]


def test_leftovers_of_a_writer_that_was_killed_long_ago_are_removed(
    cache: CacheBuilder, repo: CachedRepo, store: Path
) -> None:
    save(cache, store)
    old, new = store / "blobs/ab.12345678.tmp", store / "blobs/cd.12345678.tmp"
    for path in (old, new):
        path.write_bytes(b"part")
    os.utime(old, (0, 0))
    save(cache, store)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("address", ["memory://somewhere/{}", "file://{}"])
def test_a_store_can_be_in_other_places_than_folders(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path, address: str
) -> None:
    store = address.format(tmp_path / "store")
    assert save(cache, store).uploaded.blobs == 3
    assert save(cache, store).uploaded.blobs == 0
    assert bring(store, tmp_path / "new").problem is None
    assert restored(tmp_path / "new") == restored(cache.root)
    backup.backup(session(cache.root), f"{store}.tar")
    restore.restore(session(tmp_path / "other"), f"{store}.tar")
    assert restored(tmp_path / "other") == restored(cache.root)
    with pytest.raises(UsageError, match="neither a store nor empty"):
        save(cache, store.rpartition("/")[0])


Change = Callable[[Path], None]


def rewritten(change: Callable[[dict[str, Any]], None], *, renamed: bool = True) -> Change:
    """Change the manifest of a store that has one; its name follows unless told otherwise."""

    def apply(store: Path) -> None:
        (path,) = store.glob("repos/*/*/*.json")
        manifest = json.loads(path.read_bytes())
        change(manifest)
        content = json.dumps(manifest).encode()
        name = hashlib.sha256(content).hexdigest() if renamed else path.stem
        path.unlink()
        path.with_name(f"{name}.json").write_bytes(content)

    return apply


def file_renamed(name: str) -> Change:
    return rewritten(lambda m: m["files"].update({name: m["files"].pop(WEIGHTS)}))


def linked(name: str) -> Change:
    def apply(store: Path) -> None:
        (path,) = store.glob(name)
        elsewhere = store.parent / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)

    return apply


def placed(name: str, content: bytes) -> Change:
    def apply(store: Path) -> None:
        path = store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return apply


def oversized(store: Path) -> None:
    (path,) = store.glob("repos/*/*/*.json")
    os.truncate(path, 1 << 40)


HOSTILE: dict[str, Change] = {
    "a manifest that is not what its name says": rewritten(
        lambda m: m["files"].pop(WEIGHTS), renamed=False
    ),
    "a manifest that is too long": oversized,
    "a manifest of another repo": rewritten(lambda m: m.update(id="org/other")),
    "a repo id that leaves": rewritten(lambda m: m.update(id="../../x")),
    "a manifest of another commit": rewritten(lambda m: m.update(commit="a" * 40)),
    "a file that leaves": file_renamed("../../../x"),
    "an absolute file": file_renamed("/etc/x"),
    "a file under a file": file_renamed("config.json/x"),
    "a blob that leaves": rewritten(lambda m: m["files"][WEIGHTS].update(blob="../../x")),
    "a hash that is none": rewritten(lambda m: m["files"][WEIGHTS].update(hash="../../x")),
    "a negative size": rewritten(lambda m: m["files"][WEIGHTS].update(size=-1)),
    "a size that lies": rewritten(lambda m: m["files"][WEIGHTS].update(size=7)),
    "one blob with two sizes": rewritten(
        lambda m: m["files"].update(more=m["files"][WEIGHTS] | {"size": 7})
    ),
    "a ref that leaves": placed("repos/models--org--name/refs/..%2F..%2Fx", b"a" * 40),
    "a ref to nothing": placed("repos/models--org--name/refs/v9", b"a" * 40),
    "a ref that is no commit": placed("repos/models--org--name/refs/v9", b"../../../x"),
    "a long ref": placed("repos/models--org--name/refs/v9", b"a" * 1000),
    "a link in place of contents": linked("blobs/*/" + "[0-9a-f]" * 64),
    "a link in place of a manifest": linked("repos/*/*/*.json"),
    "a link in place of a folder": linked("repos/models--org--name"),
    "a link in place of the marker": linked("vlmcache-store.json"),
    "a marker of another form": placed("vlmcache-store.json", b'{"format": "x/9"}'),
    "a marker that is none": placed("vlmcache-store.json", b"[" * 100_000),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_hostile_is_refused_and_leads_nowhere(
    cache: CacheBuilder, store: Path, tmp_path: Path, kind: str
) -> None:
    cache.repo("org/name").revision(FILES)
    save(cache, store)
    HOSTILE[kind](store)
    new = tmp_path / "deep/down/new"
    new.parent.mkdir(parents=True)
    with contextlib.suppress(BackupError):
        failure = bring(store, new).problem
        assert failure is not None
        assert failure.exit_code == 4
    assert lies(new) == []
    assert list(new.glob("*/refs/**/*")) == []
    beside = [p for p in (tmp_path / "deep").rglob("*") if new not in (p, *p.parents)]
    assert beside == [tmp_path / "deep/down"]


def test_manifests_that_are_too_long_together_are_refused_before_they_are_read(
    cache: CacheBuilder, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("org/one", "org/two"):
        cache.repo(name).revision(FILES)
    save(cache, store)
    sizes = sum(path.stat().st_size for path in store.glob("repos/*/*/*.json"))
    monkeypatch.setattr(store_module, "_MANIFESTS_LIMIT", sizes - 1)
    with pytest.raises(BackupError, match="too long for manifests"):
        bring(store, tmp_path / "new")
    assert bring(store, tmp_path / "new", "org/one").problem is None


def test_names_without_a_meaning_are_ignored(
    cache: CacheBuilder, store: Path, tmp_path: Path
) -> None:
    cache.repo("org/name").revision(FILES)
    save(cache, store)
    placed("repos/models--org--name/notes.txt", b"mine")(store)
    placed("repos/models--org--name/refs/main.12345678.tmp", b"cut")(store)
    placed("blobs/ab/notes", b"mine")(store)
    assert bring(store, tmp_path / "new").problem is None
    assert restored(tmp_path / "new") == restored(cache.root)


def test_nothing_is_written_through_a_link(
    cache: CacheBuilder, repo: CachedRepo, store: Path, tmp_path: Path
) -> None:
    save(cache, store)
    outside = tmp_path / "outside"
    outside.mkdir()
    repo.revision({"new.json": b"new"})
    folder = store / "blobs" / repo.file("new.json").etag[:2]
    shutil.rmtree(folder, ignore_errors=True)  # a content of the first save may be in it
    folder.symlink_to(outside)
    with pytest.raises(BackupError, match="a link"):
        save(cache, store)
    assert os.listdir(outside) == []


class SavingToStore(Subject[VlmcacheError | None]):
    """One revision goes into a new store."""

    command = "backup, store"

    def __init__(self, cache: CacheBuilder, right: dict[str, bytes]) -> None:
        self.cache = cache
        self.right = right

    def begin(self, place: Path) -> None:
        """Nothing is there."""

    def run(self, place: Path) -> VlmcacheError | None:
        try:
            save(self.cache, place / "store")
        except VlmcacheError as error:
            return error
        return None

    def hold(self, place: Path, answer: VlmcacheError | None) -> None:
        assert store_lies(contents(place / "store")) == []

    def again(self, place: Path) -> None:
        assert self.run(place) is None
        assert contents(place / "store") == self.right


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
def test_a_fault_at_every_call_of_a_backup_leaves_no_wrong_state_and_the_next_one_continues(
    cache: CacheBuilder, store: Path, fault: Fault
) -> None:
    cache.repo("org/name").revision(FEW)
    save(cache, store)
    try_every(SavingToStore(cache, contents(store)), fault, at_least=20)


class RestoringFromStore(Subject[VlmcacheError | None]):
    """One revision comes out of a store into an empty cache."""

    command = "restore, store"

    def __init__(self, store: Path, right: dict[str, tuple[str, int, int, str]]) -> None:
        self.store = store
        self.right = right

    def begin(self, place: Path) -> None:
        """An empty cache."""

    def run(self, place: Path) -> VlmcacheError | None:
        try:
            assert bring(self.store, place / "new").problem is None
        except VlmcacheError as error:
            return error
        return None

    def hold(self, place: Path, answer: VlmcacheError | None) -> None:
        assert lies(place / "new") == []

    def again(self, place: Path) -> None:
        assert self.run(place) is None
        # The tag only tells backup programs to skip the cache; nothing is told if it lacks.
        tag = layout.CACHE_TAG
        assert restored(place / "new") | {tag: self.right[tag]} == self.right


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
def test_a_fault_at_every_call_of_a_restore_leaves_no_wrong_state_and_the_next_one_continues(
    cache: CacheBuilder, store: Path, fault: Fault
) -> None:
    cache.repo("org/name").revision(FEW)
    save(cache, store)
    try_every(RestoringFromStore(store, restored(cache.root)), fault, at_least=20)
