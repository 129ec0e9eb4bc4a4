"""Datasets and spaces are pulled like models, except that all that is listed is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.contents import Content
from tests.kit.hub import Kind, LoopbackHub, cut, wrong_bytes
from tests.kit.pulls import client_finds, fetches, pull, variables, vlmcache
from vlmcache.commands.pull.plan import FileSelection
from vlmcache.errors import ExitCode

FILES: dict[str, Content] = {
    "README.md": b"# data",
    "data/train.parquet": b"t" * 100_000,
    "data/test.parquet": b"e" * 20_000,
    # What a model would be pulled without.
    "onnx/model.onnx": b"o" * 3000,
    "optimizer.pt": b"p" * 2000,
    "config.json": b'{"auto_map": {"AutoModel": "other/repo--x.Y"}}',
    "script.py": b"print()",
}
ID = "org/name"


@pytest.fixture(params=["dataset", pytest.param("space", marks=pytest.mark.full)])
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture
def hub(kind: Kind) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(ID, kind=kind).commit(FILES)
        yield hub


@pytest.fixture
def name(kind: Kind) -> str:
    return f"{kind}s/{ID}"


def client(hub: LoopbackHub, cache: Path, *arguments: str) -> str:
    """Run the real client's own command and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-m", "huggingface_hub.cli.hf", *arguments],
        env=variables(hub, cache), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("kind", ["dataset", "space"], indirect=True)
def test_everything_is_pulled_and_the_real_client_finds_it(
    hub: LoopbackHub, tmp_path: Path, kind: Kind, name: str
) -> None:
    cache = tmp_path / "cache"
    run = pull(hub, cache, name)
    assert run.problem is None
    assert run.ids == [name]
    assert run.findings == ()
    assert run.models[0].files == len(FILES)
    assert run.models[0].left_out == ()
    assert [path.name for path in cache.glob("*--*")] == [f"{kind}s--org--name"]
    hub.clear_requests()
    assert client_finds(hub, cache, ID, kind) == run.models[0].path
    assert hub.requests == []
    client(hub, cache, "download", ID, "--repo-type", kind)
    assert hub.bytes_sent() == 0


def test_what_the_real_client_has_downloaded_is_cached_after_one_question(
    hub: LoopbackHub, tmp_path: Path, kind: Kind, name: str
) -> None:
    cache = tmp_path / "cache"
    client(hub, cache, "download", ID, "--repo-type", kind)
    hub.clear_requests()
    run = pull(hub, cache, name)
    assert (run.problem, run.models[0].state) == (None, "cached")
    assert len(hub.requests) == 1
    hub.clear_requests()
    commit = str(run.models[0].commit)
    assert pull(hub, cache, f"{name}@{commit}").models[0].state == "cached"
    assert pull(hub, cache, name, extra={"HF_HUB_OFFLINE": "1"}).problem is None
    assert hub.requests == []


def test_nothing_is_written_by_a_dry_run(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    run = pull(hub, tmp_path / "cache", name, dry_run=True)
    assert run.models[0].state == "planned"
    assert set(fetches(run)) == set(FILES)
    assert not (tmp_path / "cache").exists()


def test_a_revision_and_patterns_choose_files(
    hub: LoopbackHub, tmp_path: Path, kind: Kind, name: str
) -> None:
    hub._repos[kind, ID].commit({"a.csv": b"1", "b.csv": b"2", "c.txt": b"3"}, "v1")
    cache = tmp_path / "cache"
    selection = FileSelection(include=("*.csv",), exclude=("b.*",))
    run = pull(hub, cache, f"{name}@v1", selection=selection)
    assert run.problem is None
    assert set(fetches(run)) == {"a.csv"}
    assert {(file.path, file.reason) for file in run.models[0].left_out} == {
        ("b.csv", "not asked for"),
        ("c.txt", "not asked for"),
    }
    shown = json.loads(vlmcache(hub, cache, "status", f"{name}@v1", "--json").stdout)
    assert shown["models"][0]["state"] == "partial"
    assert shown["models"][0]["missing_files"] == ["b.csv", "c.txt"]
    assert pull(hub, cache, f"{name}@v1").problem is None
    shown = json.loads(vlmcache(hub, cache, "status", f"{name}@v1", "--json").stdout)
    assert shown["models"][0]["state"] == "cached"


def test_an_interrupted_download_is_resumed(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    hub.fault(cut(60_000).on("train.parquet", times=4))
    cache = tmp_path / "cache"
    run = pull(hub, cache, name)
    assert run.problem is not None or hub.bytes_sent("data/train.parquet") < 120_000
    assert pull(hub, cache, name).problem is None
    assert hub.bytes_sent("data/train.parquet") < 200_000


@pytest.mark.parametrize("kind", ["dataset", "space"], indirect=True)
@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        ({}, ExitCode.NO_MODEL, "no such {kind} on "),
        ({"private": True}, ExitCode.NO_MODEL, "no such {kind} on "),
        ({"gated": True}, ExitCode.HUB, "gated and no token was sent"),
    ],
)
def test_a_refusal_names_the_repo_as_it_is_typed(
    hub: LoopbackHub,
    tmp_path: Path,
    kind: Kind,
    options: dict[str, bool],
    exit_code: ExitCode,
    words: str,
) -> None:
    if options:
        hub.add_repo("org/two", kind=kind, **options).commit(FILES)
    problem = pull(hub, tmp_path / "cache", f"{kind}s/org/two").problem
    assert problem is not None
    assert problem.exit_code == exit_code
    assert words.format(kind=kind) in problem.message
    assert f"{kind}s/org/two" in problem.message


def test_a_model_of_the_same_id_is_another_repo(
    hub: LoopbackHub, tmp_path: Path, kind: Kind, name: str
) -> None:
    hub.add_repo(ID).commit({"README.md": b"# data", "config.json": b"{}"})
    cache = tmp_path / "cache"
    run = pull(hub, cache, ID, name)
    assert run.problem is None
    assert [(model.repo, model.state) for model in run.models] == [(ID, "pulled"), (name, "pulled")]
    # One has a file that the other has too, and its folder its own copy of it.
    assert {folder.parent.name for folder in cache.glob("*--*/blobs")} == {
        "models--org--name",
        f"{kind}s--org--name",
    }
    assert vlmcache(hub, cache, "verify").returncode == 0


def test_a_renamed_repo_keeps_its_name(
    hub: LoopbackHub, tmp_path: Path, kind: Kind, name: str
) -> None:
    hub.rename(ID, "org/new", kind=kind)
    run = pull(hub, tmp_path / "cache", name)
    assert run.problem is None
    assert [finding.code for finding in run.findings] == ["renamed"]
    assert f"calls it {kind}s/org/new now" in run.findings[0].detail


def test_every_command_knows_what_was_pulled(
    hub: LoopbackHub, tmp_path: Path, kind: Kind, name: str
) -> None:
    cache = tmp_path / "cache"
    assert vlmcache(hub, cache, "pull", name, "-q").stdout == f"{name}\n"
    shown = json.loads(vlmcache(hub, cache, "status", name, "--check", "--json").stdout)
    assert [(row["repo"], row["state"]) for row in shown["models"]] == [(name, "cached")]
    assert [(row["repo"], row["type"], row["state"]) for row in shown["repos"]] == [
        (ID, kind, "cached")
    ]
    assert vlmcache(hub, cache, "verify", name).returncode == 0
    assert vlmcache(hub, cache, "clean", "-y").returncode == 0
    saved = tmp_path / "saved.tar"
    assert vlmcache(hub, cache, "backup", str(saved), name).returncode == 0
    assert vlmcache(hub, cache, "rm", name, "-y").returncode == 0
    assert list(cache.glob(f"{kind}s--*")) == []
    assert vlmcache(hub, cache, "restore", str(saved)).returncode == 0
    hub.clear_requests()
    assert pull(hub, cache, name).models[0].state == "cached"
    assert hub.bytes_sent() == 0


def test_damage_is_repaired_by_verify_or_by_another_pull(
    hub: LoopbackHub, tmp_path: Path, kind: Kind, name: str
) -> None:
    cache = tmp_path / "cache"
    assert pull(hub, cache, name).problem is None
    (parquet,) = cache.glob("*/snapshots/*/data/train.parquet")
    for command in (["verify", name, "--repair"], ["pull", name]):
        parquet.resolve().write_bytes(b"t" * 49_999)
        shown = json.loads(vlmcache(hub, cache, "status", "--json").stdout)
        steps = [step["command"] for step in shown["recommendations"]]
        assert f"vlmcache pull {name}" in steps
        result = vlmcache(hub, cache, *command)
        assert result.returncode == 0, result.stderr
        assert parquet.read_bytes() == FILES["data/train.parquet"]
    parquet.unlink()
    found = vlmcache(hub, cache, "verify", name)
    assert found.returncode == 4
    assert vlmcache(hub, cache, "verify", name, "--repair").returncode == 0
    assert parquet.read_bytes() == FILES["data/train.parquet"]


def test_wrong_bytes_are_refused(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    hub.fault(wrong_bytes().on("train.parquet", times=None))
    problem = pull(hub, tmp_path / "cache", name).problem
    assert problem is not None
    assert problem.code == "wrong-bytes"
    assert not list((tmp_path / "cache").glob("*/refs/main"))


def test_room_is_made_without_evicting_what_is_being_pulled(
    hub: LoopbackHub, tmp_path: Path, kind: Kind, name: str
) -> None:
    cache = tmp_path / "cache"
    assert pull(hub, cache, name).problem is None
    hub._repos[kind, ID].commit({**FILES, "new.parquet": b"n" * 70_000})
    free = shutil.disk_usage(tmp_path).free
    run = pull(hub, cache, name, limits={"min_free": free + 10**12}, make_room=True)
    assert run.problem is not None
    assert run.problem.exit_code == ExitCode.SPACE
    assert list(cache.glob("*/snapshots/*/data/train.parquet"))


@pytest.mark.parametrize("command", [["load-test"], ["quantize", "--precision", "int8"]])
def test_commands_that_load_a_model_refuse_other_types(
    hub: LoopbackHub, tmp_path: Path, name: str, command: list[str]
) -> None:
    result = vlmcache(hub, tmp_path / "cache", command[0], name, *command[1:])
    assert result.returncode == ExitCode.NO_MODEL, result.stderr


def test_the_name_is_found_in_any_case_and_without_an_owner_if_it_is_cached(
    hub: LoopbackHub, tmp_path: Path, kind: Kind, name: str
) -> None:
    hub.add_repo("squad", kind=kind).commit({"a.csv": b"1"})
    cache = tmp_path / "cache"
    assert pull(hub, cache, name).problem is None
    assert pull(hub, cache, f"{kind}s/Org/NAME").models[0].repo == name
    assert vlmcache(hub, cache, "pull", f"{kind}s/squad").returncode == ExitCode.NO_MODEL
    client(hub, cache, "download", "squad", "--repo-type", kind)
    assert pull(hub, cache, f"{kind}s/squad").models[0].state == "cached"


def test_rm_and_move_show_which_of_a_model_and_another_repo_with_its_id_is_meant(
    hub: LoopbackHub, tmp_path: Path, name: str
) -> None:
    hub.add_repo(ID).commit({"config.json": b"{}"})
    cache, place = tmp_path / "cache", str(tmp_path / "place")
    for one in (ID, name):
        assert pull(hub, cache, one).problem is None
    for arguments in (("rm", "--dry-run"), ("move", place, "--dry-run")):
        for asked in (ID, name):
            shown = vlmcache(hub, cache, *arguments, asked)
            assert shown.returncode == 0, shown.stderr
            rows = [line.split()[0] for line in shown.stdout.splitlines() if ID in line]
            assert rows == [asked]
