"""Backups: readable by any tar, the same each time, and restored only if every byte is right."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, Entry
from tests.kit.contents import Content
from tests.kit.disks import small_filesystem
from tests.kit.faulty import FAULTS, Fault, Subject, fault_name, try_every
from tests.kit.pulls import config, content, lies
from vlmcache.cache import layout
from vlmcache.cache.tree import CacheTree
from vlmcache.change.plan import Receipt
from vlmcache.commands.backup.backup import backup
from vlmcache.commands.backup.contents import source_opener
from vlmcache.commands.backup.restore import Restorer, restore
from vlmcache.commands.backup.tar import MANIFEST
from vlmcache.commands.backup.values import BackupError, Restored, RestoreOptions
from vlmcache.config import CacheLocation, Environment, Session
from vlmcache.errors import ChangedError, SpaceError, UnknownModelError, UsageError, VlmcacheError
from vlmcache.progress import Progress

WEIGHTS = "model.safetensors"
FILES: dict[str, Content] = {
    "config.json": b'{"model_type": "x"}',
    WEIGHTS: os.urandom(200_000),
    "sub/copy.json": b'{"model_type": "x"}',
}


def session(root: Path, **limits: int) -> Session:
    location = CacheLocation(str(root), "test")
    return Session(Environment({}, frozenset(), ""), config(**limits), location)


def save(cache: CacheBuilder, name: str = "saved.tar", *models: str) -> Path:
    path = cache.root.parent / name
    backup(session(cache.root), str(path), models)
    return path


def bring(path: Path, root: Path, **options: Any) -> Restored:
    return restore(session(root), str(path), (), RestoreOptions(**options))


@pytest.fixture
def repo(cache: CacheBuilder) -> CachedRepo:
    repo = cache.repo("org/name")
    repo.revision({**FILES, "config.json": b"{}"}, refs=["v1"])
    repo.revision(FILES)
    return repo


def test_a_backup_comes_back_as_it_was(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    cache.repo("org/data", "dataset").revision({"data.csv": b"1,2"})
    value = bring(save(cache), tmp_path / "new")
    assert value.problem is None
    assert value.receipt is not None
    assert value.receipt.whole
    assert content(tmp_path / "new") == content(cache.root)
    assert lies(tmp_path / "new") == []


def test_any_tar_lists_and_unpacks_it_with_the_manifest_first(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    path = save(cache)
    names = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
    assert names.stdout.splitlines()[0] == MANIFEST
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xf", path, "-C", unpacked], check=True)
    assert lies(unpacked) == []
    pointer = unpacked / repo.pointer(WEIGHTS).relative_to(cache.root)
    assert pointer.read_bytes() == FILES[WEIGHTS]


def test_the_same_cache_gives_the_same_bytes(cache: CacheBuilder, repo: CachedRepo) -> None:
    first = save(cache).read_bytes()
    repo.blob(WEIGHTS).touch()
    assert save(cache, "second.tar").read_bytes() == first


def test_copies_and_shared_content_become_blobs(cache: CacheBuilder, tmp_path: Path) -> None:
    cache.repo("org/shared").revision(FILES, shared=[WEIGHTS])
    cache.repo("org/copied").revision(FILES, link="move")
    cache.repo("org/old").revision(FILES, link="move", tree=False)
    new = tmp_path / "new"
    bring(save(cache), new)
    assert lies(new) == []
    pointers = list(new.glob(f"models--*/snapshots/*/{WEIGHTS}"))
    assert len(pointers) == 3
    assert all(p.is_symlink() and p.read_bytes() == FILES[WEIGHTS] for p in pointers)


def test_only_what_is_asked_for_is_saved(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    cache.repo("org/other").revision(FILES)
    new = tmp_path / "new"
    bring(save(cache, "one.tar", "org/name@main"), new)
    assert [path.name for path in new.glob("models--*")] == ["models--org--name"]
    assert os.listdir(new / "models--org--name/snapshots") == [repo.latest]
    with pytest.raises(UnknownModelError):
        save(cache, "none.tar", "org/nothing")


@pytest.mark.parametrize(
    "damage",
    [
        lambda repo: repo.flipped_bit(WEIGHTS, 150_000),
        lambda repo: repo.dangling_link(WEIGHTS),
        lambda repo: repo.truncated_blob(WEIGHTS),
    ],
    ids=["flipped bit", "dangling link", "truncated"],
)
def test_what_is_damaged_is_not_saved_and_no_file_is_left(
    cache: CacheBuilder, repo: CachedRepo, damage: Callable[[CachedRepo], object]
) -> None:
    damage(repo)
    with pytest.raises(BackupError):
        save(cache)
    assert list(cache.root.parent.glob("saved*")) == []


def test_what_is_there_is_skipped_and_what_is_damaged_replaced(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    path = save(cache)
    right = content(cache.root)
    again = bring(path, cache.root)
    assert again.plan.needs == 0
    repo.flipped_bit(WEIGHTS)
    repo.missing_blob("config.json")
    good = bring(path, cache.root, dry_run=True)
    assert good.receipt is None
    assert good.plan.needs == 200_000 + 19
    bring(path, cache.root)
    assert content(cache.root) == right


def test_a_ref_that_differs_stays_unless_it_may_be_overwritten(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    path = save(cache)
    commit = repo.latest
    newer = repo.revision({**FILES, "config.json": b"{new}"})
    value = bring(path, cache.root)
    failure = value.problem
    assert failure is not None
    assert failure.exit_code == 3
    assert (repo.refs / "main").read_text() == newer
    assert bring(path, cache.root, overwrite=True).problem is None
    assert (repo.refs / "main").read_text() == commit


def test_too_little_room_is_reported_before_anything_is_written(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    path = save(cache)
    with small_filesystem(100_000) as small:
        with pytest.raises(SpaceError, match="short"):
            bring(path, small / "new")
        assert not (small / "new").exists()


def test_restoring_may_use_the_space_that_must_stay_free_for_downloads(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    path = save(cache)
    restored = restore(session(tmp_path / "new", min_free=1 << 62), str(path))
    assert restored.problem is None


def test_a_pipe_gets_the_backup_and_stays_a_pipe(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (
        open(tmp_path / "read", "wb") as file,
        subprocess.Popen(["cat", pipe], stdout=file) as reader,
    ):
        backup(session(cache.root), str(pipe))
        assert reader.wait(60) == 0
    assert pipe.is_fifo()
    assert (tmp_path / "read").read_bytes() == save(cache).read_bytes()


def test_through_a_link_what_it_leads_to_is_written(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    link, target = tmp_path / "link.tar", tmp_path / "target.tar"
    target.touch()
    link.symlink_to(target)
    backup(session(cache.root), str(link))
    assert link.is_symlink()
    assert target.read_bytes() == save(cache).read_bytes()


def test_a_repo_that_cannot_be_saved_is_reported_and_the_others_are_saved(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    cut = cache.repo("org/cut")
    cut.revision(FILES)
    cut.missing_snapshots()
    cache.repo("org/begun").partial(size=10, age=7200)
    value = backup(session(cache.root), str(tmp_path / "saved.tar"))
    assert (value.repos, value.left_out) == (("org/name",), ("org/cut",))
    error = value.problem
    assert error is not None
    assert error.exit_code == 3


@pytest.mark.parametrize("gone", ["blobs", "file"])
def test_a_file_that_is_removed_while_it_is_saved_is_named_with_its_complete_path(
    cache: CacheBuilder, repo: CachedRepo, gone: str
) -> None:
    tree = CacheTree(str(cache.root))
    blob = repo.blob(WEIGHTS)
    shutil.rmtree(repo.blobs) if gone == "blobs" else blob.unlink()
    with pytest.raises(ChangedError, match=re.escape(f": {blob} (run it again)")):
        source_opener(tree)(str(blob))
    with pytest.raises(FileNotFoundError) as refusal:
        tree.open(str(blob))
    assert refusal.value.filename == str(blob)


def test_what_the_manifest_does_not_name_is_refused(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    path = save(cache)
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("../evil"), io.BytesIO())
    with pytest.raises(BackupError, match="which its manifest does not name"):
        bring(path, tmp_path / "new")
    assert not list((tmp_path / "new").rglob("refs/main"))


def test_a_ref_that_changed_since_the_plan_stays(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(cache)
    new = tmp_path / "new"
    ref = new / "models--org--name/refs/main"
    run = Restorer.run

    def late(self: Restorer) -> Receipt:
        ref.parent.mkdir(parents=True)
        ref.write_text("e" * 40)
        return run(self)

    monkeypatch.setattr(Restorer, "run", late)
    error = bring(path, new).problem
    assert error is not None
    assert error.exit_code == 10
    assert ref.read_text() == "e" * 40


@pytest.mark.parametrize("name", ["nosuch://bucket/key.tar", "nosuch://bucket"])
def test_a_place_that_is_not_a_file_is_refused(cache: CacheBuilder, name: str) -> None:
    with pytest.raises(UsageError):
        backup(session(cache.root), name)


def rewritten(path: Path, change: Callable[[list[Any]], None]) -> Path:
    """Write a backup anew, its members changed: each is [info, content]."""
    with tarfile.open(path) as tar:
        members: list[Any] = []
        for info in tar:
            stream = tar.extractfile(info) if info.isreg() else None
            members.append([info, stream.read() if stream else None])
    change(members)
    target = path.with_name("hostile.tar")
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            if data is not None:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if data is not None else None)
    return target


def in_manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[list[Any]], None]:
    def apply(members: list[Any]) -> None:
        manifest = json.loads(members[0][1])
        change(manifest["repos"][0])
        members[0][1] = msgspec.json.encode(manifest)

    return apply


def rename_file(name: str) -> Callable[[dict[str, Any]], None]:
    def apply(repo: dict[str, Any]) -> None:
        for files in repo["snapshots"].values():
            files[name] = files.pop(WEIGHTS)

    return apply


def retyped(kind: bytes, link: str = "") -> Callable[[list[Any]], None]:
    def apply(members: list[Any]) -> None:
        members[1][0].type, members[1][0].linkname, members[1][1] = kind, link, None
        members[1][0].size = 0

    return apply


HOSTILE: dict[str, Callable[[list[Any]], None]] = {
    "a manifest that is no JSON": lambda m: m[0].__setitem__(1, b"{"),
    "a repo id that leaves": in_manifest(lambda r: r.update(id="../../x")),
    "a repo type of no kind": in_manifest(lambda r: r.update(type="../x")),
    "a file that leaves": in_manifest(rename_file("../../../x")),
    "an absolute file": in_manifest(rename_file("/etc/x")),
    "a file under a file": in_manifest(rename_file("config.json/x")),
    "a file name too long": in_manifest(rename_file("x" * 300)),
    "a commit that leaves": in_manifest(lambda r: r["snapshots"].update({"../x": {}})),
    "a ref that leaves": in_manifest(
        lambda r: r["refs"].update({"../x": next(iter(r["snapshots"]))})
    ),
    "a blob that leaves": in_manifest(
        lambda r: r["blobs"].update({"../x": {"size": 1, "hash": "a" * 64}})
    ),
    "a blob of negative size": in_manifest(
        lambda r: next(iter(r["blobs"].values())).update(size=-1)
    ),
    "a size that lies": in_manifest(lambda r: next(iter(r["blobs"].values())).update(size=7)),
    "a member of another name": lambda m: setattr(m[1][0], "name", "../x"),
    "a member twice": lambda m: m.insert(2, m[1]),
    "a member that lacks": lambda m: m.pop(2),
    "an end too early": lambda m: m.pop(),
    "a link in place of a blob": retyped(tarfile.SYMTYPE, "/etc/passwd"),
    "a device": retyped(tarfile.CHRTYPE),
    "a hard link": retyped(tarfile.LNKTYPE, "/etc/passwd"),
    "other bytes": lambda m: m[1].__setitem__(1, bytes(len(m[1][1]))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_hostile_is_refused_and_leads_nowhere(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path, kind: str
) -> None:
    path = rewritten(save(cache), HOSTILE[kind])
    new = tmp_path / "deep/down/new"
    new.parent.mkdir(parents=True)
    with pytest.raises(BackupError):
        bring(path, new)
    assert lies(new) == []
    assert list(new.glob("*/refs/**/*")) == []
    beside = [p for p in (tmp_path / "deep").rglob("*") if new not in (p, *p.parents)]
    assert beside == [tmp_path / "deep/down"]


def test_a_backup_cut_anywhere_is_refused_and_a_complete_one_continues(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    path = save(cache)
    whole = path.read_bytes()
    listing = whole.rindex(b'"format_version"')
    lengths = [*range(0, len(whole) - 12_000, len(whole) // 23), listing]
    for number, length in enumerate(lengths):
        path.write_bytes(whole[:length])
        new = tmp_path / f"new{number}"
        with pytest.raises(BackupError):
            bring(path, new)
        assert lies(new) == []
        path.write_bytes(whole)
        bring(path, new)
        assert content(new) == content(cache.root)


class Restoring(Subject[Restored | VlmcacheError]):
    """Two refs, a small file twice, and weights come back into an empty cache."""

    command = "restore"

    def __init__(self, saved: Path, right: dict[str, Entry]) -> None:
        self.saved = saved
        # The tag only tells backup programs to skip the cache; nothing is told if it lacks.
        self.right = {name: entry for name, entry in right.items() if name != layout.CACHE_TAG}

    def begin(self, place: Path) -> None:
        """An empty cache."""

    def run(self, place: Path) -> Restored | VlmcacheError:
        try:
            return bring(self.saved, place / "new")
        except VlmcacheError as error:
            return error

    def hold(self, place: Path, answer: Restored | VlmcacheError | None) -> None:
        assert lies(place / "new") == []
        if isinstance(answer, VlmcacheError):
            assert "\n" not in answer.message
        elif answer is not None:
            self.check_content(place)

    def again(self, place: Path) -> None:
        assert isinstance(self.run(place), Restored)
        self.check_content(place)

    def check_content(self, place: Path) -> None:
        found = content(place / "new")
        found.pop(layout.CACHE_TAG, None)
        assert found == self.right


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
def test_a_fault_at_every_call_of_a_restore_leaves_no_wrong_state_and_the_next_one_continues(
    cache: CacheBuilder, tmp_path: Path, fault: Fault
) -> None:
    cache.repo("org/name").revision(FILES, refs=["main", "v1"])
    try_every(Restoring(save(cache), content(cache.root)), fault, at_least=20)


class Saving(Subject[VlmcacheError | None]):
    """A backup takes the place of an older one."""

    command = "backup"

    def __init__(self, cache: CacheBuilder, right: bytes) -> None:
        self.cache = cache
        self.right = right

    def begin(self, place: Path) -> None:
        (place / "saved.tar").write_bytes(b"the older one")

    def run(self, place: Path) -> VlmcacheError | None:
        try:
            backup(session(self.cache.root), str(place / "saved.tar"))
        except VlmcacheError as error:
            return error
        return None

    def hold(self, place: Path, answer: VlmcacheError | None) -> None:
        found = (place / "saved.tar").read_bytes()
        assert found in (b"the older one", self.right)
        if answer is not None:
            assert "\n" not in answer.message

    def again(self, place: Path) -> None:
        assert self.run(place) is None
        assert (place / "saved.tar").read_bytes() == self.right


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
def test_a_fault_at_every_call_of_a_backup_leaves_the_old_or_the_new_one(
    cache: CacheBuilder, fault: Fault
) -> None:
    cache.repo("org/name").revision(FILES)
    try_every(Saving(cache, save(cache).read_bytes()), fault, at_least=5)


class Impatient(Progress):
    """Presses Ctrl-C before the first byte."""

    def planned(self, done: str, sizes: Mapping[str, int], have: Mapping[str, int]) -> None:
        raise KeyboardInterrupt


def test_an_interruption_names_the_command_that_continues_on_the_same_cache(
    cache: CacheBuilder, repo: CachedRepo, tmp_path: Path
) -> None:
    saved = save(cache)
    here = CacheLocation(str(cache.root), "--cache-dir")
    new = CacheLocation(str(tmp_path / "new"), "--cache-dir")
    with pytest.raises(KeyboardInterrupt) as raised:
        backup(
            session(cache.root)._replace(cache=here), f"{tmp_path}/store/", (), None, Impatient()
        )
    assert raised.value.args[0] == (
        f"'vlmcache backup {tmp_path}/store/ --cache-dir {here.dir}' continues from here"
    )
    with pytest.raises(KeyboardInterrupt) as raised:
        restore(
            session(tmp_path / "new")._replace(cache=new),
            str(saved),
            ("org/name",),
            RestoreOptions(overwrite=True),
            Impatient(),
        )
    assert raised.value.args[0] == (
        f"'vlmcache restore {saved} org/name --overwrite --cache-dir {new.dir}' continues from here"
    )
