"""A member who swaps parts of a shared cache while root works on it: nothing outside is touched."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.attacks import (
    FILES,
    GROUP,
    IS_ROOT,
    MEMBER,
    NAME,
    SECRET,
    VICTIM,
    Attacked,
    SharedCache,
    as_command,
    attacks,
    shared_cache,
    spread,
)
from tests.kit.caches import CacheBuilder
from tests.kit.disks import as_other_user
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import small_config
from vlmcache.cache.moved import MoveRecord
from vlmcache.cache.tree import CacheTree, StaleError
from vlmcache.change.moved_note import write_moves
from vlmcache.errors import ExitCode

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

TRIES = int(os.environ.get("ATTACKS", "1"))
"""At how many of its calls each attack befalls a command."""
PLACE_TRIES = 2 * TRIES
NEW: dict[str, bytes] = {
    **FILES,
    "model.safetensors": b"other weights " * 500,
    "more/new.json": b"{}",
}

with shared_cache() as _sample:
    ATTACKS = list(attacks(_sample))


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        repo = hub.add_repo("org/name")
        for files in (FILES, {**FILES, "config.json": b"{}"}, NEW):
            repo.commit(files)
        yield hub


def backed_up(shared: SharedCache) -> str:
    """Return a store that holds a newer revision of the member's repo."""
    source = CacheBuilder(shared.folder / "source")
    source.repo("org/name").revision(NEW)
    store = f"{shared.folder}/store/"
    variables = {"HF_HUB_CACHE": str(source.root), "VLMCACHE_HOME": str(shared.folder / "own")}
    done = shared.run(as_command("backup", store, "--yes", variables=variables))
    assert done.code == 0, done.errors
    return store


def damaged(shared: SharedCache) -> list[str]:
    shared.repo.blob("model.safetensors").write_bytes(b"damaged " * 500)
    return ["verify", "--repair", "--yes"]


def in_trash(shared: SharedCache, *command: str) -> list[str]:
    """Return a command line that works on what was removed before."""
    line = as_command("rm", "org/name", "--trash", "--yes", variables=variables(shared, None))
    done = shared.run(line)
    assert done.code == 0, done.errors
    return [*command]


def base_of(shared: SharedCache) -> str:
    """Return an admin's base that has what the cache has, and more."""
    base = CacheBuilder(shared.folder / "base")
    for name in ("org/name", "org/third"):
        base.repo(name).revision(NEW)
    return str(base.root)


def attached(shared: SharedCache) -> list[str]:
    base = base_of(shared)
    done = shared.run(as_command("attach", base, variables=variables(shared, None)))
    assert done.code == 0, done.errors
    return ["detach", base, "--yes"]


COMMANDS: dict[str, Callable[[SharedCache], list[str]]] = {
    "attach": lambda shared: ["attach", base_of(shared)],
    "detach": attached,
    "rm": lambda _: ["rm", "org/name", "--yes"],
    "rm --trash": lambda _: ["rm", "org/name", "--trash", "--yes"],
    "undo": lambda shared: in_trash(shared, "undo"),
    "trash --empty": lambda shared: in_trash(shared, "trash", "--empty", "--yes"),
    "clean": lambda _: ["clean", "--partials", "--yes"],
    "status": lambda _: ["status"],
    "verify": lambda _: ["verify"],
    "repair": damaged,
    "pull": lambda _: ["pull", "org/name", "--yes"],
    "backup": lambda shared: ["backup", f"{shared.folder}/store/"],
    "restore": lambda shared: ["restore", backed_up(shared), "--overwrite"],
    "move": lambda shared: ["move", f"{shared.folder}/destination", "org/name", "--yes"],
    "doctor": lambda _: ["doctor", "--fix"],
}
HELD = list(COMMANDS)
CALLS: dict[str, int] = {}


def prepared(command: str, shared: SharedCache, hub: LoopbackHub) -> Callable[[], None]:
    return as_command(*COMMANDS[command](shared), variables=variables(shared, hub))


def variables(shared: SharedCache, hub: LoopbackHub | None) -> dict[str, str]:
    known = {} if hub is None else hub.environment(shared.root)
    return {name: value for name, value in known.items() if name.startswith(("HF_", "NO_"))} | {
        "HF_HUB_CACHE": str(shared.root),
        "VLMCACHE_HOME": str(shared.folder / "own"),
        "VLMCACHE_CONFIG": str(small_config(shared.folder)),
    }


# Of the attacks on each command, the check makes every third, the tier full the others.
@pytest.mark.parametrize(
    ("attack", "command"),
    [
        pytest.param(attack, command, marks=() if (one + other) % 3 == 0 else pytest.mark.full)
        for one, attack in enumerate(ATTACKS)
        for other, command in enumerate(HELD)
    ],
)
def test_whatever_a_member_swaps_at_any_call_nothing_outside_is_touched(
    hub: LoopbackHub, command: str, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmcache.change.tree.WAIT_SECONDS", 0.2)
    if command not in CALLS:
        with shared_cache() as shared:
            CALLS[command] = shared.run(prepared(command, shared, hub)).calls
    calls = CALLS[command]
    assert calls > 20
    for turn in range(TRIES):
        # At other calls for each attack, so that all of them together cover the command.
        nth = 1 + (calls * turn + calls * ATTACKS.index(attack) // len(ATTACKS)) // TRIES
        with shared_cache() as shared:
            command_line = prepared(command, shared, hub)
            done = shared.run(command_line, attacks(shared)[attack], nth)
            shared.check(done, *_others(shared.folder))


def run(shared: SharedCache, *arguments: str, hub: LoopbackHub | None = None) -> Attacked:
    return shared.run(as_command(*arguments, variables=variables(shared, hub)))


def private_blob(shared: SharedCache) -> Path:
    """Let a blob of the member's repo be a link to a model of the victim, whose hash is known."""
    name = "model.safetensors"
    target = shared.outside / shared.repo.blob(name).relative_to(shared.root)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    blob = shared.repo.blob(name).with_name(digest)

    def link() -> None:
        blob.symlink_to(target)
        pointer = shared.repo.pointer(name)
        pointer.unlink()
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))

    assert shared.as_member(link)
    return blob


@pytest.mark.parametrize("destination", ["store/", "saved.tar"])
def test_a_blob_that_is_a_link_out_of_the_cache_is_saved_by_no_backup(destination: str) -> None:
    with shared_cache() as shared:
        blob = private_blob(shared)
        done = run(shared, "backup", str(shared.folder / destination), "org/name")
        shared.check(done, *_others(shared.folder))
        assert done.code != 0
        assert str(blob) in done.errors


def test_a_blob_that_is_a_link_out_of_the_cache_is_hashed_by_nobody() -> None:
    with shared_cache() as shared:
        blob = private_blob(shared)
        done = run(shared, "verify", "org/name", "--json")
        shared.check(done)
        answer = json.loads(done.errors)
        unread = [one["path"] for one in answer["unverifiable"]]
        assert unread == [str(blob)]


def test_a_repo_that_is_a_link_to_another_users_models_is_neither_saved_nor_moved() -> None:
    if not IS_ROOT:
        pytest.skip("needs two users")
    with shared_cache() as shared:
        victim = CacheBuilder(shared.outside / "hub").repo("org/private")
        victim.revision({"model.safetensors": SECRET * 20})
        for path in (shared.outside / "hub").rglob("*"):
            os.chown(path, VICTIM, VICTIM, follow_symlinks=False)
        shared.before = shared.state_outside()
        link = shared.root / "models--org--private"
        assert shared.as_member(lambda: link.symlink_to(victim.folder))
        for arguments in (
            ["backup", f"{shared.folder}/store/"],
            ["backup", f"{shared.folder}/store/", "org/private"],
            ["move", f"{shared.folder}/destination", "org/private", "--yes"],
            ["rm", "org/private", "--yes"],
            ["verify"],
        ):
            shared.check(run(shared, *arguments), *_others(shared.folder))


@pytest.mark.skipif(not IS_ROOT, reason="needs two users")
@pytest.mark.parametrize("command", ["verify", "backup", "serve", "attach", "rm"])
def test_a_record_that_a_member_forged_leads_root_to_nothing_that_is_closed(command: str) -> None:
    with shared_cache() as shared:
        blobs = shared.repo.folder / "blobs"
        base = {"folder": str(shared.outside), "drive": None}
        record = {"format": "vlmcache.base/1", "bases": [base], "refs": {}}

        def forge() -> None:
            (shared.root / ".locks" / f"{NAME}.base.json").write_text(json.dumps(record))
            for blob in list(blobs.iterdir()):
                blob.unlink()
                blob.symlink_to(shared.outside / NAME / "blobs" / blob.name)

        assert shared.as_member(forge)
        if command == "serve":
            name = str(next(blobs.iterdir()))
            with pytest.raises(StaleError):
                CacheTree(str(shared.root)).open_content(name)
            return
        done = run(shared, *COMMANDS[command](shared))
        shared.check(done, *_others(shared.folder))
        answers = json.loads(run(shared, "verify", "--json").errors)
        assert all(one["actual"] is None for one in answers["damaged"])


def moved_to_a_members_place(shared: SharedCache) -> Path:
    """Let the member's repo lie in a folder that the member can swap, as a move leaves it."""
    place = shared.folder / "lent" / "place"
    place.parent.mkdir()
    if IS_ROOT:
        os.chown(place.parent, MEMBER, GROUP)
    assert run(shared, "move", str(place), "org/name", "--yes").code == 0
    for path in (place, *place.rglob("*")):
        if IS_ROOT:
            os.chown(path, MEMBER, GROUP, follow_symlinks=False)
    return place


def unfinished(shared: SharedCache) -> Path:
    """Let a move to such a place have been interrupted; the victim has one of their own."""
    place = shared.folder / "lent" / "place"
    for folder in (place, shared.outside):
        staged = folder / ".vlmcache-moving" / NAME
        (staged / "blobs").mkdir(parents=True)
        (staged / "blobs" / "begun").write_bytes(SECRET if folder == shared.outside else b"")
        move = MoveRecord(str(shared.root), finished=False)
        write_moves(str(folder), {NAME: move})
        if IS_ROOT:
            owner = VICTIM if folder == shared.outside else MEMBER
            for path in (folder, *folder.rglob("*")):
                os.chown(path, owner, GROUP, follow_symlinks=False)
    if IS_ROOT:
        os.chown(place.parent, MEMBER, GROUP)
    shared.before = shared.state_outside()
    return place


PLACES: dict[str, tuple[Callable[[SharedCache], Path], list[str]]] = {
    "rm": (moved_to_a_members_place, ["rm", "org/name", "--yes"]),
    "clean": (moved_to_a_members_place, ["clean", "--all", "--yes"]),
    "undo": (unfinished, ["move", "{}", "--undo", "--yes"]),
    "move": (unfinished, ["move", "{}", "org/name", "--yes"]),
}


@pytest.mark.parametrize("command", PLACES)
def test_a_place_of_moved_models_that_is_swapped_after_its_notes_were_read_is_left_alone(
    command: str,
) -> None:
    make, arguments = PLACES[command]

    def swap(shared: SharedCache) -> None:
        place = shared.folder / "lent" / "place"
        place.rename(place.with_name("aside"))
        place.symlink_to(shared.outside)

    def attacked(nth: int) -> Attacked:
        with shared_cache() as shared:
            place = make(shared)
            line = [argument.format(place) for argument in arguments]
            done = shared.run(
                as_command(*line, variables=variables(shared, None)), swap, nth, shared.folder
            )
            assert done.struck == (nth > 0)
            shared.check(done, *_others(shared.folder))
            return done

    calls = attacked(0).calls
    for nth in spread(calls, PLACE_TRIES):
        attacked(nth)


STAGED = f".vlmcache-moving/{NAME}"


@pytest.mark.parametrize(
    "part", [".vlmcache-moving", STAGED, f"{STAGED}/blobs", f"{STAGED}/snapshots", NAME, ".locks"]
)
def test_whatever_the_owner_of_a_destination_swaps_no_move_writes_elsewhere(part: str) -> None:
    def swap(shared: SharedCache) -> None:
        path = shared.folder / "destination" / part
        if path.is_symlink() or path.exists():
            path.rename(path.with_name(path.name + ".aside"))
        inside = part.removeprefix(".vlmcache-moving").lstrip("/")
        path.symlink_to(shared.outside / inside)

    def attacked(nth: int) -> Attacked:
        with shared_cache() as shared:
            place = shared.folder / "destination"
            place.mkdir()
            if IS_ROOT:
                os.chown(place, MEMBER, GROUP)
            done = shared.run(
                as_command(*COMMANDS["move"](shared), variables=variables(shared, None)),
                swap,
                nth,
                shared.folder,
            )
            shared.check(done, *_others(shared.folder))
            return done

    calls = attacked(0).calls
    for nth in spread(calls, PLACE_TRIES):
        attacked(nth)


@pytest.mark.parametrize("command", ["restore", "pull"])
def test_a_member_who_holds_one_lock_keeps_no_command_waiting_for_ever(
    hub: LoopbackHub, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmcache.change.tree.WAIT_SECONDS", 0.2)
    monkeypatch.setattr("vlmcache.hub.locks._GROWTH_SECONDS", 0.2)
    with shared_cache() as shared:
        arguments = COMMANDS[command](shared)
        new = hashlib.sha256(NEW["model.safetensors"]).hexdigest()
        with shared.repo._lock_file(new).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            done = run(shared, *arguments, hub=hub)
        shared.check(done, *_others(shared.folder))
        assert done.code == ExitCode.BUSY, done.errors
        assert f"is held by process {os.getpid()} (" in done.errors


@pytest.mark.parametrize("command", ["restore", "pull"])
def test_what_root_brings_into_a_users_home_is_the_users(hub: LoopbackHub, command: str) -> None:
    if not IS_ROOT:
        pytest.skip("needs two users")
    with shared_cache() as shared:
        home = shared.folder / "home"
        home.mkdir()
        os.chown(home, MEMBER, MEMBER)
        arguments = COMMANDS[command](shared)
        known = variables(shared, hub) | {"HF_HUB_CACHE": str(home / ".cache/huggingface/hub")}
        done = shared.run(as_command(*arguments, variables=known))
        assert done.code == 0, done.errors
        made = [*home.rglob("*")]
        assert len(made) > 10
        assert {path for path in made if path.lstat().st_uid != MEMBER} == set()
        for again in (["verify"], ["rm", "org/name", "--yes"]):
            own = {
                "VLMCACHE_HOME": str(home / "own"),
                "HOME": str(home),
                "PATH": os.environ["PATH"],
            }
            command_line = [sys.executable, "-m", "vlmcache", *again]
            user = as_other_user(
                command_line, MEMBER, environment=known | own, folder=shared.folder
            )
            assert user.returncode == 0, user.stderr
        assert not list(home.rglob("models--*/blobs/*"))


def _others(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in ("hub", "outside")]
