"""How long a hub is waited for, and what a run that has waited in vain does not ask again."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.kit.commands import is_failure
from tests.kit.contents import Content, Synthetic
from tests.kit.disks import as_other_user, common_folder
from tests.kit.hub import LoopbackHub, busy_until, hang, html, rate_limited, status
from tests.kit.pulls import (
    QUICK,
    REPO,
    Listener,
    command,
    config,
    environment,
    pull,
    small_config,
    variables,
    vlmcache,
)
from vlmcache.cache import layout
from vlmcache.commands.pull.plan import FileSelection
from vlmcache.commands.pull.values import PullReport
from vlmcache.commands.status.outdated import with_updates
from vlmcache.commands.status.status import status as status_of
from vlmcache.config import CacheLocation, Environment, Session
from vlmcache.errors import UnreachableError
from vlmcache.hub import questions, quick
from vlmcache.hub.client import Client
from vlmcache.hub.contact import Contact
from vlmcache.hub.listing import find_commit
from vlmcache.hub.retry import Patience, asked_wait
from vlmcache.progress import StopToken

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 5000}
MANY = [f"org/model-{number}" for number in range(12)]
AT_ONCE = 8
IMPATIENT = msgspec.structs.replace(QUICK, asks=2, answer_timeout=0.3)
GROWING = msgspec.structs.replace(QUICK, asks=3, answer_timeout=0.2, growth=5.0)
QUESTION = "/revision/"
NOWHERE = Environment({}, frozenset(), "/")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(quick, "_TIMEOUT", 0.2)
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the waits between attempts, which take no time."""
    seconds: list[float] = []

    def sleep(_token: StopToken, wait: float) -> None:
        if wait:
            seconds.append(wait)

    monkeypatch.setattr(StopToken, "sleep", sleep)
    return seconds


def many(hub: LoopbackHub) -> None:
    for name in MANY:
        hub.add_repo(name).commit(FILES)


@pytest.mark.parametrize("question", [QUESTION, "/tree/"])
def test_an_answer_that_takes_longer_than_the_usual_time_is_waited_for(
    hub: LoopbackHub, tmp_path: Path, question: str
) -> None:
    hub.fault(hang(seconds=0.5).on(question, times=None))
    listener = Listener()
    run = pull(hub, tmp_path / "cache", patience=GROWING, progress=listener)
    assert run.models[0].state == "pulled"
    assert hub.count(contains=question) == 2
    assert "no answer within 0.2 s; asking again, for up to 1 s" in listener.notes[0]


def test_without_a_time_of_the_users_the_time_for_an_answer_grows_to_90_seconds() -> None:
    contact = Contact(Patience(), NOWHERE)
    assert [contact.answer_timeout(10.0, slow) for slow in range(4)] == [10.0, 30.0, 90.0, 90.0]
    assert [contact.data_timeout(10.0, slow) for slow in range(4)] == [10.0, 30.0, 90.0, 90.0]
    set_for_files = Environment({"HF_HUB_DOWNLOAD_TIMEOUT": "20"}, frozenset(), "/")
    assert Contact(Patience(), set_for_files).data_timeout(20.0, 2) == 20.0
    chosen = Environment({"HF_HUB_ETAG_TIMEOUT": "20"}, frozenset(), "/")
    assert [Contact(Patience(), chosen).answer_timeout(20.0, slow) for slow in range(3)] == [
        20.0
    ] * 3


def test_a_hub_that_was_slow_once_is_given_the_longer_time_at_once(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(hang(seconds=0.5).on("/api/", times=None))
    assert pull(hub, tmp_path / "cache", patience=GROWING).problem is None
    assert (hub.count(contains=QUESTION), hub.count(contains="/tree/")) == (2, 1)


@pytest.mark.parametrize("after", [None, 0])
def test_a_file_whose_first_byte_takes_longer_is_waited_for(
    hub: LoopbackHub, tmp_path: Path, after: int | None
) -> None:
    big: dict[str, Content] = {"a.bin": Synthetic(100_000, 1), "b.bin": Synthetic(100_000, 2)}
    hub.add_repo("org/cold").commit(FILES | big)
    hub.fault(hang(after, seconds=0.5).on(host="cdn", times=None))
    listener, patience = Listener(), msgspec.structs.replace(QUICK, data_timeout=0.2, growth=5.0)
    run = pull(
        hub,
        tmp_path / "cache",
        "org/cold",
        patience=patience,
        progress=listener,
        selection=FileSelection(every=True),
        max_workers=1,
    )
    assert run.models[0].state == "pulled"
    # The second file is given the longer time at once.
    counts = [sum(r.host == "cdn" and r.file == name for r in hub.requests) for name in big]
    assert sorted(counts) == [1, 2]
    assert "no answer within 0.2 s; asking again, for up to 1 s" in listener.notes[0]


def test_a_file_that_never_comes_is_given_each_time_once(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault(hang().on("model.safetensors", host="cdn", times=None))
    patience = msgspec.structs.replace(QUICK, attempts=8, data_timeout=0.1, growth=2.0)
    run = pull(hub, tmp_path / "cache", patience=patience)
    assert run.problem is not None
    assert "no answer within 0.4 s" in run.problem.message
    asked = [r for r in hub.requests if r.host == "cdn" and r.file == "model.safetensors"]
    # Once as a small file.
    assert len(asked) == 4


def test_what_is_cached_does_not_wait_for_a_slow_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    assert pull(hub, tmp_path / "cache").problem is None
    hub.clear_requests()
    hub.fault(hang().on(times=None))
    run = pull(hub, tmp_path / "cache", patience=GROWING)
    assert run.models[0].state == "cached"
    # The quick question, and one of the client's.
    assert len(hub.requests) == 2
    assert run.findings[0].remedy is not None
    assert "HF_HUB_ETAG_TIMEOUT=1 waits longer" in run.findings[0].remedy


def test_a_time_that_the_user_has_set_is_kept_to_and_the_hint_names_it(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(hang().on(times=None))
    result = vlmcache(hub, tmp_path / "cache", "pull", REPO, HF_HUB_ETAG_TIMEOUT="1")
    assert result.returncode == 8
    assert "no answer within 1 s\n" in result.stderr
    assert "hint: HF_HUB_ETAG_TIMEOUT=3 waits longer; HF_ENDPOINT names" in result.stderr


@pytest.mark.parametrize("after", [None, 0])
def test_bytes_that_do_not_come_name_the_time_for_downloads(
    hub: LoopbackHub, tmp_path: Path, after: int | None
) -> None:
    hub.fault(hang(after).on("model.safetensors", times=None))
    patience = msgspec.structs.replace(QUICK, attempts=2, data_timeout=0.2)
    problem = pull(hub, tmp_path / "cache", patience=patience).problem
    assert problem is not None
    assert problem.hint is not None
    assert problem.hint.startswith("HF_HUB_DOWNLOAD_TIMEOUT=1 waits longer; ")


def test_a_hub_that_never_answers_costs_one_patience_for_many_models(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    many(hub)
    hub.fault(hang().on(times=None))
    run = pull(hub, tmp_path / "cache", *MANY, patience=IMPATIENT)
    assert [model.state for model in run.models] == ["failed"] * len(MANY)
    assert len({model.error for model in run.models}) == 1
    assert len(hub.requests) <= AT_ONCE * IMPATIENT.asks


def test_a_hub_that_never_answers_costs_one_question_for_many_that_are_cached(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    many(hub)
    assert pull(hub, tmp_path / "cache", *MANY).problem is None
    hub.clear_requests()
    hub.fault(hang().on(times=None))
    run = pull(hub, tmp_path / "cache", *MANY, patience=IMPATIENT)
    assert [model.state for model in run.models] == ["cached"] * len(MANY)
    assert len(hub.requests) <= AT_ONCE * 2
    hub.clear_requests()
    session = Session(
        environment(hub, tmp_path / "cache"), config(), CacheLocation(str(tmp_path / "cache"), "")
    )
    known = status_of(session, MANY)
    report = with_updates(session, known, IMPATIENT)
    assert [finding.code for finding in report.findings].count("hub-not-asked") == len(MANY)
    assert len(hub.requests) == IMPATIENT.asks


def test_a_hub_that_falls_silent_while_files_come_is_not_tried_again_for_each_model(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    names = [f"{name}@{hub.add_repo(name).commit(FILES)}" for name in MANY[:4]]
    assert pull(hub, tmp_path / "cache", *names, dry_run=True).problem is None
    hub.fault(hang().on("/resolve/", times=None))
    patience = msgspec.structs.replace(QUICK, attempts=2, data_timeout=0.2)
    run = pull(hub, tmp_path / "cache", *names, patience=patience, max_workers=1)
    assert {model.state for model in run.models} == {"failed"}
    # What is read to plan with is asked for each model, the files only for the first.
    assert hub.count(contains="model.safetensors") <= 2 * patience.attempts


def test_one_quick_question_in_vain_does_not_keep_the_next_from_being_asked_patiently() -> None:
    contact = Contact(Patience(asks=3), NOWHERE)
    with pytest.raises(UnreachableError), contact.tried(1):
        raise UnreachableError("no")
    assert contact.silent
    with pytest.raises(UnreachableError, match="no"), contact.tried(1):
        pytest.fail("it was asked again")
    with contact.tried(3):
        contact.heard()
    with contact.tried(1):
        assert not contact.silent


def test_what_was_heard_meanwhile_shows_that_the_hub_is_there() -> None:
    contact = Contact(Patience(asks=3), NOWHERE)

    def fail() -> None:
        contact.heard()
        raise UnreachableError("only this one")

    with pytest.raises(UnreachableError), contact.tried():
        fail()
    with contact.tried():
        assert not contact.silent


def test_questions_about_several_models_are_asked_at_the_same_time(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(hub)
    monkeypatch.setattr(questions, "_NOTE_EVERY", -1.0)
    hub.fault(hang().on(QUESTION, times=None))
    listener, runs = Listener(), list[PullReport]()
    patience = msgspec.structs.replace(QUICK, answer_timeout=30.0)

    def work() -> None:
        runs.append(pull(hub, tmp_path / "cache", *MANY[:4], patience=patience, progress=listener))

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 20
    while hub.count(contains=QUESTION) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert hub.count(contains=QUESTION) == 4
    hub.clear_faults()
    hub.release()
    thread.join()
    assert [model.repo for model in runs[0].models] == MANY[:4]
    assert runs[0].problem is None
    assert f"{hub.url} was asked about 3 of 4 models" in listener.notes


# What a busy hub asks for.


def test_a_date_to_come_back_is_read_by_the_hubs_own_clock() -> None:
    dates = {
        "Retry-After": "Thu, 01 Jan 2026 10:00:30 GMT",
        "Date": "Thu, 01 Jan 2026 10:00:00 GMT",
    }
    assert asked_wait(dates) == 30.0
    assert asked_wait(dates | {"Date": "Thu, 01 Jan 2026 10:01:00 GMT"}) == 0.0


@pytest.mark.parametrize("clock", [-7 * 86400.0, 0.0, 86400.0])
def test_a_hub_whose_clock_is_wrong_is_waited_for_as_long_as_it_means(
    hub: LoopbackHub, tmp_path: Path, waits: list[float], clock: float
) -> None:
    hub.fault(busy_until(45, clock=clock))
    listener = Listener()
    assert pull(hub, tmp_path / "cache", progress=listener).problem is None
    assert [round(wait) for wait in waits] == [45]
    assert listener.notes == [f"{hub.url} answers 429: Too Many Requests; next try in 45 s"]


def test_waits_that_the_hub_asks_for_are_not_failures(
    hub: LoopbackHub, tmp_path: Path, waits: list[float]
) -> None:
    hub.fault(rate_limited(50).on(QUESTION, times=10))
    assert pull(hub, tmp_path / "cache", patience=IMPATIENT).problem is None
    assert waits == [50.0] * 10


@pytest.mark.parametrize("where", [QUESTION, "model.safetensors"])
def test_a_hub_that_asks_for_more_than_max_wait_is_reported_with_what_it_asks_for(
    hub: LoopbackHub, tmp_path: Path, waits: list[float], where: str
) -> None:
    hub.fault(rate_limited(120).on(where, times=None))
    problem = pull(hub, tmp_path / "cache", max_wait=300.0).problem
    assert problem is not None
    assert waits == [120.0] * 2
    assert problem.exit_code == 8
    assert problem.message.endswith("; the hub asks to wait 2 min")
    assert problem.hint == ("run it again after that; 'vlmcache pull --max-wait 6m' waits for it")


def test_max_wait_is_a_duration_of_the_command_line(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault(rate_limited(3600).on(times=None))
    result = vlmcache(hub, tmp_path / "cache", "pull", REPO, "--max-wait", "59m")
    assert result.returncode == 8
    assert "the hub asks to wait 1 h" in result.stderr
    assert "--max-wait 60m" in result.stderr


@pytest.mark.parametrize("wait", ["0", "9" * 400, "Thu, 01 Jan 1970 00:00:00 GMT", "-5"])
def test_an_odd_wait_ends(hub: LoopbackHub, tmp_path: Path, waits: list[float], wait: str) -> None:
    hub.fault(status(429, retry_after=wait).on(times=None))
    problem = pull(hub, tmp_path / "cache").problem
    assert problem is not None
    assert problem.exit_code == 8
    assert len(waits) < QUICK.asks


# What is reported for several models.


def test_each_model_that_fails_keeps_its_cause_and_its_hint(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo("org/gated", gated=True).commit(FILES)
    hub.add_repo("org/odd").commit(FILES)
    hub.fault(html().on("org/odd", times=None))
    names = (REPO, "org/gated", "org/none", "org/odd")
    problem = pull(hub, tmp_path / "cache", *names).problem
    assert problem is not None
    assert problem.message == "3 of 4 models not pulled: org/gated, org/none, org/odd"
    assert [cause.code for cause in problem.causes] == [
        "access-denied", "no-such-repo", "bad-answer"
    ]  # fmt: skip
    for cause, name in zip(problem.causes, names[1:], strict=True):
        assert cause.message.startswith(f"{name}: ")
        assert cause.hint


def test_people_and_programs_see_each_cause_with_its_hint(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("org/gated", gated=True).commit(FILES)
    names = ("org/gated", "org/none", REPO)
    shown = vlmcache(hub, tmp_path / "one", "pull", *names)
    assert shown.returncode == 3
    for words in ("org/gated: org/gated: the repo is gated", "ask for access", "check the name"):
        assert words in shown.stdout, shown.stdout
    document = json.loads(vlmcache(hub, tmp_path / "two", "pull", *names, "--json").stdout)
    codes = [error["code"] for error in document["errors"]]
    assert codes == ["partly", "access-denied", "no-such-repo"]
    assert all(error["hint"] for error in document["errors"][1:])
    none = json.loads(vlmcache(hub, tmp_path / "two", "pull", *names[:2], "--json").stdout)
    assert none["exit_code"] == 8
    assert [error["code"] for error in none["errors"][1:]] == codes[1:]


def test_one_cause_of_several_models_is_shown_once(hub: LoopbackHub, tmp_path: Path) -> None:
    many(hub)
    missing = "http://127.0.0.1:9"
    assert vlmcache(hub, tmp_path / "cache", "pull", MANY[0]).returncode == 0
    result = vlmcache(hub, tmp_path / "cache", "pull", *MANY[:3], HF_ENDPOINT=missing)
    assert result.returncode == 3
    assert result.stdout.count("cannot be reached") == 1
    assert f"{MANY[1]}, {MANY[2]}: {missing} cannot be reached" in result.stdout
    alone = vlmcache(hub, tmp_path / "none", "pull", *MANY[:3], HF_ENDPOINT=missing)
    assert (alone.stdout, alone.stderr.count("cannot be reached")) == ("", 1)


@pytest.mark.parametrize("part", ["lock", "folder"])
def test_a_lock_of_another_user_says_whose_it_is_and_what_to_remove(
    hub: LoopbackHub, part: str
) -> None:
    with common_folder() as folder:
        cache = folder / "cache"
        commit = hub.add_repo(REPO).commit({"config.json": b"{}"})
        assert commit
        etag = hub._repos["model", REPO].file("config.json").etag
        lock = Path(layout.lock_path(str(cache), "models--org--name", etag))
        lock.parent.mkdir(parents=True)
        for place in (folder, cache):
            place.chmod(0o777)
        if part == "lock":
            lock.touch(mode=0o600)
            lock.parent.chmod(0o755)
            lock.parent.parent.chmod(0o755)
        result = as_other_user(
            command("pull", REPO),
            environment=variables(hub, cache)
            | {
                "VLMCACHE_CONFIG": str(small_config(folder)),
                "HOME": "/tmp",
                "HF_HOME": str(folder / "none"),
            },
            folder=folder,
        )
        if result.returncode == 0:
            pytest.skip("nobody here is another user")
        assert result.returncode == 1, result.stderr
        named = lock if part == "lock" else lock.parent
        assert f"the lock cannot be opened: '{named}' belongs to root" in result.stderr
        if part == "lock":
            assert f"sudo rm {lock}" in result.stderr


def test_a_client_that_knows_of_silence_says_so_at_once(hub: LoopbackHub) -> None:
    hub.fault(hang().on(times=None))
    one = Client(environment(hub, Path("/none/cache")), patience=IMPATIENT)
    for _ in range(3):
        with pytest.raises(UnreachableError, match=r"no answer within 0\.3 s"):
            find_commit(one, REPO, "main")
    assert len(hub.requests) == IMPATIENT.asks


def test_an_interruption_ends_the_questions_about_many_models_at_once(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    many(hub)
    hub.fault(hang().on(times=None))
    cache = tmp_path / "cache"
    with subprocess.Popen(
        command("pull", *MANY),
        env=variables(hub, cache) | {"VLMCACHE_CONFIG": str(small_config(tmp_path))},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        deadline = time.monotonic() + 60
        while hub.count(contains=QUESTION) < AT_ONCE and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        # The answers alone would be waited for longer than that.
        _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130
    assert is_failure(stderr)
    assert not cache.exists()
