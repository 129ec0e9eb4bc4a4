"""`rm` without MODEL and `clean -i`: what is chosen from the list is what is removed."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.commands.remove.test_remove_plan import NOW, caches, check, evidences, gone, keys
from tests.kit.caches import CacheBuilder, du_allocated, fingerprint, model_files
from tests.kit.commands import Vlmcache, is_failure, run_here, take_variables
from tests.kit.screens import Screen
from vlmcache.cache.state import CacheState
from vlmcache.cache.usage import LastUse, Process, Usage
from vlmcache.change.plan import Kept, Plan
from vlmcache.change.removals import Key, Protected
from vlmcache.change.waste import Facts
from vlmcache.commands.remove.choose import ModelFacts, Site, offered_models, offered_waste
from vlmcache.commands.remove.offered import Offer
from vlmcache.commands.remove.plan import plan_cleaning
from vlmcache.commands.remove.values import CleanOptions

DAY = 86400
MONTH = 30 * DAY


def drawn_choice(data: st.DataObject, offer: Offer) -> list[int]:
    free = [number for number, thing in enumerate(offer.things) if not thing.barred]
    return data.draw(st.lists(st.sampled_from(free), unique=True)) if free else []


def paths_of(plan: Plan) -> set[str]:
    return {getattr(action, "path", "") for action in plan.actions}


@given(caches(), st.data())
def test_of_models_just_the_chosen_ones_are_removed_and_what_they_share_counts_once(
    state: CacheState, data: st.DataObject
) -> None:
    busy = [
        Kept(repo.path, repo.id, "in use", (Process(1, "python", "open"),))
        for repo in state.repos
        if data.draw(st.booleans())
    ]
    pinned = Protected(repos={repo.folder: "configured" for repo in state.repos[:1]})
    offer, targets = offered_models(state, {}, ModelFacts({}, {}, pinned, busy))

    assert sorted(target.folder or "" for target in targets) == sorted(
        repo.folder for repo in state.repos
    )
    assert [thing.size for thing in offer.things] == sorted(
        (thing.size for thing in offer.things), reverse=True
    )
    in_use = {kept.repo for kept in busy}
    for thing in offer.things:
        assert thing.barred == (thing.name in in_use)
        assert bool(thing.guard) == (thing.what != "model")
    chosen = drawn_choice(data, offer)
    plan = offer.plan(chosen)
    check(state, plan)
    folders = {targets[number].folder for number in chosen}
    assert gone(state, plan) == {key for key in keys(state) if key[0] in folders}
    assert {repo.folder for repo in state.repos if repo.path in paths_of(plan)} == folders
    assert offer.frees(chosen) == (plan.frees, plan.frees)


def facts_of(state: CacheState, data: st.DataObject) -> Facts:
    evidence = data.draw(evidences(state))
    folders = [repo.folder for repo in state.repos]
    locked = data.draw(st.sets(st.sampled_from(folders))) if folders else set()
    pinned = data.draw(st.sets(st.sampled_from(folders))) if folders else set()
    revisions = [(repo.folder, one) for repo in state.repos for one in repo.revisions if one.files]
    twice = data.draw(st.lists(st.booleans(), min_size=len(revisions), max_size=len(revisions)))
    duplicates = {
        (folder, one.commit): {one.files[0].name: "another file"}
        for (folder, one), second in zip(revisions, twice, strict=True)
        if second
    }
    return Facts(
        NOW,
        last_used={
            key: evidence.uses.get(key, LastUse(NOW - 50 * DAY, "access")) for key in keys(state)
        },
        pinned=Protected(repos=dict.fromkeys(pinned, "configured as x")),
        usage=Usage(locks={f"{folder}/x.lock": () for folder in locked}),
        evidence=evidence,
        duplicates=duplicates,
    )


@given(caches(), st.data())
def test_of_waste_just_what_is_chosen_is_removed_and_what_two_choices_share_counts_once(
    state: CacheState, data: st.DataObject
) -> None:
    facts = facts_of(state, data)
    offer = offered_waste([Site(state, facts, lambda plan: plan)], MONTH, 3600)
    chosen = drawn_choice(data, offer)
    plan = offer.plan(chosen)

    assert offer.frees(chosen) == (plan.frees, plan.frees)
    wanted: set[Key] = set()
    for number in chosen:
        thing = offer.things[number]
        name, _, commit = thing.name.partition("@")
        folder = f"models--o--{name.removeprefix('o/')}"
        if thing.what in ("model", "needed"):
            wanted |= {key for key in keys(state) if key[0] == folder}
        elif thing.what in ("old revision", "revision"):
            wanted |= {
                key for key in keys(state) if key[0] == folder and key[1][:12] == commit[:12]
            }
    assert {key[0] for key in gone(state, plan)} == {key[0] for key in wanted}
    # What is in use or configured is never removed, and not offered to be.
    for repo in state.repos:
        inside = repo.path + "/"
        removed = [path for path in paths_of(plan) if path == repo.path or path.startswith(inside)]
        named = {offer.things[number].name.partition("@")[0] for number in chosen}
        assert not removed or repo.id in named
        if facts.usage.locks_of(repo.folder) is not None:
            assert not gone(state, plan) & {(repo.folder, one.commit) for one in repo.revisions}
    for number, thing in enumerate(offer.things):
        if not thing.barred and thing.what not in ("model", "needed"):
            assert offer.plan([number]).frees == thing.size


@given(caches(), st.data())
def test_what_needs_no_second_thought_is_what_clean_removes_without_asking_for_models(
    state: CacheState, data: st.DataObject
) -> None:
    facts = facts_of(state, data)
    offer = offered_waste([Site(state, facts, lambda plan: plan)], MONTH, 3600)
    waste = [
        number
        for number, thing in enumerate(offer.things)
        if not thing.guard and thing.what not in ("model", "revision")
    ]
    options = CleanOptions(partials=True, duplicates=True)
    assert paths_of(offer.plan(waste)) == paths_of(plan_cleaning(state, options, facts)[0])


def age(folder: Path, days: float) -> None:
    then = time.time() - days * DAY
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then), follow_symlinks=False)


@pytest.fixture
def filled(cache: CacheBuilder, vlmcache: Vlmcache) -> Vlmcache:
    """Four models: two that share a blob by the store, one configured, one with a strange name."""
    vlmcache.config("models: {kept: {repo: org/kept}}\nvlmcache: {min_free: 0}\n")
    weights = b"w" * 300_000
    for name in ("org/first", "org/second"):
        xet = {"model.safetensors": hashlib.sha256(b"one").hexdigest()}
        files = {"config.json": b"{}", "model.safetensors": weights}
        cache.repo(name).revision(files, shared=["model.safetensors"], xet=xet)
    cache.repo("org/kept").revision({"config.json": b"{}", "model.safetensors": b"k" * 50_000})
    strange = "org/\x1b[31mred\u202e\u65e5\u672c\u8a9e\u65e5\u672c\u8a9e-" + "long" * 30
    cache.repo(strange).revision({"config.json": b"{}", "model.safetensors": b"s" * 20_000})
    return vlmcache


def lines_of(text: str) -> Iterator[str]:
    for line in text.replace("\r", "").split("\n"):
        yield re.sub(r"\x1b\[[0-9;]*m", "", line)


@pytest.mark.parametrize(
    "columns", [60, *(pytest.param(n, marks=pytest.mark.full) for n in (80, 160))]
)
def test_rm_without_a_model_lists_them_and_removes_what_is_chosen(
    filled: Vlmcache, cache: CacheBuilder, columns: int
) -> None:
    screen = Screen(filled, "rm", "--no-trash", size=(columns, 40), NO_COLOR="1")
    shown = screen.wait_for("(Enter leaves):")
    first = list(lines_of(screen.sent.decode()))
    rows = {line.split()[0]: line for line in first if re.match(r" *\d+!? +[\d.]+ kB ", line)}
    assert list(rows) == ["1", "2", "3!", "4"]
    assert "first" in rows["1"]
    assert "second" in rows["2"]
    assert "configured" in rows["3!"]
    assert all(cell_len(line) <= columns for line in first[1:])
    # Nothing is drawn over, and nothing of a name is acted upon.
    assert b"\x1b" not in screen.sent
    assert "\u202e" not in shown

    alone = re.search(r"1 chosen, frees ([\d.]+) kB, then [\d.]+ \wB free", screen.answer("1"))
    assert alone is not None
    both = re.search(r"2 chosen, frees ([\d.]+) kB", screen.answer("all"))
    said = screen.answer("3")
    assert "3 org/kept: configured as kept" in " ".join(said.split())
    assert "type 3! to choose it nevertheless" in said
    assert both is None or float(both[1]) > float(alone[1]) + 300
    said = screen.answer("-4, 2")
    assert re.search(r"frees ([\d.]+) kB", said) is not None
    before = du_allocated(cache.root)
    question = screen.answer("", "[y/N] ")
    asked = re.search(r"Remove 2 models, freeing ([\d.]+ kB)\?", question)
    assert asked is not None, question
    screen.press(b"y\n")
    code, shown = screen.end()
    assert code == 0, shown
    freed = before - du_allocated(cache.root)
    assert f"{freed / 1000:.0f} kB" == asked[1]
    left = {path.name for path in cache.root.glob("models--*")}
    assert not left & {"models--org--first", "models--org--second"}
    assert len(left) == 2


@pytest.mark.parametrize("command", ["rm --trash", "clean -i --trash"])
def test_what_the_trash_keeps_is_not_said_to_be_free_at_once(
    filled: Vlmcache, cache: CacheBuilder, command: str
) -> None:
    age(cache.root, 90)
    screen = Screen(filled, *command.split(), size=(100, 40))
    screen.wait_for("(Enter leaves):")
    said = " ".join(screen.answer("1").split())
    assert re.search(r"frees [\d.]+ kB when the trash is emptied, then [\d.]+ \wB free", said), said
    question = screen.answer("", "[y/N] ")
    assert "freeing" not in question, question
    screen.press(b"y\n")
    code, shown = screen.end()
    assert (code, "0 B freed now" in " ".join(shown.split())) == (0, True), shown


@pytest.mark.parametrize(
    ("command", "keys", "code", "words"),
    [
        ("rm", b"\x03", 130, "error: interrupted: nothing was removed"),
        ("rm", b"1\n\x04", 130, "error: interrupted: nothing was removed"),
        ("clean -i", b"\x04", 130, "error: interrupted: nothing was removed"),
        ("clean -i", b"1\n\n\x03", 130, "error: interrupted"),
        ("clean -i", b"q\n", 5, "nothing was chosen: nothing was removed"),
        ("rm", b"\n", 5, "nothing was chosen: nothing was removed"),
        ("rm", b"1\n\nn\n", 5, "not confirmed: nothing was removed"),
        ("rm", b"\xff\xfe\n2,9\n3\n3\nq\n", 5, "no such number: 9"),
    ],
)
def test_leaving_changes_nothing(
    filled: Vlmcache,
    cache: CacheBuilder,
    command: str,
    keys: bytes,
    code: int,
    words: str,
) -> None:
    before = fingerprint(cache.root)
    age(cache.root, 90)
    screen = Screen(filled, *command.split(), size=(100, 40))
    screen.wait_for("(Enter leaves):")
    for line in re.findall(rb"[^\n]*\n|[\x03\x04]", keys):
        screen.press(line)
        if line == b"\n" and b"1\n" in keys:
            screen.wait_for("[y/N]")
        time.sleep(0.05)
    ended, shown = screen.end()
    assert (ended, words in " ".join(shown.split())) == (code, True), shown
    assert fingerprint(cache.root) == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["rm"], "no MODEL is named"),
        (["rm", "--dry-run"], "no MODEL is named"),
        (["rm", "--yes"], "no MODEL is named"),
        (["rm", "--revision", "main"], "--revision needs a MODEL"),
        (["rm", "--include", "*.bin"], "--include needs a MODEL"),
        (["clean", "-i"], "there is no terminal"),
        (["clean", "-i", "--yes"], "there is no terminal"),
    ],
)
def test_without_a_terminal_a_list_is_exit_2_and_says_what_to_type(
    filled: Vlmcache, line: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_variables(filled, monkeypatch)
    monkeypatch.chdir(filled.folder)
    done = run_here(*line)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert is_failure(done.err)
    assert "hint: " in done.err
    assert run_here(*line, "--json").document["exit_code"] == 2


@pytest.mark.parametrize(
    "line",
    [["rm", "--yes"], ["clean", "-i", "--yes"], ["clean", "-i", "--all"], ["clean", "-i", "--xet"]],
)
def test_on_a_terminal_what_makes_no_sense_with_a_list_is_exit_2(
    filled: Vlmcache, line: list[str]
) -> None:
    code, shown = Screen(filled, *line, size=(160, 40)).end()
    assert code == 2, shown
    assert "error: " in shown


def test_what_is_in_use_cannot_be_chosen_and_the_list_says_by_whom(
    filled: Vlmcache, cache: CacheBuilder
) -> None:
    blob = next(path for path in (cache.root / "blobs").rglob("*") if path.stat().st_size > 10_000)
    with blob.open("rb"):
        screen = Screen(filled, "rm", size=(80, 40))
        assert "in use" in screen.wait_for("(Enter leaves):")
        said = screen.answer("1!")
        assert f"PID {os.getpid()}" in said
        assert "nevertheless" not in said
        assert "chosen, frees" not in said
        screen.press(b"q\n")
        assert screen.end()[0] == 5


@pytest.mark.parametrize("change", ["a file is added", "it is gone"])
def test_what_changed_while_the_list_was_shown_is_left_alone(
    filled: Vlmcache, cache: CacheBuilder, change: str
) -> None:
    first = cache.root / "models--org--first"
    screen = Screen(filled, "rm", size=(80, 40))
    screen.wait_for("(Enter leaves):")
    screen.answer("1")
    if change == "it is gone":
        first.rename(cache.root.parent / "aside")
    else:
        snapshot = next((first / "snapshots").iterdir())
        (snapshot / "new.json").symlink_to("../../blobs/new")
    screen.answer("", "[y/N] ")
    screen.press(b"y\n")
    code, shown = screen.end()
    assert code == (10 if first.exists() else 0), shown
    assert (cache.root / "models--org--second").exists()


def many(root: Path, count: int) -> None:
    """Make as many small models, of which each third was unused for 90 days."""
    CacheBuilder(root)
    for number in range(count):
        repo = root / f"models--owner{number % 7}--model-{number:04}-Instruct"
        commit = f"{number:040x}"
        for folder in ("blobs", "refs", f"snapshots/{commit}"):
            (repo / folder).mkdir(parents=True)
        etag = hashlib.sha256(str(number).encode()).hexdigest()
        (repo / "blobs" / etag).write_bytes(b"x" * (number * 10))
        (repo / "refs" / "main").write_text(commit)
        (repo / "snapshots" / commit / "config.json").symlink_to(f"../../blobs/{etag}")
        if number % 3 == 0:
            age(repo, 90)


def test_a_thousand_models_are_listed_in_pages_that_fit_and_found_by_typing(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    many(cache.root, 1000)
    vlmcache.config("models: {}\n")
    every = 1000
    unused = Screen(vlmcache, "clean", "-i", size=(60, 24), NO_COLOR="1")
    assert " of 334; n: " in unused.wait_for("(Enter leaves):")
    unused.press(b"q\n")
    assert unused.end()[0] == 5
    screen = Screen(vlmcache, "rm", size=(60, 24), NO_COLOR="1")
    shown = screen.wait_for("(Enter leaves):")
    assert f" of {every}; n: " in shown
    # The first row is still on the screen: the page fits.
    assert re.search(r"^ *1 ", shown, re.MULTILINE)
    assert "this is the first page" in screen.answer("p")
    first = screen.answer("n")
    assert re.search(r"^19 to 36|^\d+ to \d+ of", first, re.MULTILINE)
    screen.resize(60, 40)
    longer = screen.answer("n")
    assert longer.count("Instruct") > first.count("Instruct")
    assert [line for line in lines_of(f"{first}\n{longer}") if cell_len(line) > 60] == []
    assert screen.answer("OWNER5 0999").count("Instruct") == 1
    assert "nothing in the list has 'nothing-like-it'" in screen.answer("nothing-like-it")
    assert f"{every} chosen, frees " in screen.answer("1-" + str(every))
    assert "nothing is chosen" in screen.answer("none")
    screen.answer("/0003-")
    assert "1 chosen, frees " in screen.answer("all")
    question = screen.answer("", "[y/N] ")
    assert "Remove 1 model," in question
    screen.press(b"y\n")
    code, shown = screen.end()
    assert code == 0, shown
    assert len(list(cache.root.glob("models--*"))) == 999
    assert not list(cache.root.glob("*0003-Instruct"))


def test_a_tiny_terminal_can_be_used(filled: Vlmcache, cache: CacheBuilder) -> None:
    screen = Screen(filled, "rm", size=(20, 5))
    screen.wait_for("leaves):")
    assert "chosen, frees" in " ".join(screen.answer("org/first").split())
    assert "Ctrl-D" in screen.answer("?")
    screen.answer("", "[y/N] ")
    screen.press(b"y\n")
    assert screen.end()[0] == 0
    assert not (cache.root / "models--org--first").exists()


def test_clean_lists_all_kinds_of_waste_and_removes_only_what_is_chosen(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    vlmcache.config("models: {pinned: {repo: org/pinned}}\nvlmcache: {min_free: 0}\n")
    files = model_files(second_format=True)
    unused = cache.repo("org/unused")
    unused.revision(files)
    pinned = cache.repo("org/pinned")
    pinned.revision({"config.json": b"{}"})
    old = cache.repo("org/old")
    replaced = old.revision({"config.json": b"{}", "model.safetensors": b"o" * 30_000}, refs=())
    for repo in (unused, pinned, old):
        age(repo.folder, 90)
    newer = old.revision({"config.json": b"{ }", "model.safetensors": b"n" * 40_000})
    partial = cache.repo("org/begun")
    partial.revision({"config.json": b"{}"})
    begun = partial.blobs / f"{'a' * 64}.incomplete"
    begun.write_bytes(b"p" * 20_000)
    then = time.time() - 3 * DAY
    os.utime(begun, (then, then))

    screen = Screen(vlmcache, "clean", "-i", size=(100, 40))
    shown = screen.wait_for("(Enter leaves):")
    rows = {
        match[2]: match[1]
        for match in re.finditer(
            r"^ *(\d+)!? .*?  (model|old revision|unfinished|second format|configured) +org/",
            shown,
            re.MULTILINE,
        )
    }
    assert rows.keys() == {
        "model",
        "unfinished",
        "second format",
        "configured",
        *(["old revision"]),
    }, shown
    assert "configured as pinned" in screen.answer(f"{rows['configured']}!")
    said = screen.answer(f"{rows['unfinished']} {rows['old revision']}!")
    assert "2 chosen" in said
    question = screen.answer("", "[y/N] ")
    assert re.search(r"Remove 1 revision and 1 partial download, freeing", question), question
    before = du_allocated(cache.root)
    screen.press(b"y\n")
    code, shown = screen.end()
    assert code == 0, shown
    assert re.search(r"Removed 1 revision and 1 partial download, freed", " ".join(shown.split()))
    assert not begun.exists()
    assert not (old.snapshots / replaced).exists()
    assert (old.snapshots / newer).exists()
    assert unused.folder.exists()
    assert before > du_allocated(cache.root)


def test_of_an_empty_cache_there_is_nothing_to_choose(vlmcache: Vlmcache) -> None:
    vlmcache.config("models: {}\n")
    for line in (["rm"], ["clean", "-i"]):
        code, shown = Screen(vlmcache, *line).end()
        assert (code, "Nothing to remove." in shown) == (0, True), shown
