"""Whatever is in a name, the timer runs what was shown: by the rules of systemd and of cron."""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import zlib
from datetime import datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.kit.disks import becoming, common_folder
from vlmcache.commands.schedule import units
from vlmcache.commands.schedule.plan import times
from vlmcache.commands.schedule.values import Schedule, ScheduleError, When
from vlmcache.errors import UsageError

MANAGER = "/lib/systemd/systemd"
HARD = st.sampled_from(list("a %$\"'\\;{}`!#~&|<>()*?[]=:,@é…-"))
OTHERS = st.characters(exclude_categories=("C", "Z"))
WORDS = st.text(st.one_of(HARD, HARD, OTHERS), max_size=12)
SHOWN = WORDS.filter(lambda word: not word.startswith("#"))
"""Words that systemd shows as it reads them: a # that begins one looks like a comment there."""
ODD = (
    "",
    "%",
    "%%h",
    "$HOME",
    "${A}",
    "$$",
    "a\\",
    "\\%",
    "\\\\%",
    "it's",
    '"',
    ";",
    "\\;",
    "{}",
    "é %n",
)
DAILY = When(86400, 17)


def schedule_of(
    words: list[str], values: dict[str, str] | None = None, program: str = "/opt/my %h $x/vlmcache"
) -> Schedule:
    return Schedule("clean", (program,), tuple(words), DAILY, values or {}, "/var/l'o%g/a b\\c.log")


def systemd_words(line: str) -> list[str]:
    """Split a line as systemd's extract_first_word does, which unquotes and unescapes."""
    found: list[str] = []
    word, quote, begun = "", "", False
    characters = iter(line)
    for character in characters:
        if character == "\\":
            word, begun = word + next(characters), True
        elif quote:
            quote, word = ("", word) if character == quote else (quote, word + character)
        elif character in "\"'":
            quote, begun = character, True
        elif character == " ":
            found, word, begun = ([*found, word] if begun else found), "", False
        else:
            word, begun = word + character, True
    assert not quote
    return [*found, word] if begun else found


def without_specifiers(text: str) -> str:
    assert re.fullmatch(r"(?:[^%]|%%)*", text), text
    return text.replace("%%", "%")


def without_variables(text: str) -> str:
    assert re.fullmatch(r"(?:[^$]|\$\$)*", text), text
    return text.replace("$$", "$")


def line_of(text: str, key: str) -> list[str]:
    return [
        line.removeprefix(f"{key}=") for line in text.splitlines() if line.startswith(f"{key}=")
    ]


@example(words=list(ODD), value="%")
@given(words=st.lists(WORDS, max_size=4), value=WORDS)
def test_systemd_runs_the_words_that_were_given(words: list[str], value: str) -> None:
    schedule = schedule_of(words, {"A": value})
    made = units.systemd_units(schedule)
    (line,), (variable,) = line_of(made.service, "ExecStart"), line_of(made.service, "Environment")
    program, *rest = map(without_specifiers, systemd_words(line))
    assert (program, *map(without_variables, rest)) == schedule.line
    assert list(map(without_specifiers, systemd_words(variable))) == [f"A={value}"]
    assert units.in_timer(made.timer) == schedule
    assert line_of(made.timer, "Unit") == [made.service_name]


@example(path='/opt/it\'s "new"\\/%h/vlmcache')
@given(path=WORDS.map(lambda text: "/" + text))
def test_a_program_whose_path_systemd_refuses_is_run_by_the_shell(path: str) -> None:
    (line,) = line_of(
        units.systemd_units(schedule_of(["clean"], program=path)).service, "ExecStart"
    )
    program, *rest = map(without_specifiers, systemd_words(line))
    if program != "/bin/sh":
        assert [program, *rest] == [path, "clean"]
        assert not re.search(r"[\"'\\]", program)
        return
    assert list(map(without_variables, rest)) == ["-c", 'exec "$0" "$@"', path, "clean"]


@pytest.fixture(scope="module")
def manager() -> list[str]:
    """What dumps the units of the folder in SYSTEMD_UNIT_PATH as the real systemd reads them."""
    if not os.access(MANAGER, os.X_OK) or shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd")
    as_user = becoming(65534) if os.geteuid() == 0 else []
    return [*as_user, MANAGER, "--test", "--user", "--log-target=console"]


@settings(max_examples=3, deadline=None)
@example(several=[list(ODD)])
@given(several=st.lists(st.lists(SHOWN, max_size=4), min_size=40, max_size=40))
def test_systemd_itself_reads_what_was_meant(manager: list[str], several: list[list[str]]) -> None:
    with common_folder() as folder:
        folder.chmod(0o777)
        (folder / "default.target").write_text("[Unit]\n")
        (folder / "default.target.wants").mkdir()
        values = ["/".join(words) for words in several]
        texts = [
            units.systemd_units(schedule_of(words, {f"A{number}": value}, "/bin/echo")).service
            for number, (words, value) in enumerate(zip(several, values, strict=True))
        ]
        lines = [
            f"{key}={line}\n"
            for text in texts
            for key in ("ExecStart", "Environment")
            for line in line_of(text, key)
        ]
        service = "".join(["[Service]\nType=oneshot\n", *lines])
        (folder / "vlmcache-x.service").write_text(service)
        (folder / "default.target.wants/vlmcache-x.service").symlink_to("../vlmcache-x.service")
        done = subprocess.run(
            manager,
            env={"SYSTEMD_UNIT_PATH": f"{folder}:", "XDG_RUNTIME_DIR": str(folder),
                 "HOME": str(folder), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        shown = done.stdout.decode()
        if "Unit vlmcache-x.service" not in shown:
            pytest.skip("systemd dumps nothing here")
    unit = shown.partition("Unit vlmcache-x.service:")[2].partition("-> Unit ")[0]
    read = [in_shell(line) for line in re.findall(r"Command Line: (.*)", unit)]
    assert [[*map(without_variables, words)] for words in read] == [
        ["/bin/echo", *words] for words in several
    ]
    assert re.findall(r"Environment: A[0-9]+=(.*)", unit) == values


def in_shell(line: str) -> list[str]:
    """Return the words that a shell makes of a line."""
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


def test_systemd_finds_nothing_wrong_with_the_files(manager: list[str]) -> None:
    with common_folder() as folder:
        made = units.systemd_units(schedule_of(list(ODD), {"A": "b %"}, "/bin/echo"))
        (folder / made.service_name).write_text(made.service)
        (folder / made.timer_name).write_text(made.timer)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--user", str(folder / made.timer_name)],
            env=os.environ | {"SYSTEMD_UNIT_PATH": f"{folder}:", "XDG_RUNTIME_DIR": str(folder)},
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    errors = [line for line in done.stderr.decode().splitlines() if "vlmcache" in line]
    assert (done.returncode, errors) == (0, [])


@pytest.mark.parametrize("every", [60, 900, 3600, 6 * 3600, 86400, 7 * 86400, 3 * 86400])
def test_systemd_understands_all_times(manager: list[str], every: int) -> None:
    made = units.systemd_units(
        Schedule("x", ("/bin/echo",), (), times("x", every, "here"), {}, None)
    )
    (calendar,) = line_of(made.timer, "OnCalendar")
    done = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=2", "--base-time=2026-02-02", calendar],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"TZ": "UTC"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    at = re.findall(r"(?:Next elapse|Iter\. #2): \w+ (\S+) (\S+)", done.stdout)
    first, second = (f"{day} {hour}" for day, hour in at)
    gap = datetime.fromisoformat(second) - datetime.fromisoformat(first)
    assert gap.total_seconds() == (86400 if every == 3 * 86400 else every)


def after_cron(line: str, *, kind: str) -> str:
    """Return what a cron gives to the shell, as do_command.c does it; BusyBox changes nothing."""
    if kind == "busybox":
        return line
    shell, escaped = "", False
    for character in line:
        shell += character
        if escaped:
            if (character == "%" and kind != "first") or (character == "\\" and kind == "debian"):
                shell = shell[:-2] + character
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            assert character != "%", "cron makes a line end of it"
    return shell


@example(words=list(ODD), value="%", kind="debian")
@example(words=["\\\\\\%%'\\'%"], value="\\", kind="first")
@given(
    words=st.lists(WORDS, max_size=4),
    value=WORDS,
    kind=st.sampled_from(["first", "debian", "cronie", "busybox"]),
)
@settings(max_examples=60, deadline=None)
def test_cron_runs_the_words_that_were_given(words: list[str], value: str, kind: str) -> None:
    schedule = schedule_of(words, {"A": value}, "vlmcache")
    line = after_cron(units.cron_command(schedule), kind=kind)
    shown = "printf '%s\\0' "
    stubs = f'mkdir() {{ {shown}"$2"; }}; cd() {{ :; }}; env() {{ {shown}"$@" >&3; }}; '
    assert schedule.log is not None
    read = line.replace(" 2>&1", "").rpartition(" >>")
    done = subprocess.run(
        ["sh", "-c", f"{stubs} exec 3>&1; {read[0]}; {shown} {read[2]}"],
        capture_output=True, check=True,
    )  # fmt: skip
    folder, variable, *rest, log = done.stdout.decode().split("\0")[:-1]
    assert (folder, log) == (schedule.log.rpartition("/")[0], schedule.log)
    assert variable == f"A={value}"
    assert rest == ["nice", "-n", "10", *schedule.line]


CRONTAB = "# mine\n\nMAILTO=me\n*/5 * * * * echo a\\%b\n# vlmcache-schedule: not one\n0 1 * * * x"


def test_other_lines_of_a_crontab_stay_byte_for_byte() -> None:
    first = units.cron_block(schedule_of(["clean"], {"VLMCACHE_SCHEDULED": "clean"}))
    second = units.cron_block(schedule_of(["clean", "--x"], {"VLMCACHE_SCHEDULED": "clean"}))
    with_one = units.changed_crontab(CRONTAB, "clean", first)
    assert with_one == f"{CRONTAB}\n{first}"
    more = with_one + "# after\n"
    assert units.changed_crontab(more, "clean", second) == f"{CRONTAB}\n{second}# after\n"
    assert units.changed_crontab(more, "clean", "") == f"{CRONTAB}\n# after\n"
    assert units.changed_crontab(more, "verify", "") == more
    assert [one.words for one in units.in_crontab(more)] == [("clean",)]


@given(words=st.lists(WORDS, max_size=3), every=st.sampled_from([900, 3600, 86400, 7 * 86400]))
@settings(max_examples=30)
def test_an_agent_of_launchd_holds_the_words_and_the_schedule(words: list[str], every: int) -> None:
    schedule = Schedule(
        "clean", ("/a/b",), tuple(words), times("clean", every, "x"), {"A": "%"}, "/l"
    )
    content = units.launchd_agent(schedule)
    said = plistlib.loads(content)
    assert said["ProgramArguments"] == list(schedule.line)
    assert ("StartInterval" in said) == (every < 86400)
    assert units.in_agent(content) == schedule


@given(st.binary(max_size=60))
def test_what_others_wrote_is_left_alone(content: bytes) -> None:
    assert units.in_agent(content) is None
    assert units.in_timer(content.decode("latin-1")) is None


def test_times_that_no_timer_has_are_refused_and_all_others_are_as_asked() -> None:
    for seconds in (1, 59, 61, 5 * 3600, 36 * 3600, 86401, 400 * 86400):
        with pytest.raises(UsageError, match=r"timer|must be"):
            times("x", seconds, "here")
    for seconds in (60, 300, 1800, 7200, 43200, 86400, 2 * 86400, 366 * 86400):
        assert times("x", seconds, "here").every == seconds
    assert times("x", 86400, "here").minute == zlib.crc32(b"here/x") % 60


def test_what_no_timer_can_hold_is_refused() -> None:
    for word in ("a\nb", "a\x1b", os.fsdecode(b"a\xff")):
        with pytest.raises(ScheduleError, match="cannot hold"):
            units.check_text(schedule_of([word]))
    with pytest.raises(ScheduleError, match="too long for cron"):
        units.cron_block(schedule_of(["x" * 1000]))
