"""A base beneath a private cache: what is linked, what stays, and what each command does then."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.kit.bases import FILES, NEWER, WEIGHTS, Based
from tests.kit.caches import CacheBuilder, du_allocated, fingerprint
from tests.kit.commands import Vlmcache
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import pull
from tests.kit.served import TOKEN, serving
from vlmcache import Cache, UnknownModelError, UsageError
from vlmcache.cache.base_record import base_record_path, decode
from vlmcache.commands.doctor.bases import check_bases
from vlmcache.commands.watch.events import changes
from vlmcache.config import open_session
from vlmcache.errors import ExitCode

ONE = "models--org--one"


@pytest.fixture
def based(tmp_path: Path) -> Iterator[Based]:
    """A base with one model; no command of a test may change anything in it."""
    found = Based(tmp_path)
    found.fill()
    found.settle()
    yield found
    assert found.base_now() == found.settled


@pytest.fixture
def attached(based: Based) -> Based:
    assert based.cache.attach(based.base.root).problem is None
    return based


def targets(based: Based, name: str = ONE) -> dict[str, str]:
    return {
        path.name: os.readlink(path)
        for path in (based.root / name / "blobs").iterdir()
        if path.is_symlink()
    }


# attach


def test_each_model_of_the_base_is_cached_and_its_blobs_are_links_to_the_bases_files(
    based: Based,
) -> None:
    report = based.cache.attach(based.base.root)
    assert report.ids == ["org/one"]
    assert report.receipt is not None
    assert report.receipt.whole
    assert based.state() == "cached"
    there = based.base.root / ONE / "blobs"
    assert targets(based) == {path.name: str(path) for path in there.iterdir()}
    assert based.scan().findings == ()
    assert based.repo().findings == ()


def test_only_links_and_folders_take_room_and_status_says_what_the_base_holds(
    attached: Based,
) -> None:
    status = attached.cache.status()
    size = sum(map(len, FILES.values()))
    assert status.cache.size_on_disk == du_allocated(attached.root)
    assert status.cache.by_class.referenced == 0
    assert status.cache.size_on_disk == status.cache.by_class.total
    (repo,) = status.repos
    assert (repo.base, repo.size_in_base) == (str(attached.base.root), size)
    (place,) = status.elsewhere
    assert (place.path, place.base, place.size_on_disk) == (str(attached.base.root), True, size)


def test_links_of_the_bases_shared_store_lead_to_the_real_file(based: Based) -> None:
    shared = based.base.repo("org/two")
    shared.revision(FILES, shared=["model.safetensors"])
    based.settle()
    based.cache.attach(based.base.root)
    etag = shared.file("model.safetensors").etag
    real = os.path.realpath(shared.blob("model.safetensors"))
    assert targets(based, "models--org--two")[etag] == real
    assert based.state("org/two") == "cached"
    assert based.repo("org/two").blobs[etag].shared is None
    assert based.cache.verify().checked == 6


def test_a_dry_run_changes_nothing_and_has_the_plan(based: Based) -> None:
    report = based.cache.attach(based.base.root, dry_run=True)
    (action,) = report.plan.actions
    assert action.path == str(based.root / ONE)
    assert report.receipt is None
    assert not based.root.exists()


def test_attaching_again_links_only_what_the_base_has_got_since(tmp_path: Path) -> None:
    based = Based(tmp_path)
    based.fill()
    based.cache.attach(based.base.root)
    before = fingerprint(based.root / ONE)
    based.fill("org/two")
    report = based.cache.attach()
    assert report.ids == ["org/two"]
    assert report.unchanged == 1
    assert fingerprint(based.root / ONE) == before
    assert based.cache.attach().ids == []


def test_a_branch_follows_the_base_until_somebody_sets_it_here(tmp_path: Path) -> None:
    based = Based(tmp_path)
    first = based.fill()
    based.cache.attach(based.base.root)
    second = based.fill(files=NEWER)
    based.cache.attach()
    assert based.repo().refs == {"main": second}
    assert {revision.commit for revision in based.repo().revisions} == {first, second}
    (based.root / ONE / "refs" / "main").write_text(first)
    third = based.fill(files={**NEWER, "more.json": b"{}"})
    report = based.cache.attach()
    assert based.repo().refs == {"main": first}
    assert any(third in kept.reason for kept in report.plan.kept)
    assert based.repo().revision(third) is not None


def test_what_was_downloaded_here_is_not_linked_and_not_touched(based: Based) -> None:
    own = CacheBuilder(based.root).repo("org/one")
    own.revision({**FILES, "own.json": b"{}"}, refs=["mine"])
    before = fingerprint(based.root / ONE / "blobs")
    based.cache.attach(based.base.root)
    assert fingerprint(based.root / ONE / "blobs") == before
    assert based.repo().refs.keys() == {"mine", "main"}
    assert based.state() == "cached"


def test_names_that_the_hub_does_not_have_are_known_here_too(based: Based) -> None:
    based.base.repo("org/two").revision(FILES)
    path = based.base.root / "models--org--two" / ".no_exist" / "c" / "x"
    commit = next((based.base.root / "models--org--two" / "snapshots").iterdir()).name
    path = path.parent.parent / commit / "sub" / "processor.json"
    path.parent.mkdir(parents=True)
    path.touch()
    based.settle()
    based.cache.attach(based.base.root)
    assert (based.root / path.relative_to(based.base.root)).is_file()


def test_files_that_the_base_has_as_copies_are_not_linked(based: Based) -> None:
    based.base.repo("org/copies").revision(FILES, link="copy")
    based.settle()
    report = based.cache.attach(based.base.root)
    assert report.ids == ["org/one"]
    assert [kept.repo for kept in report.plan.kept] == ["org/copies"]


@pytest.mark.parametrize("where", ["absent", "empty", "itself", "inside", "file"])
def test_what_cannot_be_a_base_is_refused(based: Based, where: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    CacheBuilder(based.root).repo("org/own").revision(FILES)
    CacheBuilder(based.root / "sub" / "hub").repo("org/own").revision(FILES)
    place = {"itself": based.root, "inside": based.root / "sub" / "hub"}.get(where)
    before = fingerprint(based.root)
    with pytest.raises(UsageError):
        based.cache.attach(place or tmp_path / where)
    assert fingerprint(based.root) == before


def test_the_base_of_the_users_own_configuration_is_attached(based: Based) -> None:
    based.config.write_text(f"vlmcache:\n  min_free: 0\n  base: {based.base.root}\n")
    assert based.cache.attach().ids == ["org/one"]


def test_a_base_of_a_working_folder_is_shown_and_ignored(
    based: Based, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    models = "models:\n  a: {model_path: org/one}\n"
    (folder / "config.yaml").write_text(f"{models}vlmcache:\n  base: {based.base.root}\n")
    monkeypatch.chdir(folder)
    session = open_session(None, str(based.root))
    assert session.config.base is None
    assert any("vlmcache.base is ignored" in warning for warning in session.config.warnings)
    with pytest.raises(UsageError, match="no base is named"):
        Cache(based.root).attach()


# detach


def test_detach_removes_the_links_and_only_them(attached: Based) -> None:
    report = attached.cache.detach(attached.base.root)
    assert report.problem is None
    assert report.ids == ["org/one"]
    assert [path.name for path in attached.root.rglob("*") if path.is_file()] == ["CACHEDIR.TAG"]


def test_detach_leaves_what_was_downloaded_here(attached: Based) -> None:
    own = attached.root / ONE / "blobs"
    link = next(path for path in own.iterdir() if os.path.getsize(path) == len(WEIGHTS))
    link.unlink()
    link.write_bytes(WEIGHTS)
    attached.cache.detach()
    assert [path.name for path in own.iterdir()] == [link.name]
    assert attached.state() == "partial"
    assert attached.repo().refs.keys() == {"main"}
    assert not os.path.exists(base_record_path(str(attached.root), ONE))
    (revision,) = attached.repo().revisions
    assert [file.name for file in revision.files] == ["model.safetensors"]


def test_detach_works_without_the_base(attached: Based) -> None:
    away = attached.folder / "elsewhere"
    attached.base.root.rename(away)
    assert attached.cache.detach().problem is None
    assert attached.scan().repos == ()
    away.rename(attached.base.root)


def test_detach_of_what_is_not_attached_is_refused(attached: Based, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=str(attached.base.root)):
        attached.cache.detach(tmp_path / "other")
    attached.cache.detach()
    assert attached.cache.detach().ids == []


def test_of_two_bases_one_has_to_be_named(attached: Based, tmp_path: Path) -> None:
    second = CacheBuilder(tmp_path / "second")
    second.repo("org/two").revision(FILES)
    attached.cache.attach(second.root)
    with pytest.raises(UsageError, match="several bases"):
        attached.cache.detach()
    attached.cache.detach(second.root)
    assert [repo.id for repo in attached.scan().repos] == ["org/one"]


# The other commands


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        repo = hub.add_repo("org/one")
        repo.commit(FILES)
        repo.commit(NEWER)
        yield hub


def test_pull_of_a_newer_revision_fetches_only_what_the_base_does_not_have(
    attached: Based, hub: LoopbackHub
) -> None:
    report = pull(hub, attached.root, "org/one")
    assert report.problem is None
    assert report.receipt is not None
    assert report.receipt.fetched == len(NEWER["config.json"])
    assert hub.bytes_sent("model.safetensors") == 0
    assert attached.state() == "cached"


def test_pull_links_what_a_base_has_of_a_model_that_is_not_attached(
    attached: Based, hub: LoopbackHub
) -> None:
    attached.cache.remove("org/one")
    attached.base.repo("org/two").revision(FILES)
    attached.settle()
    attached.cache.attach(attached.base.root)
    attached.cache.remove("org/one")
    report = pull(hub, attached.root, "org/one")
    assert report.problem is None
    assert report.receipt is not None
    assert report.receipt.fetched == len(NEWER["config.json"])
    assert attached.state() == "cached"
    lent = [blob.size for blob in attached.repo().blobs.values() if blob.base is not None]
    assert sum(lent) == len(WEIGHTS) + len(FILES["sub/more.json"])


def test_rm_removes_links_and_the_record_and_nothing_else(attached: Based) -> None:
    removal = attached.cache.remove("org/one")
    assert removal.problem is None
    assert removal.receipt is not None
    assert not os.path.exists(base_record_path(str(attached.root), ONE))
    with pytest.raises(UnknownModelError):
        attached.cache.remove("org/one")


def test_clean_frees_nothing_that_is_in_the_base(attached: Based) -> None:
    before = fingerprint(attached.root)
    for options in ({}, {"max_size": 1}, {"older_than": 0.0}, {"duplicates": True}):
        attached.cache.clean(**options)
        assert fingerprint(attached.root) == before, options


def test_verify_reads_through_and_a_good_base_is_good(attached: Based) -> None:
    verification = attached.cache.verify(max_age=0)
    assert verification.checked == len(FILES)
    assert verification.problem is None


def test_move_leaves_what_is_attached(attached: Based, tmp_path: Path) -> None:
    CacheBuilder(attached.root).repo("org/own").revision(FILES)
    report = attached.cache.move(tmp_path / "drive")
    assert [repo.repo for repo in report.repos] == ["org/own"]
    assert [kept.repo for kept in report.plan.kept] == ["org/one"]
    with pytest.raises(UsageError, match="links into the base"):
        attached.cache.move(tmp_path / "drive", "org/one")
    assert attached.state() == "cached"


def test_a_backup_has_the_content_and_restore_never_writes_through_a_link(
    attached: Based, tmp_path: Path
) -> None:
    saved = f"{tmp_path}/saved.tar"
    assert attached.cache.backup(saved).problem is None
    assert attached.cache.restore(saved, overwrite=True).problem is None
    fresh = Cache(tmp_path / "fresh", attached.config)
    assert fresh.restore(saved).problem is None
    assert fresh.verify().checked == len(FILES)
    etag = next(name for name, blob in attached.repo().blobs.items() if blob.size == len(WEIGHTS))
    os.unlink(attached.root / ONE / "blobs" / etag)
    assert attached.cache.restore(saved).problem is None
    assert not (attached.root / ONE / "blobs" / etag).is_symlink()


def test_serve_serves_what_is_in_the_base(attached: Based, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMCACHE_SERVE_TOKEN", TOKEN)
    with serving(attached.root, "org/one") as ask:
        answer = ask("/org/one/resolve/main/model.safetensors")
    assert (answer.status, answer.body) == (200, WEIGHTS)


def test_watch_shows_when_a_base_is_away_and_when_it_is_back(attached: Based) -> None:
    before = attached.scan()
    other = attached.base.root.rename(attached.folder / "other")
    gone = attached.scan()
    other.rename(attached.base.root)
    assert [event.kind for event in changes(before, gone)] == ["away"]
    assert [event.kind for event in changes(gone, attached.scan())] == ["back"]


def test_doctor_says_what_is_new_in_the_base_and_when_it_is_not_there(attached: Based) -> None:
    def codes() -> set[str]:
        return {finding.code for finding in check_bases(attached.cache.session)}

    assert "base-has-more" not in codes()
    attached.cache.remove("org/one")
    attached.config.write_text(f"vlmcache:\n  base: {attached.base.root}\n")
    assert "base-has-more" in codes()
    attached.config.write_text("vlmcache:\n  base: /nowhere/at/all\n")
    assert "base-absent" in codes()


# As it is typed


@pytest.fixture
def vlmcache(based: Based, tmp_path: Path) -> Vlmcache:
    return Vlmcache(
        {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "home"),
            "VLMCACHE_HOME": str(tmp_path / "own"),
            "HF_HUB_CACHE": str(based.root),
        },
        tmp_path / "work",
    )


def test_plan_and_receipt_are_in_the_document(vlmcache: Vlmcache, based: Based) -> None:
    base = str(based.base.root)
    planned = vlmcache("attach", base, "--dry-run", "--json").document
    assert planned["schema"] == "vlmcache.attach/1"
    assert planned["plan"]["actions"][0]["action"] == "attach"
    assert planned["receipt"] is None
    done = vlmcache("attach", base, "--json").document
    assert (done["ok"], done["receipt"]["outcomes"][0]["result"]) == (True, "done")
    assert vlmcache("detach", base).code == ExitCode.UNCONFIRMED
    assert based.state() == "cached"
    removed = vlmcache("detach", base, "--yes", "--json").document
    assert removed["schema"] == "vlmcache.detach/1"
    assert [repo["state"] for repo in removed["repos"]] == ["detached"]


def test_a_record_can_be_read_back_and_anything_else_is_none() -> None:
    good = {"format": "vlmcache.base/1", "bases": [{"folder": "/srv/models"}]}
    assert decode(json.dumps(good).encode()).bases[0].folder == "/srv/models"
    bad: list[object] = [
        {**good, "format": "vlmcache.base/9"},
        {**good, "bases": [{"folder": "models"}]},
        [],
    ]
    for value in bad:
        with pytest.raises(msgspec.MsgspecError):
            decode(json.dumps(value).encode())
