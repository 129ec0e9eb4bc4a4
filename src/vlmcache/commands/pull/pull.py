"""`pull`: what is missing of the models asked for is fetched, checked and linked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import msgspec

from vlmcache.change.plan import Action, Failure, Fetch, Link, Outcome, Plan, Receipt, joined
from vlmcache.commands.pull.make_room import make_room, what_helps
from vlmcache.commands.pull.plan import VariantError
from vlmcache.commands.pull.prepare import check_result, prepare_needed, prepare_pull
from vlmcache.commands.pull.room import find_shortage
from vlmcache.commands.pull.values import (
    LeftOut,
    PlannedModel,
    PulledModel,
    PullOptions,
    PullReport,
    PullState,
)
from vlmcache.commands.remove.values import UnconfirmedError
from vlmcache.config import ModelConfig, Session, cached_models, find_model, name_of, own_home
from vlmcache.errors import PartlyError, SpaceError, VlmcacheError
from vlmcache.home.journal import Journal
from vlmcache.hub.client import Client
from vlmcache.hub.retry import Patience
from vlmcache.progress import Progress, Throttle


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
    options = options or PullOptions()
    progress = progress or Progress()
    models = _models(session, names)
    client = Client(
        session.environment,
        token=options.token,
        throttle=Throttle(options.limit_rate),
        patience=patience,
        note=progress.note,
    )
    outcomes: list[Outcome] = []
    rows: list[PulledModel] = []
    errors: list[VlmcacheError] = []
    shortage_of = partial(find_shortage, session.cache.dir, session.config.limits)
    try:
        planned = [_prepare(client, session.cache.dir, model, options) for model in models]
        others = prepare_needed(client, session.cache.dir, planned)
        to_confirm = [part for part in others if part.order is not None and part.order.plan.needs]
        asks = options.agree if to_confirm and not options.dry_run else None
        if asks is not None and not asks(to_confirm):
            raise UnconfirmedError("not confirmed: nothing was fetched")
        # What is needed comes first: the model is complete once its own files are here.
        planned = [*reversed(others), *planned]
        plans = _each_blob_once([part.order.plan for part in planned if part.order is not None])
        joined(plans).log("pull")
        shortage = shortage_of(plans)
        room = None
        if shortage is not None and options.make_room:
            room = make_room(session, planned, shortage, options)
            if room is not None and room.receipt is not None:
                outcomes += room.receipt.outcomes
                shortage = shortage_of(plans)
        # A dry run that would make room is short of nothing.
        if shortage is not None and not (options.dry_run and room):
            errors.append(shortage.error(what_helps(session, names, planned, shortage, options)))
        too_full = errors[0] if errors else None
        for part in planned:
            if part.order is not None and (options.dry_run or too_full is not None):
                row = _row(part, "planned" if part.order.plan.actions else "cached")
                if too_full is not None and not options.dry_run and row.state == "planned":
                    row = _failed(row, too_full)
                rows.append(row)
                continue
            row, done, error = _carry_out(client, part, options, progress)
            if isinstance(error, SpaceError):
                name = name_of(session.config, part.model, cached_models(session.cache))
                error = SpaceError(
                    error.message,
                    "what has arrived is kept; 'vlmcache status' shows what makes room, "
                    f"then '{options.command(session, [name])}' continues",
                )
            rows.append(row if error is None else _failed(row, error))
            outcomes += done
            if error is not None:
                errors.append(error)
            elif part.order is not None:
                with Journal(own_home(session.environment)[0]) as memory:
                    memory.record_use(
                        session.cache.dir, "model", part.order.repo, part.order.commit, "pull"
                    )
    except BaseException as interruption:
        if not isinstance(interruption, Exception):
            # The one place that shows failures takes what an interruption carries as its hint.
            interruption.args = (f"'{options.command(session, names)}' continues from here",)
        raise
    finally:
        client.stop()
    receipt = Receipt(
        tuple(outcomes),
        sum(outcome.freed for outcome in outcomes),
        sum(outcome.fetched for outcome in outcomes),
    )
    rows.sort(key=lambda row: row.needed_by is not None)
    report = PullReport(
        tuple(rows),
        joined([*([room.plan] if room is not None else ()), *plans]),
        None if options.dry_run else receipt,
        tuple(finding for part in planned for finding in part.findings),
        session.cache.dir,
    )
    return report.with_problem(_problem(rows, errors))


def _models(session: Session, names: Sequence[str]) -> list[ModelConfig]:
    """Return the models that names mean, each once."""
    cached = cached_models(session.cache)
    models = [find_model(session.config, name, cached, variants=True) for name in names]
    return list({(model.repo, model.revision, model.variant): model for model in models}.values())


def _prepare(
    client: Client, cache_dir: str, model: ModelConfig, options: PullOptions
) -> PlannedModel:
    """Return what is to be done for a model; of several variants one is chosen."""
    selection = options.selection
    if model.variant is not None:
        selection = msgspec.structs.replace(selection, variant=model.variant)
    part = prepare_pull(client, cache_dir, model, selection)
    if isinstance(part.error, VariantError) and options.choose is not None:
        chosen = msgspec.structs.replace(model, variant=options.choose(part.error))
        return _prepare(client, cache_dir, chosen, options)
    return part


def _each_blob_once(plans: Sequence[Plan]) -> list[Plan]:
    """Return plans of which none fetches what one before it does: revisions share blobs."""
    planned: set[tuple[str, str]] = set()
    distinct = []
    for plan in plans:
        actions: list[Action] = []
        needs = plan.needs
        for action in plan.actions:
            if isinstance(action, Fetch) and (action.repo, action.etag) in planned:
                needs -= action.size - action.have
                reason = "the same content as in another revision"
                action = Link(action.repo, action.file, action.path, action.etag, reason)
            actions.append(action)
        planned |= {
            (action.repo, action.etag) for action in plan.actions if isinstance(action, Fetch)
        }
        distinct.append(Plan(tuple(actions), plan.frees, max(0, needs)))
    return distinct


def _carry_out(
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
    done = download(client, order, progress, options.max_workers)
    error = done.error
    if error is None and options.selection.is_plain and part.needed_by is None:
        error = check_result(order, part.model.variant or options.selection.variant)
    row = msgspec.structs.replace(
        _row(part, "pulled" if order.plan.actions else "cached"),
        fetched=sum(outcome.fetched for outcome in done.outcomes),
        seconds=part.seconds + time.monotonic() - begun,
    )
    return row, done.outcomes, error


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
    failure = Failure(error.code, error.message, error.hint, int(error.exit_code))
    return msgspec.structs.replace(row, state="failed", error=failure)


def _problem(rows: Sequence[PulledModel], errors: Sequence[VlmcacheError]) -> VlmcacheError | None:
    """Return the one failure that a pull ends with, or `None`."""
    if not errors:
        return None
    failed = [model.key for model in rows if model.state == "failed"]
    if len(failed) < len(rows) and not isinstance(errors[0], SpaceError):
        return PartlyError(
            f"{len(failed)} of {len(rows)} models not pulled: {', '.join(failed)}", errors[0].hint
        )
    return errors[0]
