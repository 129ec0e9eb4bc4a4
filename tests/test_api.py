"""`vlmcache.Cache`: every command as a method, with values that carry their problem."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

import vlmcache
from tests.kit.caches import CacheBuilder, fingerprint, model_files
from tests.kit.hub import LoopbackHub
from vlmcache.cli import main as cli
from vlmcache.cli.register import COMMANDS, document_type, words_of
from vlmcache.config import read_environment
from vlmcache.errors import UsageError, VlmcacheError
from vlmcache.report import Report

TOKEN = "hf_" + "S3cret" * 5

METHODS = {
    "rm": "remove",
    "load-test": "load_test",
    "fleet-rm": "remove",
    "fleet-load-test": "load_test",
    "schema": None,
    "help": None,
}
"""Commands whose method has another name, or none."""
COMMON = {"help", "config", "cache-dir", "json", "quiet", "verbose", "yes"}
"""Options that belong to the object, to the terminal, or to the question that is not asked."""
OF_A_FLEET = {"address", "nodes"}
"""Options that belong to the object of a fleet."""
ONLY_TYPED = {
    # The report holds every repo of the cache anyway.
    "status": {"all", "limit"},
    # `repair` is a method of its own.
    "verify": {"repair", "dry-run"},
    # What is yielded says whether the space is low, and what to expose is the program's business.
    "watch": {"exit-on-low", "metrics", "listen"},
    # Drawing belongs to the views, which only the command line imports.
    "load-test": {"plot"},
}
RENAMED = {"from": "sources"}
"""Options whose name is a word of Python's, and the keyword argument in its place."""
RETURNS = {"serve": "Server"}
"""Methods that return an object with which the command is run, and what it is."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    with LoopbackHub() as opened:
        monkeypatch.setenv("HF_ENDPOINT", opened.url)
        yield opened


@pytest.fixture(autouse=True)
def here(cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch) -> CacheBuilder:
    """A cache with a complete model and a partial one."""
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.root))
    Path("config.yaml").write_text("models: {good: {repo: org/good}}\nvlmcache: {min_free: 0}\n")
    cache.repo("org/good").revision(model_files())
    cache.repo("org/part").revision(model_files(), downloaded={"config.json"})
    return cache


# What is where.


def test_a_cache_is_the_one_that_the_environment_names_or_the_one_given(tmp_path: Path) -> None:
    assert vlmcache.Cache().status().cache.dir == os.environ["HF_HUB_CACHE"]
    other = tmp_path / "other"
    config = tmp_path / "own.yaml"
    config.write_text("models: {}\n")
    cache = vlmcache.Cache(cache_dir=other, config=config)
    assert cache.status().check().models == ()
    assert repr(cache) == f"Cache(cache_dir={str(other)!r}, config={str(config)!r})"


def test_a_configuration_that_cannot_be_read_is_raised_at_once() -> None:
    with pytest.raises(vlmcache.ConfigError, match="no such file"):
        vlmcache.Cache(config="nowhere.yaml")


# What comes back.


def test_a_problem_is_a_value_until_it_is_checked() -> None:
    report = vlmcache.Cache().status(["good", "org/part"], check=True)
    assert report.ids == ["org/good", "org/part"]
    assert isinstance(report.problem, vlmcache.NotCachedError)
    with pytest.raises(vlmcache.NotCachedError) as caught:
        report.check()
    assert caught.value is report.problem
    complete = vlmcache.Cache().status("good", check=True)
    assert complete.problem is None
    assert complete.check() is complete


def test_the_text_of_an_error_has_the_hint() -> None:
    with pytest.raises(vlmcache.UnknownModelError) as caught:
        vlmcache.Cache().status("goood")
    assert str(caught.value) == "no such model: goood (did you mean good?)"


def test_one_model_and_a_list_of_models_mean_the_same() -> None:
    cache = vlmcache.Cache()
    assert cache.status("good").models == cache.status(["good"]).models
    assert cache.status(name for name in ["good"]).models == cache.status("good").models


EMPTY: dict[str, Callable[[vlmcache.Cache], object]] = {
    "status": lambda cache: cache.status([]),
    "pull": lambda cache: cache.pull([]),
    "remove": lambda cache: cache.remove([]),
    "verify": lambda cache: cache.verify([]),
    "repair": lambda cache: cache.repair([]),
    "move": lambda cache: cache.move("elsewhere", []),
    "recall": lambda cache: cache.recall([]),
    "backup": lambda cache: cache.backup("saved.tar", []),
    "load_test": lambda cache: cache.load_test([]),
}


@pytest.mark.parametrize("method", EMPTY)
def test_an_empty_list_of_models_does_not_mean_all_of_them(here: CacheBuilder, method: str) -> None:
    before = fingerprint(here.root)
    with pytest.raises(UsageError, match="the list of models is empty"):
        EMPTY[method](vlmcache.Cache())
    assert fingerprint(here.root) == before


def test_sort_and_filter_choose_rows(here: CacheBuilder) -> None:
    report = vlmcache.Cache().status(["org/part", "good"], sort="name", filter="state=cached")
    assert report.ids == ["org/good"]


# Each command does as a method what it does when typed.


def test_a_dry_run_returns_the_plan_and_removes_nothing(here: CacheBuilder) -> None:
    before = fingerprint(here.root)
    report = vlmcache.Cache().remove(["good"], dry_run=True).check()
    assert report.ids == ["org/good"]
    assert report.receipt is None
    assert report.plan.frees > 0
    assert fingerprint(here.root) == before


def test_what_is_removed_is_removed_without_a_question(here: CacheBuilder) -> None:
    report = vlmcache.Cache().remove("good").check()
    assert report.ids == ["org/good"]
    assert not here.repo("org/good").folder.exists()


def test_clean_keeps_what_it_is_asked_to_keep(here: CacheBuilder) -> None:
    cache = vlmcache.Cache()
    assert cache.clean("good", max_size=0, keep="org/part", dry_run=True).ids == ["org/good"]
    cache.clean(all=True).check()
    assert vlmcache.get_cache_info()["repo_count"] == 0


def test_damage_is_a_problem_of_verify_and_what_repair_repairs(
    here: CacheBuilder, hub: LoopbackHub
) -> None:
    hub.add_repo("org/good").commit(model_files())
    cache = vlmcache.Cache()
    assert cache.verify("good").check().checked > 0
    blob = next(path for path in here.repo("org/good").blobs.iterdir() if path.stat().st_size > 99)
    blob.write_bytes(b"x" * blob.stat().st_size)
    report = cache.verify("good", max_age=0, workers=1)
    assert report.ids == ["org/good"]
    with pytest.raises(vlmcache.DamageError):
        report.check()
    assert cache.repair("good", max_age=0).check().remaining == ()
    assert cache.verify("good", max_age=0).problem is None


def test_pull_fetches_what_is_missing_and_says_what_failed(hub: LoopbackHub) -> None:
    hub.add_repo("org/part").commit(model_files())
    cache = vlmcache.Cache()
    planned = cache.pull("org/part", dry_run=True).check()
    assert [model.state for model in planned.models] == ["planned"]
    report = cache.pull(["org/part", "org/nowhere"], limit_rate="100MB/s", max_workers=2)
    assert report.ids == ["org/part"]
    assert isinstance(report.problem, vlmcache.VlmcacheError)
    assert cache.status("org/part", check=True).problem is None
    every = cache.pull(all=True, revision=None)
    # The hub does not have the other one, which is complete here.
    assert every.problem is None
    assert [finding.code for finding in every.findings] == ["hub-not-asked"]


def test_a_backup_is_restored_into_another_cache(tmp_path: Path) -> None:
    cache = vlmcache.Cache()
    assert cache.backup(tmp_path / "saved.tar", "good").check().repos == ("org/good",)
    other = vlmcache.Cache(cache_dir=tmp_path / "other")
    assert other.restore(tmp_path / "saved.tar", dry_run=True).check().receipt is None
    assert other.restore(tmp_path / "saved.tar").check().ids == ["org/good"]
    assert other.status("good", check=True).problem is None


def test_a_move_leaves_a_link_that_relink_keeps(tmp_path: Path, here: CacheBuilder) -> None:
    cache = vlmcache.Cache()
    report = cache.move(tmp_path / "drive", "good").check()
    assert report.ids == ["org/good"]
    assert here.repo("org/good").folder.is_symlink()
    assert cache.status("good", check=True).problem is None


def test_watch_yields_what_the_cache_holds() -> None:
    (observation,) = vlmcache.Cache().watch(once=True, min_free="999TB")
    assert {model.repo for model in observation.snapshot.models} == {"org/good", "org/part"}
    assert observation.snapshot.low
    observations = vlmcache.Cache().watch(interval="1h")
    assert next(observations).events == ()
    observations.close()


def test_doctor_returns_its_findings(here: CacheBuilder) -> None:
    grp = pytest.importorskip("grp")
    here.root.chmod(0o700)
    cache = vlmcache.Cache()
    report = cache.doctor(shared=grp.getgrgid(os.getgid()).gr_name).check()
    assert report.ids == [finding.code for finding in report.findings]
    assert report.plan is not None
    assert report.plan.actions
    with pytest.raises(UsageError):
        cache.doctor(shared="no-such-group")


def test_explain_returns_what_a_code_means() -> None:
    report = vlmcache.Cache().explain("no-space").check()
    assert report.ids == ["no-space"]
    assert report.remedy
    with pytest.raises(UsageError, match="no such code"):
        vlmcache.Cache().explain("no-such-code")


def test_the_history_of_load_tests_is_empty_at_first() -> None:
    assert vlmcache.Cache().load_test(history=True).check().ids == []


def test_removing_a_copy_that_was_never_made_frees_nothing() -> None:
    report = vlmcache.Cache().quantize("good", remove=True, dry_run=True).check()
    assert report.freed == 0


def test_a_model_that_is_not_cached_is_raised_by_quantize(tmp_path: Path) -> None:
    with pytest.raises(vlmcache.NotDownloadedError):
        vlmcache.Cache(cache_dir=tmp_path / "empty").quantize("good")


# Units.

SIZES: dict[str, Callable[[Any], object]] = {
    "max_size": lambda size: vlmcache.Cache().clean(max_size=size, dry_run=True),
    "free": lambda size: vlmcache.Cache().clean(free=size, dry_run=True),
    "limit_rate": lambda size: vlmcache.Cache().pull("good", limit_rate=size, dry_run=True),
    "min_free": lambda size: vlmcache.Cache().watch(min_free=size),
}
DURATIONS: dict[str, Callable[[Any], object]] = {
    "older_than": lambda age: vlmcache.Cache().clean(older_than=age, dry_run=True),
    "max_age": lambda age: vlmcache.Cache().verify(max_age=age),
    "interval": lambda age: vlmcache.Cache().watch(interval=age),
}
COUNTS: dict[str, Callable[[Any], object]] = {
    "max_workers": lambda count: vlmcache.Cache().pull("good", max_workers=count),
    "workers": lambda count: vlmcache.Cache().verify(workers=count),
    "trials": lambda count: vlmcache.Cache().load_test("good", trials=count),
    "tokens": lambda count: vlmcache.Cache().load_test("good", tokens=count),
}


@pytest.mark.parametrize("value", ["30", "1e9", "much", -1, 1.5, True, 1 << 70])
@pytest.mark.parametrize("argument", SIZES)
def test_a_size_is_an_int_of_bytes_or_a_string_with_its_unit(argument: str, value: object) -> None:
    with pytest.raises(UsageError, match=argument):
        SIZES[argument](value)


@pytest.mark.parametrize("value", ["30", "soon", -1, float("nan"), float("inf"), True, [1]])
@pytest.mark.parametrize("argument", DURATIONS)
def test_a_duration_is_a_number_of_seconds_or_a_string_with_its_unit(
    argument: str, value: object
) -> None:
    with pytest.raises(UsageError, match=argument):
        DURATIONS[argument](value)


@pytest.mark.parametrize("value", [0, -1, "3", 2.0, True])
@pytest.mark.parametrize("argument", COUNTS)
def test_a_count_is_an_int_of_at_least_one(argument: str, value: object) -> None:
    with pytest.raises(UsageError, match=argument):
        COUNTS[argument](value)


def test_numbers_and_strings_with_units_mean_the_same() -> None:
    cache = vlmcache.Cache()
    for size in (30_000, "30kB"):
        assert cache.clean("good", max_size=size, dry_run=True).missed_by == 0
    plans = [cache.clean("good", older_than=age, dry_run=True).plan for age in (3600, "1h", "60m")]
    assert plans[0] == plans[1] == plans[2]


def test_an_argument_that_a_schedule_cannot_use_is_named() -> None:
    cache = vlmcache.Cache()
    with pytest.raises(UsageError, match="show shows every schedule"):
        cache.schedule("clean", show=True)
    with pytest.raises(UsageError, match="remove makes no schedule: leave out every"):
        cache.schedule("clean", remove=True, every="1d")


@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.pull(),
        lambda cache: cache.pull("good", all=True),
        lambda cache: cache.pull("good@v1", revision="v2"),
        lambda cache: cache.pull("good", limit_rate=0),
        lambda cache: cache.move(),
        lambda cache: cache.move("elsewhere", "good", undo=True),
        lambda cache: cache.move("elsewhere", relink="drive"),
        lambda cache: cache.watch(interval=0),
        lambda cache: cache.status(sort="beauty"),
        lambda cache: cache.status(filter="size"),
        lambda cache: cache.load_test(precision="fp64"),
        lambda cache: cache.load_test(loader="magic"),
        lambda cache: cache.quantize("good", precision="fp64"),
        lambda cache: cache.quantize("good", precision="bf16"),
        lambda cache: cache.load_model("good", "fp64"),
    ],
)
def test_arguments_that_make_no_sense_are_raised_by_the_call(
    call: Callable[[vlmcache.Cache], object],
) -> None:
    with pytest.raises(UsageError):
        call(vlmcache.Cache())


# The same as the command line.


def method_of(command: str) -> Any:
    """Return the method that does what a command does, `None` if there is none."""
    *family, word = words_of(command)
    name = METHODS.get(command, word)
    owner = vlmcache.FleetCache if family else vlmcache.Cache
    return None if name is None else getattr(owner, name)


def options_of(command: str) -> set[str]:
    """Return the options of a command and its arguments, as the command line names them."""
    group: Any = typer.main.get_command(cli.app)
    return {
        parameter.opts[0].strip("-")
        for parameter in group.get_command(None, command).params
        if parameter.param_type_name == "option"
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_keyword_arguments_are_named_like_the_options_of_the_command(command: str) -> None:
    method = method_of(command)
    if method is None:
        return
    keywords = {
        parameter.name.replace("_", "-")
        for parameter in inspect.signature(method).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    options = {RENAMED.get(option, option) for option in options_of(command)}
    common = COMMON | (OF_A_FLEET if len(words_of(command)) > 1 else set())
    assert keywords == options - common - ONLY_TYPED.get(command, set())


def test_repair_has_the_options_of_verify() -> None:
    verify = inspect.signature(vlmcache.Cache.verify).parameters
    repair = inspect.signature(vlmcache.Cache.repair).parameters
    assert set(repair) == {*verify, "dry_run"}


def test_each_method_returns_the_value_of_its_command() -> None:
    for command, entry in COMMANDS.items():
        method = method_of(command)
        if method is None or entry.lines:
            continue
        returned = inspect.signature(method).return_annotation
        assert issubclass(document_type(command), Report)
        assert returned == RETURNS.get(command, document_type(command).__name__)


# What is exported.


def modules() -> list[Any]:
    names = [found.name for found in pkgutil.walk_packages(vlmcache.__path__, "vlmcache.")]
    heavy = {"vlmcache.__main__", "vlmcache.load.worker"}
    return [importlib.import_module(name) for name in names if name not in heavy]


def test_every_error_that_a_user_can_meet_is_exported() -> None:
    errors = {
        value
        for module in modules()
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, VlmcacheError) and not name.startswith("_")
    }
    assert errors == {getattr(vlmcache, error.__name__, None) for error in errors}
    assert {error.__name__ for error in errors} <= set(vlmcache.__all__)


def test_every_report_is_exported() -> None:
    for module in modules():
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Report):
                assert getattr(vlmcache, value.__name__) is value


def test_no_repr_shows_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec
    import rich.pretty

    from vlmcache.commands.pull import values
    from vlmcache.hub.client import Client

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", TOKEN)
    environment = read_environment()
    assert environment.get("HF_TOKEN") == TOKEN
    cache = vlmcache.Cache()
    options = next(
        value
        for value in vars(values).values()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and "token" in value.__struct_fields__
    )
    for value in (
        environment,
        cache,
        cache.session,
        options(token=TOKEN),
        Client(environment, token=TOKEN),
        cache.status(),
    ):
        for shown in (repr(value), str(value), rich.pretty.pretty_repr(value)):
            assert TOKEN not in shown


def test_importing_the_package_imports_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules); import vlmcache\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert set(done.stdout.split()) <= {"vlmcache", *sys.stdlib_module_names}


# Types.

SCRIPT = """
from pathlib import Path
from typing import Any

import vlmcache

cache = vlmcache.Cache()
other = vlmcache.Cache(cache_dir=Path("hub"), config="config.yaml")

report = cache.status("qwen_vl_2b", check=True, sort="size", filter=["size>1GB"])
size: int = report.check().models[0].size
state: str = report.models[0].state
problem: vlmcache.VlmcacheError | None = report.problem
names: list[str] = report.ids

fetched: int = cache.pull(["a/b"], limit_rate=10_000_000, max_workers=4).check().models[0].fetched
cache.pull(all=True, limit_rate="10MB", dry_run=True).check()
freed: int = cache.remove("a/b", dry_run=True).check().plan.frees
cache.clean(older_than="30d", max_size=50_000_000_000, keep=["a/b"], all=False).check()
cache.clean(older_than=30 * 86400.0, free="30GB")
damaged: int = len(cache.verify(max_age=0, workers=2).damaged)
remaining: tuple[str, ...] = cache.repair("a/b", dry_run=True).check().remaining
moved: str = cache.move(Path("/mnt/big"), no_link=True).check().destination
cache.move(relink="/mnt/big")
cache.backup("s3://bucket/store", verify=True).check().uploaded.size
cache.restore("models.tar", "a/b", overwrite=True).check().skipped.size
for observation in cache.watch(interval=2, min_free="20GB"):
    free: int | None = observation.snapshot.cache.free
    for event in observation.events:
        kind: str = event.kind
cache.doctor(shared="vlm").findings[0].code
for result in cache.load_test("a/b", precision=["bf16"], trials=5).check().results:
    seconds: float | None = result.trials[0].seconds
path: str = cache.quantize("a/b", precision="int4").check().path
model, processor = cache.load_model("a/b", "bf16")
model, processor = vlmcache.load_model("a/b", precision="bf16", device="cpu")

cached, message = vlmcache.check_model_cache("a/b")
info: dict[str, Any] = vlmcache.get_cache_info()

try:
    cache.pull("a/b").check()
except vlmcache.HubError as error:
    hint: str | None = error.hint
except (vlmcache.SpaceError, vlmcache.UnknownModelError) as error:
    code: vlmcache.ExitCode = error.exit_code


def checked(report: vlmcache.Report) -> list[str]:
    return report.check().ids
"""
WRONG = """
import vlmcache

cache = vlmcache.Cache()
cache.clean(older_then="30d")
cache.pull(3)
cache.clean(max_size=1.5)
cache.status().problm
size: str = cache.status().models[0].size
"""


@pytest.mark.full
def test_a_users_script_passes_mypy_strict_and_mistakes_in_it_do_not(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(SCRIPT)
    wrong.write_text(WRONG)
    (tmp_path / "mypy.ini").write_text("[mypy]\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-version=3.10", right.name, wrong.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    lines = {line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line}
    assert not [line for line in done.stdout.splitlines() if line.startswith("right.py")]
    assert lines == {"5", "6", "7", "8", "9"}, done.stdout
