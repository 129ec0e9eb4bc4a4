"""`status --outdated`: what the hub has that is newer than what is cached."""

from __future__ import annotations

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding
from vlmcache.change.plan import Plan
from vlmcache.commands.pull.plan import FileSelection, Listing, plan_pull
from vlmcache.commands.pull.room import find_shortage
from vlmcache.commands.status.recommend import name_to_pull, pending_download
from vlmcache.commands.status.steps import Advice
from vlmcache.commands.status.values import ModelStatus, Outdated, Recommendation, Status
from vlmcache.config import Session
from vlmcache.errors import VlmcacheError
from vlmcache.hub.client import Client
from vlmcache.hub.listing import find_commit, list_files
from vlmcache.hub.retry import Patience
from vlmcache.units import size_text


def with_updates(session: Session, status: Status, patience: Patience | None = None) -> Status:
    """Return the status with the newer revisions that the hub has of the models in it.

    Models of which nothing is cached, and those pinned to a commit, are not asked about. A hub that
    does not answer becomes a finding.
    """
    environment, config, location = session
    asked = [
        model
        for model in status.models
        if model.commit is not None and layout.COMMIT.fullmatch(model.revision) is None
    ]
    if not asked:
        return status
    findings = list(status.findings)
    newer: dict[tuple[str, str], tuple[Outdated, Plan]] = {}
    folders = {layout.repo_folder("model", model.repo) for model in status.models}
    state = scan(status.cache.dir, only=folders)
    client = Client(environment, patience=patience or Patience(asks=2))
    for model in asked:
        try:
            update = _newer(client, state, model)
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
        else:
            if update is not None:
                newer[model.repo, model.revision] = update
    models = tuple(
        msgspec.structs.replace(model, outdated=newer[model.repo, model.revision][0])
        if (model.repo, model.revision) in newer
        else model
        for model in status.models
    )
    steps = list(status.recommendations)
    # A pull of an incomplete model fetches the newest anyway, and needs its room first.
    behind = [model for model in models if model.outdated is not None and model.state == "cached"]
    if behind:
        updates = [newer[model.repo, model.revision][1] for model in behind]
        names = [name_to_pull(state, config, model) for model in behind]
        size = size_text(sum(plan.needs for plan in updates))
        text = f"newer on the hub: {', '.join(names)}; {size} to fetch"
        first = [
            pending_download(state, config, model).plan
            for model in models
            if model.state != "cached"
        ]
        short = find_shortage(location.dir, config.limits, [*first, *updates])
        if short is None:
            steps.append(Advice(session).recommend(text, "pull", *names))
        else:
            steps.append(Recommendation(f"{text}, {size_text(short.short)} short", None))
    return msgspec.structs.replace(
        status, models=models, recommendations=tuple(steps), findings=tuple(findings)
    )


def _newer(client: Client, state: CacheState, model: ModelStatus) -> tuple[Outdated, Plan] | None:
    """Return what the hub has, if it is another commit, and the plan of a pull of it."""
    commit = find_commit(client, model.repo, model.revision).commit
    if commit == model.commit:
        return None
    files = list_files(client, model.repo, commit)
    wanted = FileSelection().choose(model.repo, files)
    plan = plan_pull(state, model.repo, model.revision, Listing(commit, files), wanted)
    return Outdated(commit, plan.needs), plan
