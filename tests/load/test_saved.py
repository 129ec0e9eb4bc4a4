"""Reports are saved, compared, drawn, and refused before anything is measured."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import jsonschema
import msgspec
import pytest

from tests.kit.commands import is_failure
from tests.load.conftest import World
from tests.load.test_report import MACHINE, report
from vlmcache.cli.register import document_type
from vlmcache.errors import UnloadableError, UsageError
from vlmcache.home.journal import Journal
from vlmcache.load import saved
from vlmcache.load.options import LoadTestOptions, parse_loaders, parse_precisions
from vlmcache.load.report import LoadFailure, LoadReport, Remembered
from vlmcache.show.document import document, schema_of


def test_a_saved_report_is_read_as_it_was(tmp_path: Path) -> None:
    path = str(tmp_path / "report.json")
    saved.save_report(path, report(1.0, 2.0, 3.0))
    assert saved.read_report(path) == report(1.0, 2.0, 3.0)
    assert json.loads(Path(path).read_text())["schema"] == "vlmcache.load-test/1"


def test_what_json_prints_is_read_as_a_report_and_keeps_to_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    value = saved.compared(report(1.0, 2.0, 3.0), report(4.0, 5.0, 6.0))
    printed = document("load-test", value, 0, None)  # type: ignore[arg-type]
    path.write_text(printed)
    assert saved.read_report(str(path)) == value
    jsonschema.validate(json.loads(printed), schema_of("load-test", document_type("load-test")))


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "report.json"
    with pytest.raises(OSError, match="folder"):
        saved.save_report(str(path), report(1.0))
    path.mkdir(parents=True)
    with pytest.raises(OSError, match="report"):
        saved.save_report(str(path), report(1.0))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, "{", '{"results": 1}', '{"schema": "x"}'])
def test_a_file_that_is_not_a_report_is_refused_in_one_line(
    world: World, content: str | None
) -> None:
    path = world.root / "old.json"
    if content is not None:
        path.write_text(content)
    done = world.vlmcache("load-test", "--synthetic", "tiny", "--compare", str(path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}: ")
    assert is_failure(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--save", "nowhere/x.json"), "nowhere/x.json: cannot be written there"),
        (("--plot", "x.pdf"), "x.pdf: a plot must be a .png or .svg file"),
        (("--plot", "nowhere/x.svg"), "nowhere/x.svg: cannot be written there"),
        (("--precision", "int3"), "'int3' is not one of"),
        (("--loader", "magic"), "no loader 'magic'"),
        (("--trials", "0"), "must be at least 1"),
        (("--synthetic", "huge"), "no synthetic model 'huge'"),
        (("no-such-key",), "no such model"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(
    world: World, arguments: tuple[str, ...], words: str
) -> None:
    done = world.vlmcache("load-test", *arguments)
    assert done.returncode == (7 if words == "no such model" else 2)
    assert words in done.stderr
    assert is_failure(done.stderr)


def test_words_for_several_precisions_and_loaders_are_taken_apart() -> None:
    assert parse_precisions(["int8,float16", "fp16"]) == ("int8", "fp16")
    assert parse_loaders(["plain,auto", "runai"]) == ("plain", "runai")
    assert LoadTestOptions(cold=False).temperatures == ("warm",)
    assert parse_loaders(["auto"]) is None
    with pytest.raises(UsageError):
        LoadTestOptions(tokens=0)


def test_failures_without_any_result_end_with_the_code_of_the_first() -> None:
    bad = LoadFailure("a", "int8", "not-enough-memory", "too big", "--precision int4")
    worse = LoadFailure("b", None, "crashed", "died", None)
    error = LoadReport(None, (), (bad, worse)).problem
    assert isinstance(error, UnloadableError)
    assert (error.exit_code, error.code, error.message) == (
        11,
        "not-enough-memory",
        "too big; and 1 more",
    )
    partly = msgspec.structs.replace(report(1.0), failures=(bad,)).problem
    assert partly is not None
    assert (partly.exit_code, partly.message) == (3, "not measured: a: too big")
    assert report(1.0).problem is None
    assert report(1.0).ids == ["m bf16 readahead"]


def test_earlier_results_are_remembered_latest_first_and_shown_by_name(world: World) -> None:
    home = str(world.root / "own")
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    with Journal(home) as memory:
        for model, cold in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
            (result,) = report(cold, model=model).results
            memory.record_load(msgspec.json.encode(Remembered(at, MACHINE, result)))
        memory.record_load(b"of another version")
    _, document = world.document("load-test", "--history")
    remembered = [
        (earlier["result"]["model"], earlier["result"]["cold"]["median"])
        for earlier in document["history"]
    ]
    assert remembered == [("a", 3.0), ("b", 2.0), ("a", 1.0)]
    assert "2.00 s" in world.vlmcache("load-test", "--history").stdout


def test_without_a_history_that_is_said(world: World) -> None:
    done = world.vlmcache("load-test", "--history")
    assert done.returncode == 0
    assert done.stdout == "No earlier results: 'vlmcache load-test' measures.\n"


def test_an_unknown_name_is_an_error_and_not_an_empty_history(world: World) -> None:
    code, document = world.document("load-test", "--history", "nokey")
    assert (code, document["errors"][0]["code"]) == (7, "no-such-model")
