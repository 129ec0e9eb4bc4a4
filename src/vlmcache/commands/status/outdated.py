"""`status --outdated`: what the hub has that is newer than what is cached, if it can be asked."""

from __future__ import annotations

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding, Severity
from vlmcache.change.plan import Plan
from vlmcache.commands.pull.plan import FileSelection, Listing, plan_pull
from vlmcache.commands.pull.room import find_shortage
from vlmcache.commands.status.recommend import name_to_pull, pending_download
from vlmcache.commands.status.steps import Advice
from vlmcache.commands.status.values import ModelStatus, Outdated, Recommendation, Status
from vlmcache.config import Environment, Session
from vlmcache.errors import VlmcacheError
from vlmcache.hub import settings
from vlmcache.hub.client import Client
from vlmcache.hub.listing import find_commit, list_files
from vlmcache.hub.questions import ask_about
from vlmcache.hub.retry import Patience
from vlmcache.progress import Progress
from vlmcache.units import size_text


def with_updates(
    session: Session,
    status: Status,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Status:
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
    newer: dict[str, tuple[Outdated, Plan]] = {}
    folders = {layout.repo_folder("model", model.repo) for model in status.models}
    state = scan(status.cache.dir, only=folders)
    client = Client(
        environment,
        patience=patience or Patience(asks=1, growth=1.0),
        note=(progress or Progress()).note,
    )
    # A hub that does not answer the first question is not asked the others.
    updates = [
        update
        for some in (asked[:1], asked[1:])
        for update in ask_about(client, some, lambda model: _newer(client, state, model))
    ]
    for model, update in zip(asked, updates, strict=True):
        if isinstance(update, VlmcacheError):
            findings.append(
                Finding(
                    "hub-not-asked",
                    "warning",
                    model.repo,
                    model.path or "",
                    update.message,
                    update.hint,
                )
            )
        elif update is not None:
            newer[model.id] = update
    models = tuple(
        msgspec.structs.replace(model, outdated=newer[model.id][0]) if model.id in newer else model
        for model in status.models
    )
    steps = list(status.recommendations)
    # A pull of an incomplete model fetches the newest anyway, and needs its room first.
    behind = [model for model in models if model.outdated is not None and model.state == "cached"]
    if behind:
        plans = [newer[model.id][1] for model in behind]
        names = [name_to_pull(state, config, model) for model in behind]
        size = size_text(sum(plan.to_fetch for plan in plans))
        text = f"newer on the hub: {', '.join(names)}; {size} to fetch"
        first = [
            pending_download(state, config, model).plan
            for model in models
            if model.state != "cached"
        ]
        short = find_shortage(location.dir, config.limits, [*first, *plans])
        if short is None:
            steps.append(Advice(session).recommend(text, "pull", *names))
        else:
            steps.append(Recommendation(f"{text}, {size_text(short.short)} short", None))
    return msgspec.structs.replace(
        status, models=models, recommendations=tuple(steps), findings=tuple(findings)
    )


def check_connection(environment: Environment, path: str) -> list[Finding]:
    """Return what keeps the hub's client from being built, and what is set in vain.

    The client is built as a pull would build it; nothing is asked of the hub.

    Args:
        environment: the variables.
        path: where the findings are filed.
    """
    problems: list[VlmcacheError] = [
        *settings.unusable(environment),
        *settings.bad_certificates(environment),
        *settings.bad_key_log(environment),
    ]
    if not problems:
        try:
            Client(environment).headers  # noqa: B018 - they are what is sent with each request
        except VlmcacheError as error:
            problems = [error]
    worst: Severity = "warning" if environment.offline_by else "error"
    rows: list[tuple[Severity, VlmcacheError]] = [
        *((worst, problem) for problem in problems),
        *(("warning", problem) for problem in settings.odd_folder(environment)),
        *(("info", problem) for problem in settings.not_read(environment)),
    ]
    return [
        Finding("configuration", severity, None, path, problem.message, problem.hint)
        for severity, problem in rows
    ]


def _newer(
    client: Client, state: CacheState, model: ModelStatus
) -> tuple[Outdated, Plan] | VlmcacheError | None:
    """Return another commit that the hub has, with the plan of its pull, or why it is not known."""
    try:
        commit = find_commit(client, model.repo, model.revision).commit
        if commit == model.commit:
            return None
        files = list_files(client, model.repo, commit)
        wanted = FileSelection(variant=model.variant).choose(model.repo, files).wanted
    except VlmcacheError as error:
        return error
    plan = plan_pull(state, model.repo, model.revision, Listing(commit, files), wanted)
    return Outdated(commit, plan.to_fetch), plan
