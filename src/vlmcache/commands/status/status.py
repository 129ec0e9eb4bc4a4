"""`status`: each model's state, the cache's bytes, the room on the disk, and what to type next."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone

import msgspec

from vlmcache import units
from vlmcache.cache import gguf, layout
from vlmcache.cache.amounts import amounts_of, revision_sizes
from vlmcache.cache.completeness import (
    Content,
    Judgement,
    judge,
    judge_repo,
    judge_revision,
    read_content,
    reader,
    remarks,
    worst,
)
from vlmcache.cache.formats import CONFIG
from vlmcache.cache.lending import with_bases
from vlmcache.cache.memory import (
    MemoryEstimate,
    estimate,
    has_accelerator,
    native_kernels,
    rescale,
    with_overhead,
)
from vlmcache.cache.model_configs import decoded, stored_precision
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding, Repo, Revision, State
from vlmcache.cache.trash import with_trash
from vlmcache.cache.weights import Precision
from vlmcache.change.known import Known
from vlmcache.change.names import names_in
from vlmcache.commands.status.filters import parse_filter, select
from vlmcache.commands.status.recommend import recommend
from vlmcache.commands.status.steps import Advice, CommandPlans, last_used_at
from vlmcache.commands.status.values import (
    Elsewhere,
    MemorySource,
    ModelStatus,
    RepoStatus,
    RevisionStatus,
    Status,
    VariantStatus,
    estimate_of,
    found_damaged,
    second_caches,
    shipped_models,
    summarize_cache,
)
from vlmcache.config import ModelConfig, Session, own_home
from vlmcache.home.copies import KeptCopy, list_copies
from vlmcache.home.journal import read_damaged
from vlmcache.scheduled import read_outcomes


def status(session: Session, names: Sequence[str] = (), *, context: int = 0) -> Status:
    """Return the state of the cache and of the models asked for (all configured ones by default).

    Nothing is changed and no network is touched.

    Args:
        session: the environment, the configuration and the hub cache.
        names: keys or repo ids, with an optional `@revision` and `:VARIANT`; those of datasets and
            spaces begin with `datasets/` and `spaces/`.
        context: tokens of the context that the memory estimates hold the key-value cache of.

    Raises:
        ConfigError: the cache path is not a folder.
        UnknownModelError: a name is neither a key nor a repo id.
    """
    environment, config, location = session
    state = scan(location.dir)
    state = with_bases(state, config.base, read_damaged(environment))
    known_names = names_in(state, session.config, variants=True)
    wanted = [known_names.model(name, others=True) for name in names] or [
        known_names.respelled(model) for model in config.listed.values()
    ]
    findings = list(state.all_findings())
    findings += (
        Finding("configuration", "warning", None, config.path, warning, None)
        for warning in config.notices
    )
    known = Known(environment, with_trash(state))
    state = known.state
    summary = summarize_cache(session, state, known.mount)
    models = tuple(_model_status(known, model, findings, context) for model in wanted)
    repos = [_repo_status(known, repo) for repo in state.repos]
    if not wanted:
        repos.sort(key=lambda repo: -repo.size_on_disk)
    findings += (finding for repo in state.repos for finding in found_damaged(repo))
    findings += _found_elsewhere(session, state, models)
    advised = Advice(session)
    shown = Status(
        summary,
        models,
        tuple(repos),
        (),
        tuple(findings),
        elsewhere=tuple(_elsewhere(state)),
        configured=bool(wanted),
    )
    steps = recommend(advised, CommandPlans(known, session), shown)
    home = own_home(environment)[0]
    copies = tuple(list_copies(home))
    findings = [advised.completed(finding) for finding in findings]
    findings += _about_copies(advised, copies)
    return msgspec.structs.replace(
        shown,
        recommendations=tuple(steps),
        findings=tuple(findings),
        copies=copies,
        schedules=read_outcomes(home),
    )


def select_rows(status: Status, filters: Sequence[str], sort: str | None) -> Status:
    """Return the status with only the models and repos that pass, in the order asked for.

    Raises:
        UsageError: a filter or the order is not a known one.
    """
    now = datetime.now(timezone.utc)
    tests = [parse_filter(expression, now) for expression in filters]
    return msgspec.structs.replace(
        status,
        models=select(status.models, tests, sort),
        repos=select(status.repos, tests, sort),
    )


def _about_copies(advised: Advice, copies: Iterable[KeptCopy]) -> Iterator[Finding]:
    """Yield which kept copies cannot be used as they are."""
    for copy in copies:
        name = f"the kept {copy.precision} copy"
        remedy = advised.command("quantize", copy.repo, "--precision", copy.precision)
        if copy.failed is not None:
            detail = f"{name} could not be loaded and is not used: {copy.failed}"
            yield Finding("failed-copy", "warning", copy.repo, copy.path, detail, remedy)
        elif copy.changed:
            detail = (
                f"{name} has changed since it was made: the next load checks it, and quantizes "
                "again if it is damaged"
            )
            yield Finding("changed-copy", "warning", copy.repo, copy.path, detail, remedy)


def _model_status(
    known: Known, model: ModelConfig, findings: list[Finding], context: int
) -> ModelStatus:
    state = known.state
    repo = state.repo(model.repo)
    judgement = judge(repo, model.revision, state.repo, variant=model.variant)
    revision = judgement.revision
    last_used = None
    variants = _variants(repo, judgement)
    variant = model.variant
    if len(variants) > 1 and variant is None:
        cached = [choice.name for choice in variants if choice.state == "cached"]
        variant = cached[0] if len(cached) == 1 else None
    if repo is not None and revision is not None:
        last_used = _last_used(known, repo, [revision])
    findings += _unreadable_indexes(model.repo, judgement)
    findings += remarks(repo, judgement) if repo is not None else ()
    content, judgement = _read(model.repo, judgement, findings)
    division = judgement.division
    if division is not None and any(not need.code for need in division.repos):
        content = None  # An adapter's own weights are the least of what is loaded.
    folder = layout.folder_of(model.repo)
    kept = sum(size for (name, _), size in state.trashed.items() if name == folder)
    amounts = amounts_of(
        state,
        repo,
        judgement,
        variant=model.variant,
        estimate=estimate_of(model),
        kept=kept,
    )
    precision = model.precision or _stored(revision, content)
    memory, source = _memory(msgspec.structs.replace(model, precision=precision), content, context)
    shown = [revision] if revision is not None else repo.revisions if repo is not None else ()
    base, size_in_base = _in_base(repo, shown)
    return ModelStatus(
        key=model.key,
        repo=model.repo,
        revision=model.revision,
        state=judgement.state,
        commit=judgement.commit,
        path=revision.path if revision else None,
        size=amounts.size,
        size_on_disk=amounts.size_on_disk,
        expected_size=amounts.expected_size,
        to_fetch=amounts.to_fetch,
        progress=amounts.progress,
        missing_files=judgement.missing,
        damaged_files=judgement.damaged,
        precision=precision,
        memory_estimate=memory.total if memory else None,
        memory_overhead=memory.overhead if memory else None,
        memory_source=source,
        memory_context=memory.context if memory and context else None,
        memory_notes=memory.notes if memory else (),
        last_used=last_used,
        configured=model.configured,
        linked_to=repo.linked_to if repo is not None else None,
        away=repo.away if repo is not None else None,
        variant=variant,
        variants=variants,
        base=base,
        size_in_base=size_in_base,
    )


def _variants(repo: Repo | None, judgement: Judgement) -> tuple[VariantStatus, ...]:
    """Return the GGUF variants of what was judged."""
    tree, revision = judgement.tree or {}, judgement.revision
    here = {file.name: file.size for file in revision.files} if revision is not None else {}
    sizes = here | {name: file.content_size for name, file in tree.items()}
    listed = gguf.variants(sizes)
    if not listed.variants:
        return ()
    partials = repo.partials if repo is not None else ()
    begun = {partial.etag for partial in partials}
    begun = {name for name, file in tree.items() if file.etag in begun}
    bytes_of = listed.sizes(sizes)

    def state_of(names: tuple[str, ...]) -> State:
        if not set(names).isdisjoint(judgement.damaged):
            return "damaged"
        if here.keys() >= set(names):
            return "cached"
        return "missing" if (here.keys() | begun).isdisjoint(names) else "partial"

    return tuple(
        VariantStatus(variant.name, state_of(variant.files), bytes_of[variant.name])
        for variant in listed.variants
    )


def _found_elsewhere(
    session: Session, state: CacheState, models: Sequence[ModelStatus]
) -> Iterator[Finding]:
    """Yield where models that would be downloaded may be already."""
    missing = [model.repo for model in models if model.state in ("missing", "partial")]
    if missing:
        yield from second_caches(session, missing)
    for name in missing:
        for repo in state.repos:
            if repo.id != name and (repo.type, repo.id.casefold()) == ("model", name.casefold()):
                detail = f"the cache holds the same repo as {repo.id}, which is read as another one"
                remedy = units.command("status", repo.id)
                yield Finding("other-spelling", "warning", name, repo.path, detail, remedy)


def _unreadable_indexes(repo: str, judgement: Judgement) -> Iterator[Finding]:
    """Yield the indexes that exist but make no sense; the scan itself opens no files."""
    revision = judgement.revision
    for file in revision.files if revision is not None else ():
        is_index = file.name.endswith(".index.json") and file.name in judgement.damaged
        if revision is not None and is_index and file.kind in ("link", "copy") and file.size:
            path = revision.file_path(file.name)
            absent = sorted(set(judgement.missing) - (judgement.tree or {}).keys())
            detail = f"{file.name} names no shards that could be loaded"
            if absent:
                detail = (
                    f"{file.name} names {units.first_of(absent, 1)}, which the hub does not have"
                )
            remedy = units.command("verify", repo)
            yield Finding("unreadable-index", "error", repo, path, detail, remedy)


def _read(
    repo: str, judgement: Judgement, findings: list[Finding]
) -> tuple[Content | None, Judgement]:
    """Return what the files of a complete model say, and the judgement by that.

    Nothing is returned of files that are damaged, or that have a header that makes no sense.
    """
    revision = judgement.revision
    if judgement.state != "cached" or revision is None:
        return None, judgement
    content = read_content(judgement)
    pull, verify = units.command("pull", repo), units.command("verify", repo)
    for name, why in content.damaged.items():
        path = revision.file_path(name)
        findings.append(Finding("truncated-blob", "error", repo, path, why, pull))
    for name, why in content.unreadable.items():
        path = revision.file_path(name)
        findings.append(Finding("unreadable-header", "warning", repo, path, why, verify))
    if not content.damaged:
        return None if content.unreadable else content, judgement
    damaged = tuple(content.damaged)
    return None, msgspec.structs.replace(judgement, state="damaged", damaged=damaged)


def _stored(revision: Revision | None, content: Content | None) -> Precision | None:
    """Return the precision at which what is stored is loaded, if that is known."""
    config = decoded(reader(revision)(CONFIG)) if revision is not None else None
    tensors = content.tensors.values() if content is not None else ()
    return stored_precision(config, (tensor.dtype for tensor in tensors))


def _memory(
    model: ModelConfig, content: Content | None, context: int
) -> tuple[MemoryEstimate | None, MemorySource | None]:
    precision = model.precision or "bf16"
    if content is not None and content.tensors:
        memory = estimate(
            content.tensors,
            content.config,
            precision,
            accelerator=has_accelerator(),
            native=native_kernels(),
            context=context,
        )
        return memory, "weights"
    if model.expected_memory is not None:
        overhead = with_overhead(0).overhead
        return MemoryEstimate(max(0, model.expected_memory - overhead), overhead), "config"
    if model.expected_size is not None:
        return with_overhead(rescale(model.expected_size, "bf16", precision)), "config"
    shipped = shipped_models().get(model.repo)
    if shipped is not None and shipped.expected_size is not None:
        return with_overhead(rescale(shipped.expected_size, "bf16", precision)), "table"
    return None, None


def _repo_status(known: Known, repo: Repo) -> RepoStatus:
    state = known.state
    revisions = []
    judged = [judge_revision(repo, revision, state.repo) for revision in repo.revisions]
    for revision, judgement in zip(repo.revisions, judged, strict=True):
        size, size_on_disk = revision_sizes(state, repo, revision)
        revisions.append(
            RevisionStatus(
                revision.commit,
                revision.refs,
                judgement.state,
                revision.path,
                len(revision.files),
                size,
                size_on_disk,
                judgement.missing,
                datetime.fromtimestamp(revision.mtime_ns // 1_000_000_000, timezone.utc),
                _variants(repo, judgement),
            )
        )
    judged_state = judge_repo(repo, judged)
    amounts = amounts_of(state, repo, worst(judged_state, judged))
    base, size_in_base = _in_base(repo, repo.revisions)
    return RepoStatus(
        repo=repo.id,
        type=repo.type,
        path=repo.path,
        state=judged_state,
        size=repo.size,
        size_on_disk=repo.size_on_disk,
        revisions=tuple(revisions),
        refs=repo.refs,
        partials=len(repo.partials),
        last_used=_last_used(known, repo, repo.revisions),
        linked_to=repo.linked_to,
        away=repo.away,
        expected_size=amounts.expected_size,
        to_fetch=amounts.to_fetch,
        progress=amounts.progress,
        base=base,
        size_in_base=size_in_base,
    )


def _last_used(known: Known, repo: Repo, revisions: Sequence[Revision]) -> datetime | None:
    """Return when one of the revisions was last used; `None` if only downloads are known."""
    at = last_used_at(known, repo, revisions)
    return None if at is None else datetime.fromtimestamp(int(at), timezone.utc)


def _elsewhere(state: CacheState) -> Iterator[Elsewhere]:
    places: dict[str, list[Repo]] = {}
    for repo in state.repos:
        if repo.linked_to is not None:
            places.setdefault(os.path.dirname(repo.linked_to), []).append(repo)
    for path, repos in sorted(places.items()):
        try:
            free = shutil.disk_usage(path).free
        except OSError:
            free = None
        in_store = sum(blob.allocated_there for repo in repos for blob in repo.blobs.values())
        yield Elsewhere(
            path,
            tuple(repo.id for repo in repos),
            all(repo.moved_to == path or repo.away is not None for repo in repos),
            sum(repo.size_on_disk for repo in repos) + in_store,
            free,
        )
    yield from _bases(state)


def _bases(state: CacheState) -> Iterator[Elsewhere]:
    """Yield each base, with what of it is linked into this cache."""
    sizes: dict[str, dict[object, int]] = {}
    repos: dict[str, list[str]] = {}
    for repo in state.repos:
        for blob in repo.blobs.values():
            if blob.base is not None:
                sizes.setdefault(blob.base, {})[blob.target or (repo.folder, blob.name)] = blob.size
        for base in repo.attached_to:
            repos.setdefault(base, []).append(repo.id)
    for base, names in sorted(repos.items()):
        free = None
        if not any(repo.away is not None and repo.away.destination == base for repo in state.repos):
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(base).free
        yield Elsewhere(
            base,
            tuple(names),
            moved=False,
            size_on_disk=sum(sizes[base].values()),
            free=free,
            base=True,
        )


def _in_base(repo: Repo | None, revisions: Sequence[Revision]) -> tuple[str | None, int]:
    """Return the base that has files of revisions, and the length of these files."""
    names = {file.blob for revision in revisions for file in revision.files}
    blobs = [
        blob
        for blob in (repo.blobs.values() if repo is not None and repo.bases else ())
        if blob.base is not None and blob.name in names
    ]
    sizes = {blob.target or blob.name: blob.size for blob in blobs}
    return (blobs[0].base if blobs else None), sum(sizes.values())
