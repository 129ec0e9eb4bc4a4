"""The scan against real folders: all bytes counted, all damage named, everything still listed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated, fingerprint, model_files
from tests.kit.disks import as_other_user, common_folder, read_only_view
from vlmcache.cache import entries
from vlmcache.cache.completeness import judge
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState
from vlmcache.change.tree import sync_folder
from vlmcache.errors import ConfigError

WEIGHTS = "model.safetensors"
XET = "ab" * 32


def checked(root: Path) -> CacheState:
    """Scan a cache, and compare its size with `du`."""
    state = scan(root)
    assert state.size_on_disk == du_allocated(root)
    assert state.by_class.total == state.size_on_disk
    return state


def codes(state: CacheState) -> set[str]:
    return {finding.code for finding in state.all_findings()}


def old(repo: CachedRepo) -> None:
    repo.partial(size=9000, age=7200)


def many(repo: CachedRepo) -> None:
    repo.revision(model_files(parameters=30_000), refs=("v1", "refs/pr/1"))
    repo.revision(model_files(parameters=40_000), refs=())


DAMAGE: dict[str, tuple[Callable[[CachedRepo], object], set[str]]] = {
    "nothing": (lambda repo: None, set()),
    "dangling link": (lambda repo: repo.dangling_link(WEIGHTS), {"dangling-link"}),
    "missing blob": (lambda repo: repo.missing_blob(WEIGHTS), {"dangling-link"}),
    "short blob": (lambda repo: repo.truncated_blob(WEIGHTS), {"truncated-blob"}),
    "empty blob": (lambda repo: repo.empty_blob(WEIGHTS), {"truncated-blob"}),
    "link loop": (lambda repo: repo.link_loop(), {"link-loop"}),
    "ref to a missing commit": (
        lambda repo: repo.ref_to_missing_commit("v9"),
        {"ref-to-missing-commit"},
    ),
    "ref with a newline": (lambda repo: repo.ref_with_newline(), {"malformed-ref"}),
    "ref that is a folder": (lambda repo: repo.ref_folder("v9"), {"malformed-ref"}),
    "no snapshots": (lambda repo: repo.missing_snapshots(), {"missing-snapshots"}),
    "empty snapshot": (lambda repo: repo.empty_snapshot(), {"empty-snapshot"}),
    "name that is not UTF-8": (lambda repo: repo.non_utf8_name(), {"non-utf8-name"}),
    "snapshot that is a link": (lambda repo: repo.snapshot_link(), {"outside-link"}),
    "link out of the cache": (lambda repo: repo.leaving_link(Path("/etc")), {"outside-link"}),
    "bad tree": (lambda repo: repo.bad_tree("{"), {"unreadable-tree"}),
    "orphan blob": (lambda repo: repo.orphan_blob(), {"orphan-blob"}),
    "stale partial": (old, {"stale-partial"}),
    "live partial": (lambda repo: repo.partial(size=9000, age=1), {"live-partial"}),
    "sparse partial": (lambda repo: repo.partial(size=9_000_000, sparse=True), {"live-partial"}),
    "old style partial": (lambda repo: repo.partial(size=90, old_style=True), {"live-partial"}),
    "stray in the repo": (lambda repo: repo.stray_file("repo"), {"stray-file"}),
    "stray in snapshots": (lambda repo: repo.stray_file("snapshots"), {"stray-file"}),
    "leftover locks": (lambda repo: repo.leftover_locks(3), set()),
    "more revisions": (many, set()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_repo_stays_listed_with_every_byte_counted(
    cache: CacheBuilder, damage: str
) -> None:
    repo = cache.repo("org/name")
    repo.revision(model_files())
    hurt, expected = DAMAGE[damage]
    hurt(repo)
    state = checked(cache.root)
    assert state.repo("org/name") is not None
    assert codes(state) >= expected
    if not expected:
        assert not codes(state)


def test_scanning_changes_nothing_not_even_access_times(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    repo.revision(model_files())
    long_ago = time.time() - 10 * 86400
    for path in cache.root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (long_ago, path.stat().st_mtime))
    before = {
        path: path.lstat().st_atime
        for path in cache.root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    pictured = fingerprint(cache.root)
    for path, atime in before.items():  # the fingerprint itself reads every file
        os.utime(path, (atime, path.stat().st_mtime))
    scan(cache.root)
    assert {path: path.lstat().st_atime for path in before} == before
    assert fingerprint(cache.root) == pictured


def test_an_absent_folder_is_an_empty_cache_that_does_not_exist(tmp_path: Path) -> None:
    state = scan(tmp_path / "nowhere")
    assert not state.exists
    assert state.size_on_disk == 0


def test_a_cache_that_another_program_makes_at_that_moment_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def late(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        try:
            return stat(path, *arguments, **options)
        except FileNotFoundError:
            (tmp_path / "hub").mkdir(exist_ok=True)
            raise

    monkeypatch.setattr(os, "stat", late)
    assert not scan(tmp_path / "hub").exists
    assert scan(tmp_path / "hub").exists


def test_an_empty_folder_is_a_cache_of_one_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    state = checked(tmp_path / "empty")
    assert state.exists
    assert state.by_class.metadata == state.size_on_disk


def test_a_cache_path_that_is_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("not a folder")
    with pytest.raises(ConfigError, match="not a folder"):
        scan(path)


def test_repos_of_every_type_are_listed(cache: CacheBuilder) -> None:
    for kind in ("model", "dataset", "space"):
        cache.repo("org/same", kind).revision({"README.md": kind.encode()})
    (cache.root / "kernels--org--same" / "snapshots").mkdir(parents=True)
    state = checked(cache.root)
    assert {repo.type for repo in state.repos} == {"model", "dataset", "space", "kernel"}
    assert {repo.id for repo in state.repos} == {"org/same"}


def test_two_repos_with_one_commit_stay_two_repos(cache: CacheBuilder) -> None:
    first = cache.repo("org/one").revision(model_files())
    second = cache.repo("org/two").revision(model_files())
    assert first == second
    state = checked(cache.root)
    assert [repo.id for repo in state.repos] == ["org/one", "org/two"]
    assert "same-commit" in codes(state)


@pytest.mark.parametrize("link", ["copy", "move", "hardlink"])
def test_files_in_place_of_links_are_counted_once(cache: CacheBuilder, link: str) -> None:
    cache.repo("org/name").revision(model_files(), link=link)  # type: ignore[arg-type]
    state = checked(cache.root)
    assert "copied-files" in codes(state)
    assert state.by_class.referenced > 0


@pytest.mark.parametrize(("files", "words"), [(1, "1 file"), (2, "2 files")])
def test_copies_in_place_of_links_are_counted_in_words(
    cache: CacheBuilder, files: int, words: str
) -> None:
    names = ["config.json", "other.json"][:files]
    cache.repo("org/name").revision(dict.fromkeys(names, b"{}"), link="copy")
    details = [f.detail for f in scan(cache.root).all_findings() if f.code == "copied-files"]
    assert [detail.rpartition(": ")[2] for detail in details] == [words]


def test_a_blob_that_is_longer_than_listed_says_how_long_it_is_and_should_be(
    cache: CacheBuilder,
) -> None:
    repo = cache.repo("org/name")
    repo.revision(model_files())
    size = repo.file(WEIGHTS).size
    with repo.blob(WEIGHTS).open("ab") as file:
        file.write(b"more")
    (finding,) = checked(cache.root).all_findings()
    assert finding.code == "oversized-blob"
    assert finding.detail == f"{WEIGHTS} has {size + 4} instead of {size} bytes"


def test_a_hard_link_between_repos_is_counted_once_in_the_cache(cache: CacheBuilder) -> None:
    one, two = cache.repo("org/one"), cache.repo("org/two")
    one.revision(model_files())
    two.revision({"README.md": b"small"})
    two.orphan_blob(b"x" * 10_000)
    os.link(one.blob(WEIGHTS), two.blobs / ("9" * 64))
    state = checked(cache.root)
    found = state.repo("org/two")
    assert found is not None
    assert found.size_on_disk == du_allocated(two.folder)


def test_shared_blobs_are_their_own_class_and_know_their_users(cache: CacheBuilder) -> None:
    for name, kind in (("org/one", "model"), ("org/two", "dataset")):
        cache.repo(name, kind).revision(  # type: ignore[arg-type]
            model_files(), shared={WEIGHTS}, xet={WEIGHTS: XET}
        )
    state = checked(cache.root)
    assert state.shared_marked
    assert state.by_class.shared > 0
    assert {user.split("/")[0] for user in state.shared[XET].users} == {
        "models--org--one",
        "datasets--org--two",
    }
    assert codes(state) == {"same-commit"}


def test_a_shared_blob_that_is_gone_is_a_missing_blob(cache: CacheBuilder) -> None:
    cache.repo("org/one").revision(model_files(), shared={WEIGHTS}, xet={WEIGHTS: XET})
    cache.shared_blob(XET).unlink()
    assert {"missing-blob", "dangling-link"} <= codes(checked(cache.root))


def test_a_shared_blob_without_users_or_manifest_is_reported(cache: CacheBuilder) -> None:
    repo = cache.repo("org/one")
    repo.revision(model_files(), shared={WEIGHTS}, xet={WEIGHTS: XET})
    repo.blob(WEIGHTS).unlink()
    cache.shared_blob(XET).with_name(f"{XET}.refs").unlink()
    assert {"orphan-shared-blob", "missing-manifest"} <= codes(checked(cache.root))


def test_a_store_without_its_marker_is_foreign(cache: CacheBuilder) -> None:
    cache.unmarked_shared_store(b"x" * 9000)
    state = checked(cache.root)
    assert not state.shared_marked
    assert state.by_class.foreign >= 9000
    assert "stray-folder" in codes(state)


def test_a_repo_on_another_drive_is_listed_and_only_its_link_is_counted(
    cache: CacheBuilder, tmp_path: Path
) -> None:
    repo = cache.repo("org/name")
    repo.revision(model_files())
    repo.moved_elsewhere(tmp_path / "other")
    state = checked(cache.root)
    found = state.repo("org/name")
    assert found is not None
    assert found.linked_to is not None
    assert found.size_on_disk == du_allocated(Path(found.linked_to))
    assert state.by_class.referenced == 0


def test_a_repo_whose_other_drive_is_gone_is_listed_as_broken(cache: CacheBuilder) -> None:
    (cache.root / "models--org--gone").symlink_to("/nowhere/at/all")
    state = checked(cache.root)
    assert state.repo("org/gone") is not None
    assert "dangling-link" in codes(state)


def test_a_repo_that_links_to_itself_is_listed(cache: CacheBuilder) -> None:
    (cache.root / "models--org--loop").symlink_to("models--org--loop")
    assert checked(cache.root).repo("org/loop") is not None


def test_a_folder_link_inside_a_snapshot_is_never_followed(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    commit = repo.revision(model_files())
    (repo.snapshots / commit / "again").symlink_to("..")
    assert "link-loop" in codes(checked(cache.root))


def test_a_locked_partial_is_live_however_old(cache: CacheBuilder) -> None:
    import fcntl

    repo = cache.repo("org/name")
    repo.revision(model_files())
    etag = "c" * 64
    repo.partial(etag, size=100, age=9000)
    repo.locks.mkdir(parents=True, exist_ok=True)
    with open(repo.locks / f"{etag}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "live-partial" in codes(scan(cache.root))
    assert "stale-partial" in codes(scan(cache.root))


def test_leftovers_of_interrupted_runs_are_reported_as_such(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    repo.revision(model_files())
    (repo.refs / "main.0123abcd.tmp").write_text("x")
    (repo.trees / "tmpabc_0123.tmp").write_text("x")
    (repo.blobs / "tmp_01234567-89ab-cdef-0123-456789abcdef").write_text("")
    (repo.blobs / f".{'a' * 64}.0123abcd.shared").symlink_to("nowhere")
    trash = cache.root / ".vlmcache-leftovers" / "1"
    trash.mkdir(parents=True)
    (trash / "blob").write_bytes(b"x" * 5000)
    state = checked(cache.root)
    strays = [stray for repo in state.repos for stray in repo.strays] + list(state.strays)
    assert len([stray for stray in strays if stray.leftover]) == 5
    assert state.by_class.orphan >= 5000


def test_files_of_desktops_are_foreign_and_harm_nothing(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    commit = repo.revision(model_files())
    for folder in (cache.root, repo.folder, repo.refs, repo.snapshots, repo.snapshots / commit):
        (folder / ".DS_Store").write_bytes(b"\0" * 100)
    state = checked(cache.root)
    assert codes(state) == {"stray-file"}


def test_a_folder_that_may_not_be_read_is_reported_and_the_rest_is_listed() -> None:
    with common_folder() as folder:
        cache = CacheBuilder(folder / "hub")
        cache.repo("org/good").revision(model_files())
        shut = cache.repo("org/shut")
        shut.revision(model_files())
        shut.unreadable_folder("blobs")
        program = (
            "import sys; from vlmcache.cache.scan import scan; s = scan(sys.argv[1]);"
            "print([r.id for r in s.repos], sorted({f.code for f in s.all_findings()}))"
        )
        done = as_other_user([sys.executable, "-c", program, str(cache.root)])
    assert done.returncode == 0, done.stderr
    assert "['org/good', 'org/shut']" in done.stdout
    assert "unreadable-folder" in done.stdout


SCAN = """
import json, sys
from vlmcache.cache.scan import scan
from vlmcache.change.waste import Facts
from vlmcache.commands.remove.plan import plan_cleaning
from vlmcache.commands.remove.values import CleanOptions
state = scan(sys.argv[1])
plan, _ = plan_cleaning(state, CleanOptions(), Facts(state.scanned_at + 1e6))
codes = sorted({finding.code for finding in state.all_findings()})
print(json.dumps([codes, [action.path for action in plan.actions]]))
"""


@pytest.mark.parametrize("name", ["refs", "snapshots", "snapshots/COMMIT", "blobs", "."])
@pytest.mark.parametrize("mode", [0, 0o444])
def test_what_cannot_be_read_is_not_taken_for_empty(name: str, mode: int) -> None:
    with common_folder() as folder:
        cache = CacheBuilder(folder / "hub")
        repo = cache.repo("org/name")
        commit = repo.revision(model_files(), shared={WEIGHTS})
        shut = repo.folder / name.replace("COMMIT", commit)
        shut.chmod(mode)
        done = as_other_user([sys.executable, "-c", SCAN, str(cache.root)])
        shut.chmod(0o755)
    assert done.returncode == 0, done.stderr
    found, planned = json.loads(done.stdout)
    derived = {"orphan-blob", "orphan-shared-blob", "empty-snapshot", "missing-snapshots"}
    assert "unreadable-folder" in found
    assert not (derived | {"link-loop"}).intersection(found)
    assert planned == []


@pytest.mark.parametrize("mode", [0, 0o444])
def test_a_cache_that_cannot_be_read_is_not_taken_for_empty(mode: int) -> None:
    with common_folder() as folder:
        cache = CacheBuilder(folder / "hub")
        cache.repo("org/name").revision(model_files())
        cache.root.chmod(mode)
        done = as_other_user([sys.executable, "-c", SCAN, str(cache.root)])
        below = as_other_user([sys.executable, "-c", SCAN, str(cache.root / "models--org--name")])
        cache.root.chmod(0o755)
    for ended in (done, below):
        assert "CacheError: the cache cannot be read: Permission denied" in ended.stderr


def test_a_cache_path_below_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="the cache path is not a folder"):
        scan(tmp_path / "file" / "hub")


def test_a_blob_that_is_a_link_to_a_folder_has_no_content(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    repo.revision(model_files())
    blob = repo.blob("config.json")
    blob.unlink()
    blob.symlink_to(repo.refs)
    state = checked(cache.root)
    assert "missing-blob" in codes(state)
    assert judge(state.repo("org/name"), "main").state == "damaged"


def test_a_link_to_a_folder_of_similar_name_next_to_the_cache_is_not_a_loop(
    cache: CacheBuilder,
) -> None:
    repo = cache.repo("org/name")
    commit = repo.revision(model_files())
    elsewhere = Path(f"{cache.root}"[:-1])
    elsewhere.mkdir()
    (repo.snapshots / commit / "aside").symlink_to(elsewhere)
    assert codes(checked(cache.root)) == {"outside-link"}


def test_names_are_quoted_in_the_commands_that_findings_advise(cache: CacheBuilder) -> None:
    folder = cache.root / "datasets--a--b; touch x"
    folder.mkdir(parents=True)
    (cache.root / "models--a--$(id)").symlink_to("/nowhere")
    remedies = {finding.remedy for finding in checked(cache.root).all_findings() if finding.remedy}
    assert remedies == {"mount that drive, or remove the link: vlmcache rm 'a/$(id)'"}


def test_a_read_only_cache_is_scanned_like_any_other(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    repo.revision(model_files())
    repo.partial(size=10, age=7200)
    with read_only_view(cache.root) as view:
        assert checked(view).by_class == scan(cache.root).by_class


def test_a_repo_that_is_removed_while_the_cache_is_read_is_left_out(
    cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("org/here", "org/goes"):
        cache.repo(name).revision(model_files())
    going = cache.repo("org/goes").folder
    stat = os.stat

    def late(path: object, **options: object) -> os.stat_result:
        if path == str(going) and going.exists():
            shutil.rmtree(going)
        return stat(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", late)
    assert [repo.id for repo in scan(cache.root).repos] == ["org/here"]


def test_ten_thousand_levels_of_folders_do_not_end_the_scan(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    commit = repo.revision(model_files())
    program = "import os\nfor _ in range(10000): os.mkdir('d'); os.chdir('d')"
    subprocess.run([sys.executable, "-c", program], cwd=repo.snapshots / commit, check=True)
    state = scan(cache.root)
    assert state.repo("org/name") is not None
    subprocess.run(["rm", "-rf", str(repo.snapshots / commit / "d")], check=True)


ACTIONS = st.sampled_from(sorted(DAMAGE))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from(["a/x", "b/y", "z"]), ACTIONS), max_size=8))
def test_any_combination_of_damage_is_listed_and_counted_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, heap: list[tuple[str, str]]
) -> None:
    cache = CacheBuilder(tmp_path_factory.mktemp("heap") / "hub")
    repos: dict[str, CachedRepo] = {}
    for name, damage in heap:
        if name not in repos:
            repos[name] = cache.repo(name)
            repos[name].revision(model_files(), tree=len(repos) % 2 == 0)
        try:
            DAMAGE[damage][0](repos[name])
        except OSError:
            continue  # earlier damage took away what this one would hurt
    state = checked(cache.root)
    assert {repo.id for repo in state.repos} == set(repos)
    for repo in state.repos:
        assert repo.size_on_disk == du_allocated(Path(repo.path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.timeout(60)
def test_a_folder_that_becomes_a_pipe_while_it_is_read_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(100):
        (folder / str(number)).symlink_to("anywhere")
    notes = entries.Notes(None)
    begun = entries.entries_and_targets(str(folder), notes)
    assert next(begun)[::2] == ("0", "anywhere")
    shutil.rmtree(folder)
    os.mkfifo(folder)
    assert list(begun) == []
    assert not notes.findings
    assert entries.read_link(str(folder / "1")) == ""
    assert entries.read_entries(str(folder), notes) == []
    assert [finding.code for finding in notes.findings] == ["unreadable-folder"]
    with pytest.raises(NotADirectoryError):
        sync_folder(str(folder))


def test_what_an_unfinished_first_download_has_fetched_is_not_old(cache: CacheBuilder) -> None:
    repo = cache.repo("org/name")
    repo.revision(model_files(), refs=())
    assert scan(cache.root).by_class.detached > 0
    repo.partial(size=50_000)
    state = scan(cache.root)
    assert state.by_class.detached == 0
    assert state.by_class.referenced > 0
    repo.revision({"config.json": b"{1}"})
    assert scan(cache.root).by_class.detached > 0
