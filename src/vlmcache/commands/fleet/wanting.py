"""What every node is to have after a `fleet pull`: nodes are asked, and the hub if it must be."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from vlmcache.cache.hashing import new_hash
from vlmcache.cache.state import Finding
from vlmcache.commands.fleet.calls import Fleet
from vlmcache.commands.fleet.known import (
    NOT_ASKED,
    Asked,
    AskedModels,
    Known,
    KnownModels,
    by_commit,
    wanted_of,
)
from vlmcache.commands.fleet.parcels import WantedModel
from vlmcache.commands.fleet.pull_values import FleetPullOptions
from vlmcache.commands.pull.plan import VariantError
from vlmcache.commands.pull.prepare import prepare_needed, prepare_pull
from vlmcache.commands.pull.values import PlannedModel
from vlmcache.config import ModelConfig, Session, cached_repos, find_model
from vlmcache.errors import AccessError, HubError, OfflineError, require_consent
from vlmcache.hub.client import Client
from vlmcache.hub.quick import commit_of
from vlmcache.progress import Progress

_ANSWER = 1.0

_T = TypeVar("_T")


class _HubClient(Client):
    """A hub's client that keeps the small contents that it reads to plan with."""

    kept: dict[str, bytes]

    def content(self, address: str) -> bytes | None:
        """Return a small file, and keep it."""
        body = super().content(address)
        if body is not None:
            self.kept[address] = body
        return body


class Wanting:
    """Asks what is to be fetched.

    Args:
        session: of the driver.
        fleet: the nodes.
        names: keys of config.yaml or repo ids, with an optional `@revision` and `:VARIANT`.
        options: how to pull.
        progress: is given notes.
    """

    def __init__(
        self,
        session: Session,
        fleet: Fleet,
        names: Sequence[str],
        options: FleetPullOptions,
        progress: Progress,
    ) -> None:
        self._session = session
        self._fleet = fleet
        self._names = names
        self._options = options
        self._progress = progress
        self.findings: list[Finding] = []
        self.given: dict[str, bytes] = {}
        """Etag -> small content that the hub has sent already."""

    def models(self) -> tuple[WantedModel, ...]:
        """Return what every node is to have: from nodes if they know it, else from the hub."""
        session = self._session
        cached = cached_repos(session.cache)
        asked = [
            find_model(session.config, name, cached, variants=True, others=True)
            for name in self._names
        ]
        asked = list({(m.repo, m.revision, m.variant): m for m in asked}.values())
        questions = [Asked.of(model, self._options.selection) for model in asked]
        answers = self._answers("pull-known", AskedModels(tuple(questions)), KnownModels)
        known = [by_commit(answers, number) for number in range(len(questions))]
        if all(known):
            current = self._current(questions, known)
            if current is not None:
                return current
        try:
            return self._asked_once(asked)
        except HubError as error:
            if isinstance(error, AccessError) or not all(len(commits) == 1 for commits in known):
                raise
            offline = isinstance(error, OfflineError)
            found = [next(iter(commits.values())) for commits in known]
            for one in found:
                detail = (
                    f"as nodes have it, at commit {one.model.commit}; whether there is a newer "
                )
                detail += f"one is not known: {error.message}"
                severity: Literal["info", "warning"] = "info" if offline else "warning"
                self.findings.append(
                    Finding(NOT_ASKED, severity, one.model.repo, "", detail, error.hint)
                )
            return self._taken(found)

    def _current(
        self, questions: Sequence[Asked], known: Sequence[Mapping[str, Known]]
    ) -> tuple[WantedModel, ...] | None:
        """Return what nodes have of each model if that is what its revision means now."""
        client = Client(self._session.environment)
        found: list[Known] = []
        try:
            for asked, commits in zip(questions, known, strict=True):
                commit: str | None = asked.revision
                if asked.revision not in commits:
                    commit = commit_of(client, asked.repo, asked.revision)
                if commit is None or commit not in commits:
                    return None
                found.append(commits[commit])
        finally:
            client.stop()
        return self._taken(found)

    def _taken(self, found: Sequence[Known]) -> tuple[WantedModel, ...]:
        for one in found:
            self.findings += one.findings
        return tuple(one.model for one in found)

    def _answers(self, method: str, request: msgspec.Struct, kind: type[_T]) -> dict[str, _T]:
        """Return what nodes answer, by their names; those that fail are heard of later."""
        waiting = {self._fleet.call(node, method, request).number for node in self._fleet.nodes}
        answers: dict[str, _T] = {}
        while waiting:
            for reply in self._fleet.arrived(_ANSWER):
                if reply.call.number in waiting:
                    waiting.remove(reply.call.number)
                    if reply.failure is None:
                        answers[reply.call.node.name] = reply.value(kind)
        return answers

    def _asked_once(self, asked: Sequence[ModelConfig]) -> tuple[WantedModel, ...]:
        """Ask the hub, once for all nodes, what is to be fetched."""
        session, options = self._session, self._options
        client = _HubClient(session.environment, note=self._progress.note)
        client.kept = {}
        try:
            # Nothing is here: what single nodes have, they say themselves.
            with tempfile.TemporaryDirectory(prefix="vlmcache-fleet-") as empty:
                planned: list[PlannedModel] = []
                for model in asked:
                    selection = options.selection
                    if model.variant is not None:
                        selection = msgspec.structs.replace(selection, variant=model.variant)
                    part = prepare_pull(client, empty, model, selection)
                    while isinstance(part.error, VariantError) and options.choose is not None:
                        model = msgspec.structs.replace(model, variant=options.choose(part.error))
                        selection = msgspec.structs.replace(selection, variant=model.variant)
                        part = prepare_pull(client, empty, model, selection)
                    planned.append(part)
                others = prepare_needed(client, empty, planned)
            for part in (*planned, *others):
                if part.error is not None:
                    raise part.error
                self.findings += part.findings
            to_confirm = [part for part in others if part.order is not None]
            asks = options.agree if to_confirm and not options.dry_run else None
            require_consent(asks, to_confirm, "was fetched")
            models = tuple(
                wanted_of(part, options.selection, part.order.restriction)
                for part in (*others, *planned)
                if part.order is not None
            )
            self._keep_given(client, models)
        finally:
            client.stop()
        return models

    def _keep_given(self, client: _HubClient, models: Sequence[WantedModel]) -> None:
        """Keep what the hub has sent already, so that it does not send it again."""
        for model in models:
            for name in model.wanted:
                listed = model.files[name]
                body = client.kept.get(client.file_address(model.repo, model.commit, name))
                if body is None or len(body) != listed.content_size:
                    continue
                digest = new_hash(listed.etag, len(body))
                digest.update(body)
                if digest.hexdigest() == listed.etag:
                    self.given[listed.etag] = body
