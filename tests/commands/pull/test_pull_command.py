"""`vlmcache pull` as people and scripts meet it: words, exit codes, JSON, the picker."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.kit.caches import fingerprint, model_files
from tests.kit.commands import is_failure
from tests.kit.contents import Content
from tests.kit.hub import LoopbackHub, reset, slow, status
from tests.kit.pulls import REPO, command, small_config, variables, vlmcache
from vlmcache.cli.picker import meant
from vlmcache.cli.register import document_type
from vlmcache.errors import UsageError
from vlmcache.show.choices import Choice, Choices
from vlmcache.show.document import schema_of

TOKEN = "hf_" + "SecretSecret" * 3
FILES: dict[str, Content] = {"config.json": b"{}", "model.safetensors": b"w" * 5000}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert is_failure(result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_pull_says_what_it_did_then_that_it_is_cached(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = vlmcache(hub, cache, "pull", "one")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("one: pulled, 5 kB fetched")
    assert first.stderr == ""
    hub.clear_requests()
    second = vlmcache(hub, cache, "pull", "one")
    assert second.stdout.startswith("one: already cached (2 files, 5 kB, commit ")
    assert len(hub.requests) == 1
    state = vlmcache(hub, cache, "status", "one", "--check")
    assert state.returncode == 0, state.stdout


def test_a_pinned_commit_that_is_cached_asks_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub._repos["model", REPO].find("main")
    cache = tmp_path / "cache"
    assert vlmcache(hub, cache, "pull", f"{REPO}@{commit}").returncode == 0
    assert not (cache / "models--org--name/refs").exists()
    hub.clear_requests()
    again = vlmcache(hub, cache, "pull", REPO, "--revision", str(commit))
    assert "already cached" in again.stdout
    assert hub.requests == []


def test_the_locks_have_the_repos_name_where_a_link_leads_to_a_folder_of_another(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere" / "qwen"
    (elsewhere / "blobs").mkdir(parents=True)
    cache.mkdir()
    (cache / "models--org--name").symlink_to(elsewhere)
    assert vlmcache(hub, cache, "pull", REPO).returncode == 0
    assert len(list(elsewhere.glob("blobs/*"))) == 2
    assert os.listdir(cache / ".locks") == ["models--org--name"]
    assert not (elsewhere.parent / ".locks").exists()


def test_the_json_follows_its_schema_and_counts_what_came(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    schema = schema_of("pull", document_type("pull"))
    for arguments, fetched in ((["--dry-run"], None), ([], 5002), ([], 0)):
        result = vlmcache(hub, cache, "pull", REPO, "--json", *arguments)
        document = json.loads(result.stdout)
        jsonschema.validate(document, schema)
        assert document["ok"]
        assert result.stderr == ""
        receipt = document["receipt"]
        assert (receipt and receipt["fetched"]) == fetched
        assert not receipt or receipt["freed"] == 0
        if fetched is None:
            assert not cache.exists()
            assert document["plan"]["needs"] == 5002
    failure = vlmcache(hub, cache, "pull", "org/none", "--json")
    document = json.loads(failure.stdout)
    jsonschema.validate(document, schema)
    assert document["exit_code"] == failure.returncode == 7
    assert document["errors"][0]["code"] == "no-such-repo"
    assert document["models"][0]["error"]["code"] == "no-such-repo"


def test_quiet_prints_repo_ids_only(hub: LoopbackHub, tmp_path: Path) -> None:
    result = vlmcache(hub, tmp_path / "cache", "pull", "-q", "one")
    assert (result.stdout, result.stderr) == (f"{REPO}\n", "")


def test_one_that_fails_does_not_stop_the_others(hub: LoopbackHub, tmp_path: Path) -> None:
    result = vlmcache(hub, tmp_path / "cache", "pull", "two", "one", "--json")
    assert result.returncode == 3
    document = json.loads(result.stdout)
    assert [model["state"] for model in document["models"]] == ["failed", "pulled"]
    assert document["errors"][0]["code"] == "partly"
    both = vlmcache(hub, tmp_path / "cache", "pull", "two", "org/none")
    assert both.returncode == 7
    hub.add_repo("org/two").commit(FILES)
    assert vlmcache(hub, tmp_path / "cache", "pull", "--all").returncode == 0


WRONG_USE = {
    "no model and no terminal": ([], "no MODEL is named"),
    "models and --all": (["--all", "one"], "not both"),
    "two revisions": (["one@main", "--revision", "v1"], "twice"),
    "a rate that is not one": (["one", "--limit-rate", "fast"], "--limit-rate"),
    "a rate of nothing": (["one", "--limit-rate", "0"], "--limit-rate"),
    "no workers": (["one", "--max-workers", "0"], "--max-workers"),
    "a pattern that matches nothing": (["one", "--include", "*.xyz"], "--include *.xyz"),
    "a revision that is not one": (["one@../x"], "not a branch"),
}


@pytest.mark.parametrize("case", WRONG_USE)
def test_wrong_use_is_exit_2_and_one_line(hub: LoopbackHub, tmp_path: Path, case: str) -> None:
    arguments, words = WRONG_USE[case]
    result = vlmcache(hub, tmp_path / "cache", "pull", *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert words in one_line(result)
    assert not (tmp_path / "cache").exists()


def test_a_folder_with_files_in_place_of_a_models_file_is_reported_before_weights_are_fetched(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    commit = hub._repos["model", REPO].find("main")
    cache = tmp_path / "cache"
    folder = cache / "models--org--name" / "snapshots" / str(commit) / "config.json"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("not the hub's")
    before = fingerprint(cache)
    for words in (["--dry-run"], []):
        result = vlmcache(hub, cache, "pull", "one", *words)
        assert result.returncode == 1, result.stderr
        assert f"in the place of a file of the model: {folder}" in one_line(result)
    # The configuration is read to plan with.
    assert hub.bytes_sent() < 1000
    assert fingerprint(cache) == before


def arrange(hub: LoopbackHub, case: str) -> tuple[list[str], dict[str, str]]:
    """Bring about a refusal; return arguments and variables for the command."""
    if case.startswith("gated"):
        commit = hub.add_repo("org/two", gated=True).commit(FILES)
        hub.accept_token(TOKEN, gated_ok=False)
        name = f"two@{commit}" if "pinned" in case else "two"
        return [name], {"HF_TOKEN": TOKEN} if "useless" in case else {}
    if case == "private":
        hub.add_repo("org/two", private=True).commit(FILES)
        return ["two"], {}
    if case == "bad token":
        return ["one", "--token", TOKEN], {}
    if case == "wrong revision":
        return ["one@mian"], {}
    if case == "unreachable mirror":
        return ["one"], {"HF_ENDPOINT": "http://127.0.0.1:9"}
    if case == "no address":
        return ["one"], {"HF_ENDPOINT": "nonsense"}
    if case == "proxy":
        return ["one"], {"HTTP_PROXY": "http://me:pass@127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}
    if case == "offline":
        return ["one"], {"HF_HUB_OFFLINE": "1"}
    assert case == "missing"
    return ["two"], {}


REFUSALS = {
    "missing": (7, ["org/two", "check the name", "set HF_TOKEN to a token of {hub}"]),
    "private": (7, ["org/two", "private", "set HF_TOKEN to a token of {hub}"]),
    "wrong revision": (7, ["no revision mian", "did you mean main?"]),
    "gated": (8, ["gated and no token", "ask for access on its page, {hub}/org/two, ", "HF_TOKEN"]),
    "gated, pinned": (8, ["gated and no token", "ask for access on its page, {hub}/org/two,"]),
    "gated, useless token": (8, ["no access yet", "ask for it on the repo's page: {hub}/org/two"]),
    "bad token": (8, ["does not accept the token", "set HF_TOKEN to a token of {hub}"]),
    "unreachable mirror": (8, ["HF_ENDPOINT names http://127.0.0.1:9"]),
    "no address": (2, ["HF_ENDPOINT is not an address: nonsense", "https://nonsense"]),
    "proxy": (8, ["through the proxy http://127.0.0.1:9 of HTTP_PROXY"]),
    "offline": (8, ["HF_HUB_OFFLINE is set"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_refusal_has_its_words_its_exit_code_and_what_to_do(
    hub: LoopbackHub, tmp_path: Path, case: str
) -> None:
    exit_code, words = REFUSALS[case]
    arguments, extra = arrange(hub, case)
    result = vlmcache(hub, tmp_path / "cache", "pull", *arguments, **extra)
    printed = one_line(result)
    assert result.returncode == exit_code, printed
    assert all(word.format(hub=hub.url) in printed for word in words), printed
    assert TOKEN not in printed
    assert "me:pass" not in printed
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "case", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "down", "reset", "unreachable"]
)
def test_what_is_cached_stays_usable_when_the_hub_is_away(
    hub: LoopbackHub, tmp_path: Path, case: str
) -> None:
    cache = tmp_path / "cache"
    assert vlmcache(hub, cache, "pull", "one").returncode == 0
    before = fingerprint(cache)
    extra = {}
    if case.endswith("_OFFLINE"):
        extra = {case: "1"}
    elif case == "unreachable":
        extra = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    else:
        hub.fault((status(503) if case == "down" else reset()).on(times=None))
    result = vlmcache(hub, cache, "pull", "one", **extra)
    assert result.returncode == 0, result.stderr
    assert "already cached" in result.stdout
    printed = result.stdout if extra.keys() == {case} else result.stderr
    reason = f"{case} is set" if extra.keys() == {case} else ""
    assert f"whether there is a newer one is not known: {reason}" in printed
    assert fingerprint(cache) == before


def test_a_renamed_repo_is_pulled_under_the_name_asked_for(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.rename(REPO, "org/new")
    result = vlmcache(hub, tmp_path / "cache", "pull", "one")
    assert result.returncode == 0, result.stderr
    assert "the hub calls it org/new now" in result.stdout
    assert (tmp_path / "cache/models--org--name/refs/main").exists()


def test_code_in_a_repo_is_pinned_and_shown_and_never_run(hub: LoopbackHub, tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode()
    commit = hub.add_repo("org/two").commit(FILES | {"modeling_x.py": trap})
    result = vlmcache(hub, tmp_path / "cache", "pull", "two")
    assert result.returncode == 0
    assert f"remote code at commit {commit} (modeling_x.py); nothing of it was run" in result.stdout
    assert not (tmp_path / "ran").exists()


def test_no_token_is_ever_written_or_shown(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.accept_token(TOKEN)
    hub.add_repo("org/two", private=True).commit(FILES)
    hub.fault(status(503).on("/revision/"))
    cache = tmp_path / "cache"
    printed = ""
    for arguments in (
        ["pull", "two", "--token", TOKEN, "-v"],
        ["pull", "two", "org/none", "--json", "--token", TOKEN],
        ["pull", "two@nope", "--token", TOKEN],
        ["pull", "two", "--include", "nope", "--token", TOKEN],
    ):
        result = vlmcache(hub, cache, *arguments, HF_DEBUG="1", VLMCACHE_DEBUG="1")
        printed += result.stdout + result.stderr
    assert "pulled" in printed
    assert TOKEN not in printed
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)


def test_a_dotenv_names_the_hub_and_the_token(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.accept_token(TOKEN)
    hub.add_repo("org/two", private=True).commit(FILES)
    where = variables(hub, tmp_path / "cache") | {
        "VLMCACHE_CONFIG": str(small_config(tmp_path)),
    }
    endpoint = where.pop("HF_ENDPOINT")
    (tmp_path / ".env").write_text(f"HF_ENDPOINT={endpoint}\nHF_TOKEN={TOKEN}\n")
    result = subprocess.run(
        command("pull", "two"), env=where, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_client_agrees_with_what_was_pulled(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("org/two").commit(model_files())
    cache = tmp_path / "cache"
    assert vlmcache(hub, cache, "pull", "two").returncode == 0
    hub.clear_requests()
    script = (
        "import json, sys; from huggingface_hub import scan_cache_dir, snapshot_download\n"
        "print(snapshot_download('org/two', local_files_only=True))\n"
        "info = scan_cache_dir(sys.argv[1])\n"
        # Clients before 1.9 do not know the tag that newer ones write, and warn of it.
        "odd = [warning for warning in info.warnings if 'CACHEDIR.TAG' not in str(warning)]\n"
        "print(len(odd), len(info.repos), info.size_on_disk)"
    )
    seen = subprocess.run(
        [*command()[:1], "-c", script, str(cache)],
        env=hub.environment(cache), capture_output=True, text=True, check=True,
    )  # fmt: skip
    size = sum(len(content) for content in model_files().values())
    assert seen.stdout.splitlines()[1] == f"0 1 {size}"
    verified = subprocess.run(
        [Path(command()[0]).with_name("hf"), "cache", "verify", "org/two"],
        env=hub.environment(cache), capture_output=True, text=True, check=False,
    )  # fmt: skip
    # Clients before 1.1 have no such command.
    assert verified.returncode == 0 or "No such command" in verified.stderr, verified.stderr


def test_status_shows_what_is_newer_on_the_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert vlmcache(hub, cache, "pull", "one").returncode == 0

    def outdated() -> tuple[Any, list[Any]]:
        result = vlmcache(hub, cache, "status", "--outdated", "--json")
        assert result.returncode == 0, result.stderr
        document = json.loads(result.stdout)
        jsonschema.validate(document, schema_of("status", document_type("status")))
        return document["models"][0]["outdated"], document["findings"]

    assert outdated()[0] is None
    commit = hub._repos["model", REPO].commit(FILES | {"config.json": b'{"new": 1}'})
    assert outdated()[0] == {"commit": commit, "fetch": 10}
    hub.fault(status(503).on(times=None))
    none, findings = outdated()
    assert none is None
    assert "hub-not-asked" in {finding["code"] for finding in findings}
    shown = vlmcache(hub, cache, "status", "--outdated").stdout
    assert shown.count("hub-not-asked") == 1
    assert "Hub     not known of 1 model\n" in shown
    hub.clear_faults()
    assert vlmcache(hub, cache, "pull", "one").returncode == 0
    assert outdated()[0] is None
    assert "Hub     all up to date\n" in vlmcache(hub, cache, "status", "--outdated").stdout


def test_off_a_terminal_progress_is_a_plain_line_now_and_then() -> None:
    import io

    from vlmcache.show.progress import Lines

    stream = io.StringIO()
    lines = Lines(stream, every=0.05)
    lines.started(REPO, {"a": 1000, "b": 3000}, 500)
    lines.moved(REPO, "a", 1000)
    lines.moved(REPO, "b", 1000)
    time.sleep(0.2)
    lines.ended(REPO)
    first = stream.getvalue().splitlines()[0]
    assert first.startswith(f"vlmcache: {REPO}: 2 kB of 4 kB, ")
    assert "\x1b" not in stream.getvalue()


def on_a_terminal(
    hub: LoopbackHub, cache: Path, *arguments: str, typed: bytes = b"", **extra: str
) -> tuple[int, str]:
    """Run the command on a terminal of its own, type something, and return code and screen."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = variables(hub, cache) | {
            "VLMCACHE_CONFIG": str(small_config(cache.parent)),
            "TERM": "xterm",
            "COLUMNS": "100",
        }
        os.chdir(cache.parent)
        os.execve(command()[0], command(*arguments), environment | extra)
    seen = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 0.1)
        if not ready:
            continue
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
        if typed and b"(Enter leaves): " in seen:
            os.write(terminal, typed)
            typed = b""
    _, wait_status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(wait_status), seen.decode()


# The terminal is forked from a process in which the hub has its threads; the child only executes.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_the_picker_offers_models_and_takes_numbers(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code, screen = on_a_terminal(hub, cache, "pull", typed=b"1\n")
    assert code == 0, screen
    assert "missing" in screen
    assert "FITS" in screen
    assert "B free" in screen
    assert "one: pulled" in screen.replace("\x1b[32m", "").replace("\x1b[0m", "")
    hub.add_repo("org/two").commit(FILES)
    code, screen = on_a_terminal(hub, cache, "pull", typed=b"all\n")
    assert code == 0, screen
    assert "one: already" not in screen
    code, screen = on_a_terminal(hub, cache, "pull", typed=b"7\n1\nq\n")
    assert code == 2
    assert "no such number: 7" in screen
    assert "1 one: cached already" in screen
    assert "nothing chosen" in screen


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_bars_are_shown_on_a_terminal_and_not_without_color(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.fault(slow(5000).on("model.safetensors"))
    code, screen = on_a_terminal(hub, tmp_path / "cache", "pull", "one")
    assert code == 0, screen
    assert "org/name" in screen
    assert "━" in screen
    code, screen = on_a_terminal(hub, tmp_path / "other", "pull", "one", NO_COLOR="1")
    assert code == 0, screen
    assert "\x1b" not in screen


def rows(*guards: str) -> Choices:
    return Choices(
        [
            Choice(
                (f"m{number}", "org/x"), (f"m{number}",), guard, barred=guard == "cached already"
            )
            for number, guard in enumerate(guards, 1)
        ],
        ("MODEL",),
        "pull",
        "nothing was pulled",
        str,
    )


@pytest.mark.parametrize(
    ("text", "chosen", "taken_back", "stays"),
    [
        ("1", [0], [], []),
        ("1,3", [0, 2], [], []),
        (" 1 - 3 \n", [0, 2], [], [1]),
        ("1- 3", [0, 2], [], [1]),
        ("1 -3", [0], [2], []),
        ("3 1 1", [2, 0], [], []),
        ("all", [0, 2], [], [1, 3]),
        ("ALL -1-2", [0, 2], [0, 1], [1, 3]),
        ("none", [], [0, 1, 2, 3], []),
        ("2-3,1", [2, 0], [], [1]),
        ("2!", [], [], [1]),
        ("4", [], [], [3]),
        ("3-4", [2], [], [3]),
        ("4!", [3], [], []),
        ("m4", [], [], [3]),
        ("m1", [0], [], []),
        ("M3, 1", [2, 0], [], []),
        ("org/X", [0, 2], [], [1, 3]),
        ("x", [0, 2], [], [1, 3]),
        ("", [], [], []),
    ],
)
def test_the_picker_understands_numbers_names_and_what_is_not_chosen_by_accident(
    text: str, chosen: list[int], taken_back: list[int], stays: list[int]
) -> None:
    """The second is cached, so that it cannot be chosen; the fourth only on purpose."""
    choices = rows("", "cached already", "", "configured")
    assert meant(text, choices, range(4)) == (chosen, taken_back, stays)


@pytest.mark.parametrize("text", ["0", "5", "3-1", "1,9", "999999999", "0!"])
def test_the_picker_refuses_numbers_that_are_not_in_the_list(text: str) -> None:
    with pytest.raises(UsageError):
        meant(text, rows("", "", "", ""), range(4))


@pytest.mark.parametrize(
    "text", ["y", "m5", "1-", "9" * 5000, "1-3!", "\u00b2", "--", "1,m", "1.5"]
)
def test_the_picker_takes_anything_else_for_words_to_search_for(text: str) -> None:
    assert meant(text, rows("", "", "", ""), range(4)) is None


def test_a_typing_error_in_a_repo_id_names_the_cached_repo_that_is_like_it(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo("org/Some-VL-2B-Instruct").commit(FILES)
    cache = tmp_path / "cache"
    assert vlmcache(hub, cache, "pull", "org/Some-VL-2B-Instruct").returncode == 0
    done = vlmcache(hub, cache, "pull", "org/Some-VL-2B-Instuct")
    assert done.returncode == 7
    assert "did you mean org/Some-VL-2B-Instruct? check the name" in done.stderr
