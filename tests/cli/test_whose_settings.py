"""Which files may protect, and which may make a command remove more or run code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.commands.remove.test_removal_commands import Place, _aged
from tests.kit.caches import CacheBuilder, fingerprint
from tests.kit.commands import Done, Vlmcache, offline_without_torch, run_here, take_variables
from vlmcache import loading
from vlmcache.config import CacheLocation, Session, load_config, read_environment
from vlmcache.errors import ExitCode
from vlmcache.load.finder import ModelFinder


class Here(Place):
    """The same with the commands in this process."""

    def run(self, *arguments: str) -> Done:
        with pytest.MonkeyPatch.context() as patch:
            take_variables(self.vlmcache, patch)
            return run_here(*arguments)


@pytest.fixture
def place(tmp_path: Path, vlmcache: Vlmcache) -> Place:
    offline_without_torch(vlmcache, tmp_path)
    return Here(tmp_path, vlmcache)


def user_config(text: str) -> Path:
    path = Path(os.environ["HOME"]) / ".config" / "vlmcache" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_budget_of_a_working_folder_evicts_nothing_and_is_shown(place: Place) -> None:
    repos = _aged(place.root, first=50, second=20)
    place.configure("models: {}\nvlmcache:\n  max_size: 1MB\n  min_free: 900TB\n")
    before = fingerprint(place.root)
    assert place.run("clean", "-y").code == 0
    assert fingerprint(place.root) == before
    assert all(repo.folder.exists() for repo in repos.values())
    path = place.vlmcache.folder / "config.yaml"
    for command in ("status", "doctor"):
        warnings = [
            finding["detail"]
            for finding in place.json(command)["findings"]
            if finding["code"] == "configuration" and finding["severity"] == "warning"
        ]
        assert [text for text in warnings if text.startswith(f"{path}:3: vlmcache.max_size is")]


NAMED_BY = ("--config", "VLMCACHE_CONFIG", "./config.yaml", "user")


@pytest.mark.parametrize("names", NAMED_BY)
@pytest.mark.parametrize("active", NAMED_BY)
def test_what_any_file_on_the_search_path_names_is_never_evicted(
    place: Place, active: str, names: str
) -> None:
    repos = _aged(place.root, named=90, other=90)
    (place.vlmcache.folder / "config.yaml").unlink()
    texts = {active: "models: {}\nvlmcache: {min_free: 0}\n"}
    texts[names] = "models: {mine: {repo: org/named}}\n"
    options: list[str] = []
    for source, text in texts.items():
        if source == "user":
            user_config(text)
        elif source == "./config.yaml":
            place.configure(text)
        else:
            path = place.vlmcache.config(text, f"{source.strip('-')}.yaml")
            if source == "--config":
                options = ["--config", str(path)]
            else:
                place.vlmcache.environment["VLMCACHE_CONFIG"] = str(path)
    done = place.run("clean", "--older-than", "30d", "-y", *options)

    assert done.code == 0, done
    assert repos["named"].folder.exists()
    assert not repos["other"].folder.exists()


@pytest.mark.parametrize(
    ("broken", "line", "options"),
    [
        ("models: [a\n", 2, ()),
        ("models: [a\n", 2, ("--older-than", "30d")),
        ("models:\n  a: {repo: o/n, revision: ..}\n", 2, ("--max-size", "0")),
        ("models:\n  a: {repo: o/n, revision: ..}\n", 2, ("--all",)),
    ],
)
def test_clean_removes_nothing_while_another_config_file_cannot_be_read(
    place: Place, broken: str, line: int, options: tuple[str, ...]
) -> None:
    _aged(place.root, one=90)
    path = user_config(broken)
    before = fingerprint(place.root)
    done = place.run("clean", "-y", *options)

    assert done.code == ExitCode.USAGE
    assert f"{path}:{line}: " in done.err
    assert fingerprint(place.root) == before
    status = place.json("status")
    assert status["exit_code"] == 0
    assert any(f"{path}:{line}: " in finding["detail"] for finding in status["findings"])
    assert place.run("rm", "org/one", "-y").code == 0


@pytest.mark.parametrize(
    ("key", "cached", "typed"),
    [
        ("owner/name", "owner/name", "owner/name"),
        ("Owner/Name", "owner/name", "Owner/Name"),
        ("owner/name", "Owner/Name", "owner/name"),
        ("gpt2", "gpt2", "gpt2"),
        ("owner/name@main", "owner/name", "owner/name@main"),
    ],
)
def test_a_key_spelled_like_a_cached_repo_never_makes_a_command_change_another(
    place: Place, key: str, cached: str, typed: str
) -> None:
    cache = CacheBuilder(place.root)
    meant, other = cache.repo(cached), cache.repo("org/precious")
    meant.revision({"config.json": b"{}"})
    other.revision({"config.json": b"precious"})
    place.configure(f"models: {{'{key}': {{repo: org/precious}}}}\n")

    status = place.json("status", typed)
    assert [model["repo"] for model in status["models"]] == [cached]
    assert place.json("verify", typed)["checked"] == 1
    assert place.json("pull", typed, "--dry-run")["models"][0]["repo"] == cached
    moved = place.json(
        "move", str(place.root.parent / "drive"), typed.partition("@")[0], "--dry-run"
    )
    assert [repo["repo"] for repo in moved["repos"]] == [cached]
    tar = str(place.root.parent / "saved.tar")
    assert place.run("backup", tar).code == 0
    restored = place.json("restore", tar, typed, "--dry-run")
    assert restored["repos"] == [cached]
    assert place.run("rm", typed, "-y").code == 0
    assert not meant.folder.exists()
    assert other.folder.exists()


def test_a_dataset_is_not_shadowed_by_a_key_either(place: Place) -> None:
    cache = CacheBuilder(place.root)
    meant, other = cache.repo("org/data", kind="dataset"), cache.repo("org/precious")
    for repo in (meant, other):
        repo.revision({"config.json": b"{}"})
    place.configure("models: {'datasets/org/data': {repo: org/precious}}\n")
    assert place.run("rm", "datasets/org/data", "-y").code == 0
    assert not meant.folder.exists()
    assert other.folder.exists()


@pytest.mark.parametrize(
    "arguments", [("clean",), ("rm", "org/name"), ("move", "drive"), ("verify", "--repair")]
)
def test_a_plan_names_the_cache_that_a_dotenv_chose_in_its_first_line(
    place: Place, arguments: tuple[str, ...]
) -> None:
    del place.vlmcache.environment["HF_HUB_CACHE"]
    (place.vlmcache.folder / ".env").write_text(f"HF_HUB_CACHE={place.root}\n")
    repo = CacheBuilder(place.root).repo("org/name")
    repo.revision({"config.json": b"{}"})
    repo.dangling_link("config.json") if arguments[0] == "verify" else repo.orphan_blob()
    done = place.vlmcache(*arguments, "--dry-run", HF_HUB_OFFLINE="1")
    lines = done.out.splitlines()
    assert f"Cache {place.root}" in (lines if arguments[0] == "verify" else lines[:1])


def test_a_side_cache_of_a_dotenv_is_ignored_and_shown_by_doctor(place: Place) -> None:
    CacheBuilder(place.root).repo("org/name").revision({"config.json": b"{}"})
    hostile = place.root.parent / "hostile"
    for name in ("http___127_0_0_1-fPS9ESocpm7VXpc6/shard-cache/x", "xet/logs/xet_1.log"):
        (hostile / name).parent.mkdir(parents=True)
        (hostile / name).write_bytes(b"precious")
    (place.vlmcache.folder / ".env").write_text(f"HF_XET_CACHE={hostile}\nHF_HOME={hostile}\n")
    before = fingerprint(hostile)
    cleaned = place.json("clean", "--xet", "-y")
    assert cleaned["exit_code"] == 0
    assert fingerprint(hostile) == before
    assert str(hostile) not in str(cleaned["side_caches"])
    details = [finding["detail"] for finding in place.json("doctor")["findings"]]
    ignored = f"{place.vlmcache.folder}/.env: HF_XET_CACHE is ignored"
    assert any(ignored in detail for detail in details)


@pytest.mark.parametrize(
    ("option", "for_application", "runs"),
    [(None, False, False), (None, True, True), ("config.yaml", False, True)],
)
def test_a_working_folder_allows_remote_code_to_applications_and_never_to_commands(
    place: Place, option: str | None, for_application: bool, runs: bool
) -> None:
    repo = CacheBuilder(place.root).repo("org/code")
    auto = b'{"model_type": "own", "auto_map": {"AutoModel": "modeling.Own"}}'
    commit = repo.revision({"config.json": auto, "model.safetensors": b"w", "modeling.py": b""})
    place.configure(
        f"models: {{code: {{repo: org/code, revision: {commit}, trust_remote_code: true}}}}\n"
    )
    environment = read_environment(folder=str(place.vlmcache.folder))
    location = CacheLocation(str(place.root), "test")
    session = Session(environment, load_config(option, environment), location)
    _, source = ModelFinder(session, ["code"], for_application=for_application).find("code")
    assert source.trust_remote_code == runs
    _, asked = ModelFinder(session, ["code"], trust_remote_code=True).find("code")
    assert asked.trust_remote_code


def test_load_model_asks_as_an_application(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def find(*_: object, **options: object) -> None:
        asked.append(options)
        raise NotCachedError

    monkeypatch.setattr(loading, "ModelFinder", find)
    monkeypatch.setattr("vlmcache.loading.require_packages", lambda: None)
    with pytest.raises(NotCachedError):
        loading.load_model("org/name")
    assert asked == [{"trust_remote_code": False, "for_application": True, "attention": None}]


class NotCachedError(Exception):
    """Stands for whatever ends the load."""
