"""What the server answers: the hub's questions, conditions and ranges, for complete revisions."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder, model_files
from tests.kit.served import TOKEN, Asking, serving
from vlmcache.commands.serve import answers, catalog

FILES = {
    "config.json": b"{}",
    "a/b/deep file.txt": b"0123456789",
    "model.safetensors": b"w" * 5000,
}
DATA = b"0123456789"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> CacheBuilder:
    cache = CacheBuilder(tmp_path_factory.mktemp("served") / "hub")
    cache.repo("org/good").revision(model_files())
    cache.repo("org/good").revision({"v": b"1", **FILES}, refs=("v1", "refs/pr/7"))
    cache.repo("org/part").revision(model_files(), downloaded={"config.json"})
    cache.repo("plain").revision({"x.txt": b"x"})
    cache.repo("org/set", "dataset").revision(FILES)
    cache.repo("org/app", "space").revision({"app.py": b"print()"})
    cache.repo("org/old").revision(FILES, tree=False)
    cache.repo("org/copies").revision(FILES, link="copy")
    cache.repo("org/moved").revision(FILES, link="move")
    return cache


@pytest.fixture(scope="module")
def ask(built: CacheBuilder) -> Iterator[Asking]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMCACHE_SERVE_TOKEN", TOKEN)
        patch.setenv("VLMCACHE_HOME", str(built.root.parent / "own"))
        with serving(built.root) as asking:
            yield asking


def commit(built: CacheBuilder, repo: str, ref: str = "main") -> str:
    folder = built.root / ("models--" + repo.replace("/", "--"))
    return (folder / "refs" / ref).read_text()


def test_a_revision_is_named_by_branch_commit_beginning_and_encoded_ref(
    ask: Asking, built: CacheBuilder
) -> None:
    whole = commit(built, "org/good", "v1")
    for text in ("v1", whole, whole[:8], "refs%2Fpr%2F7"):
        assert ask(f"/api/models/org/good/revision/{text}").json["sha"] == whole, text
        assert ask(f"/org/good/resolve/{text}/v").body == b"1", text
    assert ask("/api/models/org/good").json["sha"] == commit(built, "org/good")
    assert ask("/api/models/plain/revision/main").json["id"] == "plain"


def test_siblings_and_tree_list_exactly_the_files_that_are_here(
    ask: Asking, built: CacheBuilder
) -> None:
    for kind, repo in (("models", "org/old"), ("models", "org/moved"), ("datasets", "org/set")):
        info = ask(f"/api/{kind}/{repo}/revision/main?blobs=true").json
        tree = ask(f"/api/{kind}/{repo}/tree/main?recursive=true&expand=true").json
        files = {entry["path"]: entry for entry in tree if entry["type"] == "file"}
        assert set(files) == {one["rfilename"] for one in info["siblings"]} == set(FILES)
        assert [one["path"] for one in tree if one["type"] == "directory"] == ["a", "a/b"]
        for name, content in FILES.items():
            assert files[name]["size"] == len(content)
        weights = files["model.safetensors"]
        assert weights["lfs"]["oid"] == hashlib.sha256(FILES["model.safetensors"]).hexdigest()
        listed = next(one for one in info["siblings"] if one["rfilename"] == "model.safetensors")
        assert listed["blobId"] == weights["oid"]
        assert listed["lfs"]["pointerSize"] == weights["lfs"]["pointerSize"]


def test_a_tree_without_its_listing_names_the_same_hashes(ask: Asking) -> None:
    """The pointers of LFS follow from length and content."""
    path = "/tree/main?recursive=true"
    assert ask(f"/api/models/org/old{path}").json == ask(f"/api/models/org/copies{path}").json


def test_a_tree_has_folders_and_pages(ask: Asking) -> None:
    tree = "/api/models/org/copies/tree/main"
    top = ask(tree).json
    assert [entry["path"] for entry in top] == ["a", "config.json", "model.safetensors"]
    assert [entry["path"] for entry in ask(f"{tree}/a").json] == ["a/b"]
    below = ask(f"{tree}/a?recursive=true").json
    assert [entry["path"] for entry in below] == ["a/b", "a/b/deep file.txt"]
    assert ask(f"{tree}/nowhere").headers["x-error-code"] == "EntryNotFound"
    found, path = [], f"{tree}?recursive=true&limit=2"
    while path:
        page = ask(path)
        assert len(page.json) <= 2
        found += [entry["path"] for entry in page.json]
        link = page.headers.get("link", "")
        assert not link or link.startswith(f"<{ask.address}/api/")
        path = link[1 : link.index(">")].removeprefix(ask.address) if link else ""
    assert found == ["a", "a/b", "a/b/deep file.txt", "config.json", "model.safetensors"]


def test_paths_are_asked_about_by_form_and_by_json(ask: Asking) -> None:
    address = "/api/datasets/org/set/paths-info/main"
    form = ask(address, "POST", body=b"paths=config.json&paths=nowhere&paths=a%2Fb&expand=true")
    assert [one["path"] for one in form.json] == ["config.json", "a/b"]
    said = ask(address, "POST", body=b'{"paths": ["config.json"]}', content_type="application/json")
    assert said.json == form.json[:1]
    for body in (b"\xff", b"[" * 9000, b'{"paths": [1]}', b"{}", b""):
        answer = ask(address, "POST", body=body, content_type="application/json")
        assert answer.status == 400
    assert ask(address).status == 405


def test_refs_are_listed(ask: Asking) -> None:
    refs = ask("/api/models/org/good/refs").json
    assert {one["name"] for one in refs["branches"]} == {"main", "v1"}
    assert ask("/api/models/org/good/auth-check").json == {}


def test_a_file_has_the_headers_of_the_hub(ask: Asking, built: CacheBuilder) -> None:
    sha = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    for method in ("HEAD", "GET"):
        answer = ask("/org/copies/resolve/main/model.safetensors", method)
        assert answer.status == 200
        assert answer.headers["etag"] == answer.headers["x-linked-etag"] == f'"{sha}"'
        assert answer.headers["x-linked-size"] == answer.headers["content-length"] == "5000"
        assert answer.headers["x-repo-commit"] == commit(built, "org/copies")
        assert answer.body == (FILES["model.safetensors"] if method == "GET" else b"")
    small = ask("/datasets/org/set/resolve/main/a/b/deep%20file.txt")
    oid = hashlib.sha1(b"blob 10\x00" + DATA).hexdigest()
    assert (small.body, small.headers["etag"]) == (DATA, f'"{oid}"')
    assert "x-linked-etag" not in small.headers
    assert ask("/spaces/org/app/resolve/main/app.py").body == b"print()"


def test_a_request_for_a_complete_address_and_an_id_in_another_case_are_answered(
    ask: Asking,
) -> None:
    wanted = ask("/org/good/resolve/v1/v").body
    assert wanted == b"1"
    for path in (
        "http://proxied:80/org/good/resolve/v1/v",
        "HTTPS://proxied/org/good/resolve/v1/v",
    ):
        assert ask(path).body == wanted, path
    assert ask("http://proxied/api/models/org/good?blobs=true").json["id"] == "org/good"
    assert ask("/Org/GOOD/resolve/v1/v").body == wanted
    assert ask("/api/models/ORG/good/revision/v1").json["id"] == "org/good"
    assert ask("/api/datasets/Org/Good").status == 404


def test_what_is_not_complete_is_not_served(ask: Asking) -> None:
    for path in (
        "/api/models/org/part",
        "/org/part/resolve/main/config.json",
        "/api/models/nobody/nothing",
        "/api/datasets/org/good",
    ):
        answer = ask(path)
        assert (answer.status, answer.headers["x-error-code"]) == (404, "RepoNotFound"), path
    for path, code in (
        ("/api/models/org/good/revision/v9", "RevisionNotFound"),
        ("/org/good/resolve/v9/config.json", "RevisionNotFound"),
        ("/org/good/resolve/main/nowhere", "EntryNotFound"),
    ):
        answer = ask(path)
        assert (answer.status, answer.headers["x-error-code"]) == (404, code), path


RANGES = [
    ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
    ("bytes=7-", 206, b"789", "bytes 7-9/10"),
    ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
    ("bytes=-3", 206, b"789", "bytes 7-9/10"),
    ("bytes=-99", 206, DATA, "bytes 0-9/10"),
    ("bytes=10-", 416, b"", "bytes */10"),
    ("bytes=-0", 416, b"", "bytes */10"),
    ("bytes=4-2", 200, DATA, None),
    ("bytes=1-2,5-6", 200, DATA, None),
    ("bytes=-", 200, DATA, None),
    ("lines=1-2", 200, DATA, None),
    ("bytes=x-2", 200, DATA, None),
    ("bytes=\u0662-3".encode("utf-8").decode("latin-1"), 200, DATA, None),
]


@pytest.mark.parametrize(("header", "status", "body", "content_range"), RANGES)
def test_a_range_is_a_part_and_one_that_makes_no_sense_is_not_there(
    ask: Asking, header: str, status: int, body: bytes, content_range: str | None
) -> None:
    answer = ask("/datasets/org/set/resolve/main/a/b/deep%20file.txt", range=header)
    assert (answer.status, answer.headers.get("content-range")) == (status, content_range)
    assert status == 416 or answer.body == body


def test_conditions_are_honored(ask: Asking) -> None:
    path = "/datasets/org/set/resolve/main/a/b/deep%20file.txt"
    etag = ask(path).headers["etag"]
    for names in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        answer = ask(path, if_none_match=names)
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
    assert ask(path, if_none_match='"x"').status == 200
    assert ask(path, range="bytes=0-1", if_range=etag).status == 206
    for name in ('"x"', f"W/{etag}", "Fri, 27 Nov 2026 21:00:00 GMT"):
        assert ask(path, range="bytes=0-1", if_range=name).body == DATA


def test_a_content_is_sent_by_its_hash_and_no_other_one(ask: Asking, built: CacheBuilder) -> None:
    sha = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert ask(f"/blobs/{sha}", "HEAD").headers["content-length"] == "5000"
    assert ask(f"/blobs/{sha}", range="bytes=4990-").body == b"w" * 10
    # What is only part of an incomplete model is not served.
    part = built.repo("org/part")
    unserved = {path.name for path in part.blobs.iterdir()} - {
        path.name for path in built.repo("org/good").blobs.iterdir()
    }
    for etag in (*unserved, "0" * 40, "0" * 64, sha[:-1], sha.upper(), f"{sha}.incomplete", "%2e"):
        assert ask(f"/blobs/{etag}").status == 404, etag
    assert ask(f"/blobs/{sha}", token=None).status == 401
    assert ask(f"/blobs/{sha}", token=TOKEN + "x").status == 401


@pytest.mark.parametrize("repo", ["org/tree", "org/resolve", "org/revision", "resolve/main"])
def test_a_repo_may_be_named_like_a_word_of_the_addresses(
    cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch, repo: str
) -> None:
    monkeypatch.setenv("VLMCACHE_SERVE_TOKEN", TOKEN)
    cache.repo(repo).revision({"config.json": b"{}"})
    with serving(cache.root) as ask:
        for path in (repo, f"{repo}/revision/main"):
            assert ask(f"/api/models/{path}").json["id"] == repo
        assert [file["path"] for file in ask(f"/api/models/{repo}/tree/main").json] == [
            "config.json"
        ]
        assert ask(f"/{repo}/resolve/main/config.json").body == b"{}"


def test_metrics_count_what_was_answered(ask: Asking) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(ask("/metrics").body.decode())
    samples = {sample.name: sample.value for family in families for sample in family.samples}
    assert samples["vlmcache_serve_models"] == 7
    assert samples["vlmcache_serve_connections"] >= 1


@given(st.text(st.sampled_from("bytes=-0123456789, "), max_size=12), st.integers(0, 30))
def test_whatever_a_range_says_a_span_lies_within_the_content(header: str, size: int) -> None:
    with contextlib.suppress(answers.AnswerError):
        span = answers.span_of(header, None, size, "e")
        assert 0 <= span.start <= span.stop <= size
        assert span.status == 206 or (span.start, span.stop) == (0, size)


def test_a_pointer_is_what_git_lfs_writes() -> None:
    """From the specification of git-lfs, `docs/spec.md`."""
    sha = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    assert catalog.pointer_of(sha, 12345) == (
        b"version https://git-lfs.github.com/spec/v1\n"
        b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
        b"size 12345\n"
    )


def test_the_catalog_is_read_again_as_the_cache_changes(
    cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shutil

    monkeypatch.setenv("VLMCACHE_SERVE_TOKEN", TOKEN)
    monkeypatch.setattr(catalog, "FRESH", 0.0)
    monkeypatch.setattr(catalog, "_ALL_FRESH", 0.0)
    cache.repo("org/one").revision(FILES)
    with serving(cache.root) as ask:
        assert ask("/org/two/resolve/main/config.json").status == 404
        cache.repo("org/two").revision({"config.json": b"2", "x": b"two"})
        assert ask("/org/two/resolve/main/config.json").body == b"2"
        oid = hashlib.sha1(b"blob 3\x00two").hexdigest()
        assert ask(f"/blobs/{oid}").body == b"two"
        shutil.rmtree(cache.repo("org/two").folder)
        assert ask("/org/two/resolve/main/config.json").status == 404
        assert ask(f"/blobs/{oid}").status == 404
