"""Checks follow the cache: by the filesystem's reports, by polling, and by a clock of our own."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, model_files
from vlmcache.cache import layout
from vlmcache.cache.mounts import Mount
from vlmcache.cache.scan import Scanner
from vlmcache.commands.status import values as status_values
from vlmcache.commands.watch import values
from vlmcache.commands.watch import watch as watch_command
from vlmcache.commands.watch.values import Observation
from vlmcache.commands.watch.watch import watch
from vlmcache.config import CacheLocation, Config, Limits, ModelConfig, Session, read_environment

FILES = model_files()
Steps = list[Callable[[], object]]


class Clock:
    """Time that passes only while somebody waits; before each wait the next step is done."""

    def __init__(self, steps: Steps) -> None:
        self.seconds = 1000.0
        self.started = time.time()
        self.steps = steps
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> float:
        return self.started + self.seconds - 1000.0

    def wait(self, seconds: float, wake: socket.socket | None) -> bool:
        self.waits.append(seconds)
        self.seconds += seconds
        if not self.steps:
            return False
        self.steps.pop(0)()
        return True


def configuration(*models: ModelConfig, min_free: int = 0) -> Config:
    limits = Limits(min_free=min_free)
    return Config("config.yaml", "--config", {model.key: model for model in models}, limits)


def session(root: Path, config: Config | None = None) -> Session:
    location = CacheLocation(str(root), "--cache-dir")
    return Session(read_environment({}), config or configuration(), location)


def run_checks(
    root: Path, steps: Steps, *, config: Config | None = None, notify: bool = False
) -> tuple[list[Observation], Clock]:
    clock = Clock(steps)
    observations = watch(
        session(root, config),
        wait=clock.wait,
        clock=values.Clock(clock, clock.now),
        notify=notify,
    )
    return list(observations), clock


def kinds(check: Observation) -> list[str]:
    return [event.kind for event in check.events]


def nothing() -> None:
    pass


@pytest.fixture
def repo(tmp_path: Path) -> CachedRepo:
    repo = CacheBuilder(tmp_path / "hub").repo("org/name")
    repo.revision(FILES)
    return repo


def missing_weights(repo: CachedRepo) -> str:
    repo.missing_blob("model.safetensors")
    return repo.file("model.safetensors").etag


def test_a_quiet_cache_is_checked_once_per_interval(repo: CachedRepo) -> None:
    observations, clock = run_checks(repo.cache.root, [nothing] * 3)
    assert clock.waits == [5.0] * 4
    assert [check.events for check in observations] == [()] * 4
    assert [(m.repo, m.state) for m in observations[-1].snapshot.models] == [("org/name", "cached")]


def test_polling_finds_what_came_and_went(repo: CachedRepo) -> None:
    other = repo.cache.repo("org/other")
    observations, _ = run_checks(
        repo.cache.root,
        [
            nothing,
            lambda: other.revision({"config.json": b"{}"}),
            lambda: repo.ref("v1", repo.latest),
            lambda: shutil.rmtree(repo.folder),
        ],
    )
    assert [kinds(check) for check in observations] == [
        [],
        [],
        ["new-revision", "downloaded"],
        ["new-revision"],
        ["removed"],
    ]
    assert not observations[0].snapshot.notified


def test_a_quiet_cache_is_not_read_again_while_polling(
    repo: CachedRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: list[object] = []
    scan = Scanner.scan

    def counted(self: object, *arguments: object, **options: object) -> object:
        scans.append(arguments)
        return scan(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Scanner, "scan", counted)
    run_checks(repo.cache.root, [nothing] * 11)
    # The first check, and the one that has no times to compare with.
    assert len(scans) == 2
    run_checks(repo.cache.root, [nothing] * 25)
    # The same, and everything once after two minutes, in case something was not reported.
    assert len(scans) == 2 + 3


def test_a_download_has_speed_time_left_and_file(repo: CachedRepo) -> None:
    etag = missing_weights(repo)
    size = repo.file("model.safetensors").size
    steps: Steps = [
        lambda: repo.partial(etag, size=1000),
        lambda: repo.partial(etag, size=3000),
        lambda: repo.partial(etag, size=5000),
    ]
    observations, clock = run_checks(repo.cache.root, steps)
    (download,) = observations[-1].snapshot.downloads
    assert (download.repo, download.file) == ("org/name", "model.safetensors")
    assert (download.size, download.expected_size) == (5000, size)
    assert download.speed == pytest.approx(2000)
    assert download.seconds_left == pytest.approx((size - 5000) / 2000)
    assert clock.waits == [5.0, 1.0, 1.0, 1.0]
    # An advance is reported once per interval.
    assert [kinds(check) for check in observations] == [
        [],
        ["download-started"],
        ["download-advanced"],
        [],
    ]


def test_a_partial_given_its_length_beforehand_counts_what_was_written(repo: CachedRepo) -> None:
    etag = missing_weights(repo)
    size = repo.file("model.safetensors").size
    repo.partial(etag, size=size, sparse=True)
    observations, _ = run_checks(repo.cache.root, [])
    assert observations[0].snapshot.downloads[0].size == 0


@pytest.mark.parametrize("suffix", layout.OTHER_CLIENTS)
def test_a_download_by_another_program_is_shown_as_one_until_it_is_complete(
    repo: CachedRepo, suffix: str
) -> None:
    etag = missing_weights(repo)
    size = repo.file("model.safetensors").size
    steps: Steps = [
        lambda: repo.partial(etag, size=1000, suffix=suffix),
        lambda: repo.partial(etag, size=3000, suffix=suffix),
        lambda: repo.partial(etag, size=size, suffix=suffix).rename(repo.blobs / etag),
        nothing,
    ]
    observations, _ = run_checks(repo.cache.root, steps)
    (download,) = observations[2].snapshot.downloads
    assert (download.file, download.size) == ("model.safetensors", 3000)
    assert (download.expected_size, download.state) == (size, "running")
    expected = [["download-started"], ["download-advanced"], ["downloaded"], []]
    assert [kinds(check) for check in observations][1:] == expected
    assert observations[3].events[0].files == ("model.safetensors",)
    assert observations[3].snapshot.downloads == ()


def test_what_the_rust_client_has_received_is_shown_without_a_listing_too(tmp_path: Path) -> None:
    repo = CacheBuilder(tmp_path / "hub").repo("org/name")
    repo.partial(size=5_000_008, sparse=True, suffix=".sync.part")
    observations, _ = run_checks(repo.cache.root, [])
    (download,) = observations[0].snapshot.downloads
    assert (download.size, download.expected_size) == (0, None)


@pytest.mark.parametrize(("age", "state"), [(0, "running"), (60, "left-behind")])
def test_a_partial_that_nobody_locks_is_judged_by_its_last_write(
    repo: CachedRepo, age: float, state: str
) -> None:
    repo.partial(age=age)
    observations, _ = run_checks(repo.cache.root, [])
    assert [download.state for download in observations[0].snapshot.downloads] == [state]


def test_a_first_download_that_runs_is_no_error_and_one_that_was_left_behind_is(
    cache: CacheBuilder,
) -> None:
    repo = cache.repo("org/new")
    partial = repo.partial()
    (repo.blobs.parent / "refs").mkdir()
    (repo.blobs.parent / "refs/main").write_text("a" * 40)
    old = time.time() - 3600
    observations, _ = run_checks(cache.root, [lambda: os.utime(partial, (old, old))])
    errors = [check.snapshot.problems["error"] for check in observations]
    # That nothing has come of it, and that its ref names nothing.
    assert errors == [0, 2]


def test_a_locked_partial_that_does_not_grow_is_stalled_until_its_lock_goes(
    repo: CachedRepo,
) -> None:
    etag = missing_weights(repo)
    repo.partial(etag, age=60)
    lock = os.open(repo._lock_file(etag), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    observations, _ = run_checks(repo.cache.root, [lambda: os.close(lock)])
    assert [check.snapshot.downloads[0].state for check in observations] == [
        "stalled",
        "left-behind",
    ]
    assert kinds(observations[1]) == ["download-left-behind"]
    assert observations[1].snapshot.downloads[0].speed is None


def test_the_process_that_has_a_model_open_is_named_without_its_arguments(
    repo: CachedRepo,
) -> None:
    code = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(repo.pointer("model.safetensors")), "--token=secret"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        observations, _ = run_checks(repo.cache.root, [])
    finally:
        process.communicate()
    (program,) = observations[0].snapshot.models[0].used_by
    assert program.pid == process.pid
    assert program.name.startswith("python")


def test_the_process_that_writes_a_download_is_named(repo: CachedRepo) -> None:
    partial = repo.partial()
    code = "import sys; file = open(sys.argv[1], 'a'); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, partial], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        observations, _ = run_checks(repo.cache.root, [])
    finally:
        process.communicate()
    writer = observations[0].snapshot.downloads[0].process
    assert writer is not None
    assert writer.pid == process.pid


def test_a_configured_model_is_missing_then_partial_then_cached(tmp_path: Path) -> None:
    cache = CacheBuilder(tmp_path / "hub")
    repo = cache.repo("org/name")
    model = ModelConfig("mine", "org/name", expected_size=7)

    def finish() -> None:
        for name in set(FILES) - {"config.json"}:
            repo._place(repo.file(name), repo.latest, "symlink", False)

    observations, _ = run_checks(
        cache.root,
        [lambda: repo.revision(FILES, downloaded=["config.json"]), finish],
        config=configuration(model),
    )
    rows = [check.snapshot.models[0] for check in observations]
    assert [row.state for row in rows] == ["missing", "partial", "cached"]
    whole = sum(map(len, FILES.values()))
    assert [row.expected_size for row in rows] == [7, whole, whole]


def test_a_model_configured_in_another_case_is_the_repo_of_the_cache(repo: CachedRepo) -> None:
    model = ModelConfig("mine", "Org/Name")
    ((check,), _) = run_checks(repo.cache.root, [], config=configuration(model))
    assert [(model.key, model.repo, model.state) for model in check.snapshot.models] == [
        ("mine", "org/name", "cached")
    ]


def test_free_space_that_shrinks_is_reported_with_when_it_ends(
    repo: CachedRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([9_000_000_000, 8_000_000_000, 7_000_000_000])
    summarize = status_values.summarize_cache

    def shrinking(*arguments: object) -> object:
        return msgspec.structs.replace(summarize(*arguments), free=next(free))  # type: ignore[arg-type]

    monkeypatch.setattr(watch_command, "summarize_cache", shrinking)
    observations, _ = run_checks(
        repo.cache.root, [nothing, nothing], config=configuration(min_free=8_500_000_000)
    )
    last = observations[-1].snapshot
    assert last.fill_rate == pytest.approx(2e8)
    assert last.full_in == pytest.approx(35)
    assert [check.snapshot.low for check in observations] == [False, True, True]
    assert [kinds(check) for check in observations] == [[], ["low-space"], []]
    error = last.problem
    assert error is not None
    assert error.exit_code == 9
    assert error.message == "7 GB free, less than 8.5 GB"
    assert observations[0].snapshot.problem is None


def test_a_cache_that_does_not_exist_yet_is_seen_when_it_is_made(tmp_path: Path) -> None:
    root = tmp_path / "hub"

    def come() -> None:
        CacheBuilder(root).repo("org/name").revision(FILES)

    observations, _ = run_checks(root, [come, lambda: shutil.rmtree(root), come], notify=True)
    assert [check.snapshot.cache.exists for check in observations] == [False, True, False, True]
    assert [check.snapshot.notified for check in observations] == [False, True, False, True]
    assert [kinds(check) for check in observations][1:3] == [
        ["new-revision", "downloaded"],
        ["removed"],
    ]


def test_a_repo_that_is_removed_while_it_is_read_is_checked_again_soon(
    repo: CachedRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Scanner.scan
    failing = [False, True]

    def racing(self: Scanner, *arguments: object, **options: object) -> object:
        if failing and failing.pop(0):
            shutil.rmtree(repo.folder)
            raise FileNotFoundError(repo.folder)
        return scan(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Scanner, "scan", racing)
    observations, clock = run_checks(repo.cache.root, [nothing, nothing])
    assert [kinds(check) for check in observations] == [[], [], ["removed"]]
    assert clock.waits == [5.0, 1.0, 5.0]


def test_on_a_network_filesystem_the_cache_is_polled(
    repo: CachedRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_command, "mount_of", lambda path: Mount("/", "nfs4", frozenset()))
    observations, _ = run_checks(repo.cache.root, [repo.partial], notify=True)
    assert not observations[0].snapshot.notified
    assert kinds(observations[1]) == ["download-started"]


def test_where_the_system_cannot_report_changes_the_cache_is_polled(
    repo: CachedRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: str) -> None:
        raise OSError(28, "OS file watch limit reached")

    monkeypatch.setattr(watch_command, "Notifications", refuse)
    observations, _ = run_checks(repo.cache.root, [repo.partial], notify=True)
    assert not observations[0].snapshot.notified
    assert kinds(observations[1]) == ["download-started"]


def seconds_until(events: Iterator[Observation], kind: str) -> float:
    """Return the seconds until something is reported."""
    began = time.monotonic()
    for check in events:
        if kind in kinds(check):
            return time.monotonic() - began
    raise AssertionError("the checks ended")


def test_a_report_of_the_filesystem_starts_a_check_long_before_the_interval_is_over(
    repo: CachedRepo,
) -> None:
    with closing(watch(session(repo.cache.root), interval=60)) as observations:
        assert next(observations).snapshot.notified
        repo.partial()
        assert seconds_until(observations, "download-started") < 30
        shutil.rmtree(repo.folder)
        assert seconds_until(observations, "removed") < 30
