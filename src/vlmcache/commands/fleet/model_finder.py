"""What every node is to have after a `fleet pull`: nodes are asked, and the hub if it must be."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence

import msgspec

from vlmcache.cache.hashing import new_hash
from vlmcache.cache.state import Finding, Severity
from vlmcache.commands.fleet.asking import Work, ask_all
from vlmcache.commands.fleet.calls import Fleet
from vlmcache.commands.fleet.known import (
    NOT_ASKED,
    KnownModel,
    KnownModels,
    ModelsRequest,
    RequestedModel,
    by_commit,
    wanted_of,
)
from vlmcache.commands.fleet.parcels import WantedModel
from vlmcache.commands.fleet.pull_values import FleetPullOptions
from vlmcache.commands.pull.plan import VariantError
from vlmcache.commands.pull.prepare import prepare_needed, prepare_pull
from vlmcache.commands.pull.values import PlannedModel
from vlmcache.config import ModelConfig, Session, cached_repos, find_model
from vlmcache.errors import AccessError, HubError, OfflineError, VlmcacheError, require_consent
from vlmcache.hub.client import Client
from vlmcache.hub.quick import commit_of
from vlmcache.progress import Progress


class _HubClient(Client):
    """A hub's client that keeps the small contents that it reads to plan with."""

    kept: dict[str, bytes]

    def content(self, address: str) -> bytes | None:
        """Return a small file, and keep it."""
        body = super().content(address)
        if body is not None:
            self.kept[address] = body
        return body


class WantedModelFinder:
    """Finds out which models, at which commits, every node is to have.

    Args:
        session: of the driver.
        names: keys of config.yaml or repo ids, with an optional `@revision` and `:VARIANT`.
        options: how to pull.
        progress: is given notes.

    Raises:
        UnknownModelError: a name is neither a key nor a repo id.
    """

    def __init__(
        self, session: Session, names: Sequence[str], options: FleetPullOptions, progress: Progress
    ) -> None:
        self._options = options
        self._progress = progress
        cached = cached_repos(session.cache)
        named = [
            find_model(session.config, name, cached, variants=True, others=True) for name in names
        ]
        self._named = list({(m.repo, m.revision, m.variant): m for m in named}.values())
        self._client = _HubClient(session.environment, note=progress.note)
        self._client.kept = {}
        self.findings: list[Finding] = []
        self.given: dict[str, bytes] = {}
        """Etag -> small content that the hub has sent already."""

    def warm_up(self) -> None:
        """Import the hub's client, which takes long; nothing is asked."""
        # What is wrong with its settings is reported when it is asked.
        with contextlib.suppress(VlmcacheError):
            if not self._client.offline:
                self._client.headers  # noqa: B018 - they are built with it

    def models(self, fleet: Fleet) -> tuple[WantedModel, ...]:
        """Return what every node is to have: from nodes if they know it, else from the hub.

        Raises:
            VlmcacheError: neither the hub nor the nodes say what is to be fetched.
        """
        questions = [RequestedModel.of(model, self._options.selection) for model in self._named]
        request = ModelsRequest(tuple(questions))
        requests = {node.id: request for node in fleet.nodes}
        replies = ask_all(fleet, Work("pull-known"), requests, self._progress).values()
        # Nodes that fail are heard of later.
        answers = [reply.value(KnownModels) for reply in replies if reply.failure is None]
        known = [
            by_commit(answer.models[number] for answer in answers)
            for number in range(len(questions))
        ]
        try:
            current = self._current(questions, known) if all(known) else None
            return self._from_hub() if current is None else current
        except HubError as error:
            if isinstance(error, AccessError) or not all(len(commits) == 1 for commits in known):
                raise
            only = [next(iter(commits.values())) for commits in known]
            self.findings += (_not_asked(model.model, error) for model in only)
            return self._taken(only)
        finally:
            self._client.stop()

    def _current(
        self, questions: Sequence[RequestedModel], known: Sequence[Mapping[str, KnownModel]]
    ) -> tuple[WantedModel, ...] | None:
        """Return what nodes have of each model if that is what its revision means now."""
        current: list[KnownModel] = []
        for asked, commits in zip(questions, known, strict=True):
            commit: str | None = asked.revision
            if asked.revision not in commits:
                commit = commit_of(self._client, asked.repo, asked.revision)
            if commit is None or commit not in commits:
                return None
            current.append(commits[commit])
        return self._taken(current)

    def _taken(self, known: Sequence[KnownModel]) -> tuple[WantedModel, ...]:
        for model in known:
            self.findings += model.findings
        return tuple(model.model for model in known)

    def _from_hub(self) -> tuple[WantedModel, ...]:
        """Ask the hub, once for all nodes, what is to be fetched."""
        options, client = self._options, self._client
        # Nothing is here: what single nodes have, they say themselves.
        with tempfile.TemporaryDirectory(prefix="vlmcache-fleet-") as empty:
            planned = [self._planned(model, empty) for model in self._named]
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
        self._keep_given(models)
        return models

    def _planned(self, model: ModelConfig, cache_dir: str) -> PlannedModel:
        """Return what is to be fetched of a model, of the variant that a person chooses."""
        options = self._options
        while True:
            asked = RequestedModel.of(model, options.selection)
            part = prepare_pull(self._client, cache_dir, model, asked.selection)
            if not isinstance(part.error, VariantError) or options.choose is None:
                return part
            model = msgspec.structs.replace(model, variant=options.choose(part.error))

    def _keep_given(self, models: Sequence[WantedModel]) -> None:
        """Keep what the hub has sent already, so that it does not send it again."""
        client = self._client
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


def _not_asked(model: WantedModel, error: HubError) -> Finding:
    """Return that a model is pulled as nodes have it, since the hub does not answer."""
    severity: Severity = "info" if isinstance(error, OfflineError) else "warning"
    detail = (
        f"as nodes have it, at commit {model.commit}; whether there is a newer one is not known: "
        f"{error.message}"
    )
    return Finding(NOT_ASKED, severity, model.repo, "", detail, error.hint)
