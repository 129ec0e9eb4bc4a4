"""A listing is believed only as far as it can do no harm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import fingerprint
from tests.kit.contents import Content
from tests.kit.hub import LoopbackHub, _Asked, _Reply, altered_json
from tests.kit.pulls import REPO, client_finds, pull, small_weights, variables, vlmcache
from vlmcache.cache import layout
from vlmcache.cache.state import TreeFile
from vlmcache.change import abilities
from vlmcache.commands.pull.plan import FileSelection
from vlmcache.errors import ExitCode, HostileListingError
from vlmcache.hub.listing import check_names

HOSTILE = [
    "../../x",
    "a/../../x",
    "/etc/passwd",
    "//x",
    "a\0b",
    "..",
    ".",
    "",
    "a//b",
    "a/./b",
    "a\\..\\..\\x",
    "\\server\\x",
    "C:\\x",
    "c:/x",
    "a/" * 2100 + "x",
    "a/" * 101 + "x",
]
"""Names that leave the folder on some system, name the folder itself, or are no names at all."""

ODD = {
    "plots\\loss.png": "backslash",
    "a\tb": "control",
    "a\nb": "control",
    "a\x1b[31mb": "control",
    "a\x85b": "control",
    "C:x": "drive",
    "0: first.md": "drive",
    "x" * 256: "too long",
    "ä" * 130: "too long",
    "half \udcff.txt": "Unicode",
}
"""Names that no repo is refused for -> what is said of them."""
MODEL: dict[str, Content] = {"config.json": b"{}", "model.safetensors": small_weights()}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.mark.parametrize("name", HOSTILE, ids=[ascii(name)[:20] for name in HOSTILE])
def test_a_repo_is_refused_if_a_name_leaves_its_folder(
    hub: LoopbackHub, tmp_path: Path, name: str
) -> None:
    hub.add_repo(REPO).commit({"config.json": b"{}", name: b"evil"})
    before = fingerprint(tmp_path)
    run = pull(hub, tmp_path / "inner" / "cache")
    assert run.problem is not None
    assert (run.problem.code, run.problem.exit_code) == ("hostile-listing", ExitCode.FAILED)
    assert fingerprint(tmp_path) == before
    assert hub.bytes_sent() == 0


@pytest.mark.parametrize(
    "link",
    [
        "<{}>;rel=next",
        '<{}>; REL="Next"',
        '<{}>; rel="last next"; title="a, <b>"',
        '<https://h.example/?cursor=9>; rel="prev"; title="next", <{}> ; title="x;y"; rel = next',
        '<?{query}>; rel="next"',
    ],
)
def test_every_page_of_a_listing_is_read_however_it_is_linked(tmp_path: Path, link: str) -> None:
    with LoopbackHub(page_size=2) as hub:
        hub.link = link
        hub.add_repo(REPO).commit({**MODEL, **{f"{number}.txt": b"x" for number in range(5)}})
        run = pull(hub, tmp_path / "cache", selection=FileSelection(every=True))
        assert (run.problem, run.models[0].files) == (None, 7)


def test_a_next_page_without_address_is_no_answer_of_a_hub(tmp_path: Path) -> None:
    with LoopbackHub(page_size=1) as hub:
        hub.link = '<http://[::1/x>; rel="next"'
        hub.add_repo(REPO).commit(MODEL)
        problem = pull(hub, tmp_path / "cache").problem
        assert problem is not None
        assert problem.exit_code == ExitCode.HUB
        assert "a next page without address" in problem.message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-le"])
def test_a_listing_may_come_in_any_encoding_of_json(
    hub: LoopbackHub, tmp_path: Path, encoding: str
) -> None:
    hub.add_repo(REPO).commit(MODEL)

    def change(asked: _Asked, reply: _Reply) -> None:
        if "/tree/" in asked.target and isinstance(reply.body, bytes):
            reply.body = reply.body.decode().encode(encoding)
            reply.stop = len(reply.body)

    hub.changes.append(change)
    assert pull(hub, tmp_path / "cache").problem is None


def test_pages_may_overlap(tmp_path: Path) -> None:
    with LoopbackHub(page_size=3) as hub:
        hub.page_overlap = 1
        hub.add_repo(REPO).commit({**MODEL, **{f"{number}.txt": b"x" for number in range(5)}})
        run = pull(hub, tmp_path / "cache", selection=FileSelection(every=True))
        assert (run.problem, run.models[0].files) == (None, 7)


def test_of_a_file_that_is_listed_with_two_contents_the_hub_is_asked(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo(REPO).commit(MODEL)
    hub.fault(altered_json(lambda files: [*files, files[0] | {"oid": "b" * 40}]).on("/tree/"))
    run = pull(hub, tmp_path / "cache")
    assert run.problem is None
    (config,) = (tmp_path / "cache").glob("*/snapshots/*/config.json")
    assert config.read_bytes() == b"{}"
    assert [request.method for request in hub.requests].count("HEAD") == 1


def test_hashes_in_capital_letters_are_the_same_hashes(hub: LoopbackHub, tmp_path: Path) -> None:
    def loud(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: loud(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [loud(inner) for inner in value]
        return value.upper() if isinstance(value, str) and layout.is_etag(value) else value

    hub.add_repo(REPO).commit(MODEL)
    hub.fault(altered_json(loud).on("/api/"))
    assert pull(hub, tmp_path / "cache").problem is None
    assert client_finds(hub, tmp_path / "cache", REPO)


def test_a_repo_is_refused_if_a_file_is_a_folder_too() -> None:
    file = TreeFile(1, "a" * 40)
    with pytest.raises(HostileListingError, match="folder"):
        check_names(REPO, {"a/b": file, "a": file})


@pytest.mark.parametrize("etag", ["../../x", "a" * 31, "", "A" * 40, "g" * 64])
def test_a_repo_is_refused_if_a_hash_is_not_one(etag: str) -> None:
    with pytest.raises(HostileListingError, match="hash"):
        check_names(REPO, {"a": TreeFile(1, "a" * 40, lfs_sha256=etag or "x", lfs_size=1)})


def test_a_listing_in_the_cache_is_not_believed_either(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_repo(REPO).commit({"config.json": b"{}"})
    assert pull(hub, tmp_path / "cache").problem is None
    tree = tmp_path / f"cache/models--org--name/trees/{commit}.json"
    document = json.loads(tree.read_text())
    document["files"]["../../../x"] = document["files"]["config.json"]
    tree.write_text(json.dumps(document))
    assert pull(hub, tmp_path / "cache").problem is None
    assert "../../../x" not in json.loads(tree.read_text())["files"]
    assert not (tmp_path / "x").exists()


def test_an_empty_listing_in_the_cache_is_none(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_repo(REPO).commit({"config.json": b"{}"})
    assert pull(hub, tmp_path / "cache").problem is None
    folder = tmp_path / "cache/models--org--name"
    (folder / f"trees/{commit}.json").write_text('{"format_version": 1, "files": {}}')
    (folder / f"snapshots/{commit}/config.json").unlink()
    assert pull(hub, tmp_path / "cache").problem is None
    assert (folder / f"snapshots/{commit}/config.json").exists()


@given(st.text(st.characters(codec="utf-8"), max_size=300))
def test_a_name_that_passes_stays_below_its_folder_on_every_system(name: str) -> None:
    import ntpath
    import posixpath

    if layout.file_name_problem(name) is None:
        for path in (posixpath, ntpath):
            joined = path.normpath(path.join("/base", name))
            assert joined.replace("\\", "/").startswith("/base/")
            assert joined.replace("\\", "/") == f"/base/{name}"


@pytest.mark.parametrize("name", ODD, ids=[ascii(name)[:20] for name in ODD])
def test_an_odd_name_refuses_only_itself(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    hub.add_repo(REPO).commit({**MODEL, name: b"odd"})
    cache = tmp_path / "cache"
    run = pull(hub, cache)
    assert run.problem is None
    assert [finding.code for finding in run.findings] == ["refused-name"]
    assert ODD[name] in run.findings[0].detail
    left = {file.path: file.reason for file in run.models[0].left_out}
    assert [ODD[name] in reason for reason in left.values()] == [True]
    shown = vlmcache(hub, cache, "status", REPO, "--check", "--json")
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["models"][0]["state"] == "cached"
    assert client_finds(hub, cache, REPO)
    # Cached means that the next pull fetches nothing, and asks one question.
    hub.clear_requests()
    again = pull(hub, cache)
    assert (again.models[0].state, again.findings) == ("cached", ())
    assert len(hub.requests) == 1
    assert pull(hub, cache, extra={"HF_HUB_OFFLINE": "1"}).problem is None


@pytest.mark.parametrize(
    "selection", [FileSelection(exclude=("plots*",)), FileSelection(include=("*.json",))]
)
def test_an_odd_name_that_is_not_wanted_is_not_spoken_of(
    hub: LoopbackHub, tmp_path: Path, selection: FileSelection
) -> None:
    hub.add_repo(REPO).commit({**MODEL, "plots\\loss.png": b"odd"})
    run = pull(hub, tmp_path / "cache", selection=selection)
    assert (run.problem, run.findings) == (None, ())


def test_an_odd_name_is_left_out_again_if_all_files_are_asked_for(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo(REPO).commit({**MODEL, "plots\\loss.png": b"odd"})
    for state in ("pulled", "cached"):
        run = pull(hub, tmp_path / "cache", selection=FileSelection(every=True))
        assert (run.problem, run.models[0].state) == (None, state)
        assert [finding.code for finding in run.findings] == ["refused-name"]


def test_a_model_that_needs_an_odd_name_is_partial_and_says_why(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    files: dict[str, Content] = {"config.json": b"{}"}
    files |= {f"sub\\model-0000{part}-of-00002.safetensors": small_weights() for part in (1, 2)}
    hub.add_repo(REPO).commit(files)
    cache = tmp_path / "cache"
    for sent in (None, 0):
        hub.clear_requests()
        run = pull(hub, cache)
        assert sent in (None, hub.bytes_sent())
        assert run.problem is not None
        assert run.problem.code == "unloadable"
        assert "backslash" in run.problem.message
        shown = json.loads(vlmcache(hub, cache, "status", REPO, "--json").stdout)
        assert shown["models"][0]["state"] == "partial"
        details = [one["detail"] for one in shown["findings"] if one["code"] == "refused-name"]
        assert len(details) == 2
        assert "backslash" in details[0]


def test_a_dataset_with_an_odd_name_is_incomplete_and_the_rest_of_it_is_here(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo(REPO, kind="dataset").commit({"a.csv": b"1", "b\tc.csv": b"2"})
    cache, name = tmp_path / "cache", f"datasets/{REPO}"
    run = pull(hub, cache, name)
    assert run.problem is not None
    assert "is incomplete: missing" in run.problem.message
    assert "control characters" in run.problem.message
    (here,) = cache.glob("*/snapshots/*/a.csv")
    assert here.read_bytes() == b"1"
    assert pull(hub, cache, name, selection=FileSelection(exclude=("b*",))).problem is None
    checked = json.loads(vlmcache(hub, cache, "verify", name, "--json").stdout)
    assert [missing["file"] for missing in checked["missing"]] == ["b\tc.csv"]
    assert vlmcache(hub, cache, "verify", name, "--repair").returncode != 0
    assert [path.name for path in here.parent.iterdir()] == ["a.csv"]


def test_a_repo_of_odd_names_alone_is_refused_before_anything_is_written(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo(REPO).commit({"a\tb": b"1"})
    problem = pull(hub, tmp_path / "cache").problem
    assert problem is not None
    assert problem.code == "no-such-file"
    assert not (tmp_path / "cache").exists()


def test_a_model_without_its_odd_file_is_backed_up_restored_and_moved(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo(REPO).commit({**MODEL, "plots\\loss.png": b"odd"})
    cache, place = tmp_path / "cache", tmp_path / "place"
    assert pull(hub, cache).problem is None
    (tmp_path / "saved").mkdir()
    for saved in ("saved.tar", "saved/"):
        assert vlmcache(hub, cache, "backup", str(tmp_path / saved)).returncode == 0
        assert vlmcache(hub, cache, "rm", REPO, "-y").returncode == 0
        assert vlmcache(hub, cache, "restore", str(tmp_path / saved)).returncode == 0
        assert vlmcache(hub, cache, "status", REPO, "--check").returncode == 0
    assert vlmcache(hub, cache, "verify").returncode == 0
    assert vlmcache(hub, cache, "move", str(place), "-y").returncode == 0
    assert vlmcache(hub, cache, "status", REPO, "--check").returncode == 0
    assert pull(hub, cache).models[0].state == "cached"


def test_what_the_real_client_has_written_under_an_odd_name_stays_and_counts(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo(REPO).commit({**MODEL, "plots\\loss.png": b"odd"})
    cache = tmp_path / "cache"
    script = f"from huggingface_hub import snapshot_download; snapshot_download({REPO!r})"
    run = subprocess.run(
        [sys.executable, "-c", script], env=variables(hub, cache), capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert vlmcache(hub, cache, "status", REPO, "--check").returncode == 0
    again = pull(hub, cache, selection=FileSelection(every=True))
    assert (again.problem, again.models[0].state, again.findings) == (None, "cached", ())
    assert vlmcache(hub, cache, "verify").returncode == 0
    assert vlmcache(hub, cache, "backup", str(tmp_path / "saved.tar")).returncode == 0
    assert vlmcache(hub, cache, "move", str(tmp_path / "place"), "-y").returncode == 0


class Folding:
    """Makes the trials of a filesystem say that it takes names for one that differ by case."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(abilities._Trial, "takes", self.takes)

    @staticmethod
    def takes(_trial: object, name: str, other: str | None = None) -> bool:
        return other is None or name.casefold() != other.casefold()


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        ({"config.json", "Config.json"}, {"Config.json"}),
        ({"notes.txt", "Notes.txt", "NOTES.txt"}, {"Notes.txt", "notes.txt"}),
        ({"docs/a.md", "Docs/b.md"}, set()),
        ({"docs", "Docs/b.md"}, {"docs"}),
        ({"café.md", "cafe\u0301.md"}, set()),
    ],
)
def test_of_names_that_the_disk_takes_for_one_the_needed_one_stays(
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: set[str],
    refused: set[str],
) -> None:
    files = {**MODEL, **dict.fromkeys(names, b"{}")}
    hub.add_repo(REPO).commit(files)
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        Folding(patch)
        run = pull(hub, cache)
        assert run.problem is None
        assert {file.path for file in run.models[0].left_out} == refused
        assert pull(hub, cache).models[0].state == "cached"
    # A filesystem that keeps them apart gets them all.
    assert pull(hub, cache, selection=FileSelection(every=True)).problem is None
    assert {path.name for path in cache.glob("*/snapshots/*/**/*") if path.is_file()} == {
        Path(name).name for name in files
    }


def test_a_name_that_the_filesystem_does_not_take_refuses_only_itself(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO).commit({**MODEL, "what?.md": b"1", "a b.md": b"2"})
    takes = abilities._Trial.takes
    monkeypatch.setattr(
        abilities._Trial,
        "takes",
        lambda trial, *names: "?" not in names[0] and takes(trial, *names),
    )
    run = pull(hub, tmp_path / "cache")
    assert run.problem is None
    assert {file.path for file in run.models[0].left_out} == {"what?.md"}
    assert "the filesystem cannot hold a file named 'what?.md'" in run.findings[0].detail
