"""What is left to download of a model, and what is here, is one figure in every view."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.kit.contents import Content
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import QUICK, config, environment
from vlmcache.commands.pull.pull import pull
from vlmcache.commands.pull.values import PullOptions, PullReport
from vlmcache.commands.pull.view import choices_of
from vlmcache.commands.status.status import status
from vlmcache.commands.status.values import ModelStatus, Status
from vlmcache.commands.watch.watch import watch
from vlmcache.config import CacheLocation, ModelConfig, Session
from vlmcache.units import size_text

REPO = "org/figures"
FOLDER = "models--org--figures"
WEIGHTS = b"w" * 4_000_000
FILES: dict[str, Content] = {
    "config.json": b'{"architectures": ["Qwen2VL"], "model_type": "qwen2_vl"}',
    "generation_config.json": b'{"max_new_tokens": 20}',
    "README.md": b"# A model",
    "tokenizer.json": b"{}" + b" " * 70_000,
    "tokenizer_config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same weights once more" * 1000,
}


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


def session(hub: LoopbackHub, cache: Path) -> Session:
    models = {"mine": ModelConfig("mine", REPO)}
    settings = msgspec.structs.replace(config(), models=models)
    return Session(environment(hub, cache), settings, CacheLocation(str(cache), "test"))


def run_pull(session: Session, *, dry_run: bool = False) -> PullReport:
    return pull(session, ["mine"], PullOptions(dry_run=dry_run), patience=QUICK)


def blob_of(cache: Path, name: str) -> Path:
    (link,) = (cache / FOLDER / "snapshots").glob(f"*/{name}")
    return link.resolve()


def lose(cache: Path, name: str) -> Path:
    """Remove a file and its content, and return where its content was."""
    (link,) = (cache / FOLDER / "snapshots").glob(f"*/{name}")
    blob = link.resolve()
    blob.unlink()
    link.unlink()
    return blob


def begin(blob: Path, count: int, ending: str, age: float = 0.0) -> None:
    """Leave the beginning of a download of the weights behind."""
    partial = blob.with_name(blob.name + ending)
    partial.write_bytes(WEIGHTS[:count])
    os.utime(partial, (time.time() - age, time.time() - age))


def without_weights(cache: Path) -> None:
    lose(cache, "model.safetensors")


def without_a_small_file_and_the_readme(cache: Path) -> None:
    lose(cache, "README.md")
    lose(cache, "tokenizer_config.json")


def without_the_readme(cache: Path) -> None:
    lose(cache, "README.md")


def begun_by_us(cache: Path) -> None:
    begin(lose(cache, "model.safetensors"), 1_500_000, ".incomplete")


def left_behind_by_the_client(cache: Path) -> None:
    begin(lose(cache, "model.safetensors"), 2_500_000, ".0a1b2c3d.incomplete", age=7200)


def being_written_by_the_client(cache: Path) -> None:
    begin(lose(cache, "model.safetensors"), 2_500_000, ".0a1b2c3d.incomplete")


def shortened(cache: Path) -> None:
    os.truncate(blob_of(cache, "model.safetensors"), 1000)


def link_lost(cache: Path) -> None:
    (link,) = (cache / FOLDER / "snapshots").glob("*/model.safetensors")
    link.unlink()


def only_the_listing(cache: Path) -> None:
    for name in FILES:
        if list((cache / FOLDER / "snapshots").glob(f"*/{name}")):
            lose(cache, name)


def complete(_: Path) -> None:
    """Leave all as it is."""


CASES: list[Callable[[Path], None]] = [
    without_weights,
    without_a_small_file_and_the_readme,
    without_the_readme,
    begun_by_us,
    left_behind_by_the_client,
    being_written_by_the_client,
    shortened,
    link_lost,
    only_the_listing,
    complete,
]


def model_of(shown: Status) -> ModelStatus:
    (model,) = shown.models
    return model


@pytest.mark.parametrize("change", CASES, ids=lambda change: change.__name__)
def test_status_picker_plan_watch_and_advice_name_what_a_pull_then_fetches(
    hub: LoopbackHub,
    tmp_path: Path,
    change: Callable[[Path], None],
) -> None:
    cache = tmp_path / "hub"
    here = session(hub, cache)
    assert run_pull(here).problem is None
    change(cache)

    shown = status(here)
    model = model_of(shown)
    planned = run_pull(here, dry_run=True)
    (watched,) = next(watch(here, notify=False)).snapshot.models

    assert model.to_fetch is not None
    assert planned.models[0].to_fetch == planned.plan.to_fetch == model.to_fetch
    for name in ("state", "size_on_disk", "expected_size", "to_fetch", "progress"):
        assert getattr(watched, name) == getattr(model, name), name
    if model.state == "cached":
        assert (model.to_fetch, model.progress) == (0, 1.0)
    elif model.to_fetch:
        assert model.expected_size is not None
        saved = 1 - model.to_fetch / model.expected_size
        assert model.progress is not None
        if change is being_written_by_the_client:
            # A pull cannot use what another program is receiving, but it is on disk.
            assert saved < model.progress < 1
        else:
            assert model.progress == pytest.approx(saved)
        advice = " ".join(step.text for step in shown.recommendations)
        assert size_text(model.to_fetch) in advice
        assert size_text(model.to_fetch) in choices_of(shown).rows[0].cells
    # The room on the disk is for what is fetched, and for the copy of what another program began.
    assert planned.plan.needs >= planned.plan.to_fetch

    done = run_pull(here)
    assert done.problem is None
    assert sum(row.fetched for row in done.models) == model.to_fetch
    assert model_of(status(here)).state == "cached"


def test_what_is_begun_counts_as_on_disk_and_as_progress(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    here = session(hub, cache)
    run_pull(here)
    before = model_of(status(here))
    begun_by_us(cache)
    model = model_of(status(here))
    assert model.state == "partial"
    assert 0.3 < (model.progress or 0) < 0.5
    assert model.size_on_disk > before.size_on_disk - len(WEIGHTS)


def test_of_a_model_of_which_nothing_is_here_the_configuration_says_what_is_left(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    here = session(hub, tmp_path / "hub")
    models = {"mine": ModelConfig("mine", REPO, expected_size=5_000_000)}
    here = here._replace(config=msgspec.structs.replace(here.config, models=models))
    model = model_of(status(here))
    (watched,) = next(watch(here, notify=False)).snapshot.models
    assert (model.state, model.to_fetch, model.progress) == ("missing", 5_000_000, 0.0)
    assert (watched.to_fetch, watched.progress) == (5_000_000, 0.0)
