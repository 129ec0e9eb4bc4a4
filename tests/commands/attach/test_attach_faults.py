"""`attach` and `detach` on a failing disk and in a killed process: a second run finishes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.bases import FILES, NEWER, Based
from tests.kit.caches import CacheBuilder
from tests.kit.faulty import FAULTS, Fault, Subject, fault_name, try_every
from vlmcache.cache.base_record import base_record_path
from vlmcache.cache.completeness import judge
from vlmcache.cache.scan import scan
from vlmcache.cache.usage import Usage
from vlmcache.commands.attach import attach as command
from vlmcache.commands.attach.values import AttachReport
from vlmcache.config import CacheLocation, Config, Environment, Limits, Session

pytestmark = pytest.mark.faults
CONFIG = Config("config.yaml", "--config", {}, Limits(min_free=0))
BEGUN = {"lost-link", "orphan-blob", "leftover", "missing-snapshots", "empty-snapshot"}
"""What a repo may show that is being attached or detached; nothing of it is wrong."""
ONE, TWO = "models--org--one", "models--org--two"


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through all processes is most of the time here, and no part of what is tested."""
    monkeypatch.setattr(command, "who_uses", lambda *_: Usage())


class _OnABase(Subject[AttachReport]):
    """A base of two models, one with a shared blob, and a private cache with a file of its own."""

    def begin(self, place: Path) -> None:
        based = Based(place)
        based.fill()
        based.base.repo("org/two").revision(FILES, shared=["model.safetensors"])
        based.base.repo("org/two").no_exist("processor_config.json", based.fill("org/two", NEWER))
        CacheBuilder(based.root).repo("org/one").revision(
            {**FILES, "config.json": b'{"own": 1}'}, refs=["mine"], downloaded=["config.json"]
        )
        self.before = based.base_now()

    def session(self, place: Path) -> Session:
        location = CacheLocation(str(place / "private" / "hub"), "--cache-dir")
        environment = Environment({"VLMCACHE_HOME": str(place / "own")}, frozenset(), "")
        return Session(environment, CONFIG, location)

    def hold(self, place: Path, answer: AttachReport | None) -> None:
        based = Based.__new__(Based)
        based.base = CacheBuilder.__new__(CacheBuilder)
        based.base.root = place / "base"
        assert based.base_now() == self.before, "the base was changed"
        state = scan(place / "private" / "hub")
        for repo in state.repos:
            for revision in repo.revisions:
                judgement = judge(repo, revision.commit)
                if judgement.state == "damaged":
                    lost = repo.lost_names(revision.commit)
                    assert set(judgement.damaged) <= lost, judgement.damaged
            for ref in repo.refs:
                found = judge(repo, ref)
                begun = ref == "main" and found.state != "cached"
                attaching = isinstance(self, Attaching)
                assert not (begun and attaching), f"{repo.id}@{ref} is {found.state}"
            codes = {finding.code for finding in repo.findings}
            assert codes <= BEGUN, codes
        own = place / "private" / "hub" / ONE / "blobs"
        assert any(path.is_file() and not path.is_symlink() for path in own.iterdir())
        if answer is not None and answer.problem is None:
            self.done(place)

    def done(self, place: Path) -> None:
        raise NotImplementedError


class Attaching(_OnABase):
    command = "attach"

    def run(self, place: Path) -> AttachReport:
        return command.attach(self.session(place), str(place / "base"))

    def again(self, place: Path) -> None:
        report = self.run(place)
        assert report.problem is None, report.problem
        self.done(place)

    def done(self, place: Path) -> None:
        state = scan(place / "private" / "hub")
        for name in ("org/one", "org/two"):
            assert judge(state.repo(name), "main").state == "cached", name
        codes = {finding.code for finding in state.all_findings()}
        assert codes <= {"leftover", "same-commit"}, codes


class Detaching(_OnABase):
    command = "detach"

    def begin(self, place: Path) -> None:
        super().begin(place)
        report = command.attach(self.session(place), str(place / "base"))
        assert report.problem is None

    def run(self, place: Path) -> AttachReport:
        return command.detach(self.session(place), str(place / "base"))

    def again(self, place: Path) -> None:
        root = place / "private" / "hub"
        leads = any(blob.base for repo in scan(root).repos for blob in repo.blobs.values())
        recorded = any(Path(base_record_path(str(root), name)).exists() for name in (ONE, TWO))
        if leads or recorded:
            report = self.run(place)
            assert report.problem is None, report.problem
        self.done(place)

    def done(self, place: Path) -> None:
        root = place / "private" / "hub"
        state = scan(root)
        assert state.repo("org/two") is None
        repo = state.repo("org/one")
        assert repo is not None
        assert not any(blob.linked for blob in repo.blobs.values())
        assert judge(repo, "mine").state == "partial"
        assert not any(Path(base_record_path(str(root), name)).exists() for name in (ONE, TWO))


@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
@pytest.mark.parametrize("subject", [Attaching, Detaching])
def test_after_any_fault_nothing_is_wrong_and_a_second_run_finishes(
    subject: type[_OnABase], fault: Fault
) -> None:
    try_every(subject(), fault, at_least=40)
