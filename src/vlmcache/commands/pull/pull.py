"""`pull`: what is missing of the models asked for is fetched, checked and linked."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.base import bases_beneath
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.state import Finding
from vlmcache.cache.trash import has_trash
from vlmcache.change.abilities import check_filesystem
from vlmcache.change.plan import Failure, Outcome, Plan, Receipt, joined
from vlmcache.change.space import FreeSpace
from vlmcache.commands.pull.making_room import Room, room_for
from vlmcache.commands.pull.plan import DownloadOrder, FileSelection, VariantError, downloads_shown
from vlmcache.commands.pull.prepare import check_result, prepare_needed, prepare_pull
from vlmcache.commands.pull.room import abilities_needed, without_fetches
from vlmcache.commands.pull.values import (
    FileOrigin,
    LeftOut,
    PlannedModel,
    PulledModel,
    PullOptions,
    PullReport,
    PullState,
)
from vlmcache.config import ModelConfig, Session, cached_repos, find_model, name_of, own_home
from vlmcache.errors import (
    CacheError,
    NoSuchRepoError,
    PartlyError,
    SpaceError,
    VlmcacheError,
    require_consent,
)
from vlmcache.home.journal import Journal
from vlmcache.hub.client import Client
from vlmcache.hub.questions import ask_about
from vlmcache.hub.retry import Patience
from vlmcache.hub.sources import HUB
from vlmcache.progress import Progress, Throttle, continued_by
from vlmcache.units import did_you_mean


def pull(
    session: Session,
    names: Sequence[str],
    options: PullOptions | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> PullReport:
    """Download what is missing of models, and only that.

    Args:
        session: what to work on.
        names: keys of config.yaml or repo ids, with an optional `@revision` and `:VARIANT`.
        options: how.
        progress: called as the work proceeds, from several threads.
        patience: how long to try to reach the hub.

    Returns:
        What was done. Its problem says why a model is not complete in the cache now.

    Raises:
        UnknownModelError: a name is neither a key nor a repo id.
        ConfigError: the cache path is not a folder.
    """
    options, progress = options or PullOptions(), progress or Progress()
    _expire(session, options)
    with continued_by(progress, f"'{options.command(session, names)}' continues from here"):
        return _pull(session, names, options, progress, patience)


def _pull(
    session: Session,
    names: Sequence[str],
    options: PullOptions,
    progress: Progress,
    patience: Patience | None,
) -> PullReport:
    models = _models(session, names)
    client = Client(
        session.environment,
        token=options.token,
        throttle=Throttle(options.limit_rate),
        patience=msgspec.structs.replace(patience or Patience(), **options.patience),
        note=progress.note,
    )
    space = FreeSpace(session.cache.dir)
    rows: list[PulledModel] = []
    errors: list[tuple[str, VlmcacheError]] = []
    named = options.sources or session.config.sources
    unusable = _use_sources(session, client, options) if named else []
    try:
        planned = _plan(client, session, models, options)
        fetched: set[tuple[str, str]] = set()
        orders = [part.order for part in planned if part.order is not None]
        plans = [without_fetches(order.plan, fetched) for order in orders]
        joined(plans).log("pull")
        unable = _unwritable(session.cache.dir, plans)
        room = Room(error=unable)
        # Nothing is removed to make room for what cannot be fetched.
        if unable is None and (options.dry_run or client.sources or not client.offline):
            room = room_for(session, names, planned, plans, options)
        unable, outcomes = room.error, [*room.outcomes]
        if unable is not None:
            errors.append(("", unable))
        idle = options.dry_run or unable is not None
        with downloads_shown(progress, [] if idle else orders):
            for part in planned:
                if part.order is not None and idle:
                    row = _row(part, "planned" if part.order.plan.actions else "cached")
                    row = _with_origins(row, client, part.order)
                    if unable is not None and not options.dry_run and row.state == "planned":
                        row = _failed(row, unable)
                    rows.append(row)
                    continue
                row, done, error = _carry_out(client, session, part, options, progress)
                rows.append(row if error is None else _failed(row, error))
                outcomes += done
                if error is not None:
                    errors.append((row.key, error))
    finally:
        client.stop()
    receipt = space.measured(Receipt.of(outcomes))
    uses = client.sources.uses
    dropped = [
        Finding("source-dropped", "warning", None, use.source, f"{use.source}: {use.problem}")
        for use in uses
        if use.problem is not None
    ]
    rows.sort(key=lambda row: row.needed_by is not None)
    report = PullReport(
        tuple(rows),
        joined([room.plan, *plans]),
        None if options.dry_run else receipt,
        (*unusable, *dropped, *(finding for part in planned for finding in part.findings)),
        session.cache.dir,
        sources=uses,
    )
    return report.with_problem(_problem(rows, errors))


def _use_sources(session: Session, client: Client, options: PullOptions) -> list[Finding]:
    """Let the client ask sources before the hub; return findings about those that are unusable."""
    from vlmcache.commands.pull.sources import open_sources

    opened = open_sources(session, client, options.sources, token=options.token)
    client.sources.use(opened.sources, first=bool(options.sources))
    return opened.findings


def _with_origins(row: PulledModel, client: Client, order: DownloadOrder) -> PulledModel:
    """Add to a row where each file comes from, or would come from, if there are sources."""
    if not client.sources.uses:
        return row
    came, planned = client.sources.came_from, order.origins if row.state == "planned" else {}
    files = [
        FileOrigin(fetch.file, came.get(fetch.etag) or planned.get(fetch.etag, HUB), fetch.size)
        for fetch in order.fetches
    ]
    return msgspec.structs.replace(row, origins=tuple(files))


def _unwritable(cache_dir: str, plans: Sequence[Plan]) -> VlmcacheError | None:
    """Return why the filesystem cannot hold what is about to be fetched, `None` if it can."""
    try:
        check_filesystem(cache_dir, abilities_needed(cache_dir, plans))
    except CacheError as error:
        return error
    return None


def _plan(
    client: Client, session: Session, models: Sequence[ModelConfig], options: PullOptions
) -> list[PlannedModel]:
    """Return what is to be done for models, and before them for other repos that they need.

    Raises:
        UnconfirmedError: a person does not want these others.
    """
    bases = bases_beneath(session.cache.dir, session.config.base)
    prepared = partial(_prepared, client, session.cache.dir, bases, options)
    planned = ask_about(client, models, prepared)
    # A person is asked about one model after the other.
    planned = [_with_variant(prepared, part, options) for part in planned]
    planned = [_with_similar(session, part) for part in planned]
    others = prepare_needed(client, session.cache.dir, planned, prepared)
    to_confirm = [part for part in others if part.order is not None and part.order.plan.to_fetch]
    asks = options.agree if to_confirm and not options.dry_run else None
    require_consent(asks, to_confirm, "was fetched")
    # A model is complete once its own files are here, if what it needs came first.
    return [*reversed(others), *planned]


def _with_similar(session: Session, part: PlannedModel) -> PlannedModel:
    """Return it with a hint that names a similar repo, if the hub does not know the one asked for.

    Most of these are typing errors in the id of a repo that is cached or configured.
    """
    if not isinstance(part.error, NoSuchRepoError):
        return part
    configured = [model.repo for model in session.config.models.values()]
    known = {*cached_repos(session.cache), *configured} - {part.model.repo}
    meant = did_you_mean(part.model.repo, sorted(known), 1)
    hint = " ".join(filter(None, (meant, part.error.hint)))
    return part._replace(error=NoSuchRepoError(part.error.message, hint))


def _models(session: Session, names: Sequence[str]) -> list[ModelConfig]:
    """Return the models that names mean, each once."""
    cached = cached_repos(session.cache)
    models = [
        find_model(session.config, name, cached, variants=True, others=True) for name in names
    ]
    return list({(model.repo, model.revision, model.variant): model for model in models}.values())


def _prepared(
    client: Client,
    cache_dir: str,
    bases: Sequence[str],
    options: PullOptions,
    model: ModelConfig,
    selection: FileSelection | None = None,
) -> PlannedModel:
    """Return what is to be done for a model; what the trash has of it is taken back for that."""
    selection = options.selection if selection is None else selection
    if model.variant is not None:
        selection = msgspec.structs.replace(selection, variant=model.variant)
    part = prepare_pull(client, cache_dir, model, selection, bases, kept=options.dry_run)
    if part.order is None or options.dry_run or not (part.order.fetches and has_trash(cache_dir)):
        return part
    from vlmcache.change.trash_room import take_back_blobs

    files = (part.order.files[fetch.file] for fetch in part.order.fetches if fetch.file)
    if take_back_blobs(cache_dir, layout.folder_of(part.order.repo), files):
        return prepare_pull(client, cache_dir, model, selection, bases)
    return part


def _with_variant(
    prepared: Callable[[ModelConfig], PlannedModel], part: PlannedModel, options: PullOptions
) -> PlannedModel:
    """Return what is to be done for a model; if it has several variants, one is chosen."""
    while isinstance(part.error, VariantError) and options.choose is not None:
        chosen = msgspec.structs.replace(part.model, variant=options.choose(part.error))
        part = prepared(chosen)
    return part


def _carry_out(
    client: Client,
    session: Session,
    part: PlannedModel,
    options: PullOptions,
    progress: Progress,
) -> tuple[PulledModel, list[Outcome], VlmcacheError | None]:
    """Fetch one model and remember that it is used; return its row, what was done, what failed."""
    if part.order is not None and part.order.restriction:
        # A server of this cache must know it before the model is complete.
        with Journal(own_home(session.environment)[0]) as memory:
            memory.record_restriction(*layout.split_name(part.order.repo), part.order.restriction)
    row, outcomes, error = _fetch(client, part, options, progress)
    while isinstance(error, SpaceError) and (made := _room_meanwhile(session, part)):
        # Another program has filled the disk meanwhile.
        row, done, error = _fetch(client, _again(client, session, part, options), options, progress)
        outcomes += [*made, *done]
    if isinstance(error, SpaceError):
        name = name_of(session.config, part.model, cached_repos(session.cache))
        error = SpaceError(
            error.message,
            "what has arrived is kept; 'vlmcache status' shows what makes room, "
            f"then '{options.command(session, [name])}' continues",
        )
    order = part.order
    if order is not None and error is None:
        kind, repo_id = layout.split_name(order.repo)
        with Journal(own_home(session.environment)[0]) as memory:
            if order.restriction is None:
                memory.record_restriction(kind, repo_id, None)
            memory.record_use(session.cache.dir, (kind, repo_id, order.commit), "pull")
    return row, outcomes, error


def _fetch(
    client: Client, part: PlannedModel, options: PullOptions, progress: Progress
) -> tuple[PulledModel, list[Outcome], VlmcacheError | None]:
    order = part.order
    if order is None:
        return _row(part, "failed"), [], part.error
    if not order.plan.actions and not order.new_listing:
        return _row(part, "cached"), [], None
    # Imported only here, since most pulls find everything in place.
    from vlmcache.commands.pull.fetch import download

    begun = time.monotonic()
    outcomes, error = download(client, order, progress, options.max_workers)
    if error is None and options.selection.is_plain and part.needed_by is None:
        error = check_result(order, part.model.variant or options.selection.variant)
    row = msgspec.structs.replace(
        _row(part, "pulled" if order.plan.actions else "cached"),
        fetched=sum(outcome.fetched for outcome in outcomes),
        seconds=part.seconds + time.monotonic() - begun,
    )
    return _with_origins(row, client, order), outcomes, error


def _row(part: PlannedModel, state: PullState) -> PulledModel:
    """Return a model's row, as far as the plan says."""
    model, order = part.model, part.order
    row = PulledModel(
        model.key,
        model.repo,
        model.revision,
        state,
        seconds=part.seconds,
        needed_by=part.needed_by.repo if part.needed_by is not None else None,
        variant=model.variant,
    )
    if order is None:
        return row
    return msgspec.structs.replace(
        row,
        commit=order.commit,
        path=order.snapshot,
        files=len(order.wanted),
        to_fetch=order.plan.to_fetch,
        size=sum(order.files[name].content_size for name in order.wanted),
        left_out=tuple(
            sorted(
                (
                    LeftOut(name, order.files[name].content_size, why)
                    for name, why in order.left_out.items()
                ),
                key=lambda file: -file.size,
            )
        ),
    )


def _failed(row: PulledModel, error: VlmcacheError) -> PulledModel:
    return msgspec.structs.replace(row, state="failed", error=Failure.of(error))


def _problem(
    rows: Sequence[PulledModel], errors: Sequence[tuple[str, VlmcacheError]]
) -> VlmcacheError | None:
    """Return the failure that a pull ends with, or `None`; its causes are those of the models.

    Args:
        rows: the models.
        errors: the key of each model that failed and why; an empty key if none could be begun.
    """
    if not errors:
        return None
    failed = [model.key for model in rows if model.state == "failed"]
    first = errors[0][1]
    if len(failed) < len(rows) and not isinstance(first, SpaceError):
        problem: VlmcacheError = PartlyError(
            f"{len(failed)} of {len(rows)} models not pulled: {', '.join(failed)}"
        )
    else:
        problem = first.saying(first.message, first.hint)
    several = len(failed) > 1 or isinstance(problem, PartlyError)
    problem.causes = tuple(
        error.saying(f"{key}: {error.message}", error.hint)
        for key, error in errors
        if key and several
    )
    return problem


def _expire(session: Session, options: PullOptions) -> None:
    if not options.dry_run and has_trash(session.cache.dir):
        from vlmcache.change.trash_room import expire

        expire(session)


def _room_meanwhile(session: Session, part: PlannedModel) -> tuple[Outcome, ...]:
    """Empty the trash for a download whose disk has become too full; return what became of it."""
    order = part.order
    if order is None or not has_trash(session.cache.dir):
        return ()
    from vlmcache.change.trash_room import empty_for, in_trash

    place = nearest_folder(os.path.join(session.cache.dir, layout.folder_of(order.repo)))
    kept, free = in_trash(session, place), shutil.disk_usage(place).free
    wanted = order.plan.needs + session.config.limits.min_free
    # A part of it may have arrived already, so that less than its length can be enough.
    return empty_for(session, place, max(free + 1, min(wanted, free + kept))).outcomes


def _again(
    client: Client, session: Session, part: PlannedModel, options: PullOptions
) -> PlannedModel:
    """Return what is left to do for a model of which a part has arrived."""
    bases = bases_beneath(session.cache.dir, session.config.base)
    selection = FileSelection() if part.needed_by is not None else None
    again = _prepared(client, session.cache.dir, bases, options, part.model, selection)
    return again._replace(needed_by=part.needed_by)
