"""What a pull fetches, what `status` says of it, and what the next pull does agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.contents import Content
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import pull
from tests.kit.repositories import REPOSITORIES, contents
from vlmcache.cache.completeness import Judgement, judge, to_fetch
from vlmcache.cache.scan import repo_finder
from vlmcache.commands.pull.plan import FileSelection
from vlmcache.commands.pull.values import PullReport

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
        left = to_fetch(repo_finder(str(tmp_path))(repo), found)
        hub.clear_requests()
        again = pulled(hub, tmp_path, repo)
        assert sum(row.fetched for row in again.models) == left
        assert (found.state == "cached") == (not left) == (not path.exists())
        if name in REPOSITORIES[repo]["needed"]:
            assert found.state == "partial"
            assert name in found.missing
        assert judged(tmp_path, repo).state == "cached"
