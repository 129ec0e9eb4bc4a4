"""`status --outdated`: what the hub has that is newer than what is cached."""

from __future__ import annotations

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding
from vlmcache.change.pulling import Selection, plan_pull
from vlmcache.config import CacheLocation, Config, Environment
from vlmcache.errors import VlmcacheError
from vlmcache.hub.client import Client, Patience
from vlmcache.hub.listing import list_files, resolve
from vlmcache.overview import Advice, ModelStatus, Outdated, Status
from vlmcache.units import size_text


def with_updates(
    status: Status,
    config: Config,
    location: CacheLocation,
    environment: Environment,
    patience: Patience | None = None,
) -> Status:
    """Return the status with the newer revisions that the hub has of the models in it.

    Models of which nothing is cached, and those pinned to a commit, are not asked about. A hub that
    does not answer becomes a finding.
    """
    asked = [
        model
        for model in status.models
        if model.commit is not None and layout.COMMIT.fullmatch(model.revision) is None
    ]
    if not asked:
        return status
    findings = list(status.findings)
    found: dict[tuple[str, str], Outdated] = {}
    folders = {layout.repo_folder("model", model.repo) for model in asked}
    state = scan(status.cache.dir, only=folders)
    client = Client(environment, patience=patience or Patience(asks=2))
    for model in asked:
        try:
            newer = _newer(client, state, model)
        except VlmcacheError as error:
            findings.append(
                Finding(
                    "hub-not-asked",
                    "warning",
                    model.repo,
                    model.path or "",
                    error.message,
                    error.hint,
                )
            )
            continue
        if newer is not None:
            found[model.repo, model.revision] = newer
    models = tuple(
        msgspec.structs.replace(model, outdated=found.get((model.repo, model.revision)))
        for model in status.models
    )
    steps = list(status.recommendations)
    behind = [model for model in models if model.outdated is not None]
    if behind:
        names = [model.key for model in behind]
        fetch = sum(model.outdated.fetch for model in behind if model.outdated is not None)
        text = f"newer on the hub: {', '.join(names)}; {size_text(fetch)} to fetch"
        steps.append(Advice(config, location).recommend(text, "pull", *names))
    return msgspec.structs.replace(
        status, models=models, recommendations=tuple(steps), findings=tuple(findings)
    )


def _newer(client: Client, state: CacheState, model: ModelStatus) -> Outdated | None:
    commit = resolve(client, model.repo, model.revision).commit
    if commit == model.commit:
        return None
    files = list_files(client, model.repo, commit)
    wanted = Selection().choose(model.repo, files)
    plan = plan_pull(state, model.repo, model.revision, commit, files, wanted)
    return Outdated(commit, plan.needs)
