"""Each command that `status` recommends, run as it is printed: none fails for a reason we knew."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.kit import damages
from tests.kit.caches import CacheBuilder, CachedRepo, fingerprint, model_files
from tests.kit.commands import Vlmcache, run_here
from tests.kit.contents import Synthetic
from tests.kit.disks import as_other_user, common_folder, read_only_view, small_filesystem
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import variables
from vlmcache.change import known
from vlmcache.commands.remove import clean
from vlmcache.commands.status import status
from vlmcache.home.journal import Journal

MB = 1_000_000
HUGE = "900PB"
KNOWN_BEFORE = {2, 3, 7, 9}
"""Exit codes that a plan foresees: a wrong command, a missed goal, no such model, no room."""
WANTED = model_files(parameters=20_000)
WEIGHTS = "model.safetensors"

Build = Callable[[CacheBuilder], object]


def aged(repo: CachedRepo, days: int = 60) -> None:
    then = time.time() - days * 86400
    for path in (repo.folder, *repo.folder.rglob("*")):
        os.utime(path, (then, then), follow_symlinks=False)


def wanted(cache: CacheBuilder, *without: str) -> CachedRepo:
    repo = cache.repo("org/wanted")
    repo.revision(WANTED, downloaded=set(WANTED) - set(without))
    return repo


def complete_and_several(cache: CacheBuilder) -> None:
    wanted(cache)
    several(cache)


def begun(cache: CacheBuilder) -> None:
    """A download that was interrupted two hours ago, and waste of another repo next to it."""
    repo = wanted(cache, WEIGHTS)
    etag = repo.file(WEIGHTS).etag
    data = WANTED[WEIGHTS]
    assert isinstance(data, bytes)
    part = repo.blobs / f"{etag}.incomplete"
    part.write_bytes(data[: len(data) // 2])
    then = time.time() - 7200
    os.utime(part, (then, then))
    other(cache)


def other(cache: CacheBuilder, name: str = "org/other", days: int = 60) -> CachedRepo:
    """A complete model that nobody configured, with a stale download in it."""
    repo = cache.repo(name)
    repo.revision(model_files(parameters=60_000))
    repo.partial(size=50_000)
    aged(repo, days)
    return repo


def damaged(kind: str) -> Build:
    def build(cache: CacheBuilder) -> None:
        damages.SEEN_BY_LOOKING[kind][0](damaged_repo(cache))
        other(cache)

    return build


def damaged_repo(cache: CacheBuilder) -> CachedRepo:
    repo = cache.repo("org/name")
    repo.revision(damages.FILES)
    return repo


def several(cache: CacheBuilder) -> None:
    for number in range(7):
        other(cache, f"org/other-{number}", 10 * number + 1)


CACHES: dict[str, tuple[Build, str]] = {
    "missing": (lambda _: None, ""),
    "no cache yet": (lambda cache: shutil.rmtree(cache.root), ""),
    "waste": (lambda cache: (wanted(cache), other(cache)), ""),
    "begun": (begun, ""),
    "begun on a full disk": (begun, f"min_free: {HUGE}"),
    "begun on a disk under the comfortable": (begun, f"comfortable_free: {HUGE}"),
    "begun and over the limit": (begun, "max_size: 300kB"),
    "over a limit that can be held": (complete_and_several, "max_size: 600kB"),
    "over a limit that cannot be held": (complete_and_several, "max_size: 1kB"),
    "a full disk": (complete_and_several, f"min_free: {HUGE}"),
    "a full disk with configured models only": (wanted, f"min_free: {HUGE}"),
    "under the comfortable": (complete_and_several, f"comfortable_free: {HUGE}"),
    "over the limit on a full disk": (complete_and_several, f"max_size: 1kB, min_free: {HUGE}"),
    "lost links": (lambda cache: wanted(cache).missing_snapshots(), ""),
    "a ref to nothing": (lambda cache: wanted(cache).ref_to_missing_commit(), ""),
    **{kind: (damaged(kind), "") for kind in ("missing blob", "ref with a newline")},
    **{
        f"{kind} on a full disk": (damaged(kind), f"min_free: {HUGE}")
        for kind in ("dangling link", "truncated blob")
    },
}


@pytest.fixture
def hub() -> Any:
    with LoopbackHub() as hub:
        hub.add_repo("org/wanted").commit(WANTED)
        hub.add_repo("org/name").commit(damages.FILES)
        yield hub


@pytest.fixture
def place(tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> CacheBuilder:
    """A cache with blanks in its path, so that what is recommended has to be quoted."""
    for name, value in variables(hub, tmp_path / "elsewhere").items():
        monkeypatch.setenv(name, value)
    return CacheBuilder(tmp_path / "a $cache" / "hub")


def configured(tmp_path: Path, limits: str) -> list[str]:
    """Write a configuration under a name with blanks, and return the option that names it."""
    path = tmp_path / "our config.yaml"
    limits = limits if "min_free" in limits else f"min_free: 0, {limits}"
    if "comfortable_free" not in limits:
        limits = f"comfortable_free: 0, {limits}"
    path.write_text(
        "models:\n  wanted: {repo: org/wanted, expected_size: 1MB}\n  name: {repo: org/name}\n"
        f"vlmcache: {{{limits}}}\n"
    )
    return ["--config", str(path)]


def words_of(command: str) -> list[str]:
    program, *words = shlex.split(command)
    assert program == "vlmcache"
    return [*words, "--once"] if words[0] == "watch" else words


def to_fetch(options: list[str]) -> int:
    document = run_here("pull", "--all", "--dry-run", "--json", *options).document
    needs: int = document["plan"]["needs"]
    return needs


@pytest.mark.parametrize("kind", CACHES)
def test_each_recommended_command_does_what_it_says(
    kind: str, place: CacheBuilder, tmp_path: Path
) -> None:
    build, limits = CACHES[kind]
    build(place)
    options = ["--cache-dir", str(place.root), *configured(tmp_path, limits)]
    commands = recommended(options)
    before = fingerprint(place.root) if place.root.exists() else None
    for command in commands:
        done = run_here(*words_of(command), *dry(command))
        assert done.code not in KNOWN_BEFORE, (command, done)
    assert before == (fingerprint(place.root) if place.root.exists() else None)
    for command in commands:
        words = words_of(command)
        needed = to_fetch(options)
        done = run_here(*words, *([] if words[0] == "watch" else ["--yes"]))
        assert done.code not in KNOWN_BEFORE, (command, done)
        if words[0] in ("clean", "rm"):
            assert to_fetch(options) <= needed, command
    if "min_free" not in limits:
        assert run_here("status", "--check", *options).code == 0


def test_a_full_disk_of_configured_models_only_names_the_largest(
    place: CacheBuilder, tmp_path: Path
) -> None:
    wanted(place)
    options = ["--cache-dir", str(place.root), *configured(tmp_path, f"min_free: {HUGE}")]
    (step,) = run_here("status", "wanted", "--json", *options).document["recommendations"]
    assert step["command"] is None
    assert "below the minimum of" in step["text"]
    assert "org/wanted (" in step["text"]
    assert "used just now" in step["text"]


def recommended(options: list[str]) -> list[str]:
    steps = run_here("status", "--json", *options).document["recommendations"]
    return [step["command"] for step in steps if step["command"] is not None]


def dry(command: str) -> list[str]:
    return [] if words_of(command)[0] == "watch" else ["--dry-run"]


def test_what_can_be_freed_is_named_by_its_kind(place: CacheBuilder, tmp_path: Path) -> None:
    wanted(place)
    aged(other(place))
    repo = place.repo("org/third")
    repo.revision(model_files())
    repo.orphan_blob(b"x" * 100_000)
    options = ["--cache-dir", str(place.root), *configured(tmp_path, "")]
    steps = run_here("status", "wanted", "--json", *options).document["recommendations"]
    (text,) = [step["text"] for step in steps if " clean " in step["command"]]
    assert "of blobs that no snapshot links to" in text
    assert "of unfinished downloads" in text
    assert "revisions" not in text


def test_a_download_that_runs_is_not_recommended_again(place: CacheBuilder, tmp_path: Path) -> None:
    repo = wanted(place, WEIGHTS)
    lock = place.root / ".locks" / repo.folder.name / f"{repo.file(WEIGHTS).etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    options = ["--cache-dir", str(place.root), *configured(tmp_path, "")]
    with FileLock(str(lock)):
        steps = run_here("status", "wanted", "--json", *options).document["recommendations"]
    (step,) = steps
    assert step["text"] == "being downloaded by another process: wanted"
    assert words_of(step["command"])[0] == "watch"


def test_a_disk_without_room_names_what_to_evict_or_evicts_it_by_make_room(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = hub.add_repo("org/big")
    big.commit({"config.json": b"{}", WEIGHTS: Synthetic(size=7 * MB, seed=1)})
    with small_filesystem(24 * MB) as disk:
        cache = CacheBuilder(disk / "hub")
        for name, days in (("org/older", 60), ("org/newer", 40), ("org/pinned", 90)):
            repo = cache.repo(name)
            repo.revision({"config.json": b"{}", WEIGHTS: os.urandom(6 * MB)})
            aged(repo, days)
        for name, value in variables(hub, cache.root).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("VLMCACHE_HOME", str(tmp_path / "own"))
        config = tmp_path / "config.yaml"
        options = ["--config", str(config)]

        def steps(size: str) -> list[list[str]]:
            config.write_text(
                f"models:\n  big: {{repo: org/big, expected_size: {size}}}\n"
                "  pin: {repo: org/pinned}\nvlmcache: {min_free: 2MB, comfortable_free: 2MB}\n"
            )
            return [words_of(command) for command in recommended(options)]

        assert steps("19MB") == [
            ["rm", "org/newer", *options],
            ["rm", "org/older", *options],
        ]
        assert steps("8MB") == [["pull", "big", "--make-room", *options]]
        assert run_here(*steps("8MB")[0], "--dry-run").code == 0
        assert run_here(*steps("8MB")[0], "--yes").code == 0
        assert run_here("status", "--check", *options).code == 0


@pytest.mark.parametrize("way", ["another user's", "read-only"])
def test_a_cache_that_this_user_cannot_change_gets_no_command_that_would_fail(
    vlmcache: Vlmcache, way: str
) -> None:
    with common_folder() as folder:
        cache = CacheBuilder(folder / "hub")
        begun(cache)
        config = folder / "config.yaml"
        config.write_text(
            "models: {wanted: {repo: org/wanted}}\nvlmcache: {min_free: 900PB, max_size: 1kB}\n"
        )
        words = ["status", "--json", "--config", str(config)]
        variables = vlmcache.environment | {"VLMCACHE_HOME": str(folder / "own")}
        if way == "read-only":
            with read_only_view(folder) as view:
                done = vlmcache(*words, HF_HUB_CACHE=str(view / "hub"), VLMCACHE_HOME=str(view))
            out = done.out
        else:
            variables["HF_HUB_CACHE"] = str(cache.root)
            command = [*vlmcache.command, *words]
            out = as_other_user(command, environment=variables, folder=folder).stdout
    steps = json.loads(out)["recommendations"]
    assert [step["command"] for step in steps] == [None] * len(steps)
    expected = "mounted read-only" if way == "read-only" else "run vlmcache as its owner"
    assert any(expected in step["text"] for step in steps)


class Counter:
    """Counts the calls of functions while these work as before."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.counts: dict[str, int] = {}

    def count(self, home: object, name: str) -> None:
        function: Callable[..., Any] = getattr(home, name)
        self.counts[name] = 0

        def call(*arguments: Any, **options: Any) -> Any:
            self.counts[name] += 1
            return function(*arguments, **options)

        self.patch.setattr(home, name, call)


def test_a_status_reads_the_cache_the_journal_the_mounts_and_the_processes_once(
    place: CacheBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(place)
    several(place)
    counter = Counter(monkeypatch)
    counter.count(status, "scan")
    counter.count(known, "who_uses")
    counter.count(known, "mount_of")
    counter.count(Journal, "uses")
    limits = configured(tmp_path, f"min_free: {HUGE}, max_size: 1kB")
    assert recommended(["--cache-dir", str(place.root), *limits])
    assert counter.counts == {"scan": 1, "who_uses": 1, "mount_of": 1, "uses": 1}


def test_a_status_of_a_cache_that_nobody_uses_plans_the_cleaning_once(
    place: CacheBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted(place)
    repo = other(place)
    repo.orphan_blob(b"x" * 100_000)
    aged(repo)
    counter = Counter(monkeypatch)
    counter.count(clean, "plan_cleaning")
    options = ["--cache-dir", str(place.root), *configured(tmp_path, "")]
    assert recommended(options)[0] == f"vlmcache clean {shlex.join(options)}"
    assert counter.counts == {"plan_cleaning": 1}


def test_a_command_is_not_broken_into_lines_on_a_terminal(
    vlmcache: Vlmcache, cache: CacheBuilder, tmp_path: Path
) -> None:
    folder = tmp_path / ("a folder with a long name " * 4)
    folder.mkdir()
    options = configured(folder, "")
    (command, *_) = json.loads(vlmcache("status", "--json", *options).out)["recommendations"]
    assert len(command["command"]) > 80
    assert command["command"] in vlmcache.on_terminal("status", *options, NO_COLOR="1")


@pytest.mark.parametrize("limit", ["min_free", "comfortable_free"])
def test_a_limit_of_a_working_folder_never_leads_to_advice_to_remove(
    place: CacheBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    wanted(place, WEIGHTS)
    cache = place.repo("org/other")
    cache.revision(model_files(parameters=60_000))
    aged(cache)
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.chdir(folder)
    # What the user has set: nothing is too little.
    monkeypatch.setattr("vlmcache.config.user_config", lambda: str(tmp_path / "own.yaml"))
    (tmp_path / "own.yaml").write_text("vlmcache: {min_free: 0, comfortable_free: 0}\n")
    (folder / "config.yaml").write_text(
        f"models: {{wanted: {{repo: org/wanted}}}}\nvlmcache: {{min_free: 0, {limit}: {HUGE}}}\n"
        if limit != "min_free"
        else f"models: {{wanted: {{repo: org/wanted}}}}\nvlmcache: {{min_free: {HUGE}}}\n"
    )
    done = run_here("status", "--json", "--cache-dir", str(place.root))
    steps = done.document["recommendations"]
    commands = [step["command"] for step in steps if step["command"] is not None]
    assert all(command.startswith("vlmcache pull wanted ") for command in commands)
    assert any("nothing is removed for that" in step["text"] for step in steps)
    refused = run_here("verify", "wanted", "--repair", "--yes", "--cache-dir", str(place.root))
    assert "vlmcache rm" not in refused.err


def test_a_key_like_an_option_is_recommended_by_its_repo(
    place: CacheBuilder, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "models: {-x: {repo: org/wanted, expected_size: 1MB}}\n"
        "vlmcache: {min_free: 0, comfortable_free: 0}\n"
    )
    options = ["--cache-dir", str(place.root), "--config", str(config)]
    (command,) = recommended(options)
    assert words_of(command)[:2] == ["pull", "org/wanted@main"]
    assert run_here(*words_of(command)).code == 0


def test_small_files_count_by_blocks_so_that_what_is_planned_fits(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/small").commit(
        {"config.json": b"{}"} | {f"part-{n}.json": b"%d" % n for n in range(100)}
    )
    config = tmp_path / "config.yaml"
    config.write_text(
        "models: {small: {repo: org/small, expected_size: 1kB}}\n"
        "vlmcache: {min_free: 0, comfortable_free: 0}\n"
    )
    with small_filesystem(300_000) as disk:
        for name, value in variables(hub, disk / "hub").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("VLMCACHE_HOME", str(tmp_path / "own"))
        words = ["pull", "org/small", "--all-files", "--config", str(config)]
        assert run_here(*words, "--dry-run").code == 9
        assert recommended(["--config", str(config)]) == []


def test_without_a_network_no_download_is_recommended(
    place: CacheBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = ["--cache-dir", str(place.root), *configured(tmp_path, "")]
    steps = run_here("status", "wanted", "--json", *options).document["recommendations"]
    assert [step["command"] for step in steps] == [None]
    assert steps[0]["text"].endswith("possible once HF_HUB_OFFLINE is not set")


def test_a_damaged_dataset_is_fetched_again_like_a_model(
    place: CacheBuilder, tmp_path: Path
) -> None:
    wanted(place)
    data = place.repo("org/data", kind="dataset")
    data.revision({"data.csv": b"1,2"})
    data.blob("data.csv").unlink()
    options = ["--cache-dir", str(place.root), *configured(tmp_path, "")]
    steps = run_here("status", "wanted", "--json", *options).document["recommendations"]
    (step,) = [step for step in steps if "org/data" in step["text"]]
    assert step["command"].startswith("vlmcache pull datasets/org/data ")
