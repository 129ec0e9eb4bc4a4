"""What `status` recommends to do next."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from vlmcache import units
from vlmcache.cache import gguf, layout
from vlmcache.cache.completeness import judge
from vlmcache.cache.moved import away_remedy
from vlmcache.cache.state import Away, CacheState
from vlmcache.cache.trash import Trashed, read_trash
from vlmcache.change.known import Known
from vlmcache.change.names import names_in
from vlmcache.change.plan import joined
from vlmcache.commands.pull.room import Shortage
from vlmcache.commands.status.choose import choose
from vlmcache.commands.status.steps import (
    MOST_MODELS,
    Advice,
    CommandPlans,
    PendingDownload,
    fetching,
    not_for,
    plan_download,
)
from vlmcache.commands.status.values import ModelStatus, Recommendation, RepoStatus, Status
from vlmcache.config import Config, ModelConfig, Session

_INCOMPLETE = ("missing", "partial", "damaged")


def what_frees(steps: Iterable[Recommendation], advised: Advice) -> str:
    """Return a command that frees bytes of what nobody chose to keep, or else one that shows sizes.

    A model to remove is never named without its size and last use.
    """
    cleaning = (step.command or "" for step in steps if step.cleans)
    return next(cleaning, advised.command("status", "--all", "--sort", "size"))


def what_makes_room(known: Known, session: Session, short: Shortage, repos: Collection[str]) -> str:
    """Return, in words, what makes room for downloads if evicting is not enough.

    Args:
        known: the cache.
        session: what the command works on.
        short: the disk.
        repos: what is to be downloaded.
    """
    plans = CommandPlans(known, session)
    if not plans.may_evict(short):
        return not_for(session.config.path)
    unused = plans.evictable(repos) if plans.on_cache_disk(short) else ()
    models = [model for model in unused if model.locked is None][:MOST_MODELS]
    if not models:
        file = session.config.path
        if session.config.shipped:
            file = f"a config.yaml of your own, which '{units.command('init')}' writes"
        return f"make room at {short.place}, or lower min_free in {file}"
    advised = Advice(session)
    return "; ".join(
        f"'{advised.command('rm', model.name)}' frees {units.size_text(model.frees)} ({model.used})"
        for model in models
    )


def recommend(advised: Advice, plans: CommandPlans, status: Status) -> list[Recommendation]:
    """Return what to do next, the most useful first.

    Args:
        advised: makes the commands.
        plans: what they would do.
        status: the status, which has no recommendations yet.
    """
    # What the hub does not list, no download repairs.
    unlisted = {
        finding.repo for finding in status.findings if (finding.remedy or "").endswith(" --repair")
    }
    gone = {
        repo.name: repo.linked_to
        for repo in status.repos
        if repo.linked_to is not None and not os.path.isdir(repo.linked_to)
    }
    lost = {finding.repo for finding in status.findings if finding.code == "not-in-base"}
    attachable = _attachable(plans.state, status)
    undoable = _undoable(plans.state, status)
    steps = [
        *_bring_back(advised, status.repos),
        *_attach(advised, attachable),
        *_undo(advised, undoable),
    ]
    for repo in status.repos:
        if repo.away is None and repo.name in gone:
            text = f"{repo.name} was at {repo.linked_to}, which does not exist: remove the link"
            steps.append(advised.recommend(text, "rm", repo.name))
    state = plans.state
    unknown = {model.id: line for model in status.models if (line := _no_variant(state, model))}
    steps += (Recommendation(line, None) for line in unknown.values())
    downloads = [
        pending_download(state, plans.config, model, repair=model.repo in unlisted)
        for model in status.models
        if model.state in _INCOMPLETE
        and model.repo not in {*gone, *attachable, *undoable}
        and model.id not in unknown
    ]
    asked = {model.repo for model in status.models}
    downloads += (
        PendingDownload(
            repo.name,
            repo.name,
            *plan_download(state, ModelConfig(repo.name, repo.name), repo.refs.get("main"), None),
            damaged=repo.state == "damaged",
            repair=repo.state == "damaged" and repo.repo in unlisted,
        )
        for repo in status.repos
        if repo.state == "damaged" or repo.repo in lost or _is_begun(repo, status)
        if layout.is_repo_id(repo.repo)
        if repo.name not in asked and repo.name not in gone
    )
    needed = {
        model.repo
        for model in plans.config.models.values()
        if model.repo not in asked
        and judge(state.repo(model.repo), model.revision, state.repo, variant=model.variant).state
        in _INCOMPLETE
    }
    config = plans.config
    own = msgspec.structs.replace(
        status.cache, min_free=config.evict_for, comfortable_free=config.comfortable_for
    )
    if own.bound is None and status.cache.bound is not None:
        text = f"{status.cache.low}, which only {config.path} asks for"
        steps.append(Recommendation(f"{text}: nothing is removed for that", None))
    steps += choose(advised, plans, own, downloads, needed)
    if not status.configured and config.source == "shipped":
        cached = any(repo.type == "model" and repo.state == "cached" for repo in status.repos)
        what = "the cached models" if cached else "three models to start from"
        text = f"no model is configured: write a config.yaml that lists {what}"
        steps.append(advised.recommend(text, "init"))
    offline = plans.known.environment.offline_by
    if offline is None:
        return steps
    return [
        Recommendation(f"{step.text}: possible once {offline} is not set", None)
        if (step.command or "").startswith("vlmcache pull ")
        else step
        for step in steps
    ]


def _is_begun(repo: RepoStatus, status: Status) -> bool:
    """Return whether somebody began to download a model that no configuration names."""
    return not status.configured and repo.state == "partial" and repo.partials > 0


def _attachable(state: CacheState, status: Status) -> dict[str, str]:
    """Return model -> the base that has it, of those of which nothing is in the cache."""
    bases = {folder: lent.base for (folder, _), lent in state.lent.items()}
    return {
        model.repo: bases[folder]
        for model in status.models
        if (folder := layout.folder_of(model.repo)) in bases and state.repo_in(folder) is None
    }


def _attach(advised: Advice, attachable: Mapping[str, str]) -> Iterator[Recommendation]:
    """Yield commands that link to models that a base has."""
    for base in dict.fromkeys(attachable.values()):
        names = [name for name, attached in attachable.items() if attached == base]
        text = f"in the base {base}: {units.first_of(names, 3)}"
        yield advised.recommend(text, "attach", base)


def _undoable(state: CacheState, status: Status) -> dict[str, Trashed]:
    """Return model -> the last removal that has it in the trash, of those that are missing."""
    trash = read_trash(state.dir) if state.trashed else []
    removals: dict[str, Trashed] = {}
    for model in status.models:
        for trashed in trash if model.state == "missing" else ():
            revisions = trashed.record.revisions if trashed.record is not None else ()
            if any(
                layout.repo_folder(*key[:2]) == layout.folder_of(model.repo) for key in revisions
            ):
                removals[model.repo] = trashed
    return removals


def _undo(advised: Advice, undoable: Mapping[str, Trashed]) -> Iterator[Recommendation]:
    """Yield commands that restore models from the trash; a pull would take them back too."""
    for removal in dict.fromkeys(trashed.id for trashed in undoable.values()):
        names = [name for name, trashed in undoable.items() if trashed.id == removal]
        text = f"in the trash: {units.first_of(names, 3)}"
        yield advised.recommend(text, "undo", removal)


def _bring_back(advised: Advice, repos: Iterable[RepoStatus]) -> Iterator[Recommendation]:
    """Yield what makes repos on a drive that is away reachable again."""
    unmounted: dict[Away, list[str]] = {}
    for repo in repos:
        if repo.away is not None:
            unmounted.setdefault(repo.away, []).append(repo.repo)
    for place, names in unmounted.items():
        text = f"away: {', '.join(names)}"
        if place.found_at is None:
            yield Recommendation(f"{text}; {away_remedy(place)}", None)
        else:
            where = f"the {'base' if place.base else 'drive'} is mounted elsewhere now"
            words = ("attach",) if place.base else ("move", "--relink")
            yield advised.recommend(f"{text}; {where}", *words, place.found_at)


def name_to_pull(state: CacheState, config: Config, model: ModelStatus) -> str:
    """Return what to type for a model of the status."""
    return names_in(state, config).name_of(_to_pull(model))


def _to_pull(model: ModelStatus) -> ModelConfig:
    """Return what is pulled of a model."""
    return ModelConfig(model.key, model.repo, model.revision, variant=_variant_to_pull(model))


def _variant_to_pull(model: ModelStatus) -> str | None:
    """Return the variant that is fetched of a model: without a name, the one that is begun."""
    if model.variant is not None or len(model.variants) < 2 or model.state not in _INCOMPLETE:
        return model.variant
    order = {"damaged": 0, "partial": 1, "cached": 2, "missing": 3}
    return min(model.variants, key=lambda variant: order[variant.state]).name


def _no_variant(state: CacheState, model: ModelStatus) -> str | None:
    """Return that a model does not have the variant that is asked for, with those that it has."""
    repo = state.repo(model.repo)
    tree = repo.trees.get(model.commit or "") if repo is not None else None
    if not tree or model.variant is None or gguf.variants(tree).called(model.variant):
        return None
    listed = ", ".join(
        f"{variant.name} ({units.size_text(variant.size)})" for variant in model.variants
    )
    has = f"it has {listed}" if listed else "it has no GGUF files"
    return f"{model.repo} has no variant {model.variant}: {has}"


def pending_download(
    state: CacheState, config: Config, model: ModelStatus, *, repair: bool = False
) -> PendingDownload:
    """Return what a pull would fetch for a model that is not complete.

    Args:
        state: the cache.
        config: the configuration.
        model: the model.
        repair: whether no pull repairs damage of it.
    """
    damaged = model.state == "damaged"
    repair = damaged and repair
    # `verify` repairs a repo with all its variants.
    named = msgspec.structs.replace(model, variant=None, variants=()) if repair else model
    plan, known = plan_download(state, _to_pull(model), model.commit, model.to_fetch)
    # A pull of it fetches the other repos that it needs too.
    others = (model.to_fetch or 0) - plan.to_fetch if known else 0
    if others > 0:
        plan = joined([plan, fetching(model.repo, others)])
    return PendingDownload(
        name_to_pull(state, config, named),
        model.repo,
        plan,
        known and model.to_fetch is not None,
        damaged=damaged,
        repair=repair,
    )
