"""`vlmcache schedule` as people use it, on machines that have systemd, cron, launchd or nothing."""

from __future__ import annotations

import json
import os
import plistlib
import re
import subprocess
from pathlib import Path

import pytest

import vlmcache as package
from tests.commands.schedule.test_units import line_of, systemd_words, without_specifiers
from tests.kit.caches import CacheBuilder, model_files
from tests.kit.commands import Done, run_here
from tests.kit.timers import Machine, machine
from vlmcache import scheduled
from vlmcache.commands.schedule import schedule as module
from vlmcache.commands.schedule.schedule import program
from vlmcache.commands.schedule.values import ScheduleReport

__all__ = ["machine"]
CLEAN = ("schedule", "clean --max-size 200GB", "--every", "1d")


@pytest.fixture(autouse=True)
def _here(cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.root))
    cache.repo("org/good").revision(model_files())


def started(text: str) -> Done:
    """Run the ExecStart line of a service as written, with its variables and no others."""
    (line,) = line_of(text, "ExecStart")
    variables = [
        without_specifiers(systemd_words(one)[0]).partition("=")[::2]
        for one in line_of(text, "Environment")
    ]
    words = [without_specifiers(word).replace("$$", "$") for word in systemd_words(line)]
    done = subprocess.run(
        words, env=dict(variables), cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
        timeout=60, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_systemd_user_timer_runs_the_line_that_was_shown_and_status_says_how_it_ended(
    machine: Machine, cache: CacheBuilder, tmp_path: Path
) -> None:
    machine.have("systemctl", "loginctl", "crontab")
    config = tmp_path / "it's 100% mine.yaml"
    config.write_text("models: {good: {repo: org/good}}\nvlmcache: {min_free: 0}\n")
    shown = run_here(*CLEAN, "--config", str(config), "--dry-run", "--json").document
    assert not machine.user_units.exists()
    made = run_here(*CLEAN, "--config", str(config), "--yes", "--json")
    assert made.code == 0, made.err
    report = made.document
    assert (report["files"], report["written"]) == (shown["files"], True)
    for file in report["files"]:
        assert Path(file["path"]).read_text() == file["content"]
        assert Path(file["path"]).parent == machine.user_units
    service, timer = (file["content"] for file in report["files"])
    words = ["clean", "--cache-dir", str(cache.root), "--config", str(config), "--yes"]
    for text in ("Nice=10", "IOSchedulingClass=idle", "CPUWeight=10", "WorkingDirectory=/"):
        assert text in service.splitlines()
    link = machine.user_units / "timers.target.wants/vlmcache-clean.timer"
    assert link.resolve().read_text() == timer
    assert machine.calls == [
        "systemctl --user daemon-reload",
        "systemctl --user restart vlmcache-clean.timer",
    ]
    (finding,) = report["findings"]
    assert (finding["code"], finding["remedy"]) == (
        "schedule-no-linger", "loginctl enable-linger",
    )  # fmt: skip
    # What the unit says is run as it is written.
    done = started(service)
    assert done.code == 0, done.err
    status = run_here("status", "--json").document
    (outcome,) = status["schedules"]
    assert outcome["exit_code"] == 0
    assert outcome["text"] == "nothing to remove"
    assert all(word in json.dumps(outcome["command"]) for word in ("--max-size", "100% mine"))
    assert re.search(r"Timer +clean, just now: nothing to remove", run_here("status").out)
    (one,) = run_here("schedule", "--show", "--json").document["schedules"]
    assert (one["kind"], one["last"]["exit_code"]) == ("systemd", 0)
    assert one["log"] == "journalctl --user -t vlmcache-clean"
    assert words[0] in one["command"]
    removed = run_here("schedule", "--remove", "clean")
    assert removed.code == 0, removed.err
    assert [path for path in machine.user_units.rglob("*") if not path.is_dir()] == []
    assert run_here("status", "--json").document["schedules"] == []
    assert run_here("schedule").out == "Nothing is scheduled.\n"


def test_a_line_of_the_crontab_is_replaced_run_and_removed_and_the_others_stay(
    machine: Machine, cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.have("systemctl", "crontab")
    machine.refuse("show")
    mine = "# mine\n0 1 * * * echo a\\%b\n"
    (machine.place / "crontab").write_text(mine)
    assert run_here("schedule", "verify", "--every", "7d").code == 0
    assert run_here("schedule", "verify org/good --max-age 0", "--every", "1d").code == 0
    assert run_here("schedule", "status good --check", "--every", "6h", "--name", "two").code == 7
    assert run_here("schedule", "status --check", "--every", "6h", "--name", "two").code == 0
    assert machine.crontab.startswith(mine)
    assert len(machine.crontab.splitlines()) == 2 + 2 * 2
    first, second = machine.crontab.splitlines()[3::2]
    assert re.match(r"\d+ 3 \* \* \* ", first)
    assert re.match(r"\d+ \*/6 \* \* \* ", second)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    subprocess.run(["sh", "-c", first.split(" ", 5)[5]], check=True, env={"PATH": "/usr/bin:/bin"})
    monkeypatch.setenv("PATH", str(machine.bin))
    (outcome,) = run_here("status", "--json").document["schedules"]
    assert re.fullmatch(r"\d+ files read, .*: all good", outcome["text"])
    shown = {one["name"]: one for one in run_here("schedule", "--json").document["schedules"]}
    assert set(shown) == {"verify", "two"}
    assert "everything is correct" in Path(shown["verify"]["log"]).read_text()
    assert run_here("schedule", "--remove").code == 2
    assert run_here("schedule", "--remove", "two", "--dry-run").code == 0
    assert run_here("schedule", "verify", "--remove").code == 0
    assert run_here("schedule", "--remove").code == 0
    assert machine.crontab == mine


def test_an_agent_of_launchd_is_loaded_anew_and_removed(machine: Machine) -> None:
    machine.have("launchctl")
    assert run_here("schedule", "verify", "--every", "15m").code == 0
    path = machine.home / "Library/LaunchAgents/io.github.vlmcache.verify.plist"
    said = plistlib.loads(path.read_bytes())
    assert said["StartInterval"] == 900
    assert said["StandardOutPath"] == said["StandardErrorPath"]
    label = f"gui/{os.getuid()}"
    assert machine.calls == [
        f"launchctl bootout {label}/io.github.vlmcache.verify",
        f"launchctl bootstrap {label} {path}",
    ]
    machine.refuse("bootstrap")
    failed = run_here("schedule", "verify", "--every", "1d")
    assert failed.code == 1
    assert plistlib.loads(path.read_bytes()) == said
    assert run_here("schedule", "--remove", "verify").code == 0
    assert not path.exists()


def test_without_systemd_and_cron_one_error_says_what_to_install(machine: Machine) -> None:
    done = run_here(*CLEAN, "--yes", "--json")
    assert done.code == 1
    (error,) = done.document["errors"]
    assert error["code"] == "no-scheduler"
    assert "systemd is not installed, and cron is not installed" in error["message"]
    assert "apt install cron" in error["hint"]


@pytest.mark.parametrize(
    ("typed", "code", "words"),
    [
        ("pull org/good", 2, "only clean, verify and status --check"),
        ("rm org/good --yes", 2, "only clean"),
        ("prune", 2, "only clean"),
        ("clean -i", 2, "nobody answers"),
        ("clean --help", 2, "nobody answers"),
        ("clean --all", 2, "--all cannot be scheduled"),
        ("clean --xet --free 1GB", 2, "--xet cannot be scheduled"),
        ("clean --modules", 2, "--modules cannot be scheduled"),
        ("clean --maxsize 1GB", 2, "no such option"),
        ("clean --max-size 200", 2, "no unit"),
        ("clean --keep 'org/good", 2, "no closing quotation"),
        ("clean --keep 'a\nb'", 2, "cannot hold"),
        ("clean --cache-dir", 2, "needs a path"),
        ("status", 2, "only with --check"),
        ("verify --workers many", 2, "not a whole number"),
        ("verify --max-age 3", 2, "no unit"),
        ("verify org/nothing", 7, "nothing"),
        ("verify --yes", 2, "--yes belongs to --repair"),
        ("", 2, "no command"),
    ],
)
def test_what_would_fail_at_night_is_refused_now_in_one_line(
    machine: Machine, typed: str, code: int, words: str
) -> None:
    machine.have("crontab")
    done = run_here("schedule", typed, "--every", "1d", "--yes")
    assert done.code == code, done.err
    assert words.lower() in done.err.lower()
    assert re.fullmatch(r"error: [^\n]+\n(hint: [^\n]+\n)?", done.err)
    assert machine.crontab == ""


def test_arguments_that_do_not_go_together_are_refused(machine: Machine) -> None:
    machine.have("crontab")
    for words in (
        ["clean"], ["clean", "--every", "5h"], ["clean", "--every", "1"], ["--every", "1d"],
        ["--show", "--remove"], ["--show", "--every", "1d"], ["--name", "x"], ["--show", "clean"],
        ["--remove", "nothing"], ["--remove"], ["clean", "--every", "1d", "--name", "A b"],
        ["clean --cache-dir /x", "--every", "1d", "--cache-dir", "/y"],
    ):  # fmt: skip
        done = run_here("schedule", *words, "--yes")
        assert done.code == 2, words
        assert done.err.startswith("error: ")


def test_paths_are_absolute_and_a_pasted_command_keeps_its_own_cache(
    machine: Machine, cache: CacheBuilder, tmp_path: Path
) -> None:
    machine.have("crontab")
    (tmp_path / "work/models.yaml").write_text("models: {good: {repo: org/good}}\n")
    done = run_here(
        "schedule", "vlmcache clean --cache-dir=../hub --config models.yaml --partials",
        "--every", "1d", "--yes", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (one,) = done.document["schedules"]
    words = [
        "clean",
        "--cache-dir",
        str(cache.root),
        "--config",
        str(tmp_path / "work/models.yaml"),
    ]
    assert one["command"] == " ".join([*program(), *words, "--yes", "--partials"])


def test_limits_of_a_config_of_the_working_folder_do_not_come_to_count(
    machine: Machine, tmp_path: Path
) -> None:
    machine.have("crontab")
    (tmp_path / "work/config.yaml").write_text(
        "models: {good: {repo: org/good}}\nvlmcache: {max_size: 1B}\n"
    )
    refused = run_here(*CLEAN, "--yes")
    assert refused.code == 2
    assert "--config" in refused.err
    assert run_here("schedule", "verify", "--every", "1d").code == 0


def test_no_token_is_written_down_and_nothing_of_a_dotenv(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.have("crontab")
    (tmp_path / "work/.env").write_text("HF_HUB_ETAG_TIMEOUT=3\n")
    secrets = {
        "HF_TOKEN": "hf_abcdefghijkl",
        "HUGGING_FACE_HUB_TOKEN": "hf_abcdefghijkl",
        "VLMCACHE_SERVE_TOKEN": "sesame",
        "HF_ENDPOINT": "http://me:sesame@mirror",
        "HTTPS_PROXY": "http://me:sesame@proxy",
    }
    for name, value in {**secrets, "HF_HOME": "../hf", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    done = run_here("schedule", "verify --repair", "--every", "1d", "--json", "--yes")
    assert done.code == 0, done.out
    (one,) = done.document["schedules"]
    kept = {name: value for name, value in one["variables"].items() if name.startswith("HF_")}
    assert kept == {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_CACHE": os.environ["HF_HUB_CACHE"],
        "HF_HUB_OFFLINE": "1",
    }
    assert "sesame" not in machine.crontab + done.out
    assert "hf_abc" not in machine.crontab + done.out
    (finding,) = (f for f in done.document["findings"] if f["code"] == "schedule-secret")
    assert all(name in finding["detail"] for name in secrets)


def test_a_command_that_removes_needs_a_yes(machine: Machine) -> None:
    machine.have("crontab")
    done = run_here(*CLEAN)
    assert (done.code, machine.crontab) == (5, "")
    cache = package.Cache()
    asked: list[str] = []

    def confirm(report: ScheduleReport) -> bool:
        asked.append(report.schedules[0].command)
        return False

    cache.confirm = confirm
    report = cache.schedule("clean", every="1d")
    assert (report.written, machine.crontab) == (False, "")
    assert asked[0].endswith("--yes")
    cache.confirm = None
    assert cache.schedule(["verify", "org/good"], every=86400).check().written
    assert cache.schedule().ids == ["verify"]
    assert cache.schedule("verify", remove=True).written


def test_root_writes_a_timer_of_the_system_and_none_for_another_home(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.have("systemctl", "loginctl")
    machine.be_root(True)
    monkeypatch.setenv("SUDO_USER", "ada")
    machine.system_units.mkdir()
    done = run_here("schedule", "verify", "--every", "1d", "--json")
    if os.geteuid() == 0:
        assert done.code == 0, done.out
        assert "HOME" in done.document["schedules"][0]["variables"]
        assert {path.suffix for path in machine.system_units.iterdir() if path.is_file()} == {
            ".service", ".timer",
        }  # fmt: skip
        assert "systemctl daemon-reload" in machine.calls
        assert [f["code"] for f in done.document["findings"]] == ["schedule-as-root"]
        os.chown(machine.home, 65534, 65534)
        done = run_here("schedule", "verify", "--every", "1d", "--json")
    assert done.code == 2
    assert "without sudo" in done.document["errors"][0]["hint"]


def test_a_program_that_has_gone_is_seen_by_show_and_doctor(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.have("crontab")
    moved = tmp_path / "venv/vlmcache"
    moved.parent.mkdir()
    moved.write_text(f'#!/bin/sh\nexec {" ".join(program())} "$@"\n')
    moved.chmod(0o755)
    monkeypatch.setattr(module, "program", lambda: (str(moved),))
    assert run_here("schedule", "verify --max-age 1d", "--every", "1d").code == 0
    codes = [f.code for f in package.Cache().schedule(show=True).findings]
    assert "schedule-program" not in codes
    moved.rename(tmp_path / "gone")
    doctor = package.Cache().doctor(fix=True, dry_run=True)
    (finding,) = (f for f in doctor.findings if f.code == "schedule-program")
    assert str(moved) in finding.detail
    assert finding.remedy is not None
    assert finding.remedy.startswith("vlmcache schedule 'verify --cache-dir ")
    assert finding.remedy.endswith(" --max-age 1d' --every 1d")


def test_a_timer_that_cannot_be_started_leaves_the_old_one(machine: Machine) -> None:
    machine.have("systemctl", "loginctl")
    machine.refuse("restart")
    assert run_here("schedule", "verify", "--every", "1d").code == 1
    assert [path for path in machine.user_units.rglob("*") if not path.is_dir()] == []
    machine.refuse("restart", yes=False)
    assert run_here("schedule", "verify", "--every", "1d").code == 0
    before = {path: path.read_text() for path in machine.user_units.iterdir() if path.is_file()}
    machine.refuse("daemon-reload")
    failed = run_here("schedule", "verify --max-age 1d", "--every", "1d")
    assert failed.code == 1
    assert "refused: daemon-reload" in failed.err
    after = {path: path.read_text() for path in machine.user_units.iterdir() if path.is_file()}
    assert after == before


def test_a_schedule_replaces_the_one_of_its_name_in_another_kind_of_timer(
    machine: Machine,
) -> None:
    machine.have("crontab")
    assert run_here("schedule", "verify", "--every", "1d").code == 0
    machine.have("systemctl", "loginctl")
    assert run_here("schedule", "verify", "--every", "1d").code == 0
    assert machine.crontab == ""
    assert run_here("schedule", "-q").out == "verify\n"


def run_for_a_timer(patch: pytest.MonkeyPatch, *words: str, **variables: str) -> Done:
    for name, value in {scheduled.NAME: "x", **variables}.items():
        patch.setenv(name, value)
    return run_here(*words)


def outcome_of(name: str) -> scheduled.RunOutcome:
    home = os.environ["VLMCACHE_HOME"]
    return next(one for one in scheduled.read_outcomes(home) if one.name == name)


def test_a_run_that_fails_leaves_its_code_and_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_for_a_timer(monkeypatch, "status", "org/missing", "--check")
    assert done.code == 4
    assert outcome_of("x").exit_code == 4
    assert "org/missing is missing" in outcome_of("x").text
    run_for_a_timer(monkeypatch, "clean", "--max-size", "3")
    assert (outcome_of("x").exit_code, "no unit" in outcome_of("x").text) == (2, True)
    assert "exit 2: --max-size" in run_here("status").out


def test_a_run_waits_for_its_day_where_the_timer_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {scheduled.EVERY: str(3 * 86400)}
    run_for_a_timer(monkeypatch, "status", **every)
    begun = outcome_of("x").begun
    done = run_for_a_timer(monkeypatch, "clean", "--nonsense", **every)
    assert (done.code, done.out) == (0, "x ran 0 s ago: it is not due yet\n")
    assert outcome_of("x").begun == begun
    assert run_for_a_timer(monkeypatch, "clean", "--nonsense", **{scheduled.EVERY: "60"}).code == 2


def test_a_run_that_was_killed_did_not_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    home = os.environ["VLMCACHE_HOME"]
    run = scheduled.ScheduledRun("x", home, ["clean"])
    run.begin()
    assert outcome_of("x").running
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    path = Path(home, "schedules/x.json")
    path.write_text(re.sub(r'"process":\d+', f'"process":{ended.pid}', path.read_text()))
    assert "Timer   x, just now: did not finish" in run_here("status").out


def test_a_log_has_a_bound_and_an_outcome_that_cannot_be_kept_disturbs_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"x" * 1_000_001)
    assert run_for_a_timer(monkeypatch, "status", **{scheduled.LOG: str(log)}).code == 0
    assert not log.exists()
    assert (tmp_path / "x.log.1").stat().st_size == 1_000_001
    monkeypatch.setenv("VLMCACHE_HOME", "/dev/null/nowhere")
    assert run_for_a_timer(monkeypatch, "status").code == 0


@pytest.mark.parametrize("content", ["", "[]", '{"name": "y"}', "\0", '{"name":"x","command":1}'])
def test_an_outcome_that_makes_no_sense_is_left_out(content: str) -> None:
    path = Path(os.environ["VLMCACHE_HOME"], "schedules/x.json")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert run_here("status", "--json").document["schedules"] == []
