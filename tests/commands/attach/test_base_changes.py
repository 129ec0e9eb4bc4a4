"""A base that changes underneath never makes the private cache wrong; attach repairs it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.bases import FILES, NEWER, WEIGHTS, Based
from tests.kit.caches import fingerprint
from tests.kit.disks import RemovableDrive, removable_drive
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import pull
from vlmcache import AwayError, Cache, UsageError
from vlmcache.cache.completeness import judge
from vlmcache.cache.scan import scan

ONE = "models--org--one"


@pytest.fixture
def based(tmp_path: Path) -> Based:
    found = Based(tmp_path)
    found.fill()
    found.fill("org/two", {**FILES, "model.safetensors": WEIGHTS[:-8]})
    found.cache.attach(found.base.root)
    return found


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("org/one").commit(FILES)
        yield hub


def blob_of(based: Based, name: str = "model.safetensors") -> Path:
    return based.base.repo("org/one").blobs / based.base_file(name)


def test_a_model_that_the_admin_removed_is_missing_and_pull_fetches_it(
    based: Based, hub: LoopbackHub
) -> None:
    shutil.rmtree(based.base.root / ONE)
    assert based.state() == "missing"
    assert based.state("org/two") == "cached"
    (finding,) = based.repo().findings
    assert (finding.code, finding.severity) == ("not-in-base", "warning")
    status = based.cache.status("org/one")
    assert status.models[0].to_fetch == sum(map(len, FILES.values()))
    report = pull(hub, based.root, "org/one")
    assert report.problem is None
    assert based.state() == "cached"
    assert based.repo().attached_to == ()
    assert based.cache.verify(max_age=0).problem is None


def test_a_file_that_the_admin_removed_makes_it_partial_and_pull_fetches_that_file(
    based: Based, hub: LoopbackHub
) -> None:
    blob = blob_of(based)
    blob.unlink()
    assert based.state() == "partial"
    judgement = judge(based.repo(), "main")
    assert (judgement.missing, judgement.damaged) == (("model.safetensors",), ())
    report = pull(hub, based.root, "org/one")
    assert report.receipt is not None
    assert report.receipt.fetched == len(WEIGHTS)
    assert based.state() == "cached"
    assert not (based.root / ONE / "blobs" / blob.name).is_symlink()
    assert not blob.exists()


def test_nothing_of_a_model_that_the_base_has_lost_is_waste(based: Based) -> None:
    blob_of(based).unlink()
    before = fingerprint(based.root)
    based.cache.clean()
    assert fingerprint(based.root) == before


def test_a_new_revision_in_the_base_changes_nothing_here_before_it_is_attached(
    based: Based,
) -> None:
    before = fingerprint(based.root)
    second = based.fill(files=NEWER)
    assert based.state() == "cached"
    assert fingerprint(based.root) == before
    based.cache.attach()
    assert based.repo().refs["main"] == second
    assert based.state() == "cached"


def test_an_old_revision_that_the_admin_cleaned_is_gone_and_the_new_one_is_attached(
    based: Based,
) -> None:
    first = based.repo().refs["main"]
    second = based.fill(files=NEWER)
    old = based.base.root / ONE / "snapshots" / first
    config = (old / "config.json").resolve()
    shutil.rmtree(old)
    config.unlink()
    assert based.state() == "partial"
    based.cache.attach()
    assert based.repo().refs["main"] == second
    assert based.state() == "cached"
    assert judge(based.repo(), first).state == "partial"


def test_a_base_that_another_folder_replaces_gives_what_the_new_one_has(based: Based) -> None:
    shutil.rmtree(based.base.root)
    fresh = Based(based.folder)
    fresh.fill("org/three")
    assert based.state() == "missing"
    based.cache.attach()
    assert based.state("org/three") == "cached"
    assert based.state() == "missing"
    assert based.cache.detach().problem is None
    assert based.scan().repos == ()


def test_a_base_without_its_folder_is_away_and_no_command_takes_it_for_damage(
    based: Based, hub: LoopbackHub
) -> None:
    before = fingerprint(based.root)
    based.base.root.rename(based.folder / "other")
    assert based.state() == "away"
    assert based.cache.status().repos[0].state == "away"
    based.cache.clean(all=True)
    verification = based.cache.verify()
    assert (verification.missing, verification.damaged) == ((), ())
    assert len(verification.unverifiable) == 2
    assert isinstance(pull(hub, based.root, "org/one").problem, AwayError)
    with pytest.raises(UsageError, match="is missing"):
        based.cache.attach()
    assert fingerprint(based.root) == before
    (based.folder / "other").rename(based.base.root)
    assert based.state() == "cached"


def test_attaching_a_base_at_its_new_place_makes_everything_right(based: Based) -> None:
    other = based.base.root.rename(based.folder / "other")
    report = based.cache.attach(other)
    assert sorted(report.ids) == ["org/one", "org/two"]
    assert based.state() == "cached"
    assert based.repo().bases == (str(other),)
    assert set(map(os.readlink, (based.root / ONE / "blobs").iterdir())) == {
        str(path) for path in (other / ONE / "blobs").iterdir()
    }


def test_damage_in_the_base_is_the_bases_and_repair_fetches_a_copy_of_ones_own(
    based: Based, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = blob_of(based)
    blob.write_bytes(WEIGHTS[:-1] + b"!")
    (damage,) = based.cache.verify("org/one", max_age=0).damaged
    assert damage.base == str(blob)
    assert str(blob) in damage.detail
    before = based.base_now()
    for name, value in hub.environment(based.root).items():
        if name.startswith("HF_"):
            monkeypatch.setenv(name, value)
    report = Cache(based.root, based.config).repair("org/one")
    assert report.problem is None, report.problem
    assert report.receipt is not None
    assert report.receipt.fetched == len(WEIGHTS)
    assert based.base_now() == before
    assert not (based.root / ONE / "blobs" / blob.name).is_symlink()
    assert based.cache.verify("org/one", max_age=0).problem is None
    # It stays so: what is here is not linked again.
    based.cache.attach()
    assert not (based.root / ONE / "blobs" / blob.name).is_symlink()


def test_what_verify_found_damaged_in_a_base_is_not_attached(based: Based) -> None:
    blob_of(based).write_bytes(WEIGHTS[:-1] + b"!")
    based.cache.verify("org/one", max_age=0)
    assert based.state() == "cached"
    assert based.cache.status("org/one").models[0].state == "damaged"
    based.cache.detach()
    based.cache.attach(based.base.root)
    assert based.state() == "partial"


def test_a_blob_that_the_admins_client_moves_into_the_shared_store_stays_linked(
    based: Based,
) -> None:
    blob = blob_of(based)
    xet = "ab" * 32
    based.base._share(blob, xet)
    assert based.state() == "cached"
    assert based.cache.verify(max_age=0).problem is None


@pytest.mark.parametrize("replace", ["folder", "other-length", "outside"])
def test_what_takes_the_place_of_a_bases_blob_is_never_taken_for_the_blob(
    based: Based, replace: str
) -> None:
    blob = blob_of(based)
    blob.unlink()
    if replace == "folder":
        blob.mkdir()
    elif replace == "other-length":
        blob.write_bytes(b"short")
    else:
        secret = based.folder / "secret"
        secret.write_bytes(WEIGHTS)
        blob.symlink_to(secret)
        assert based.cache.verify("org/one", max_age=0).unverifiable
        return
    assert based.state() in ("partial", "damaged")
    assert based.cache.verify("org/one", max_age=0).problem is not None


# A drive of its own


@pytest.fixture
def drive() -> Iterator[RemovableDrive]:
    with removable_drive() as found:
        yield found


def test_models_of_a_base_that_is_not_mounted_are_away_and_come_back(
    tmp_path: Path, drive: RemovableDrive
) -> None:
    shelf = Based(drive.place)
    shelf.fill()
    cache = Cache(tmp_path / "hub", shelf.config)
    base = shelf.base.root
    text = shelf.config.read_text()
    cache.attach(base)
    own = tmp_path / "config.yaml"
    own.write_text(text)
    cache = Cache(tmp_path / "hub", own)
    drive.unmount()
    repo = scan(tmp_path / "hub").repo("org/one")
    assert repo is not None
    assert repo.away is not None
    assert repo.away.base
    assert cache.status().repos[0].state == "away"
    before = fingerprint(tmp_path / "hub")
    cache.clean()
    assert fingerprint(tmp_path / "hub") == before
    place = drive.mount("elsewhere")
    assert cache.status().repos[0].state == "away"
    assert cache.attach(place / "base").problem is None
    assert cache.status().repos[0].state == "cached"
