"""`vlmcache rm` and `vlmcache clean` as a user and as a script meet them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import vlmcache as package
from tests.kit.caches import (
    CacheBuilder,
    CachedRepo,
    du_allocated,
    fingerprint,
    model_files,
)
from tests.kit.commands import Done, Vlmcache, is_failure
from tests.kit.rooms import ROOMS, base
from vlmcache.errors import ExitCode
from vlmcache.home.journal import Journal
from vlmcache.units import exact_size

DAY = 86400.0


class Place:
    """A cache, a configuration and the command."""

    def __init__(self, folder: Path, vlmcache: Vlmcache) -> None:
        self.root = folder / "hub"
        self.own = folder / "own"
        self.beside = folder / "home" / ".cache" / "huggingface"
        self.vlmcache = vlmcache
        self.configure("models: {}\n")

    def configure(self, text: str) -> None:
        self.vlmcache.config(text)

    def run(self, *arguments: str) -> Done:
        return self.vlmcache(*arguments)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.document["exit_code"] == done.code, done
        return done.document

    def ask(self, *arguments: str, answer: str) -> tuple[int, str]:
        """Run on a terminal, type the answer to the question, and return code and screen."""
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [*self.vlmcache.command, *arguments],
            env=self.vlmcache.environment | {"TERM": "xterm", "COLUMNS": "100"},
            cwd=self.vlmcache.folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        ) as child:
            os.close(theirs)
            screen = b""
            answered = False
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                if not select.select([ours], [], [], 0.2)[0]:
                    continue
                try:
                    screen += os.read(ours, 4096)
                except OSError:
                    break
                if b"? [" in screen and not answered:
                    os.write(ours, answer.encode() + b"\n")
                    answered = True
            code = child.wait(timeout=10)
        os.close(ours)
        return code, screen.decode()


@pytest.fixture
def place(tmp_path: Path, vlmcache: Vlmcache) -> Place:
    return Place(tmp_path, vlmcache)


@pytest.mark.parametrize("command", [("rm", "org/name"), ("clean",), ("clean", "--all")])
def test_without_a_terminal_and_yes_nothing_is_removed(
    place: Place, command: tuple[str, ...]
) -> None:
    base(place.root).orphan_blob()
    before = fingerprint(place.root)
    for more in ((), ("--json",)):
        result = place.run(*command, *more)
        assert result.code == ExitCode.UNCONFIRMED
        assert "--yes" in result.out + result.err
    assert fingerprint(place.root) == before


@pytest.mark.parametrize(
    ("answer", "goes"), [("y", True), ("yes", True), ("", False), ("n", False)]
)
def test_on_a_terminal_the_table_is_shown_and_a_question_asked(
    place: Place, answer: str, goes: bool
) -> None:
    repo = base(place.root)
    code, screen = place.ask("rm", "org/name", answer=answer)

    assert re.search(r"Remove 1 model, (freeing|keeping) [\d.]+ kB[\w ]*\? \[y/N\]", screen)
    assert "complete repo" in screen
    assert repo.folder.exists() == (not goes)
    assert code == (0 if goes else ExitCode.UNCONFIRMED)


@pytest.mark.parametrize(("answer", "goes"), [("all", True), ("y", False)])
def test_clean_all_asks_for_the_word(place: Place, answer: str, goes: bool) -> None:
    repo = base(place.root)
    code, _ = place.ask("clean", "--all", answer=answer)

    assert repo.folder.exists() == (not goes)
    assert code == (0 if goes else ExitCode.UNCONFIRMED)


@pytest.mark.parametrize(
    "command",
    [("rm", "org/name", "--dry-run"), ("rm", "org/name", "-y"), ("clean", "-y"), ("rm", "nope/x")],
)
def test_the_json_fits_its_schema(place: Place, command: tuple[str, ...]) -> None:
    ROOMS["waste"](place.root)
    schema = json.loads(
        subprocess.run(
            [sys.executable, "-m", "vlmcache", "schema", command[0]],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    found = place.json(*command)

    jsonschema.validate(found, schema)
    if "nope/x" not in command:
        assert {"actions", "frees", "needs"} <= set(found["plan"])
        assert (found["receipt"] is None) == ("--dry-run" in command)


def test_a_dry_run_changes_nothing_and_shows_the_same_plan(place: Place) -> None:
    ROOMS["waste"](place.root)
    before = fingerprint(place.root)
    dry = place.json("clean", "--dry-run")
    assert fingerprint(place.root) == before

    wet = place.json("clean", "-y")
    assert wet["plan"] == dry["plan"]
    assert wet["receipt"]["freed"] == dry["plan"]["frees"]


def test_status_promises_what_clean_frees(place: Place) -> None:
    ROOMS["waste"](place.root)
    ROOMS["shared"](place.root / "models--x--y")  # a folder in the way of a repo
    told = place.json("status")["recommendations"]
    (step,) = [one for one in told if one["command"] == "vlmcache clean"]

    freed = place.json("clean", "-y")["receipt"]["freed"]
    assert step["text"].startswith(f"{freed / 1000:.1f}".removesuffix(".0") + " kB")
    place.run("clean", "-y")  # what lay next to the partial that was removed
    assert not [
        one for one in place.json("status")["recommendations"] if one["command"] == "vlmcache clean"
    ]


def test_duplicates_says_which_file_has_the_same_weights_and_keeps_all_others(
    place: Place,
) -> None:
    repo = CacheBuilder(place.root).repo("org/name")
    repo.revision({**model_files(second_format=True), "flow.pt": b"flow", "voices.bin": b"voices"})

    planned = place.json("clean", "--duplicates", "--dry-run")
    reasons = {action["path"]: action["reason"] for action in planned["plan"]["actions"]}
    pointer = repo.pointer("pytorch_model.bin")
    assert reasons[str(pointer)] == "the same weights are in model.safetensors"

    assert place.run("clean", "--duplicates", "--yes").code == 0
    assert not os.path.lexists(pointer)
    for name in ("model.safetensors", "flow.pt", "voices.bin"):
        assert repo.pointer(name).exists()


def test_quiet_prints_one_id_per_line(place: Place) -> None:
    base(place.root)
    result = place.run("rm", "org/name", "-y", "-q")
    assert (result.out, result.err) == ("org/name\n", "")


def test_an_absent_model_is_exit_7_with_the_nearest(place: Place) -> None:
    base(place.root)
    result = place.run("rm", "org/naem")
    assert result.code == ExitCode.NO_MODEL
    assert "org/name" in result.err
    assert is_failure(result.err)


@pytest.mark.parametrize("option", ["--dry-run", "--yes"])
def test_what_is_refused_because_of_its_use_is_not_shown_as_removed(
    place: Place, option: str
) -> None:
    CacheBuilder(place.root).repo("org/used").revision(model_files())
    blob = next((place.root / "models--org--used" / "blobs").iterdir())
    with open(blob, "rb"):
        done = place.run("rm", "org/used", option)
    assert done.code == ExitCode.BUSY
    assert "in use" in done.out
    assert "REMOVES" not in done.out
    assert "Frees" not in done.out


def test_other_types_are_named_by_their_prefix(place: Place) -> None:
    cache = CacheBuilder(place.root)
    model, dataset = cache.repo("org/name"), cache.repo("org/name", "dataset")
    model.revision({"config.json": b"{}"})
    dataset.revision({"data.txt": b"x"})

    assert place.run("rm", "datasets/org/name", "-y").code == 0
    assert not dataset.folder.exists()
    assert model.folder.exists()


def _aged(root: Path, **days: float) -> dict[str, CachedRepo]:
    """Repos of 100 kB whose files were last read so many days ago."""
    cache = CacheBuilder(root)
    repos = {}
    for name, age in days.items():
        repos[name] = cache.repo(f"org/{name}")
        repos[name].revision({"config.json": name.encode(), "w.bin": name.encode() * 20_000})
        at = time.time() - age * DAY
        for blob in repos[name].blobs.iterdir():
            os.utime(blob, (at, at))
        for path in (*repos[name].snapshots.rglob("*"), repos[name].snapshots):
            os.utime(path, (at, at), follow_symlinks=False)
    return repos


def test_older_than_evicts_what_was_not_used_and_keeps_what_is_configured_or_kept(
    place: Place,
) -> None:
    repos = _aged(place.root, old=40, young=3, mine=50, kept=60)
    place.configure("models:\n  mine:\n    model_path: org/mine\n")
    result = place.run("clean", "--older-than", "30d", "--keep", "org/kept", "-y")

    assert result.code == 0
    assert {name for name, repo in repos.items() if repo.folder.exists()} == {
        "young",
        "mine",
        "kept",
    }
    assert place.run("clean", "mine", "--older-than", "30d", "-y").code == 0
    assert not repos["mine"].folder.exists()


def test_the_journal_counts_as_use(place: Place) -> None:
    repos = _aged(place.root, noted=40, old=40)
    with Journal(str(place.own)) as memory:
        noted = "model", "org/noted", repos["noted"].latest
        memory.record_use(str(place.root), noted, "load", time.time())
    shown = place.json("status")["repos"]
    used = {one["repo"]: one["last_used"] for one in shown}
    assert used["org/noted"] > used["org/old"]

    assert place.run("clean", "--older-than", "30d", "-y").code == 0
    assert repos["noted"].folder.exists()
    assert not repos["old"].folder.exists()
    with Journal(str(place.own)) as memory:
        assert list(memory.uses(str(place.root))) == [("model", "org/noted", repos["noted"].latest)]


def test_max_size_evicts_the_longest_unused_and_no_more(place: Place) -> None:
    repos = _aged(place.root, first=30, second=20, third=10)
    held = du_allocated(place.root)
    found = place.json("clean", "--max-size", exact_size(held - 90_000), "-y")

    assert found["exit_code"] == 0
    assert [name for name, repo in repos.items() if repo.folder.exists()] == ["second", "third"]
    assert du_allocated(place.root) <= held - 90_000


def test_the_budget_of_the_configuration_is_kept_by_a_plain_clean(place: Place) -> None:
    repos = _aged(place.root, first=30, second=20)
    place.configure("models: {}\nvlmcache:\n  max_size: 200kB\n")
    assert place.run("clean", "-y", "--config", "config.yaml").code == 0
    assert [name for name, repo in repos.items() if repo.folder.exists()] == ["second"]


def test_a_goal_out_of_reach_is_done_in_part_and_says_by_how_much(place: Place) -> None:
    repos = _aged(place.root, mine=50, other=1)
    place.configure("models:\n  mine:\n    model_path: org/mine\n")
    found = place.json("clean", "--max-size", "10kB", "-y")

    assert found["exit_code"] == ExitCode.PARTLY
    assert found["missed_by"] == du_allocated(place.root) - 10_000
    assert "short of" in found["errors"][0]["message"]
    assert not repos["other"].folder.exists()
    assert repos["mine"].folder.exists()
    assert any(kept["reason"] == "configured as mine" for kept in found["plan"]["kept"])


XET_FILES = (
    "http___127_0_0_1-fPS9ESocpm7VXpc6/shard-cache/one.mdb",
    "http___127_0_0_1-fPS9ESocpm7VXpc6/staging/shard-session/xorb_metadata/two",
    "https_cas_serv-tGqkUaZf_CBPHQ6h/chunk_cache/aa/chunk",
    "logs/xet_20260101T000000000+0000_7.log",
)
CODE_FILES = (
    "transformers_modules/__init__.py",
    "transformers_modules/org/name/modeling.py",
    "datasets_modules/__init__.py",
    "__pycache__/__init__.cpython-311.pyc",
)
FOREIGN = (
    "logs2/file",
    "notes.txt",
    "hub/models--org--own/blobs/x",
    "src-0123456789abcdef/main.py",
    "transformers_modules2/__init__.py",
    "evaluate_modules/no_package.py",
)


def _fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10_000)


def test_side_caches_are_listed_and_emptied_on_request_only(place: Place) -> None:
    base(place.root)
    _fill(place.beside / "xet", *XET_FILES)
    _fill(place.beside / "modules", *CODE_FILES)
    (place.beside / "modules" / "__init__.py").touch()
    sizes = {
        name: sum(map(du_allocated, (place.beside / name).iterdir())) for name in ("xet", "modules")
    }

    found = place.json("clean", "-y")
    assert {one["name"]: one["size_on_disk"] for one in found["side_caches"]} == sizes
    assert all((place.beside / "xet" / name).exists() for name in XET_FILES)

    found = place.json("clean", "-y", "--xet")
    assert found["receipt"]["freed"] == sizes["xet"]
    assert list((place.beside / "xet").iterdir()) == []
    assert all((place.beside / "modules" / name).exists() for name in CODE_FILES)

    assert place.json("clean", "-y", "--modules")["receipt"]["freed"] == sizes["modules"]
    assert list((place.beside / "modules").iterdir()) == []


@pytest.mark.parametrize(("option", "own"), [("xet", XET_FILES), ("modules", CODE_FILES)])
def test_in_a_side_cache_only_what_its_library_wrote_is_removed(
    place: Place, option: str, own: tuple[str, ...]
) -> None:
    base(place.root)
    folder = place.beside / option
    _fill(folder, *own, *FOREIGN)
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "app.log").write_bytes(b"of another program")
    (folder / "diffusers_modules").symlink_to(place.root)
    (folder / "other-0123456789abcdef").symlink_to(place.root)
    done = place.run("clean", "-y", f"--{option}")

    assert done.code == 0, done
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    logs = {name for name in own if name.startswith("logs/")}
    # Beside what is somebody else's, the top of a package may be theirs.
    compiled = {name for name in own if name.startswith("__pycache__/")}
    assert left == {*FOREIGN, "logs/app.log", *logs, *compiled}
    assert (folder / "diffusers_modules").is_symlink()
    assert "does not look like a cache" in place.run("clean", f"--{option}", "--dry-run").out


@pytest.mark.parametrize(
    "foreign",
    [
        "transformers_modules/notes.txt",
        "transformers_modules/my.py",
        "transformers_modules/org/name/notes.txt",
        "main.py",
    ],
)
def test_with_remote_code_no_file_of_somebody_else_is_removed(place: Place, foreign: str) -> None:
    folder = place.beside / "modules"
    _fill(folder, *CODE_FILES, foreign)
    (folder / "__init__.py").touch()
    done = place.run("clean", "-y", "--modules")
    assert done.code == 0, done
    assert (folder / foreign).exists()
    assert (folder / "__init__.py").exists()
    assert (folder / "transformers_modules" / "__init__.py").exists() == ("/" in foreign)
    assert not (folder / "datasets_modules").exists()


def test_a_side_cache_that_is_not_emptied_is_reported_with_the_reason(place: Place) -> None:
    _fill(place.beside / "modules", "main.py")
    for option in ("-y", "--dry-run"):
        done = place.run("clean", "--modules", option)
        assert "it does not look like a cache of remote code" in " ".join(done.out.split())
        assert "--modules empties it" not in done.out


@pytest.mark.parametrize("option", ["xet", "modules"])
@pytest.mark.parametrize("what", ["no cache", "link", "the hub", "above the hub", "home", "own"])
def test_a_folder_that_is_not_a_side_cache_is_left_with_one_sentence(
    place: Place, option: str, what: str
) -> None:
    CacheBuilder(place.root).repo("org/name").revision({"config.json": b"{}"})
    elsewhere = place.root.parent / "elsewhere"
    _fill(elsewhere, *FOREIGN)
    _fill(place.root.parent / "linked", *XET_FILES, *CODE_FILES)
    (place.root.parent / "link").symlink_to(place.root.parent / "linked")
    folder, words = {
        "no cache": (elsewhere, "does not look like a cache of"),
        "link": (place.root.parent / "link", "it is a link"),
        "the hub": (place.root, "it holds the cache"),
        "above the hub": (place.root.parent, "it holds the cache"),
        "home": (place.root.parent / "home", "it holds a cache of models"),
        "own": (place.own, "it holds vlmcache's own folder"),
    }[what]
    place.own.mkdir(exist_ok=True)
    if what not in ("link", "no cache"):
        _fill(folder, *XET_FILES, *CODE_FILES)
    place.vlmcache.environment[f"HF_{option.upper()}_CACHE"] = str(folder)
    before = fingerprint(place.root.parent)
    done = place.run("clean", "-y", f"--{option}", "--json")

    assert [kept["reason"] for kept in done.document["plan"]["kept"] if words in kept["reason"]]
    after = fingerprint(place.root.parent)
    # The journal may be written.
    assert all(after.get(name) == before[name] for name in before if not name.startswith("own"))
    if what != "no cache":
        assert all((folder / name).is_file() for name in (*XET_FILES, *CODE_FILES))


def test_no_escape_codes_reach_a_pipe_and_hostile_names_are_escaped(place: Place) -> None:
    repo = base(place.root)
    (repo.cache.root / "evil\x1b[31m\nname").write_bytes(b"x")
    result = place.run("clean", "--all", "--dry-run", "-v")

    assert result.code == 0
    assert "\x1b" not in result.out + result.err
    assert "evil\\x1b[31m\\x0aname" in result.out.replace("\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("clean", "--older-than", "soon"),
        ("clean", "--free", "lots"),
        ("rm",),
        ("rm", "org/name@../../x"),
        ("rm", "org/name@main", "--revision", "v1"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(place: Place, arguments: tuple[str, ...]) -> None:
    base(place.root)
    result = place.run(*arguments)
    assert result.code == ExitCode.USAGE
    assert result.out == ""
    assert is_failure(result.err)


def test_the_python_functions_remove_and_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place.root))
    repo = base(place.root)

    assert package.delete_model_cache("org/absent") is False
    assert package.delete_model_cache("org/name") is True
    assert not repo.folder.exists()
    assert package.delete_model_cache("org/name") is False


def test_a_plan_shows_the_largest_twenty_and_one_total(place: Place) -> None:
    cache = CacheBuilder(place.root)
    for number in range(25):
        repo = cache.repo(f"org/name{number:02}")
        repo.revision({"config.json": b"{}", "model.safetensors": b"x" * (9000 * (number + 1))})
        # Two revisions of it, and files of both: one model all the same.
        repo.revision({"config.json": b"[]"}, refs=["other"])
    planned = place.run("clean", "--all", "--dry-run")
    names = re.findall(r"org/name\d\d", planned.out)
    assert names == [f"org/name{number:02}" for number in range(24, 4, -1)]
    assert re.search(r"^and 5 more, [\d.]+ kB \(-v shows all\)$", planned.out, re.MULTILINE)
    assert planned.out.count("Frees ") == 1
    complete = place.run("clean", "--all", "--dry-run", "-v")
    assert {f"org--name{number:02}" for number in range(25)} <= set(
        re.findall(r"org--name\d\d", complete.out)
    )
    assert "Removed 25 models, freed" in place.run("clean", "--all", "--yes").out


@pytest.mark.parametrize("columns", ["60", "80", "160"])
def test_a_plan_breaks_no_name_at_any_width(place: Place, columns: str) -> None:
    name = f"org/{'long-name-' * 7}end"
    CacheBuilder(place.root).repo(name).revision(model_files())
    planned = place.vlmcache("rm", name, "--dry-run", COLUMNS=columns)
    assert name in planned.out
    folder = f"models--{name.replace('/', '--')}"
    complete = place.vlmcache("rm", name, "--dry-run", "-v", COLUMNS=columns)
    assert str(place.root / folder) in complete.out
