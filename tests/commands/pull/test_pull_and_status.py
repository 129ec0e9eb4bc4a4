"""What a pull fetches, what `status` says of it, and what the next pull does agree."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from huggingface_hub import _CACHED_NO_EXIST, snapshot_download, try_to_load_from_cache

from tests.kit.caches import CacheBuilder
from tests.kit.contents import Content
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import config, environment, pull, variables, vlmcache
from tests.kit.repositories import REPOSITORIES, contents
from vlmcache.cache.amounts import to_fetch
from vlmcache.cache.completeness import Judgement, judge
from vlmcache.cache.scan import repo_finder, scan
from vlmcache.change.plan import Fetch
from vlmcache.commands.pull.plan import FileSelection
from vlmcache.commands.pull.values import PullReport
from vlmcache.commands.remove.remove import remove
from vlmcache.commands.status.status import status
from vlmcache.commands.verify.verify import verify
from vlmcache.commands.watch.watch import watch
from vlmcache.config import CacheLocation, Session
from vlmcache.errors import UnconfirmedError
from vlmcache.loading import load_from

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


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("repo", REPOSITORIES)
def test_what_is_missing_is_what_a_pull_fetches(
    hub: LoopbackHub, tmp_path: Path, repo: str, every: int
) -> None:
    """Of each repo the check takes every third file away, not always from the first on."""
    report = pulled(hub, tmp_path, repo)
    assert report.models[0].path is not None
    snapshot = Path(report.models[0].path)
    files = sorted(path for path in snapshot.rglob("*") if path.is_file())
    for path in files[list(REPOSITORIES).index(repo) % every :: every]:
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


@pytest.mark.parametrize("config", [True, False])
def test_that_a_repo_with_a_tokenizer_has_no_configuration_is_kept_as_the_client_keeps_it(
    tmp_path: Path, config: bool
) -> None:
    files: dict[str, Content] = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{ }"}
    with LoopbackHub() as hub:
        hub.add_repo("org/words").commit(files | ({"config.json": b"{}"} if config else {}))
        report = pull(hub, tmp_path, "org/words")
    assert report.problem is None
    known = try_to_load_from_cache("org/words", "config.json", tmp_path)
    assert (known is _CACHED_NO_EXIST) is not config
    assert (tmp_path / "models--org--words" / ".no_exist").exists() is not config


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


@pytest.mark.full
@pytest.mark.parametrize("repo", REPOSITORIES)
def test_pull_status_and_pull_again_as_they_are_typed(
    hub: LoopbackHub, tmp_path: Path, repo: str
) -> None:
    cache = tmp_path / "cache"
    name = f"{repo}:{variant_of(repo)}" if variant_of(repo) else repo
    first = vlmcache(hub, cache, "pull", name, "--yes")
    assert first.returncode == 0, first.stderr
    state = vlmcache(hub, cache, "status", name, "--check")
    assert state.returncode == 0, state.stdout + state.stderr
    hub.clear_requests()
    again = vlmcache(hub, cache, "pull", name, "--yes")
    assert again.returncode == 0, again.stderr
    assert [request.path for request in hub.requests] == [f"/api/models/{repo}/revision/main"]


def test_a_shard_of_the_index_that_the_hub_does_not_have_is_named_by_pull_and_status(
    tmp_path: Path,
) -> None:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": dict(zip("ab", shards, strict=True))}
    with LoopbackHub() as hub:
        hub.add_repo("org/half").commit(
            {
                "config.json": b'{"model_type": "qwen2"}',
                "model.safetensors.index.json": json.dumps(index).encode(),
                shards[0]: b"one of two",
            }
        )
        for _ in range(2):
            report = pull(hub, tmp_path, "org/half")
            assert report.problem is not None
            assert report.problem.message == (
                "org/half was pulled and cannot be loaded: its index names "
                f"{shards[1]}, which the hub does not have"
            )
        assert pull(hub, tmp_path, "org/half", dry_run=True).problem is not None
        found = judged(tmp_path, "org/half")
        assert (found.state, found.damaged) == ("damaged", ("model.safetensors.index.json",))
        assert found.missing == (shards[1],)
        shown = vlmcache(hub, tmp_path, "status", "org/half", "--json")
        details = {one["code"]: one["detail"] for one in json.loads(shown.stdout)["findings"]}
        assert details["unreadable-index"] == (
            f"model.safetensors.index.json names {shards[1]}, which the hub does not have"
        )


def test_load_model_fetches_no_base_model_unasked_and_names_the_command(
    adapter_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmcache.loading.require_packages", lambda: None)
    cache = tmp_path / "cache"
    session = Session(environment(adapter_hub, cache), config(), CacheLocation(str(cache), "test"))
    for _ in range(2):
        with pytest.raises(UnconfirmedError) as refused:
            load_from(
                session,
                "org/adapter",
                None,
                "cpu",
                trust_remote_code=False,
                attention=None,
            )
        assert refused.value.message == "org/adapter needs org/base (3 kB), and nothing was fetched"
        assert refused.value.hint == "vlmcache pull org/adapter"
        assert adapter_hub.bytes_sent("adapter_model.safetensors") == 0
        assert adapter_hub.bytes_sent("model.safetensors") == 0


def test_verify_says_that_a_base_model_is_missing(adapter_hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    pull(adapter_hub, cache, "org/adapter")
    assert vlmcache(adapter_hub, cache, "verify").returncode == 0
    shutil.rmtree(cache / "models--org--base")
    checked = vlmcache(adapter_hub, cache, "verify", "org/adapter", "--json")
    assert checked.returncode == 4
    missing = json.loads(checked.stdout)["missing"]
    assert [(one["repo"], one["file"]) for one in missing] == [("org/base", "*")]


@pytest.mark.parametrize(
    ("name", "repo", "file"),
    [
        ("org/adapter", "org/adapter", "adapter_model.safetensors"),
        ("org/adapter", "org/base", "model.safetensors"),
    ],
)
def test_what_verify_found_damaged_is_fetched_again_and_is_to_fetch_in_every_view(
    adapter_hub: LoopbackHub, tmp_path: Path, name: str, repo: str, file: str
) -> None:
    cache = tmp_path / "cache"
    session = Session(environment(adapter_hub, cache), config(), CacheLocation(str(cache), "test"))
    pull(adapter_hub, cache, name)
    found = repo_finder(str(cache))(repo)
    assert found is not None
    blob = Path(found.revisions[0].file_path(file)).resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + b"?")
    verify(session)
    adapter_hub.clear_requests()
    (model,) = (one for one in status(session, [repo]).models)
    assert (model.state, model.damaged_files) == ("damaged", (file,))
    assert (model.to_fetch, model.progress != 1.0) == (len(content), True)
    with closing(watch(session, notify=False)) as checks:
        watched = {one.repo: one for one in next(checks).snapshot.models}
    assert (watched[repo].state, watched[repo].to_fetch) == ("damaged", len(content))
    assert watched[repo].progress == model.progress
    planned = pull(adapter_hub, cache, name, dry_run=True)
    assert planned.plan.to_fetch == len(content)
    report = pull(adapter_hub, cache, name)
    assert report.problem is None
    assert [one.repo for one in report.models if one.state == "pulled"] == [repo]
    assert blob.read_bytes() == content
    assert [one.state for one in status(session, [name, repo]).models] == ["cached", "cached"]
    assert not pull(adapter_hub, cache, name).plan.actions


OFFLINE = """
import sys
from huggingface_hub import snapshot_download, try_to_load_from_cache
print(snapshot_download("field/additional-templates"))
try:
    import transformers
except ImportError:
    sys.exit()
from transformers.utils import cached_file
from transformers.utils.hub import list_repo_templates
print(sorted(list_repo_templates("field/additional-templates", local_files_only=True)))
print(cached_file("field/additional-templates", "config.json"))
"""


def test_the_client_and_transformers_in_another_process_need_no_network_after_a_pull(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    repo = "field/additional-templates"
    cache = tmp_path / "hub"
    snapshot = pulled(hub, cache, repo).models[0].path
    hub.clear_requests()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE],
        env=variables(hub, cache) | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    folder, *rest = done.stdout.splitlines()
    assert folder == snapshot
    assert rest in ([], ["['tool_use']", f"{snapshot}/config.json"])
    assert hub.requests == []


def test_another_programs_partial_that_was_wrong_is_used_only_once(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4000
    files: dict[str, Content] = {"config.json": b'{"model_type": "qwen2"}'}
    cache = tmp_path / "cache"
    with LoopbackHub() as hub:
        hub.add_repo("org/name").commit(files | {"model.safetensors": data})
        session = Session(environment(hub, cache), config(), CacheLocation(str(cache), "test"))
        repo = CacheBuilder(cache).repo("org/name")
        etag = hashlib.sha256(data).hexdigest()
        left = repo.partial(etag, data=b"?" * (len(data) // 2), age=7200)
        for credit in (len(data) // 2, 0):
            (repo.blobs / etag).unlink(missing_ok=True)
            planned = pull(hub, cache, dry_run=True).plan
            (weights,) = (one for one in planned.actions if getattr(one, "etag", "") == etag)
            assert isinstance(weights, Fetch)
            assert weights.have == credit
            hub.clear_requests()
            report = pull(hub, cache)
            assert report.problem is None
            assert report.models[0].fetched >= len(data)
            assert left.stat().st_size == len(data) // 2
        # Only what the hub lists was sent, once.
        assert hub.bytes_sent("model.safetensors") == len(data)
        (repo.blobs / etag).unlink()
        assert status(session, ["org/name"]).models[0].to_fetch == len(data)
