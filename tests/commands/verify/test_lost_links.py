"""Lost links come back without a download, and without the network if the listing is here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache

from tests.kit.caches import CacheBuilder, CachedRepo, fingerprint
from tests.kit.damages import FILES, GOOD, LOST_LINKS, SIZE, WEIGHTS
from tests.kit.disks import as_other_user, common_folder
from tests.kit.hub import LoopbackHub
from tests.kit.hub_process import Hub
from tests.kit.pulls import QUICK, REPO, config, environment, lies, pull
from vlmcache.cache.completeness import judge
from vlmcache.cache.scan import scan
from vlmcache.commands.status.status import status
from vlmcache.commands.verify.repair import repair
from vlmcache.commands.verify.values import RepairReport, Verification, VerifyOptions
from vlmcache.commands.verify.verify import verify
from vlmcache.config import CacheLocation, Session, read_environment
from vlmcache.errors import ExitCode

NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9"}
OFFLINE = {"HF_HUB_OFFLINE": "1", **NO_HUB}


def location(cache: Path) -> CacheLocation:
    return CacheLocation(str(cache), "--cache-dir")


def checked(cache: Path, *names: str) -> Verification:
    session = Session(read_environment(), config(), location(cache))
    return verify(session, names, VerifyOptions(max_age=0.0))


def repaired(
    cache: Path,
    *names: str,
    hub: Hub | None = None,
    variables: dict[str, str] = OFFLINE,
) -> RepairReport:
    """Repair; without a hub none answers, and by default none is asked."""
    where = read_environment(read_environment().variables | variables, str(cache.parent))
    if hub is not None:
        where = environment(hub, cache)
    session = Session(where, config(), location(cache))
    return repair(session, names, VerifyOptions(max_age=60.0), patience=QUICK)


def loads(cache: Path) -> None:
    """Let the real client load everything, offline."""
    folder = snapshot_download(REPO, cache_dir=cache, local_files_only=True)
    for name, data in FILES.items():
        path = hf_hub_download(REPO, name, cache_dir=cache, local_files_only=True)
        assert path == os.path.join(folder, name)
        assert Path(path).read_bytes() == data
        assert try_to_load_from_cache(REPO, name, cache_dir=cache) == path


@pytest.fixture
def repo(cache: CacheBuilder) -> CachedRepo:
    return cache.repo(REPO)


@pytest.mark.parametrize("kind", LOST_LINKS)
def test_with_a_listing_all_links_come_back_offline_and_the_model_loads(
    cache: CacheBuilder, repo: CachedRepo, kind: str
) -> None:
    repo.revision(FILES)
    LOST_LINKS[kind][0](repo)
    assert judge(scan(cache.root).repo(REPO), "main").state == "damaged"
    assert checked(cache.root).problem is not None
    run = repaired(cache.root)
    assert run.problem is None
    assert run.remaining == ()
    assert run.receipt is not None
    assert run.receipt.fetched == 0
    loads(cache.root)
    assert checked(cache.root).problem is None
    assert repaired(cache.root).plan.actions == ()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", LOST_LINKS)
def test_without_a_listing_a_repair_does_what_the_links_show_and_says_what_else_it_needs(
    cache: CacheBuilder, repo: CachedRepo, repair_hub: LoopbackHub, kind: str
) -> None:
    commit = repo.revision(FILES, tree=False)
    lose, links_name_content = LOST_LINKS[kind]
    lose(repo)
    before = fingerprint(cache.root)
    run = repaired(cache.root)
    if links_name_content:
        assert run.problem is None
    elif "partial" in kind:
        # Other programs link what they have only when all of it is here.
        assert run.problem is not None
        again = f"vlmcache pull {REPO} --cache-dir {cache.root}"
        assert run.problem.hint == f"finish the download: {again}"
        return
    else:
        assert run.problem is not None
        assert run.problem.exit_code == ExitCode.HUB
        assert f"the cache holds no listing of commit {commit[:12]}" in run.problem.message
        assert "\n" not in run.problem.message
        assert fingerprint(cache.root) == before
        assert repaired(cache.root, hub=repair_hub).problem is None
        assert repair_hub.bytes_sent() == 0
    loads(cache.root)


@pytest.mark.parametrize("listing", [True, False])
@pytest.mark.parametrize("kind", LOST_LINKS)
def test_a_pull_links_what_is_here_and_fetches_nothing(
    cache: CacheBuilder, repo: CachedRepo, repair_hub: LoopbackHub, kind: str, listing: bool
) -> None:
    repo.revision(FILES, tree=listing)
    LOST_LINKS[kind][0](repo)
    assert pull(repair_hub, cache.root).problem is None
    assert repair_hub.bytes_sent() == 0
    loads(cache.root)


@pytest.mark.parametrize("listing", [True, False])
@pytest.mark.parametrize("kind", LOST_LINKS)
def test_no_finding_of_lost_links_advises_to_remove_anything(
    cache: CacheBuilder, repo: CachedRepo, kind: str, listing: bool
) -> None:
    repo.revision(FILES, tree=listing)
    lose, links_name_content = LOST_LINKS[kind]
    lose(repo)
    state = scan(cache.root)
    errors = [one for one in state.all_findings() if one.severity == "error"]
    if listing or links_name_content:
        remedies = {one.remedy for one in state.all_findings() if one.code != "stale-partial"}
        assert remedies == {f"vlmcache verify {REPO} --repair"}
        assert state.by_class.orphan == 0
        advised = [
            one.command
            for one in status(
                Session(read_environment(), config(), location(cache.root))
            ).recommendations
        ]
        assert f"vlmcache verify {REPO} --repair --cache-dir {cache.root}" in advised
    assert not any(word in (one.remedy or "") for one in errors for word in ("rm", "clean"))


def test_a_blob_with_wrong_content_is_never_linked_again_and_the_others_are(
    cache: CacheBuilder, repo: CachedRepo, repair_hub: LoopbackHub
) -> None:
    repo.revision(FILES)
    right = fingerprint(cache.root)
    repo.flipped_bit(WEIGHTS)
    repo.missing_snapshots()
    run = repaired(cache.root)
    assert run.problem is not None
    assert run.problem.exit_code == ExitCode.HUB
    assert "20 kB" in run.problem.message
    assert repo.pointer(GOOD).exists()
    assert not os.path.lexists(repo.pointer(WEIGHTS))
    assert repaired(cache.root, hub=repair_hub).problem is None
    assert repair_hub.bytes_sent() == SIZE
    assert fingerprint(cache.root) == right


@pytest.mark.parametrize("extra", [OFFLINE, NO_HUB], ids=["offline", "no hub answers"])
def test_what_has_to_be_fetched_does_not_keep_the_other_links_from_coming_back(
    cache: CacheBuilder, repo: CachedRepo, extra: dict[str, str]
) -> None:
    repo.revision(FILES)
    repo.missing_blob(WEIGHTS)
    repo.missing_snapshots()
    run = repaired(cache.root, variables=extra)
    assert run.problem is not None
    assert run.problem.exit_code == ExitCode.HUB
    assert repo.pointer(GOOD).exists()
    assert repo.pointer("config.json").exists()
    assert lies(cache.root) == []


def test_a_revision_whose_snapshot_was_lost_can_be_asked_for_by_its_ref(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    repo.revision({**FILES, "config.json": b"{}"}, refs=("v1",))
    repo.revision(FILES)
    repo.empty_snapshot(repo.latest).rmdir()
    assert checked(cache.root, f"{REPO}@v1").problem is None
    assert checked(cache.root, f"{REPO}@main").problem is not None
    assert repaired(cache.root, f"{REPO}@main").problem is None
    loads(cache.root)


def test_where_refs_and_snapshots_were_lost_the_listing_brings_the_commit_back(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    commit = repo.revision(FILES, refs=())
    repo.missing_snapshots()
    assert repaired(cache.root).problem is None
    folder = snapshot_download(REPO, revision=commit, cache_dir=cache.root, local_files_only=True)
    assert Path(folder, WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_files_that_loading_does_not_need_get_their_links_back_too(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    repo.revision({**FILES, "README.md": b"# Name", ".gitattributes": b"*.bin"})
    repo.pointer("README.md").unlink()
    assert [one.file for one in checked(cache.root).missing] == ["README.md"]
    assert repaired(cache.root).problem is None
    repo.missing_snapshots()
    assert repaired(cache.root).problem is None
    loads(cache.root)
    assert repo.pointer(".gitattributes").read_bytes() == b"*.bin"


LOOK = """
import json, sys
from vlmcache.cache.scan import scan
from vlmcache.config import CacheLocation, Session, read_environment, shipped_config
from vlmcache.commands.verify.verify import verify
state = scan(sys.argv[1])
session = Session(read_environment(), shipped_config(), CacheLocation(sys.argv[1], "test"))
value = verify(session)
found = [(one.code, one.severity, one.remedy) for one in state.all_findings()]
print(json.dumps([found, value.problem is None, [one.path for one in value.unverifiable]]))
"""


def test_a_listing_that_this_user_may_not_read_is_no_damage() -> None:
    with common_folder() as folder:
        repo = CacheBuilder(folder / "hub").repo(REPO)
        listing = repo.trees / f"{repo.revision(FILES)}.json"
        listing.chmod(0)
        done = as_other_user([sys.executable, "-c", LOOK, str(folder / "hub")])
    assert done.returncode == 0, done.stderr
    found, good, unverifiable = json.loads(done.stdout)
    assert found == [["unreadable-file", "info", "vlmcache doctor"]]
    assert good
    assert unverifiable == [str(listing)]


def test_what_a_pattern_left_out_is_not_lost_although_another_revision_holds_it(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    repo.revision(FILES, refs=("v1",))
    repo.revision({**FILES, "config.json": b"{}"}, downloaded={"config.json"})
    found = scan(cache.root).repo(REPO)
    assert judge(found, "main").state == "partial"
    assert "lost-link" not in {one.code for one in scan(cache.root).all_findings()}


def test_a_file_of_a_model_that_happens_to_be_empty_or_short_is_no_lost_link(
    cache: CacheBuilder, repo: CachedRepo
) -> None:
    files = {**FILES, "empty.txt": b"", "short.txt": b"../../blobs/" + b"x" * 40}
    for listing in (True, False):
        repo.revision(files, tree=listing, link="copy")
        assert "lost-link" not in {one.code for one in scan(cache.root).all_findings()}
        repo.missing_snapshots()
