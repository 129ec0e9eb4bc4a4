"""What `status`, `pull` and `rm` say of a model that needs another repo or a certain loader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.hub import LoopbackHub
from tests.kit.pulls import config, environment, pull
from vlmcache.commands.pull.values import PullReport
from vlmcache.commands.remove.remove import remove
from vlmcache.commands.remove.view import show_plan
from vlmcache.commands.status.status import status
from vlmcache.commands.status.values import Status
from vlmcache.commands.status.view import show
from vlmcache.commands.verify.verify import verify
from vlmcache.commands.watch.watch import watch
from vlmcache.config import CacheLocation, Session

CONFIG = b'{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}'
MODEL = {"config.json": CONFIG, "model.safetensors": b"w" * 3000}
REPOS = {
    "org/base": MODEL,
    "org/adapter": {
        "adapter_config.json": json.dumps(
            {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
        ).encode(),
        "adapter_model.safetensors": b"a" * 500,
    },
    "org/tf": {"config.json": CONFIG, "tf_model.h5": b"t" * 3000},
    "org/fp16": {"config.json": CONFIG, "model.fp16.safetensors": b"h" * 3000},
    "org/other": MODEL,
}


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        for repo, files in REPOS.items():
            hub.add_repo(repo).commit(files)
        yield hub


@pytest.fixture
def session(hub: LoopbackHub, tmp_path: Path) -> Session:
    cache = tmp_path / "cache"
    return Session(environment(hub, cache), config(), CacheLocation(str(cache), "test"))


def pulled(hub: LoopbackHub, session: Session, name: str, *, dry_run: bool = False) -> PullReport:
    return pull(hub, Path(session.cache.dir), name, dry_run=dry_run)


def next_steps(report: Status) -> list[str]:
    return [step.text for step in report.recommendations]


def test_a_base_that_is_missing_is_part_of_what_is_left_to_fetch(
    hub: LoopbackHub, session: Session
) -> None:
    pulled(hub, session, "org/adapter")
    base = Path(session.cache.dir, "models--org--base")
    (weights,) = base.glob("snapshots/*/model.safetensors")
    weights.resolve().unlink()
    weights.unlink()
    report = status(session, ["org/adapter"])
    (model,) = report.models
    planned = pulled(hub, session, "org/adapter", dry_run=True)
    assert (model.state, model.to_fetch) == ("partial", 3000)
    assert model.progress is not None
    assert 0 < model.progress < 1
    assert planned.plan.to_fetch == 3000
    assert next_steps(report) == ["1 model to download, 3 kB"]
    (watched,) = (row for row in next(watch(session)).snapshot.models if row.repo == model.repo)
    assert (watched.to_fetch, watched.progress) == (model.to_fetch, model.progress)


def test_of_a_base_of_which_nothing_is_known_the_size_is_unknown(
    hub: LoopbackHub, session: Session
) -> None:
    pulled(hub, session, "org/adapter")
    shutil.rmtree(Path(session.cache.dir, "models--org--base"))
    report = status(session, ["org/adapter"])
    (model,) = report.models
    assert (model.state, model.to_fetch, model.progress) == ("partial", None, None)
    assert next_steps(report)[-1] == "1 model to download, size unknown"


def test_what_check_advises_is_about_what_was_asked_for(hub: LoopbackHub, session: Session) -> None:
    pulled(hub, session, "org/other")
    (weights,) = Path(session.cache.dir).glob("models--org--other/snapshots/*/model.safetensors")
    weights.resolve().write_bytes(b"?" * 3000)
    verify(session)
    problem = status(session, ["org/base"]).not_cached
    assert problem is not None
    assert problem.hint == "vlmcache pull org/base"
    problem = status(session, ["org/other"]).not_cached
    assert problem is not None
    assert problem.hint == "vlmcache verify org/other --repair"


@pytest.mark.parametrize(
    ("repo", "code", "words"),
    [
        ("org/tf", "no-loader", "no installed library loads"),
        ("org/fp16", "variant-only", 'load it with variant="fp16"'),
    ],
)
def test_pull_and_status_say_how_a_model_is_loaded_or_that_it_is_not(
    hub: LoopbackHub,
    session: Session,
    capsys: pytest.CaptureFixture[str],
    repo: str,
    code: str,
    words: str,
) -> None:
    for dry_run in (True, False, False):
        report = pulled(hub, session, repo, dry_run=dry_run)
        assert [finding.code for finding in report.findings] == [code]
    show(status(session, [repo]))
    assert words in " ".join(capsys.readouterr().out.split())


def test_the_precision_of_what_is_not_known_is_a_dash(
    hub: LoopbackHub, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    pulled(hub, session, "org/adapter")
    for name in ("org/adapter", "org/none"):
        show(status(session, [name]))
        row = next(line for line in capsys.readouterr().out.splitlines() if name in line)
        assert "fp16" not in row
        assert "bf16" not in row


def test_the_heading_of_a_warning_is_not_shortened(
    hub: LoopbackHub, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    pulled(hub, session, "org/adapter")
    show_plan(remove(session, ["org/base"], dry_run=True))
    assert "Warning " in capsys.readouterr().out
