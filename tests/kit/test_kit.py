"""The kit is true to the real client and hub, and its faults and damages are what they say."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.kit.caches import (
    CacheBuilder,
    du_allocated,
    du_apparent,
    fingerprint,
    model_files,
)
from tests.kit.disks import as_other_user, common_folder, read_only_view, small_filesystem
from tests.kit.faulty import COUNTS, FAULTS, Subject, failing, try_every
from tests.kit.hub import (
    LoopbackHub,
    Synthetic,
    cut,
    expired,
    hang,
    html,
    malformed_json,
    no_sizes,
    rate_limited,
    redirect_loop,
    reset,
    short,
    slow,
    status,
    wrong_bytes,
    wrong_etag,
)
from tests.kit.pulls import lies

WEIGHTS = bytes(range(256)) * 40
FILES = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    "model.safetensors": WEIGHTS,
    "onnx/model.onnx": b"not really",
    "onnx/notes/empty.txt": b"",
    "vocab.json": b"{}",
}
MODEL = "/org/name/resolve/main/model.safetensors"
CONFIG = "/org/name/resolve/main/config.json"


@dataclass
class Answer:
    """An answer as read from the socket; `error` is what ended the reading early."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    error: Exception | None = None


def ask(
    url: str,
    path: str = "",
    method: str = "GET",
    headers: dict[str, str] | None = None,
    timeout: float = 5,
) -> Answer:
    """Make one request without following redirects."""
    parts = urlsplit(url + path)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    body = b""
    try:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request(method, target, headers=headers or {})
        response = connection.getresponse()
        error: Exception | None = None
        try:
            while part := response.read1(1 << 16):
                body += part
            if response.length:
                error = http.client.IncompleteRead(body, response.length)
        except OSError as raised:
            error = raised
        return Answer(response.status, response.headers, body, error)
    finally:
        connection.close()


def fetch(hub: LoopbackHub, path: str, headers: dict[str, str] | None = None) -> Answer:
    """Ask for a file and follow its redirect."""
    answer = ask(hub.url, path, headers=headers)
    if answer.status in (302, 307):
        location = answer.headers["Location"]
        return ask(location if "://" in location else hub.url + location, headers=headers)
    return answer


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("org/name").commit(FILES)
        yield hub


# The real client.

CLIENT = """
import json, sys
from huggingface_hub import HfApi, auth_check, hf_hub_download, scan_cache_dir, snapshot_download

def attempt(call, *arguments, **options):
    try:
        return call(*arguments, **options)
    except Exception as error:
        return type(error).__name__

api, cache = HfApi(), sys.argv[1]
seen = {}
"""


def client(hub: LoopbackHub, cache: Path, script: str, *arguments: str) -> dict[str, Any]:
    """Run huggingface_hub in a child whose `seen` is returned."""
    text = CLIENT + script + "\nprint(json.dumps(seen))"
    command = [sys.executable, "-c", text, str(cache), *arguments]
    result = subprocess.run(
        command, env=hub.environment(cache), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    seen: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return seen


def test_a_download_leaves_exactly_the_cache_that_the_builder_builds(tmp_path: Path) -> None:
    with LoopbackHub(page_size=2) as hub:
        repo = hub.add_repo("org/name")
        commit = repo.commit(FILES)
        repo.branch("refs/pr/1", commit)
        repo.tag("v1", commit)
        script = """
snapshot_download("org/name")
snapshot_download("org/name", revision="v1")
snapshot_download("org/name", revision="refs/pr/1")
seen["missing"] = attempt(hf_hub_download, "org/name", "absent.json")
scan = scan_cache_dir(cache)
seen["warnings"] = len(scan.warnings)
seen["size"] = scan.size_on_disk
"""
        seen = client(hub, tmp_path / "real", script)
        verified = subprocess.run(
            [Path(sys.executable).with_name("hf"), "cache", "verify", "org/name"],
            env=hub.environment(tmp_path / "real"),
            capture_output=True,
            text=True,
            check=False,
        )
        pages = hub.count(contains="/tree/")
    built = CacheBuilder(tmp_path / "built").repo("org/name")
    assert built.revision(FILES, refs=("main", "v1", "refs/pr/1")) == commit
    built.no_exist("absent.json")

    assert fingerprint(tmp_path / "built") == fingerprint(tmp_path / "real")
    assert seen["missing"] == "RemoteEntryNotFoundError"
    assert seen["warnings"] == 0
    assert seen["size"] == sum(len(content) for content in FILES.values())
    # Seven entries with the folders, two on each page, once for the download and once to verify.
    assert pages == 8
    assert verified.returncode == 0, verified.stderr
    assert "Verified 5 file(s)" in verified.stdout


def test_the_client_reads_the_metadata_as_from_the_real_hub(tmp_path: Path) -> None:
    with LoopbackHub(page_size=3) as hub:
        repo = hub.add_repo("org/old")
        first = repo.commit(FILES, xet={"model.safetensors": "ab" * 32})
        second = repo.commit({"config.json": b"{}"}, ref="refs/pr/1")
        repo.tag("v1", first)
        hub.rename("org/old", "org/name")
        script = """
info = api.model_info("org/old", files_metadata=True)
seen["id"], seen["sha"] = info.id, info.sha
seen["sizes"] = {file.rfilename: file.size for file in info.siblings}
seen["sha256"] = [file.lfs.sha256 for file in info.siblings if file.lfs]
seen["pull"] = api.model_info("org/name", revision="refs/pr/1").sha
seen["short"] = api.model_info("org/name", revision=info.sha[:8]).sha
tree = list(api.list_repo_tree("org/name", recursive=True))
seen["xet"] = [file.xet_hash for file in tree if getattr(file, "xet_hash", None)]
seen["tree"] = sorted(file.path for file in tree)
seen["top"] = sorted(file.path for file in api.list_repo_tree("org/name"))
seen["below"] = sorted(file.path for file in api.list_repo_tree("org/name", "onnx"))
seen["paths"] = [f.path for f in api.get_paths_info("org/name", ["vocab.json", "onnx", "no"])]
refs = api.list_repo_refs("org/name", include_pull_requests=True)
for kind in ("branches", "tags", "pull_requests"):
    seen[kind] = {ref.ref: ref.target_commit for ref in getattr(refs, kind)}
path = hf_hub_download("org/old", "config.json", revision="refs/pr/1", cache_dir=cache)
seen["content"] = open(path).read()
"""
        seen = client(hub, tmp_path, script)
    assert seen["id"] == "org/name"
    assert seen["sha"] == seen["short"] == first
    assert seen["sizes"] == {name: len(content) for name, content in FILES.items()}
    assert seen["sha256"][0] == hashlib.sha256(WEIGHTS).hexdigest()
    assert seen["xet"] == ["ab" * 32]
    assert seen["tree"] == sorted([*FILES, "onnx", "onnx/notes"])
    assert seen["top"] == ["config.json", "model.safetensors", "onnx", "vocab.json"]
    assert seen["below"] == ["onnx/model.onnx", "onnx/notes"]
    assert sorted(seen["paths"]) == ["onnx", "vocab.json"]
    assert seen["branches"] == {"refs/heads/main": first}
    assert seen["tags"] == {"refs/tags/v1": first}
    assert seen["pull_requests"] == {"refs/pr/1": second}
    assert seen["pull"] == second
    assert seen["content"] == "{}"


def test_refusals_become_the_errors_that_the_client_raises_for_the_real_hub(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.accept_token("hf_known", gated_ok=False)
        hub.accept_token("hf_granted")
        hub.add_repo("org/gated", gated=True).commit(FILES)
        hub.add_repo("org/private", private=True).commit(FILES)
        script = """
def names(*calls):
    return [attempt(call) for call in calls]

seen["missing"] = names(
    lambda: api.model_info("org/none"),
    lambda: api.model_info("org/none", token="hf_known"),
    lambda: api.model_info("org/private"),
    lambda: hf_hub_download("org/private", "config.json"),
)
seen["gated"] = names(
    lambda: hf_hub_download("org/gated", "config.json"),
    lambda: hf_hub_download("org/gated", "model.safetensors", token="hf_known"),
    lambda: auth_check("org/gated"),
)
seen["invalid"] = names(
    lambda: api.whoami(token="hf_wrong"),
    lambda: api.model_info("org/gated", token="hf_wrong"),
)
seen["revision"] = attempt(lambda: api.model_info("org/gated", revision="none"))
seen["allowed"] = names(
    lambda: api.model_info("org/gated").gated,
    lambda: api.model_info("org/private", token="hf_known").private,
    lambda: api.whoami(token="hf_known")["name"],
    lambda: auth_check("org/gated", token="hf_granted"),
)
hf_hub_download("org/gated", "model.safetensors", token="hf_granted")
"""
        seen = client(hub, tmp_path, script)
        requests = hub.requests
    assert set(seen["missing"]) == {"RepositoryNotFoundError"}
    assert set(seen["gated"]) == {"GatedRepoError"}
    assert set(seen["invalid"]) == {"HfHubHTTPError"}
    assert seen["revision"] == "RevisionNotFoundError"
    assert seen["allowed"] == ["auto", True, "tester", None]
    # The token goes to the hub and never to the CDN.
    assert [r.authorization for r in requests if r.host == "cdn"] == [False]
    assert requests[-1].host == "cdn"
    assert requests[-2].authorization


def test_the_client_resumes_a_cut_download_by_range(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        repo = hub.add_repo("org/name")
        repo.commit({"model.safetensors": Synthetic(12_000_000)})
        hub.fault(cut(after=11_000_000).on("model.safetensors", method="GET"))
        script = 'seen["path"] = hf_hub_download("org/name", "model.safetensors")'
        seen = client(hub, tmp_path, script)
        ranges = [r.range for r in hub.requests if r.host == "cdn"]
        statuses = [r.status for r in hub.requests if r.host == "cdn"]
        sent = hub.bytes_sent("model.safetensors")
    digest = hashlib.sha256(Path(seen["path"]).read_bytes()).hexdigest()
    assert digest == repo.file("model.safetensors").etag
    assert ranges[0] is None
    assert ranges[1] is not None
    assert statuses == [200, 206]
    assert sent == 11_000_000 + 12_000_000 - int(ranges[1].strip("bytes=-"))


# The hub at the socket.


def test_ranges_are_answered_as_the_standard_says(hub: LoopbackHub) -> None:
    def ranged(text: str) -> Answer:
        return fetch(hub, MODEL, {"Range": f"bytes={text}"})

    assert ranged("10000-").body == WEIGHTS[10000:]
    assert ranged("3-5").body == WEIGHTS[3:6]
    assert ranged("-7").body == WEIGHTS[-7:]
    assert ranged("10000-99999").headers["Content-Range"] == f"bytes 10000-10239/{len(WEIGHTS)}"
    assert ranged("3-5").status == 206
    assert ranged("10240-").status == 416
    assert ranged("10240-").headers["Content-Range"] == "bytes */10240"
    assert ranged("nonsense").body == WEIGHTS
    hub.support_ranges = False
    assert (ranged("10000-").status, ranged("10000-").body) == (200, WEIGHTS)


@pytest.mark.parametrize(
    ("redirect", "host"), [("other-host", "cdn"), ("same-host", "hub"), ("none", "hub")]
)
def test_lfs_bytes_come_from_where_the_setting_says(redirect: Any, host: str) -> None:
    with LoopbackHub(redirect=redirect) as hub:
        repo = hub.add_repo("org/name")
        commit = repo.commit(FILES)
        head = ask(hub.url, MODEL, method="HEAD")
        assert fetch(hub, MODEL).body == WEIGHTS
        assert fetch(hub, CONFIG).body == FILES["config.json"]
        assert hub.bytes_sent("model.safetensors") == len(WEIGHTS)
        assert hub.requests[-2].host == host
        assert hub.requests[-1].host == "hub"
    assert head.headers["X-Repo-Commit"] == commit
    assert head.headers["X-Linked-ETag"] == f'"{repo.file("model.safetensors").etag}"'
    assert head.headers["X-Linked-Size"] == str(len(WEIGHTS))


def test_hostile_names_are_listed_and_served_as_they_are() -> None:
    names = ["../../x", "/abs", "a\0b", "n" * 5000, "dir/../../y", "caf\u00e9", "\u202egnp.exe"]
    with LoopbackHub() as hub:
        hub.add_repo("org/name").commit({name: name.encode() for name in names})
        tree = json.loads(ask(hub.url, "/api/models/org/name/tree/main?recursive=true").body)
        path = "/org/name/resolve/main/..%2F..%2Fx"
        assert fetch(hub, path).body == b"../../x"
    assert sorted(entry["path"] for entry in tree) == sorted(names)


def test_one_connection_serves_many_requests(hub: LoopbackHub) -> None:
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=5)
    for _ in range(3):
        connection.request("GET", CONFIG)
        assert connection.getresponse().read() == FILES["config.json"]
    local = connection.sock.getsockname()
    connection.request("HEAD", CONFIG)
    connection.getresponse().read()
    assert connection.sock.getsockname() == local
    connection.close()


# Faults.


def test_a_cut_ends_the_body_early_and_the_connection_cleanly(hub: LoopbackHub) -> None:
    hub.fault(cut(after=1000).on("model.safetensors"))
    broken = fetch(hub, MODEL)
    assert broken.body == WEIGHTS[:1000]
    assert isinstance(broken.error, http.client.IncompleteRead)
    assert hub.requests[-1].bytes_sent == 1000
    assert fetch(hub, MODEL).body == WEIGHTS


def test_a_reset_comes_before_the_headers_or_after_so_many_bytes(hub: LoopbackHub) -> None:
    hub.fault(reset().on(host="hub"))
    with pytest.raises(ConnectionResetError):
        ask(hub.url, CONFIG)
    hub.fault(reset(after=2000).on(host="cdn"))
    broken = fetch(hub, MODEL)
    assert broken.body == WEIGHTS[:2000]
    assert isinstance(broken.error, ConnectionResetError)


def test_a_short_answer_has_no_size_and_looks_complete(hub: LoopbackHub) -> None:
    hub.fault(short(after=1000).on("model.safetensors", method="GET"))
    answer = fetch(hub, MODEL)
    assert (answer.body, answer.error) == (WEIGHTS[:1000], None)
    assert answer.headers["Content-Length"] is None


def test_wrong_bytes_keep_the_length_and_stay_at_their_offset_in_ranges(hub: LoopbackHub) -> None:
    hub.fault(wrong_bytes(at=5000, count=2).on("model.safetensors", times=None))
    wrong = bytearray(WEIGHTS)
    wrong[5000] ^= 0xFF
    wrong[5001] ^= 0xFF
    assert fetch(hub, MODEL).body == wrong
    assert fetch(hub, MODEL, {"Range": "bytes=5001-5002"}).body == wrong[5001:5003]
    assert fetch(hub, MODEL, {"Range": "bytes=-9"}).body == WEIGHTS[-9:]


def test_wrong_bytes_and_cuts_work_on_content_served_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(WEIGHTS)
    with LoopbackHub(redirect="none") as hub:
        hub.add_repo("org/name").commit({"model.safetensors": path})
        assert fetch(hub, MODEL).body == WEIGHTS
        hub.fault(wrong_bytes(at=10))
        hub.fault(cut(after=20))
        assert fetch(hub, MODEL).body == WEIGHTS[:10] + b"\xf5" + WEIGHTS[11:20]
        assert hub.bytes_sent() == len(WEIGHTS) + 20


def test_sizes_can_be_left_out(hub: LoopbackHub) -> None:
    hub.fault(no_sizes().on(times=None))
    for method in ("HEAD", "GET"):
        headers = ask(hub.url, MODEL, method).headers
        assert headers["X-Linked-Size"] is None
        assert headers["Content-Length"] is None
    assert fetch(hub, CONFIG).body == FILES["config.json"]


def test_error_answers_carry_their_headers(hub: LoopbackHub) -> None:
    hub.fault(status(503, retry_after=7))
    hub.fault(rate_limited(30))
    hub.fault(rate_limited(40, header="Retry-After"))
    answers = [ask(hub.url, CONFIG) for _ in range(4)]
    assert [answer.status for answer in answers] == [503, 429, 429, 200]
    assert answers[0].headers["Retry-After"] == "7"
    assert answers[1].headers["RateLimit"] == '"api";r=0;t=30'
    assert answers[2].headers["Retry-After"] == "40"


def test_an_expired_address_stays_expired_until_resolve_gives_a_new_one(hub: LoopbackHub) -> None:
    first = ask(hub.url, MODEL).headers["Location"]
    hub.fault(expired().on("model.safetensors"))
    assert [ask(first).status, ask(first).status] == [403, 403]
    second = ask(hub.url, MODEL).headers["Location"]
    assert second != first
    assert ask(second).body == WEIGHTS
    hub.expire_addresses()
    assert ask(second).status == 403


def test_a_slow_answer_takes_its_time(hub: LoopbackHub) -> None:
    hub.fault(slow(rate=50_000).on("model.safetensors"))
    start = time.monotonic()
    assert fetch(hub, MODEL).body == WEIGHTS
    assert time.monotonic() - start > 0.15


def test_a_hanging_answer_continues_later_or_ends_with_the_hub() -> None:
    with LoopbackHub(redirect="none") as hub:
        hub.add_repo("org/name").commit(FILES)
        hub.fault(hang(seconds=0.1))
        assert fetch(hub, MODEL).body == WEIGHTS
        hub.fault(hang().on(MODEL))
        with pytest.raises(TimeoutError):
            ask(hub.url, MODEL, timeout=0.1)
        hub.fault(hang(after=100))
        hung: list[Answer] = []
        thread = threading.Thread(target=lambda: hung.append(ask(hub.url, MODEL)))
        thread.start()
        while hub.bytes_sent() < len(WEIGHTS) + 100:
            time.sleep(0.001)
        start = time.monotonic()
    thread.join()
    assert time.monotonic() - start < 1
    assert hung[0].body == WEIGHTS[:100]


def test_answers_can_be_replaced_by_something_that_is_not_an_answer(hub: LoopbackHub) -> None:
    api = "/api/models/org/name"
    hub.fault(html())
    hub.fault(malformed_json())
    page = ask(hub.url, api)
    assert page.headers["Content-Type"] == "text/html"
    with pytest.raises(json.JSONDecodeError):
        json.loads(ask(hub.url, api).body)
    assert json.loads(ask(hub.url, api).body)["id"] == "org/name"
    hub.fault(wrong_etag("beef").on(method="HEAD"))
    assert ask(hub.url, CONFIG, "HEAD").headers["ETag"] == '"beef"'
    hub.fault(redirect_loop())
    assert ask(hub.url, api).headers["Location"] == api


def test_a_fault_skips_and_counts_only_what_it_could_change(hub: LoopbackHub) -> None:
    hub.fault(cut(after=5000).on("*.safetensors", skip=1, times=2))
    ask(hub.url, MODEL, "HEAD")
    sizes = [len(fetch(hub, MODEL).body) for _ in range(4)]
    assert sizes == [len(WEIGHTS), 5000, 5000, len(WEIGHTS)]
    hub.fault(status(500).on(CONFIG, method="HEAD", times=None))
    hub.clear_faults()
    assert ask(hub.url, CONFIG, "HEAD").status == 200


def test_requests_are_recorded_and_counted(hub: LoopbackHub) -> None:
    fetch(hub, MODEL, {"Range": "bytes=0-9", "Authorization": "Basic x"})
    hub_request, cdn_request = hub.requests
    assert (hub_request.host, hub_request.status, hub_request.authorization) == ("hub", 302, True)
    assert (cdn_request.range, cdn_request.bytes_sent) == ("bytes=0-9", 10)
    assert cdn_request.file == "model.safetensors"
    assert hub.count("GET") == 2
    assert hub.count(contains="/resolve/") == 1
    hub.clear_requests()
    assert (hub.requests, hub.bytes_sent()) == ([], 0)


def test_a_folder_of_repos_is_served_until_a_signal(tmp_path: Path) -> None:
    (tmp_path / "org" / "name" / "sub").mkdir(parents=True)
    (tmp_path / "org" / "name" / "sub" / "model.bin").write_bytes(WEIGHTS)
    command = [sys.executable, "-m", "tests.kit.hub", "--folder", str(tmp_path)]
    top = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=top, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/org/name/resolve/main/sub/model.bin", timeout=5) as response:
            assert response.read() == WEIGHTS
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0


# Caches.


def test_the_shared_store_is_what_the_client_itself_would_make(tmp_path: Path) -> None:
    xet = {"model.safetensors": "ab" * 32}
    real = CacheBuilder(tmp_path / "real").repo("org/name")
    real.revision(FILES, xet=xet)
    built = CacheBuilder(tmp_path / "built").repo("org/name")
    built.revision(FILES, shared={"model.safetensors"}, xet=xet)
    script = """
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store
seen["published"] = publish_blob_to_shared_store(
    blob_path=sys.argv[2], xet_hash="ab" * 32, cache_dir=cache, expected_size=10240
)
seen["warnings"] = len(scan_cache_dir(sys.argv[3]).warnings)
"""
    with LoopbackHub() as hub:
        blob = str(real.blob("model.safetensors"))
        seen = client(hub, tmp_path / "real", script, blob, str(tmp_path / "built"))
    assert seen == {"published": True, "warnings": 0}
    assert fingerprint(tmp_path / "built") == fingerprint(tmp_path / "real")


def test_each_damage_is_what_it_says(tmp_path: Path) -> None:
    builder = CacheBuilder(tmp_path / "hub")
    repo = builder.repo("org/name")
    commit = repo.revision(FILES)
    outside = tmp_path / "outside"
    outside.mkdir()

    assert not repo.dangling_link("vocab.json").exists()
    assert repo.blob("vocab.json").exists()
    assert not repo.missing_blob("onnx/model.onnx").exists()
    assert repo.truncated_blob("model.safetensors").stat().st_size == len(WEIGHTS) // 2
    before = repo.blob("config.json").stat().st_mtime_ns
    assert repo.flipped_bit("config.json").read_bytes() == b"z" + FILES["config.json"][1:]
    assert repo.blob("config.json").stat().st_mtime_ns == before
    assert repo.empty_blob("config.json").read_bytes() == b""
    assert repo.ref_with_newline("v1").read_bytes() == commit.encode() + b"\n"
    assert repo.ref_to_missing_commit("v2").read_text() != commit
    assert repo.ref_folder("v3").is_dir()
    assert stat.S_IMODE(repo.unreadable_ref("v1").stat().st_mode) == 0
    assert not list(repo.empty_snapshot().iterdir())
    assert repo.orphan_blob().exists()
    assert repo.partial(age=7200).stat().st_mtime == pytest.approx(time.time() - 7200, abs=5)
    sparse = repo.partial("0" * 64, size=50_000_000, old_style=True, sparse=True)
    assert sparse.name == f"{'0' * 64}.incomplete"
    assert (sparse.stat().st_size, sparse.stat().st_blocks) == (50_000_000, 0)
    with pytest.raises(OSError, match=r"[Ll]oop|levels"):
        repo.link_loop().stat()
    assert b"\xe9" in os.fsencode(repo.non_utf8_name())
    assert repo.leaving_link(outside).resolve() == outside
    assert repo.snapshot_link().is_symlink()
    assert repo.bad_tree().exists()
    assert repo.stray_file("snapshots").parent == repo.snapshots
    assert builder.stray_file().parent == builder.root
    assert len(repo.leftover_locks(2)) == 2
    assert stat.S_IMODE(repo.unreadable_folder("trees").stat().st_mode) == 0
    assert builder.unmarked_shared_store().exists()
    assert repo.moved_elsewhere(outside).is_dir()
    assert repo.folder.is_symlink()
    assert not repo.missing_snapshots().exists()


@pytest.mark.parametrize("link", ["copy", "move", "hardlink"])
def test_snapshots_can_hold_their_files_otherwise_than_by_links(tmp_path: Path, link: Any) -> None:
    repo = CacheBuilder(tmp_path).repo("org/name", kind="dataset")
    repo.revision(FILES, link=link, downloaded={"model.safetensors"})
    pointer, blob = repo.pointer("model.safetensors"), repo.blob("model.safetensors")
    assert repo.folder.name == "datasets--org--name"
    assert pointer.read_bytes() == WEIGHTS
    assert not pointer.is_symlink()
    assert not repo.pointer("config.json").exists()
    assert blob.exists() == (link != "move")
    assert blob.exists() is False or pointer.samefile(blob) == (link == "hardlink")


@pytest.mark.parametrize("shards", [1, 3])
def test_model_files_hold_exactly_the_weights_asked_for(shards: int) -> None:
    files = model_files(parameters=30_000, shards=shards, second_format=True)
    count = 0
    for name in files:
        if name.endswith(".safetensors"):
            (length,) = struct.unpack("<Q", files[name][:8])
            header = json.loads(files[name][8 : 8 + length])
            header.pop("__metadata__")
            ends = [tensor["data_offsets"][1] for tensor in header.values()]
            assert max(ends) == len(files[name]) - 8 - length
            count += max(ends) // 2
    assert count == 30_000
    assert json.loads(files["config.json"])["model_type"] == "qwen2_vl"
    assert ("model.safetensors.index.json" in files) == (shards > 1)
    assert "pytorch_model.bin" in files


def test_a_fingerprint_sees_every_change(tmp_path: Path) -> None:
    repo = CacheBuilder(tmp_path).repo("org/name")
    repo.revision(FILES)
    whole = fingerprint(tmp_path)
    repo.flipped_bit("model.safetensors", at=3)
    changed = {name for name, entry in fingerprint(tmp_path).items() if whole[name] != entry}
    assert changed == {repo.blob("model.safetensors").relative_to(tmp_path).as_posix()}
    assert du_apparent(tmp_path) > len(WEIGHTS)
    assert du_allocated(tmp_path) % 512 == 0


# Faults.


class Writing(Subject[None]):
    """Writes one file in each way that there is, and breaks at a given call."""

    command = "writing"

    def __init__(self, broken_at: int = 0) -> None:
        self.broken_at = broken_at

    def begin(self, place: Path) -> None:
        (place / "old").write_bytes(b"old")

    def run(self, place: Path) -> None:
        with contextlib.suppress(OSError):
            with open(place / "text", "w") as file:
                file.write("text")
            with contextlib.ExitStack() as closing:
                folder = os.open(place, os.O_RDONLY)
                closing.callback(os.close, folder)
                descriptor = os.open("raw", os.O_WRONLY | os.O_CREAT, dir_fd=folder)
                closing.callback(os.close, descriptor)
                os.write(descriptor, b"raw")
                os.fsync(descriptor)
            shutil.copyfile(place / "old", place / "copy")
            os.replace(place / "copy", place / "new")

    def hold(self, place: Path, answer: None) -> None:
        assert int(place.name) != self.broken_at, "broken"

    def again(self, place: Path) -> None:
        self.run(place)
        assert (place / "new").read_bytes() == b"old"


def test_every_way_to_change_a_file_can_fail_or_be_the_last(tmp_path: Path) -> None:
    for fault in FAULTS:
        try_every(Writing(), fault, at_least=7, step=1)
    counts = COUNTS.pop("writing")
    kinds = dict(counts.kinds)
    assert kinds.pop("sendfile", 0) + kinds.pop("copy_file_range", 0) > 0
    assert kinds == {"open": 3, "write": 2, "fsync": 1, "replace": 1}
    calls = counts.calls
    assert (counts.errors, counts.kills, counts.reruns) == (4 * calls, calls, 5 * calls)
    # What lies outside the folder does not count.
    with failing(1, errno.EIO, tmp_path / "folder") as disk:
        (tmp_path / "outside").write_bytes(b"x")
    assert (disk.count, disk.fired) == (0, None)


def test_what_does_not_hold_after_a_fault_is_reported_with_the_call() -> None:
    with pytest.raises(AssertionError, match="writing, EIO at 4, write raw: broken"):
        try_every(Writing(broken_at=4), errno.EIO, at_least=7, step=1)
    assert len(COUNTS.pop("writing").broken) == 1


def test_a_ref_in_a_folder_is_no_lie_and_one_that_leads_to_nothing_is(tmp_path: Path) -> None:
    repo = CacheBuilder(tmp_path).repo("org/name")
    repo.revision({"config.json": b"{}"}, refs=["refs/pr/1"])
    assert lies(tmp_path) == []
    repo.ref_to_missing_commit("refs/pr/2")
    assert [one.split()[0:2] for one in lies(tmp_path)] == [["empty", "ref"]]


# Disks.


def test_a_small_filesystem_fills_up_and_a_read_only_view_takes_nothing(tmp_path: Path) -> None:
    with small_filesystem(1 << 20) as disk, pytest.raises(OSError, match="No space left"):
        (disk / "file").write_bytes(b"x" * (2 << 20))
    (tmp_path / "file").touch()
    with read_only_view(tmp_path) as view, pytest.raises(OSError, match="Read-only"):
        (view / "file").write_bytes(b"x")


def test_another_user_may_neither_write_nor_read_what_is_closed() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    with common_folder() as folder:
        (folder / "closed").touch(mode=0o600)
        script = f"""
import os
print(os.geteuid())
for mode in "wr":
    try:
        open({str(folder / "closed")!r}, mode)
    except PermissionError:
        print("no")
"""
        result = as_other_user([sys.executable, "-c", script])
    assert result.stdout.split() == ["65534", "no", "no"], result.stderr


def test_the_hub_holds_no_port_after_its_end() -> None:
    with LoopbackHub() as hub:
        address = urlsplit(hub.url)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", address.port or 0), timeout=1)
