"""A model is spread over nodes of this process; `test_pull_on_ray.py` does it on a real cluster."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.disks import small_filesystem
from tests.kit.hub import LoopbackHub, hang
from tests.kit.local_fleet import REPO, LocalFleet, local_fleet, wait_until
from tests.kit.pulls import pull, small_weights
from tests.kit.served import Asking
from vlmcache.cache import layout
from vlmcache.cache.hashing import hash_file
from vlmcache.commands.fleet.calls import Node
from vlmcache.commands.fleet.pull import pull_to_fleet
from vlmcache.commands.fleet.pull_values import FleetPull, FleetPullOptions
from vlmcache.commands.serve.sending import OpenContent
from vlmcache.errors import PartlyError, SpaceError, UnknownModelError
from vlmcache.progress import Progress, Tally

SIZE = 5 << 20
WEIGHTS = "model.safetensors"
FILES = {
    "config.json": b'{"model_type": "bert", "architectures": ["BertModel"]}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "vocab.txt": b"a\nb\n",
    WEIGHTS: small_weights(SIZE),
}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


@pytest.fixture
def fleet(hub: LoopbackHub, tmp_path: Path) -> Iterator[LocalFleet]:
    with local_fleet(hub, tmp_path, 4) as fleet:
        yield fleet


def bodies(hub: LoopbackHub) -> Counter[str]:
    """Return how often the hub has sent each file, or a part of it."""
    return Counter(
        request.file
        for request in hub.requests
        if request.method == "GET" and request.file is not None and request.bytes_sent
    )


def etags(hub: LoopbackHub) -> set[str]:
    repo = hub._repos["model", REPO]
    return {repo.file(name).lfs_sha256 or repo.file(name).git_oid for name in FILES}


def is_complete(hub: LoopbackHub, cache: Path) -> bool:
    """Whether a plain pull fetches nothing, and every blob is what its name says."""
    blobs = cache / layout.folder_of(REPO) / "blobs"
    if not blobs.is_dir():
        return False
    names = {path.name for path in blobs.iterdir()}
    good = all(hash_file(str(blobs / name), name) == name for name in names)
    before = sum(bodies(hub).values())
    report = pull(hub, cache)
    fetched = sum(bodies(hub).values()) - before
    return names == etags(hub) and good and report.models[0].state == "cached" and not fetched


def states(report: FleetPull) -> dict[str, str]:
    return {node.node: node.models[0].state for node in report.nodes}


def test_hub_sends_each_blob_once_and_every_node_is_cached(
    hub: LoopbackHub, fleet: LocalFleet
) -> None:
    report = fleet.pull().check()
    assert bodies(hub) == dict.fromkeys(FILES, 1)
    assert set(states(report).values()) == {"pulled"}
    total = sum(map(len, FILES.values()))
    assert report.from_hub == total
    assert report.from_nodes == 3 * (total - len(FILES["config.json"]))
    assert report.rounds <= 4
    assert all(is_complete(hub, cache) for cache in fleet.caches.values())
    assert sum(request.path.endswith("/tree/") for request in hub.requests) <= 1


def test_what_is_complete_everywhere_is_not_fetched_again(
    hub: LoopbackHub, fleet: LocalFleet
) -> None:
    fleet.pull().check()
    hub.clear_requests()
    assert set(states(fleet.pull().check()).values()) == {"cached"}
    assert len(hub.requests) == 1  # for the commit
    hub.clear_requests()
    commit = fleet.pull().check().models[0].commit
    pinned = fleet.pull(f"{REPO}@{commit}").check()
    assert set(states(pinned).values()) == {"cached"}
    assert len(hub.requests) == 1


def test_a_name_that_means_no_model_is_an_error_before_the_nodes_are_joined(
    fleet: LocalFleet,
) -> None:
    def join() -> LocalFleet:
        raise AssertionError("joined")

    with pytest.raises(UnknownModelError):
        pull_to_fleet(fleet.driver, join, ("no such/model name",), FleetPullOptions(), Progress())


def test_what_one_node_has_comes_from_there(hub: LoopbackHub, fleet: LocalFleet) -> None:
    pull(hub, fleet.caches["node3"])
    hub.clear_requests()
    report = fleet.pull().check()
    assert states(report) == {
        "node1": "pulled",
        "node2": "pulled",
        "node3": "cached",
        "node4": "pulled",
    }
    assert not bodies(hub)
    assert all(is_complete(hub, cache) for cache in fleet.caches.values())


def test_what_nodes_have_reaches_the_others_without_a_hub(
    hub: LoopbackHub, fleet: LocalFleet
) -> None:
    pull(hub, fleet.caches["node3"])
    hub.clear_requests()
    for session in (fleet.driver, *(worker.session for worker in fleet.workers.values())):
        session.environment.variables["HF_HUB_OFFLINE"] = "1"
    report = fleet.pull().check()
    assert sorted(states(report).values()) == ["cached", "pulled", "pulled", "pulled"]
    assert [finding.code for finding in report.findings] == ["hub-not-asked"]
    assert hub.requests == []
    assert all(is_complete(hub, cache) for cache in fleet.caches.values())


def test_a_new_commit_of_the_hub_is_pulled_whatever_nodes_have(
    hub: LoopbackHub, fleet: LocalFleet
) -> None:
    old = fleet.pull().check().models[0].commit
    hub._repos["model", REPO].commit({**FILES, "README.md": b"new"})
    report = fleet.pull().check()
    assert report.models[0].commit != old
    assert set(states(report).values()) == {"pulled"}


def test_an_interrupted_download_of_one_node_is_continued(
    hub: LoopbackHub, fleet: LocalFleet
) -> None:
    partial = fleet.caches["node2"] / layout.folder_of(REPO) / "blobs"
    partial.mkdir(parents=True)
    etag = hub._repos["model", REPO].file(WEIGHTS).lfs_sha256
    (partial / f"{etag}.incomplete").write_bytes(FILES[WEIGHTS][: 4 << 20])
    report = fleet.pull().check()
    assert hub.bytes_sent(WEIGHTS) == len(FILES[WEIGHTS]) - (4 << 20)
    assert next(node for node in report.nodes if node.from_hub > 1 << 19).node == "node2"
    assert all(is_complete(hub, cache) for cache in fleet.caches.values())


def test_a_node_that_does_not_reach_the_hub_gets_everything_from_others(
    hub: LoopbackHub, fleet: LocalFleet
) -> None:
    for name in ("node1", "node2", "node3"):
        fleet.workers[name].session.environment.variables["HF_HUB_OFFLINE"] = "1"
    report = fleet.pull().check()
    assert [node.from_hub > 0 for node in report.nodes] == [False, False, False, True]
    assert bodies(hub) == dict.fromkeys(FILES, 1)


def test_a_dry_run_writes_nothing_and_says_what_each_node_would_fetch(
    hub: LoopbackHub, fleet: LocalFleet
) -> None:
    pull(hub, fleet.caches["node1"])
    hub.clear_requests()
    report = fleet.pull(dry_run=True).check()
    assert states(report) == {"node1": "cached"} | dict.fromkeys(
        ("node2", "node3", "node4"), "planned"
    )
    assert report.nodes[1].models[0].to_fetch == sum(map(len, FILES.values()))
    assert report.to_fetch == 0
    assert not any(cache.exists() for name, cache in fleet.caches.items() if name != "node1")
    assert bodies(hub).keys() <= {"config.json"}


def test_a_node_without_room_is_named_before_anything_starts(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    with local_fleet(hub, tmp_path, 2) as fleet:
        session = fleet.workers["node2"].session
        limits = type(session.config.limits)(min_free=1 << 60)
        config = type(session.config)(
            **{field: getattr(session.config, field) for field in session.config.__struct_fields__}
            | {"limits": limits}
        )
        fleet.workers["node2"].session = session._replace(config=config)
        with pytest.raises(SpaceError, match="nothing was downloaded: node2: not enough space"):
            fleet.pull()
        assert not any(cache.exists() for cache in fleet.caches.values())
        assert bodies(hub).keys() <= {"config.json"}


def test_a_disk_that_fills_up_stops_that_node_alone(hub: LoopbackHub, tmp_path: Path) -> None:
    with small_filesystem(8 << 20) as small, local_fleet(hub, tmp_path, 3) as fleet:
        worker = fleet.workers["node2"]
        cache = worker.session.cache
        place = type(cache)(str(small / "hub"), "test")
        worker.session = worker.session._replace(cache=place)
        filler = small / "filler"

        def fill(node: str, method: str) -> None:
            # Once the room was judged, another program writes.
            if method == "pull-open" and not filler.exists():
                filler.write_bytes(bytes(5 << 20))

        fleet.on_call = fill
        progress = Noting()
        report = fleet.pull(progress=progress)
        (shown,) = (nodes for note, nodes in progress.shown.items() if note.startswith("node2: "))
        assert "node2" not in shown
        assert isinstance(report.problem, PartlyError)
        assert "node2" in report.problem.message
        assert states(report) == {"node1": "pulled", "node2": "failed", "node3": "pulled"}
        failure = report.nodes[1].error
        assert failure is not None
        assert failure.code == "no-space"
        assert is_complete(hub, fleet.caches["node1"])
        assert is_complete(hub, fleet.caches["node3"])
        assert bodies(hub) == dict.fromkeys(FILES, 1)
        fleet.on_call = lambda node, method: None
        filler.unlink()
        fleet.pull().check()
        assert is_complete(hub, small / "hub")


def test_a_damaged_copy_of_a_node_is_not_spread_and_is_repaired(
    hub: LoopbackHub, fleet: LocalFleet
) -> None:
    pull(hub, fleet.caches["node1"])
    etag = hub._repos["model", REPO].file(WEIGHTS).lfs_sha256
    assert etag is not None
    blob = fleet.caches["node1"] / layout.folder_of(REPO) / "blobs" / etag
    blob.write_bytes(FILES[WEIGHTS][:-1] + b"!")
    hub.clear_requests()
    report = fleet.pull().check()
    finding = next(f for f in report.findings if f.code == "damaged-on-node")
    assert "node1" in finding.detail
    assert WEIGHTS in finding.detail
    assert all(is_complete(hub, cache) for cache in fleet.caches.values())
    assert bodies(hub)[WEIGHTS] == 1


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, bytes], bytes]], None]:
    """Return what lets a function alter what nodes send, and wait before it."""
    read = OpenContent.read

    def install(alter: Callable[[int, bytes], bytes]) -> None:
        def reading(self: OpenContent, position: int, count: int) -> bytes:
            return alter(position, read(self, position, count))

        monkeypatch.setattr(OpenContent, "read", reading)

    return install


def test_wrong_bytes_of_a_node_are_refused_and_the_good_copy_stays(
    hub: LoopbackHub,
    fleet: LocalFleet,
    sending: Callable[[Callable[[int, bytes], bytes]], None],
) -> None:
    pull(hub, fleet.caches["node1"])
    hub.clear_requests()
    spoiled: list[int] = []

    def spoil(position: int, data: bytes) -> bytes:
        if position == 1 << 20 and not spoiled:
            spoiled.append(position)
            return bytes(len(data))
        return data

    sending(spoil)
    report = fleet.pull().check()
    assert spoiled
    # What it has is good: the bytes were altered on their way.
    assert not [f for f in report.findings if f.code == "damaged-on-node"]
    assert all(is_complete(hub, cache) for cache in fleet.caches.values())


def test_readers_of_a_node_that_dies_continue_and_the_hub_sends_only_the_rest(
    hub: LoopbackHub,
    fleet: LocalFleet,
    sending: Callable[[Callable[[int, bytes], bytes]], None],
) -> None:
    pull(hub, fleet.caches["node1"])
    hub.clear_requests()
    half, dead = threading.Event(), threading.Event()

    def wait(position: int, data: bytes) -> bytes:
        if position == 3 << 20 and not dead.is_set():
            half.set()
            assert dead.wait(60)
            raise OSError("dead")
        return data

    sending(wait)
    reports: list[FleetPull] = []
    thread = threading.Thread(target=lambda: reports.append(fleet.pull()))
    thread.start()
    assert half.wait(60)
    fleet.kill("node1")
    dead.set()
    thread.join()
    assert isinstance(reports[0].problem, PartlyError)
    assert states(reports[0]) == {
        "node1": "failed",
        "node2": "pulled",
        "node3": "pulled",
        "node4": "pulled",
    }
    assert reports[0].nodes[0].error is not None
    assert reports[0].nodes[0].error.code == "node-lost"
    # One reader had three of five MiB, and nobody else had any.
    assert bodies(hub)[WEIGHTS] == 1
    assert hub.bytes_sent(WEIGHTS) <= len(FILES[WEIGHTS]) - (2 << 20)
    assert all(is_complete(hub, fleet.caches[f"node{number}"]) for number in (2, 3, 4))


class Noting(Tally):
    """Keeps which nodes are still shown when a note is printed."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, set[str]] = {}

    def note(self, text: str) -> None:
        self.shown[text] = {name for name, share in self.models.items() if share.is_active}


def test_another_node_takes_over_from_one_that_dies_while_the_hub_sends(
    hub: LoopbackHub, fleet: LocalFleet
) -> None:
    hub.fault(hang(2 << 20).on(WEIGHTS, method="GET"))
    reports: list[FleetPull] = []
    progress = Noting()
    thread = threading.Thread(target=lambda: reports.append(fleet.pull(progress=progress)))
    thread.start()
    wait_until(lambda: hub.bytes_sent(WEIGHTS) >= 2 << 20)
    victim = next(
        name
        for name, worker in fleet.workers.items()
        if worker.holdings is not None
        and any(REPO in key for key in worker.holdings.news().positions)
    )
    fleet.kill(victim)
    thread.join()
    lost = {node.node for node in reports[0].nodes if node.error is not None}
    assert lost == {victim}
    note = f"{victim}: the node died; the others continue without it"
    assert progress.shown[note] == fleet.caches.keys() - {victim}
    assert bodies(hub) == {**dict.fromkeys(FILES, 1), WEIGHTS: 2}
    assert all(is_complete(hub, c) for name, c in fleet.caches.items() if name != victim)


def test_two_nodes_that_share_a_cache_fetch_once(hub: LoopbackHub, tmp_path: Path) -> None:
    with local_fleet(hub, tmp_path, 3) as fleet:
        shared = fleet.workers["node1"].session.cache
        fleet.workers["node2"].session = fleet.workers["node2"].session._replace(cache=shared)
        report = fleet.pull().check()
        assert report.nodes[1].shares_with == "node1"
        assert set(states(report).values()) == {"pulled"}
        assert report.nodes[1].from_hub == report.nodes[1].from_nodes == 0
        assert bodies(hub) == dict.fromkeys(FILES, 1)


def test_only_the_token_opens_what_a_node_serves_and_nothing_more_is_served(
    hub: LoopbackHub, fleet: LocalFleet, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add_repo("org/other").commit({"other.bin": b"other"})
    pull(hub, fleet.caches["node1"], "org/other", REPO)
    caplog.set_level("DEBUG")
    found: list[tuple[str, str]] = []
    statuses: list[int] = []
    original = fleet.call

    def call(node: Node, method: str, request: object = None, **also: float) -> object:
        sender = getattr(request, "sender", None)
        if sender is not None and not found:
            found.append((sender.address, sender.token))
            weights = next(e for e in etags(hub) if len(e) == 64)
            other = hub._repos["model", "org/other"].file("other.bin").lfs_sha256
            for token, path in (
                (None, f"/blobs/{weights}"),
                ("wrong-token-0123456789", f"/blobs/{weights}"),
                (sender.token, f"/blobs/{weights}"),
                (sender.token, f"/blobs/{other}"),
                (sender.token, f"/api/models/{REPO}"),
            ):
                statuses.append(Asking(sender.address, token)(path).status)
        return original(node, method, request, **also)  # type: ignore[arg-type]

    fleet.call = call  # type: ignore[assignment, method-assign]
    fleet.pull().check()
    assert statuses == [401, 401, 200, 404, 404]
    assert found[0][1] not in caplog.text


def test_two_revisions_of_one_repo_both_reach_every_node(
    hub: LoopbackHub, fleet: LocalFleet
) -> None:
    repo = hub._repos["model", REPO]
    old = repo.commit(FILES, "old")
    new = repo.commit({**FILES, "vocab.txt": b"other\n", WEIGHTS: small_weights(SIZE + 4096)})
    report = fleet.pull(f"{REPO}@old", REPO).check()
    assert [model.commit for model in report.models] == [old, new]
    for node in report.nodes:
        assert [model.state for model in node.models] == ["pulled", "pulled"]
    for cache in fleet.caches.values():
        snapshots = cache / layout.folder_of(REPO) / "snapshots"
        for commit in (old, new):
            assert {path.name for path in (snapshots / commit).iterdir()} == set(FILES)
        assert (snapshots / new / WEIGHTS).stat().st_size > (
            snapshots / old / WEIGHTS
        ).stat().st_size
    assert set(bodies(hub).values()) <= {1, 2}
