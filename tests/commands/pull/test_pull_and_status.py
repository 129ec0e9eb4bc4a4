"""What a pull fetches, what `status` says of it, and what the next pull does agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from tests.kit.contents import Content
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import config, environment, pull, vlmcache
from tests.kit.repositories import REPOSITORIES, contents
from vlmcache.cache.amounts import to_fetch
from vlmcache.cache.completeness import Judgement, judge
from vlmcache.cache.scan import repo_finder, scan
from vlmcache.commands.pull.plan import FileSelection
from vlmcache.commands.pull.values import PullReport
from vlmcache.commands.remove.remove import remove
from vlmcache.config import CacheLocation, Session

CODE = "jinaai/jina-clip-implementation"
CODE_FILES: dict[str, Content] = {
    "README.md": b"code",
    "modeling_clip.py": b"from .configuration_clip import JinaCLIPConfig\nclass JinaCLIPModel: ...",
    "configuration_clip.py": b"class JinaCLIPConfig: ...",
    "model.safetensors": b"weights that nobody needs for the code",
}


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(CODE).commit(CODE_FILES)
        for repo, case in REPOSITORIES.items():
            hub.add_repo(repo).commit(contents(case["files"], case.get("config")))
        yield hub


def judged(cache: Path, repo: str) -> Judgement:
    others = repo_finder(str(cache))
    return judge(others(repo), "main", others, variant_of(repo))


def variant_of(repo: str) -> str | None:
    """Return the variant that is pulled of a GGUF repo."""
    return "Q4_K_M" if repo.endswith("GGUF") else None


def pulled(hub: LoopbackHub, cache: Path, repo: str) -> PullReport:
    report = pull(hub, cache, repo, selection=FileSelection(variant=variant_of(repo)))
    assert report.problem is None
    return report


@pytest.mark.parametrize("repo", REPOSITORIES)
def test_a_pull_fetches_what_is_needed_and_the_next_one_asks_one_question(
    hub: LoopbackHub, tmp_path: Path, repo: str
) -> None:
    case = REPOSITORIES[repo]
    report = pulled(hub, tmp_path, repo)
    model = report.models[0]
    assert model.path is not None
    snapshot = Path(model.path)
    here = {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()}
    assert set(case["needed"]) <= here
    assert not here & set(case["left_out"])
    assert {file.path for file in model.left_out} == set(case["files"]) - here
    assert judged(tmp_path, repo).state == "cached"
    hub.clear_requests()
    again = pulled(hub, tmp_path, repo)
    assert [row.state for row in again.models] == ["cached"]
    assert [request.path for request in hub.requests] == [f"/api/models/{repo}/revision/main"]
    for name in sorted(here):
        (snapshot / name).rename(tmp_path / "away")
        found = judged(tmp_path, repo)
        if name in case["needed"]:
            assert found.state == "damaged"  # The link was lost: its blob is still here.
            assert name in found.damaged
        if name in case["not_needed"]:
            assert found.state == "cached"
        (tmp_path / "away").rename(snapshot / name)


@pytest.mark.parametrize("repo", REPOSITORIES)
def test_what_is_missing_is_what_a_pull_fetches(
    hub: LoopbackHub, tmp_path: Path, repo: str
) -> None:
    report = pulled(hub, tmp_path, repo)
    assert report.models[0].path is not None
    snapshot = Path(report.models[0].path)
    for path in sorted(path for path in snapshot.rglob("*") if path.is_file()):
        name = str(path.relative_to(snapshot))
        blob = path.resolve()
        path.unlink()
        blob.unlink()
        found = judged(tmp_path, repo)
        state = scan(str(tmp_path))
        left = to_fetch(state, state.repo(repo), found)
        hub.clear_requests()
        again = pulled(hub, tmp_path, repo)
        assert sum(row.fetched for row in again.models) == left
        assert (found.state == "cached") == (not left) == (not path.exists())
        if name in REPOSITORIES[repo]["needed"]:
            assert found.state == "partial"
            assert name in found.missing
        assert judged(tmp_path, repo).state == "cached"


ADAPTER: dict[str, Content] = {
    "adapter_config.json": json.dumps({"base_model_name_or_path": "org/base"}).encode(),
    "adapter_model.safetensors": b"a few weights",
}
BASE: dict[str, Content] = {"config.json": b"{}", "model.safetensors": b"w" * 3000}


@pytest.fixture
def adapter_hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("org/adapter").commit(ADAPTER)
        hub.add_repo("org/base").commit(BASE)
        yield hub


def test_an_adapter_is_pulled_with_its_base_model_and_is_not_cached_without_it(
    adapter_hub: LoopbackHub, tmp_path: Path
) -> None:
    report = pull(adapter_hub, tmp_path, "org/adapter")
    assert report.problem is None
    assert [(row.repo, row.state, row.needed_by) for row in report.models] == [
        ("org/adapter", "pulled", None),
        ("org/base", "pulled", "org/adapter"),
    ]
    assert judged(tmp_path, "org/adapter").state == "cached"
    adapter_hub.clear_requests()
    assert pull(adapter_hub, tmp_path, "org/adapter").models[0].state == "cached"
    assert len(adapter_hub.requests) == 1
    shutil.rmtree(tmp_path / "models--org--base")
    found = judged(tmp_path, "org/adapter")
    assert (found.state, found.missing_repos) == ("partial", ("org/base",))
    assert pull(adapter_hub, tmp_path, "org/adapter").problem is None
    assert judged(tmp_path, "org/adapter").state == "cached"


def test_without_a_terminal_a_base_model_is_fetched_only_with_yes(
    adapter_hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    refused = vlmcache(adapter_hub, cache, "pull", "org/adapter")
    assert refused.returncode == 5
    assert "org/adapter needs org/base (3 kB): there is no terminal to ask on" in refused.stderr
    assert adapter_hub.bytes_sent("model.safetensors") == 0
    assert adapter_hub.bytes_sent("adapter_model.safetensors") == 0
    planned = vlmcache(adapter_hub, cache, "pull", "org/adapter", "--dry-run")
    assert planned.returncode == 0
    assert "org/base" in planned.stdout
    assert vlmcache(adapter_hub, cache, "pull", "org/adapter", "--yes").returncode == 0
    assert vlmcache(adapter_hub, cache, "status", "org/adapter", "--check").returncode == 0
    shutil.rmtree(cache / "models--org--base")
    state = vlmcache(adapter_hub, cache, "status", "org/adapter", "--check", "--json")
    assert state.returncode == 4
    document = json.loads(state.stdout)
    assert document["models"][0]["state"] == "partial"
    assert "needs-repo" in [finding["code"] for finding in document["findings"]]


def test_the_client_finds_a_pulled_model_offline_whatever_was_left_out(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    repo = "field/additional-templates"
    report = pulled(hub, tmp_path, repo)
    commit, left = report.models[0].commit, report.models[0].left_out
    assert [file.path for file in left] == ["pytorch_model.bin"]
    trees = tmp_path / "models--field--additional-templates" / "trees"
    assert [path.name for path in trees.iterdir()] == [f"{commit}.vlmcache.json"]
    folder = snapshot_download(repo, cache_dir=tmp_path, local_files_only=True)
    assert (Path(folder) / "additional_chat_templates" / "tool_use.jinja").is_file()
    # What somebody asks the client for, it fetches, and then it knows all of it.
    pull(hub, tmp_path, repo, selection=FileSelection(every=True))
    assert [path.name for path in trees.iterdir()] == [f"{commit}.json"]
    snapshot_download(repo, cache_dir=tmp_path, local_files_only=True)


def test_a_listing_of_either_name_is_read_and_removed_with_its_revision(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    repo = "field/additional-templates"
    pulled(hub, tmp_path, repo)
    found = repo_finder(str(tmp_path))(repo)
    assert found is not None
    (commit,) = found.trees
    assert found.own_trees == {commit}
    assert found.revisions[0].tree == found.trees[commit]
    session = Session(environment(hub, tmp_path), config(), CacheLocation(str(tmp_path), "test"))
    plan = remove(session, [f"{repo}@main"], dry_run=True).plan
    assert plan.actions
    client = Path(found.tree_path(commit)).with_name(f"{commit}.json")
    shutil.copy(found.tree_path(commit), client)
    again = repo_finder(str(tmp_path))(repo)
    assert again is not None
    assert not again.own_trees
    assert [stray.leftover for stray in again.strays] == [True]
