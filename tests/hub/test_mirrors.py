"""Mirrors that know less than the hub: Artifactory, Nexus, static files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.hub import (
    LoopbackHub,
    altered_headers,
    altered_json,
    hang,
    other_server,
    status,
)
from tests.kit.pulls import QUICK, REPO, Listener, client_finds, lies, pull, small_weights, vlmcache
from vlmcache.errors import ExitCode
from vlmcache.hub.listing import bare_etag

WEIGHTS = small_weights(5000)
FILES = {"config.json": b"{}", "sub/notes.txt": b"n" * 50, "model.safetensors": WEIGHTS}
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


def names_only(info: dict[str, Any]) -> dict[str, Any]:
    """Return an answer about a revision as mirrors give it: names and no more."""
    names = [{"rfilename": file["rfilename"]} for file in info.get("siblings", ())]
    return info | {"siblings": names}


def held(cache: Path) -> dict[str, bytes]:
    (snapshot,) = cache.glob("models--org--name/snapshots/*")
    return {
        path.relative_to(snapshot).as_posix(): path.read_bytes()
        for path in snapshot.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("code", [404, 405, 501])
def test_a_mirror_without_a_listing_is_asked_for_the_names_that_come_with_the_commit(
    hub: LoopbackHub, tmp_path: Path, code: int
) -> None:
    hub.fault(other_server(code).on("/tree/"))
    cache = tmp_path / "cache"
    run = pull(hub, cache)
    assert run.problem is None
    assert held(cache) == FILES
    # Sizes and hashes came along, so no file was asked about.
    assert hub.count("HEAD") == 0
    assert "blobs=true" in "".join(request.query for request in hub.requests)
    assert pull(hub, cache, extra={"HF_HUB_OFFLINE": "1"}).models[0].state == "cached"
    assert client_finds(hub, cache, REPO)


def test_what_a_mirror_does_not_say_of_a_file_is_asked_of_the_file_itself(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(other_server(404).on("/tree/"))
    hub.fault(altered_json(names_only).on("/revision/"))
    cache, seen = tmp_path / "cache", Listener()
    assert pull(hub, cache, progress=seen).problem is None
    assert held(cache) == FILES
    assert hub.count("HEAD") == 3
    assert any("asking about 3 files" in note for note in seen.notes)
    assert lies(cache) == []
    # The commit is asked for again, and none of its files.
    hub.clear_requests()
    assert pull(hub, cache).models[0].state == "cached"
    assert len(hub.requests) == 1
    assert client_finds(hub, cache, REPO)


def test_a_mirror_that_names_no_files_is_refused_in_words(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault(other_server(404).on("/tree/"))
    hub.fault(altered_json(lambda info: info | {"siblings": None}).on("/revision/"))
    run = pull(hub, tmp_path / "cache")
    assert run.problem is not None
    assert run.problem.exit_code == ExitCode.HUB
    assert f"does not say which files {REPO} has" in run.problem.message
    assert not (tmp_path / "cache").exists()


def test_a_repo_without_files_on_such_a_mirror_holds_none(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault(other_server(404).on("/tree/"))
    hub.fault(altered_json(lambda info: info | {"siblings": []}).on("/revision/"))
    run = pull(hub, tmp_path / "cache")
    assert run.problem is not None
    assert run.problem.code == "no-such-file"


def test_a_file_that_cannot_be_asked_about_ends_the_pull_of_this_model_alone(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo("org/two").commit({"config.json": b"[]"})
    hub.fault(other_server(404).on("/tree/"))
    hub.fault(altered_json(names_only).on("/revision/"))
    hub.fault(other_server(403).on("model.safetensors", method="HEAD"))
    cache = tmp_path / "cache"
    run = pull(hub, cache, REPO, "org/two")
    assert [model.state for model in run.models] == ["failed", "pulled"]
    assert run.models[0].error is not None
    assert "model.safetensors" in run.models[0].error.message


def test_a_file_whose_length_is_not_said_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.redirect = "none"
    hub.fault(other_server(404).on("/tree/"))
    hub.fault(altered_json(names_only).on("/revision/"))
    hub.fault(altered_headers(Content_Encoding="gzip", X_Linked_Size="").on("config.json"))
    run = pull(hub, tmp_path / "cache")
    assert run.problem is not None
    assert "does not say how long the file is" in run.problem.message


@pytest.mark.parametrize("bad", [status(503), hang()])
def test_a_question_about_a_file_is_asked_again(hub: LoopbackHub, tmp_path: Path, bad: Any) -> None:
    hub.fault(other_server(404).on("/tree/"))
    hub.fault(altered_json(names_only).on("/revision/"))
    hub.fault(bad.on("model.safetensors", method="HEAD"))
    assert pull(hub, tmp_path / "cache", patience=QUICK).problem is None


ETAGS = {
    "plain": ({"ETag": SHA256}, True),
    "weak": ({"ETag": f'W/"{SHA256}"'}, True),
    "compressed": ({"ETag": f'"{SHA256}-gzip"'}, True),
    "named": ({"ETag": f'"sha256:{SHA256}"'}, True),
    "checksum header": ({"ETag": '"x"', "X-Checksum-Sha256": SHA256}, True),
    "plain sha1": (
        {
            "ETag": hashlib.sha1(WEIGHTS).hexdigest(),
            "X-Checksum-Sha1": hashlib.sha1(WEIGHTS).hexdigest(),
        },
        False,
    ),
    "md5": ({"ETag": f'"{hashlib.md5(WEIGHTS).hexdigest()}"'}, False),
    "md5 of parts": ({"ETag": f'"{"a1" * 16}-7"'}, False),
    "time and length": ({"ETag": '"65f1c2a0-1388"'}, False),
    "nexus": ({"ETag": '"{SHA1{2fd4e1c67a2d28fced849ee1bb76e7391b93eb12}}"'}, False),
    "none": ({}, False),
    "no name": ({"ETag": '"../../x"'}, False),
}


@pytest.mark.parametrize("case", ETAGS)
def test_every_form_of_an_etag_is_read_and_none_is_taken_for_a_hash_that_is_not(
    hub: LoopbackHub, tmp_path: Path, case: str
) -> None:
    given, is_hash = ETAGS[case]
    hub.redirect = "none"
    hub.fault(other_server(404).on("/tree/"))
    hub.fault(altered_json(names_only).on("/revision/"))
    headers = {"X_Linked_ETag": "", "X_Linked_Size": "", "ETag": ""}
    headers |= {name.replace("-", "_"): value for name, value in given.items()}
    hub.fault(altered_headers(**headers).on("model.safetensors"))
    cache = tmp_path / "cache"
    run = pull(hub, cache)
    assert run.problem is None
    assert held(cache) == FILES
    found = [finding.code for finding in run.findings]
    assert found == ([] if is_hash else ["unverifiable-file"])
    assert client_finds(hub, cache, REPO)
    assert pull(hub, cache, extra={"HF_HUB_OFFLINE": "1"}).models[0].state == "cached"
    checked = json.loads(vlmcache(hub, cache, "verify", REPO, "--json").stdout)
    assert (checked["damaged"], checked["missing"]) == ([], [])
    assert checked["exit_code"] == 0
    assert len(checked["unverifiable"]) == (0 if is_hash else 1)
    assert checked["checked"] == (3 if is_hash else 2)


def test_bytes_that_are_not_what_the_etag_says_are_refused_if_it_is_a_hash(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.redirect = "none"
    hub.fault(other_server(404).on("/tree/"))
    hub.fault(altered_json(names_only).on("/revision/"))
    hub.fault(altered_headers(ETag=f'"{"b" * 64}"', X_Linked_ETag="").on("model.safetensors"))
    run = pull(hub, tmp_path / "cache")
    assert run.problem is not None
    assert run.problem.code == "wrong-bytes"


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ('"abc"', "abc"),
        ("abc", "abc"),
        ('W/"abc"', "abc"),
        ('"abc-gzip"', "abc"),
        ('"abc--gzip"', "abc"),
        ('W/"abc;br"', "abc"),
        ('"sha256:abc"', "abc"),
        (' "abc" ', "abc"),
        ('"a"b"', ""),
        ("", ""),
    ],
)
def test_an_etag_is_freed_of_what_servers_add(text: str, bare: str) -> None:
    assert bare_etag(text) == bare


def of_entries(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    return lambda entries: [change(entry) for entry in entries]


ODD_TREES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "sizes as strings": lambda entry: entry | {"size": str(entry["size"])},
    "sizes as floats": lambda entry: entry | {"size": float(entry["size"])},
    "no type": lambda entry: {key: value for key, value in entry.items() if key != "type"},
    "null everywhere": lambda entry: {"lfs": None, "xetHash": None, "lastCommit": None} | entry,
    "more than is known": lambda entry: entry | {"security": {"safe": True}, "x": [1]},
    "no hash": lambda entry: entry | {"oid": None, "lfs": None},
    "no size": lambda entry: entry | {"size": None},
    "sha256 named": lambda entry: (
        entry | {"lfs": {"sha256": entry["lfs"]["oid"]}} if "lfs" in entry else entry
    ),
}


@pytest.mark.parametrize("case", ODD_TREES)
def test_a_listing_that_is_written_otherwise_is_read_as_far_as_it_does_no_harm(
    tmp_path: Path, case: str
) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"w" * 5000}
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(files)
        hub.fault(altered_json(of_entries(ODD_TREES[case])).on("/tree/"))
        run = pull(hub, tmp_path / "cache")
    assert run.problem is None
    assert run.findings == ()
    assert held(tmp_path / "cache") == files
    assert lies(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "change",
    [
        {"gated": None},
        {"id": None},
        {"gated": None, "id": None, "siblings": None, "private": None},
        {"gated": "manual", "author": {"name": "x"}},
        {"gated": 0, "tags": None, "modelId": 5},
    ],
)
def test_fields_of_a_revision_may_be_null_or_missing(
    hub: LoopbackHub, tmp_path: Path, change: dict[str, Any]
) -> None:
    hub.fault(altered_json(lambda info: info | change).on("/revision/"))
    cache = tmp_path / "cache"
    run = pull(hub, cache)
    assert run.problem is None
    assert run.findings == ()
    hub.clear_requests()
    assert pull(hub, cache).models[0].state == "cached"
    assert len(hub.requests) == 1


@pytest.mark.parametrize("sha", [None, "", "main", "g" * 40, "../x"])
def test_a_commit_that_is_not_one_is_refused(hub: LoopbackHub, tmp_path: Path, sha: Any) -> None:
    hub.fault(altered_json(lambda info: info | {"sha": sha}).on("/revision/"))
    run = pull(hub, tmp_path / "cache")
    assert run.problem is not None
    assert run.problem.code == "bad-answer"
