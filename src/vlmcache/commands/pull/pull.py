"""`pull`: what is missing of the models asked for, fetched, checked and linked."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.completeness import judge
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.moved import away_error
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding, TreeFile
from vlmcache.change.place import check_places
from vlmcache.change.plan import Action, Failure, Fetch, Link, Outcome, Plan, Receipt, joined
from vlmcache.commands.pull.plan import Order, Selection, plan_pull
from vlmcache.commands.pull.room import Shortage, find_shortage, make_room, same_disk
from vlmcache.commands.pull.values import Options, Part, Pulled, PulledModel, PullState, Run
from vlmcache.config import (
    CacheLocation,
    Config,
    Environment,
    ModelConfig,
    cached_models,
    find_model,
    name_of,
    options_in_force,
    own_home,
)
from vlmcache.errors import PartlyError, SpaceError, UsageError, VlmcacheError
from vlmcache.home.journal import Journal
from vlmcache.hub.client import Client, Patience
from vlmcache.hub.errors import (
    AccessError,
    HostileListingError,
    HubError,
    NoSuchFileError,
    OfflineError,
)
from vlmcache.hub.listing import check_access, check_names, list_files, resolve
from vlmcache.hub.quick import commit_of
from vlmcache.progress import Pace, Watcher


def pull(
    config: Config,
    location: CacheLocation,
    environment: Environment,
    names: Sequence[str],
    options: Options | None = None,
    watcher: Watcher | None = None,
) -> Pulled:
    """Download what is missing of models, and only that.

    Args:
        config: the configuration in force.
        location: the cache.
        environment: the variables in force.
        names: keys of config.yaml or repo ids, with an optional `@revision`.
        options: how.
        watcher: is told of the progress, from several threads.

    Raises:
        VlmcacheError: a model is not whole in the cache now; the message says why.
    """
    run = run_pull(config, location, environment, names, options, watcher)
    if run.error is not None:
        raise run.error
    return run.value


def run_pull(
    config: Config,
    location: CacheLocation,
    environment: Environment,
    names: Sequence[str],
    options: Options | None = None,
    watcher: Watcher | None = None,
    patience: Patience | None = None,
) -> Run:
    """Do as `pull` does with the same arguments, and return what was done beside what failed.

    `patience` says how long to try.

    Raises:
        UnknownModelError: a name is neither a key nor a repo id.
        ConfigError: the cache path is no folder.
    """
    options = options or Options()
    watcher = watcher or Watcher()
    models = _models(config, location, names)
    client = Client(
        environment,
        token=options.token,
        pace=Pace(options.limit_rate),
        patience=patience,
        note=watcher.note,
    )
    findings: list[Finding] = []
    outcomes: list[Outcome] = []
    done: list[PulledModel] = []
    errors: list[VlmcacheError] = []
    try:
        parts = [_plan(client, location.dir, model, options, findings) for model in models]
        plans = _each_blob_once([part.order.plan for part in parts if part.order is not None])
        whole_plan = joined(plans)
        shortage = find_shortage(location.dir, config.limits, plans)
        room = None
        if shortage is not None and options.make_room:
            room = make_room(environment, config, location, parts, shortage, options)
            if room is not None and room.receipt is not None:
                outcomes += room.receipt.outcomes
                shortage = find_shortage(location.dir, config.limits, plans)
        # A dry run that would make room is short of nothing.
        short = (
            None
            if shortage is None or (options.dry_run and room)
            else shortage.error(
                _what_helps(environment, config, location, names, parts, shortage, options)
            )
        )
        for part in parts:
            if part.order is not None and (options.dry_run or short is not None):
                row = _described(part, "planned" if part.order.plan.actions else "cached")
                if short is not None and not options.dry_run and row.state == "planned":
                    row = _failed(msgspec.structs.replace(row, state="failed"), short)
                done.append(row)
                continue
            name = name_of(config, part.model, cached_models(location))
            again = _same_command(config, location, [name], options)
            result, made, error = _carry_out(client, part, options, watcher, again)
            done.append(result)
            outcomes += made
            if error is not None:
                errors.append(error)
            elif part.order is not None:
                with Journal(own_home(environment)[0]) as memory:
                    memory.record_use(
                        location.dir, "model", part.order.repo, part.order.commit, "pull"
                    )
    except BaseException as interruption:
        if not isinstance(interruption, Exception):
            # The one place that shows failures takes what an interruption carries as its hint.
            again = _same_command(config, location, names, options)
            interruption.args = (f"'{again}' goes on from here",)
        raise
    finally:
        client.stop()
    if short is not None:
        errors.insert(0, short)
    receipt = Receipt(
        tuple(outcomes),
        sum(outcome.freed for outcome in outcomes),
        sum(outcome.fetched for outcome in outcomes),
    )
    if room is not None:
        whole_plan = joined([room.plan, whole_plan])
    shown = None if options.dry_run else receipt
    value = Pulled(tuple(done), whole_plan, shown, tuple(findings), location.dir)
    return Run(value, _summed_up(done, errors))


def _same_command(
    config: Config, location: CacheLocation, names: Sequence[str], options: Options
) -> str:
    """Return the command line that pulls the same again; a token is not for it."""
    words = list(names)
    for name, patterns in (
        ("--include", options.selection.include),
        ("--exclude", options.selection.exclude),
    ):
        for pattern in patterns:
            words += [name, pattern]
    if options.selection.every:
        words.append("--all-files")
    return units.command("pull", *words, *options_in_force(config, location))


def _models(config: Config, location: CacheLocation, names: Sequence[str]) -> list[ModelConfig]:
    """Return the models that names mean, each once."""
    cached = cached_models(location)
    models = {(m.repo, m.revision): m for m in (find_model(config, n, cached) for n in names)}
    return list(models.values())


def _plan(
    client: Client,
    cache_dir: str,
    model: ModelConfig,
    options: Options,
    findings: list[Finding],
) -> Part:
    """Ask the hub, look at the cache, and return what is to be done for a model."""
    begun = time.monotonic()
    try:
        state = scan(cache_dir, only={layout.repo_folder("model", model.repo)})
        repo = state.repo(model.repo)
        if repo is not None and repo.away is not None:
            raise away_error(repo, repo.away)
        held = _held_whole(state, model, options.selection)
        if held is not None and _is_current(client, state, model, held):
            order = held
        else:
            order = _ask_or_hold(client, state, model, options.selection, held, findings)
        check_places(one.path for one in order.plan.actions if isinstance(one, Fetch | Link))
    except VlmcacheError as error:
        return Part(model, error=error, seconds=time.monotonic() - begun)
    code = sorted(name for name in order.wanted if name.endswith(".py"))
    if code:
        advice = f"to trust just this code: revision: {order.commit}"
        findings.append(
            Finding(
                "remote-code",
                "info",
                model.repo,
                _snapshot(order),
                f"remote code at commit {order.commit} ({', '.join(code)}); nothing of it was run",
                None if model.revision == order.commit else advice,
            )
        )
    return Part(model, order, seconds=time.monotonic() - begun)


def _is_current(client: Client, state: CacheState, model: ModelConfig, held: Order) -> bool:
    """Whether what is cached is all there is to know, without a question or by a quick one."""
    repo = state.repo(model.repo)
    revision = repo.revision(held.commit) if repo is not None else None
    if revision is None or revision.tree is None:
        return False
    pinned = held.commit == model.revision
    return pinned or commit_of(client, model.repo, model.revision) == held.commit


def _ask_or_hold(
    client: Client,
    state: CacheState,
    model: ModelConfig,
    selection: Selection,
    held: Order | None,
    findings: list[Finding],
) -> Order:
    """Ask the hub, or be content with what is cached where it does not answer."""
    try:
        return _ask(client, state, model, selection, findings, hurried=held is not None)
    except HubError as error:
        if held is None or isinstance(error, AccessError):
            raise
        findings.append(_unasked(model, held, error))
        return held


def _ask(
    client: Client,
    state: CacheState,
    model: ModelConfig,
    selection: Selection,
    findings: list[Finding],
    *,
    hurried: bool,
) -> Order:
    attempts = 1 if hurried else None
    commit = model.revision
    # Of a pinned commit it is not known, since nothing has been asked.
    gated = True
    if layout.COMMIT.fullmatch(commit) is None:
        resolved = resolve(client, model.repo, model.revision, attempts=attempts)
        commit, gated = resolved.commit, resolved.gated
        if resolved.name != model.repo:
            findings.append(
                Finding(
                    "renamed",
                    "info",
                    model.repo,
                    os.path.join(state.dir, layout.repo_folder("model", model.repo)),
                    f"the hub calls it {resolved.name} now; the cache keeps the name asked for",
                )
            )
    repo = state.repo(model.repo)
    revision = repo.revision(commit) if repo is not None else None
    listing = revision.tree if revision is not None else None
    try:
        check_names(model.repo, listing or {})
    except HostileListingError:
        # Whoever wrote it here, the hub may say otherwise.
        listing = None
    new = listing is None
    if listing is None:
        listing = list_files(client, model.repo, commit, attempts=attempts)
    if not listing:
        raise NoSuchFileError(f"{model.repo}@{model.revision} holds no files")
    wanted = frozenset(selection.choose(model.repo, listing))
    if len({name.casefold() for name in wanted}) < len(wanted) and ignores_case(state.dir):
        raise HostileListingError(
            f"{model.repo} has files whose names differ by case only, and this filesystem holds "
            "but one of them",
            "--exclude one, or name a cache on another filesystem with --cache-dir",
        )
    plan = plan_pull(state, model.repo, model.revision, commit, listing, wanted)
    if gated and plan.needs:
        # The listing is for all, the files are not: better told before anything is written.
        check_access(client, model.repo)
    return Order(state.dir, model.repo, commit, listing, wanted, plan, new)


def ignores_case(path: str) -> bool:
    """Return whether the filesystem that a path is on, or would be, takes `a` and `A` for one."""
    place = nearest_folder(path)
    while place.swapcase() == place and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    try:
        return place.swapcase() != place and os.path.samefile(place, place.swapcase())
    except OSError:
        return False


def _held_whole(state: CacheState, model: ModelConfig, selection: Selection) -> Order | None:
    """Return an order of nothing to do, if the cache alone can tell that all is there."""
    repo = state.repo(model.repo)
    judgement = judge(repo, model.revision)
    if judgement.state != "cached" or judgement.revision is None:
        return None
    commit, listing = judgement.revision.commit, judgement.revision.tree
    if listing is None:
        # An older client's: what loading needs is there, and more cannot be said.
        if selection != Selection():
            return None
        files = {file.name: TreeFile(file.size, "") for file in judgement.revision.files}
        names = frozenset(files)
        return Order(state.dir, model.repo, commit, files, names, Plan(()), new_listing=False)
    try:
        wanted = frozenset(selection.choose(model.repo, listing))
    except UsageError:
        return None
    plan = plan_pull(state, model.repo, model.revision, commit, listing, wanted)
    if plan.actions:
        return None
    return Order(state.dir, model.repo, commit, listing, wanted, plan, new_listing=False)


def _unasked(model: ModelConfig, held: Order, error: HubError) -> Finding:
    offline = isinstance(error, OfflineError)
    reason = "HF_HUB_OFFLINE is set" if offline else error.message
    return Finding(
        "hub-not-asked",
        "info" if offline else "warning",
        model.repo,
        _snapshot(held),
        f"cached at commit {held.commit}; whether there is a newer one is not known: {reason}",
    )


def _snapshot(order: Order) -> str:
    folder = layout.repo_folder("model", order.repo)
    return os.path.join(order.cache_dir, folder, layout.SNAPSHOTS, order.commit)


def _each_blob_once(plans: Sequence[Plan]) -> list[Plan]:
    """Return plans of which none fetches what one before it does: revisions share blobs."""
    planned: set[tuple[str, str]] = set()
    found = []
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
        found.append(Plan(tuple(actions), plan.frees, max(0, needs)))
    return found


def _what_helps(
    environment: Environment,
    config: Config,
    location: CacheLocation,
    names: Sequence[str],
    parts: Sequence[Part],
    shortage: Shortage,
    options: Options,
) -> str:
    """Return the hint of a pull that there is no room for: only what its plan says would help."""
    # Only here, since most pulls need no room.
    from vlmcache.commands.remove.facts import Known
    from vlmcache.commands.status.recommend import what_makes_room

    planned = msgspec.structs.replace(options, dry_run=True)
    if not options.make_room and make_room(environment, config, location, parts, shortage, planned):
        again = _same_command(config, location, names, options)
        return f"'{again} --make-room' proposes what to evict; or lower min_free"
    known = Known(environment, scan(location.dir))
    repos = {part.model.repo for part in parts}
    helps = what_makes_room(known, config, location, shortage, repos)
    if shortage.min_free <= config.evict_for and same_disk(shortage.place, location.dir):
        return f"evicting would not make enough room, and so nothing was evicted; {helps}"
    return helps


def _carry_out(
    client: Client, part: Part, options: Options, watcher: Watcher, again: str
) -> tuple[PulledModel, list[Outcome], VlmcacheError | None]:
    order = part.order
    if order is None:
        assert part.error is not None
        return _failed(_described(part, "failed"), part.error), [], part.error
    if not order.plan.actions and not order.new_listing:
        return _described(part, "cached"), [], None
    # Only here, since most pulls find all in place.
    from vlmcache.commands.pull.fetch import carry_out

    begun = time.monotonic()
    done = carry_out(client, order, watcher, options.max_workers)
    fetched = sum(outcome.fetched for outcome in done.outcomes)
    result = msgspec.structs.replace(
        _described(part, "pulled" if order.plan.actions else "cached"),
        fetched=fetched,
        seconds=part.seconds + time.monotonic() - begun,
    )
    error = done.error
    if error is not None:
        if isinstance(error, SpaceError):
            hint = (
                "what has arrived is kept; 'vlmcache status' shows what makes room, "
                f"then '{again}' continues"
            )
            error = SpaceError(error.message, hint)
        result = _failed(msgspec.structs.replace(result, state="failed"), error)
    return result, done.outcomes, error


def _described(part: Part, state: PullState) -> PulledModel:
    """Return a model's row, as far as the plan tells."""
    model, order = part.model, part.order
    row = PulledModel(model.key, model.repo, model.revision, state, seconds=part.seconds)
    if order is None:
        return row
    return msgspec.structs.replace(
        row,
        commit=order.commit,
        path=_snapshot(order),
        files=len(order.wanted),
        size=sum(order.files[name].content_size for name in order.wanted),
    )


def _failed(row: PulledModel, error: VlmcacheError) -> PulledModel:
    failure = Failure(error.code, error.message, error.hint, int(error.exit_code))
    return msgspec.structs.replace(row, error=failure)


def _summed_up(
    done: Sequence[PulledModel], errors: Sequence[VlmcacheError]
) -> VlmcacheError | None:
    """Return the one failure that a run ends with, or `None`."""
    if not errors:
        return None
    failed = [model.key for model in done if model.state == "failed"]
    if len(failed) < len(done) and not isinstance(errors[0], SpaceError):
        return PartlyError(
            f"{len(failed)} of {len(done)} models not pulled: {', '.join(failed)}", errors[0].hint
        )
    return errors[0]
