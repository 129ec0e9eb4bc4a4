"""What people see of `status`, at any width and with any number of models."""

from __future__ import annotations

import io
from datetime import datetime, timezone
from typing import Any

import pytest
from rich.cells import cell_len

from tests.kit.caches import CacheBuilder, model_files
from tests.kit.commands import Vlmcache
from vlmcache.cache.state import ByClass, Finding
from vlmcache.commands.status import view
from vlmcache.commands.status.filters import TableOptions
from vlmcache.commands.status.values import (
    CacheSummary,
    ModelStatus,
    Outdated,
    Recommendation,
    RepoStatus,
    Status,
)
from vlmcache.show.console import _Console

GB = 10**9
CLASSES = ByClass(referenced=100 * GB, detached=2 * GB, orphan=GB, partial=3 * GB, metadata=GB)
CACHE = CacheSummary(
    "/data/hub", "HF_HOME", True, "ext4", "daily", 107 * GB, 50 * GB, 500 * GB, 10 * GB, 30 * GB,
    None, CLASSES,
)  # fmt: skip


def repo(name: str, size: int = GB, state: Any = "cached", kind: str = "model") -> RepoStatus:
    progress = 0.53 if state == "partial" else None
    return RepoStatus(
        name, kind, "/p", state, size, size, (), {}, 0, None, None, None, progress=progress
    )


def model(name: str, state: Any = "cached", size: int = GB, **facts: Any) -> ModelStatus:
    given: dict[str, Any] = {"progress": 0.53 if state == "partial" else None} | facts
    return ModelStatus(
        name, f"org/{name}", "main", state, None, None, size, size, size, (), (), None, None, None,
        None, datetime.now(timezone.utc), True, **given,
    )  # fmt: skip


def status(
    models: tuple[ModelStatus, ...] = (),
    repos: tuple[RepoStatus, ...] = (),
    findings: tuple[Finding, ...] = (),
    steps: tuple[Recommendation, ...] = (),
) -> Status:
    return Status(CACHE, models, repos, steps, findings)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    def show(value: Status, width: int = 80, *, verbose: bool = False, **listing: Any) -> list[str]:
        stream = io.StringIO()
        out = _Console(file=stream, width=width, force_terminal=True, color_system=None)
        monkeypatch.setattr(view, "console", lambda: out)
        view.show(value, listing=TableOptions(**listing), verbose=verbose)
        return stream.getvalue().splitlines()

    return show


@pytest.mark.parametrize("count", [0, 1, 3, 47, 1000])
def test_any_number_of_repos_is_a_screen_that_begins_with_how_many_they_are(
    shown: Any, count: int
) -> None:
    repos = tuple(repo(f"org/m-{number}", (number + 1) * GB) for number in range(count))
    lines = shown(status(repos=repos))
    assert lines[0] == f"{count} model{'' if count == 1 else 's'}, 107 GB"
    assert len(lines) <= 40
    rows = [line.split()[0] for line in lines if line.startswith("org/")]
    assert rows == [f"org/m-{number}" for number in reversed(range(max(0, count - 20), count))]
    rest = [
        line for line in lines if line.endswith(" more: vlmcache status --all") or "and " in line
    ]
    assert [line.partition(",")[0] for line in rest] == [f"and {count - 20} more"] * (count > 20)


def test_limit_and_all_choose_the_rows_and_the_last_line_says_what_shows_the_rest(
    shown: Any,
) -> None:
    value = status((model("a"),), tuple(repo(f"org/m-{number}") for number in range(30)))
    command = "vlmcache status --all --config x.yaml"
    lines = shown(value, more=command)
    assert f"Others  30 more repos, 30 GB: {command}" in lines
    lines = shown(value, every=True, limit=5, more=command)
    assert f"and 25 more, 25 GB: {command}" in lines
    assert sum(line.startswith("org/m-") for line in lines) == 5
    lines = shown(value, every=True, limit=None)
    assert sum(line.startswith("org/m-") for line in lines) == 30


def test_states_are_counted_in_the_first_line_and_partial_models_have_a_percentage(
    shown: Any,
) -> None:
    repos = (repo("a"), repo("b"), repo("c", state="partial"), repo("d", kind="dataset"))
    lines = shown(status((model("c", "partial"),), repos), every=True)
    assert lines[0] == "3 models and 1 dataset, 107 GB: 3 cached, 1 partial"
    assert any(line.startswith("c ") and "partial 53%" in line for line in lines)
    assert any(line.startswith("d ") and " dataset " in line for line in lines)


def test_bytes_have_plain_words_and_what_can_be_freed_is_one_line_with_its_command(
    shown: Any,
) -> None:
    command = "vlmcache clean --keep org/a --config '/a folder/config.yaml'"
    steps = (
        Recommendation("3 GB can be freed: 2 GB of revisions", command, 3 * GB),
        Recommendation("1 model to download, 1 GB", "vlmcache pull a"),
    )
    for width in (40, 60, 80, 160):
        lines = shown(status((model("a", "missing"),), steps=steps), width)
        text = "\n".join(lines)
        assert sum(command in line for line in lines) == 1
        assert " ".join(f"Clean 3 GB can be freed: {command}".split()) in " ".join(text.split())
        assert text.index("can be freed") < text.index("Next") < text.index("vlmcache pull a")
    words = "101 GB used, 2 GB old revisions, 1 GB leftovers, 3 GB unfinished"
    assert f"        {words}" in shown(status())


def test_findings_of_one_kind_are_one_line_with_a_count_and_all_of_them_with_verbose(
    shown: Any,
) -> None:
    findings = tuple(
        Finding("dangling-link", "error", f"org/m-{n % 7}", f"/p/{n}", f"link {n} is broken", None)
        for n in range(30)
    )
    findings += (Finding("lost-link", "error", "org/a", "/a folder/x", "one is lost", None),)
    findings += (Finding("lost-link", "error", "org/a", "/q", "one more is lost", None),)
    lines = shown(status(findings=findings), 120)
    problems = lines[lines.index("Problems") + 1 :]
    assert problems == [
        "  dangling-link 30 x org/m-0, org/m-1, org/m-2, org/m-3, org/m-4 and 2 more",
        "  lost-link 2 x org/a: one is lost (and 1 more)",
    ]
    text = "\n".join(shown(status(findings=findings), 60, verbose=True))
    assert all(f"link {n} is broken" in text for n in range(30))
    assert "  /a folder/x\n" in text


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_names_are_shortened_in_the_middle_whatever_is_in_them(shown: Any, width: int) -> None:
    names = ["x" * 200, "視覺" * 60, "a\x1b[31mred\x9b" * 20, "short"]
    value = status(tuple(map(model, names)), tuple(repo(f"lab/{name}") for name in names))
    lines = shown(value, width, every=True)
    assert all(cell_len(line) <= width for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in "".join(lines)
    table = lines[2:7]
    assert all("cached" in line for line in table[1:])
    assert sum("…" in line for line in table) == 3


def test_the_path_of_a_snapshot_is_one_line_with_verbose(shown: Any) -> None:
    path = f"/data/{'long/' * 30}snapshots/{'0' * 40}"
    value = Status(CACHE, (model("a"),), (), (), ())
    here = ModelStatus(
        "a", "org/a", "main", "cached", "0" * 40, path, 1, 1, 1, (), (), None, None, None, None,
        None, True,
    )  # fmt: skip
    assert path not in "\n".join(shown(value, 60))
    assert f"  {path}" in shown(Status(CACHE, (here,), (), (), ()), 60, verbose=True)


def test_the_hubs_answer_is_one_line(shown: Any) -> None:
    newer = Outdated("1" * 40, 5)
    silent = Finding("hub-not-asked", "warning", "org/a", "/p", "hub cannot be reached", None)
    for models, findings, text in (
        ((model("a"), model("b")), (), "all up to date"),
        ((model("a", outdated=newer), model("b")), (), "1 of 2 models has a newer revision"),
        ((model("a"), model("b")), (silent,), "not known of 1 model"),
    ):
        lines = shown(status(models, findings=findings), outdated=True)
        assert f"Hub     {text}" in lines
    text = "\n".join(shown(status(findings=(silent,) * 9), outdated=True))
    assert text.count("hub cannot be reached") == 1
    assert "Hub" not in "\n".join(shown(status((model("a"),))))


def test_people_scripts_and_pipes_see_the_same_models(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    for number in range(3):
        cache.repo(f"org/m-{number}").revision(model_files())
    vlmcache.config("models: {one: {repo: org/m-0}}")
    human = vlmcache("status", "--limit", "1", "--all")
    assert human.out.startswith("3 models, ")
    assert " more, " in human.out
    assert human.out.count("vlmcache status --all\n") == 1
    assert all(line == line.rstrip() for line in human.out.splitlines())
    document = vlmcache("status", "--limit", "1", "--json").document
    assert {"referenced", "detached", "orphan"} <= document["cache"]["by_class"].keys()
    assert [row["repo"] for row in document["repos"]] == ["org/m-0", "org/m-1", "org/m-2"]
    quiet = vlmcache("status", "--all", "--limit", "1", "-q")
    assert quiet.out.split() == ["org/m-0", "org/m-1", "org/m-2"]
