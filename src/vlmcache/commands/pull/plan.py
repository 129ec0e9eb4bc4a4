"""What a pull would do: from the state of the cache and the hub's listing to a plan (pure)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.completeness import ref_is_malformed
from vlmcache.cache.entries import begun_bytes
from vlmcache.cache.gguf import variants
from vlmcache.cache.model_configs import KnownFiles, OtherRepo, Read
from vlmcache.cache.needed_files import divide
from vlmcache.cache.state import CacheState, File, Lent, Repo, Revision, TreeFile
from vlmcache.change.plan import Action, Fetch, Link, Plan, WriteRef
from vlmcache.errors import UnknownModelError, UsageError
from vlmcache.progress import Progress, planned


class VariantError(UsageError):
    """A model has several variants, and the one to use has to be named.

    Args:
        repo: the repo's id.
        sizes: name of each variant -> its bytes.
    """

    def __init__(self, repo: str, sizes: Mapping[str, int]) -> None:
        listed = ", ".join(f"{name} ({units.size_text(size)})" for name, size in sizes.items())
        first = units.command("pull", f"{repo}:{next(iter(sizes))}")
        super().__init__(f"{repo} has {len(sizes)} variants: {listed}", f"name one: '{first}'")
        self.repo = repo
        self.sizes = sizes


class FileSelection(msgspec.Struct, frozen=True):
    """Which files of a repo are wanted: by default, those that loading needs.

    Patterns are as `hf download` takes them: shell wildcards over the complete name, and a pattern
    that ends in a slash means everything below that folder.
    """

    include: tuple[str, ...] = ()
    """Patterns of the only files that are wanted, of all weight formats."""
    exclude: tuple[str, ...] = ()
    """Patterns of files that are not wanted."""
    every: bool = False
    """Whether all files are wanted, second weight formats too."""

    variant: str | None = None
    """The GGUF variant that is wanted."""

    @property
    def is_plain(self) -> bool:
        """Whether just what loading needs is wanted, and nothing was chosen by hand."""
        return not (self.include or self.exclude or self.every)

    def choose(
        self,
        repo: str,
        files: Collection[str] | Mapping[str, TreeFile],
        revision: Revision | None = None,
        read: Read = lambda _: None,
    ) -> ChosenFiles:
        """Return which files are wanted, and why the others are not.

        Args:
            repo: the repo's name.
            files: those that the hub lists.
            revision: what of them is here.
            read: returns the content of a file, `None` if it is not known.

        Raises:
            UsageError: a pattern of `include` matches nothing, or nothing is left.
            VariantError: one of several GGUF variants has to be named, or another.
        """
        # Nothing says what a dataset can do without.
        is_model = layout.split_name(repo)[0] == "model"
        listed = files if isinstance(files, Mapping) else {}
        linked = {file.name: file for file in revision.files} if revision is not None else {}
        sizes = {name: file.content_size for name, file in listed.items()}
        names = frozenset(files)
        known = KnownFiles(names, linked.keys() & names, read, sizes=sizes)
        division = divide(known, self.variant)
        available = variants(files)
        if self.variant is not None and len(available.called(self.variant)) != 1:
            if not available.variants:
                raise UnknownModelError(f"{repo} has no variants: it has no GGUF files")
            raise VariantError(repo, available.sizes(sizes))
        if self.include:
            chosen: set[str] = set()
            for pattern in self.include:
                matching = layout.matched(files, pattern)
                if not matching:
                    raise UsageError(
                        f"{repo} has no file that matches --include {pattern}",
                        "'vlmcache pull --all-files --dry-run -v' lists its files",
                    )
                chosen |= matching
        elif self.every or not is_model:
            chosen = set(files)
        else:
            if division.choices is not None:
                raise VariantError(repo, division.choices.sizes(sizes))
            # A file that is here and damaged is repaired, needed or not.
            broken = {
                name
                for name in linked.keys() & listed
                if not _is_correct(linked[name], listed[name])
            }
            along = division.along if division.missing or broken else division.along & linked.keys()
            # An index can name what the hub does not have.
            chosen = {*division.needed, *along, *broken} & set(files)
        for pattern in self.exclude:
            chosen -= layout.matched(files, pattern)
        if files and not chosen:
            raise UsageError(f"--exclude leaves no file of {repo}")
        plain = self.is_plain and is_model
        left = division.left_out if plain else dict.fromkeys(set(files) - chosen, "not asked for")
        refused = {
            name: problem
            for name in chosen - linked.keys()
            if (problem := layout.file_name_problem(name)) is not None
        }
        choice = ChosenFiles(
            frozenset(chosen),
            {name: left[name] for name in sorted(left.keys() - chosen)},
            division.repos if is_model and not self.include else (),
            division.note if plain else None,
            division.needed if is_model else frozenset(files),
        )
        return choice.without(refused)


class ChosenFiles(NamedTuple):
    """Which files of a repo are wanted."""

    wanted: frozenset[str]
    left_out: Mapping[str, str] = {}
    """File -> why it is not fetched."""
    repos: tuple[OtherRepo, ...] = ()
    """Other repos that loading needs."""
    note: str | None = None
    """What to know before loading: see `Division.note`."""
    needed: frozenset[str] = frozenset()
    """Files that loading needs."""
    refused: Mapping[str, str] = {}
    """File that was wanted -> why it cannot be written."""

    def without(self, refused: Mapping[str, str]) -> ChosenFiles:
        """Return the choice without files that cannot be written: these are left out."""
        return self._replace(
            wanted=self.wanted - refused.keys(),
            left_out={**self.left_out, **refused},
            refused={**self.refused, **refused},
        )


class Listing(NamedTuple):
    """The files that the hub lists at a commit."""

    commit: str
    files: Mapping[str, TreeFile]


def downloads_shown(
    progress: Progress, orders: Sequence[DownloadOrder]
) -> contextlib.AbstractContextManager[None]:
    """Show the progress of several downloads together, as long as the context lasts."""
    sizes: dict[str, int] = {}
    have: dict[str, int] = {}
    for order in orders:
        # Several revisions or variants of one repo may be downloaded.
        sizes[order.repo] = sizes.get(order.repo, 0) + sum(fetch.size for fetch in order.fetches)
        have[order.repo] = have.get(order.repo, 0) + order.have
    return planned(progress, "on disk", sizes, have)


class DownloadOrder(NamedTuple):
    """What to carry out: the plan of one repo, and the hub's listing of its commit."""

    cache_dir: str
    repo: str
    """Its name: that of a dataset begins with `datasets/`."""
    commit: str
    files: Mapping[str, TreeFile]
    wanted: frozenset[str]
    plan: Plan
    new_listing: bool
    """Whether the listing came from the hub and is not in the cache yet."""
    distrusted: frozenset[str] = frozenset()
    """Etags of blobs that have the right length and wrong content."""
    left_out: Mapping[str, str] = {}
    """File -> why it is not fetched."""
    repos: tuple[OtherRepo, ...] = ()
    """Other repos that loading needs."""
    note: str | None = None
    """What to know before loading: see `Division.note`."""
    refused: Mapping[str, str] = {}
    """File that was wanted -> why it cannot be written here."""
    judged: bool = False
    """Whether the cache alone shows that the model's own files are complete."""
    restriction: str | None = ""
    """`gated`, `private`, or `None` if everybody may have the files; empty if it is not known."""
    origins: Mapping[str, str] = {}
    """Etag -> the source that would be asked for the content; the hub is asked for all others."""
    lent: Mapping[str, Lent] = {}
    """Etag -> where a base has the content."""

    @property
    def fetches(self) -> list[Fetch]:
        """What is to be fetched."""
        return [action for action in self.plan.actions if isinstance(action, Fetch)]

    @property
    def have(self) -> int:
        """Bytes of what is to be fetched that are here already."""
        return sum(fetch.have for fetch in self.fetches)

    @property
    def snapshot(self) -> str:
        """The folder that the commit's files are linked into."""
        return os.path.join(
            self.cache_dir, layout.folder_of(self.repo), layout.SNAPSHOTS, self.commit
        )


def plan_pull(
    state: CacheState,
    repo_name: str,
    ref: str,
    listing: Listing,
    wanted: Iterable[str],
) -> Plan:
    """Return what makes the wanted files of a commit complete in the cache.

    Args:
        state: the cache, or the part of it that holds the repo.
        repo_name: the repo's name.
        ref: the revision asked for; the plan lets it name the commit, unless it is the commit.
        listing: the commit that `ref` means on the hub, and its files.
        wanted: names of the files that are wanted.
    """
    commit, files = listing
    repo_folder = layout.folder_of(repo_name)
    folder = os.path.join(state.dir, repo_folder)
    snapshot = layout.snapshot_path(folder, commit)
    repo = state.repo(repo_name)
    revision = repo.revision(commit) if repo is not None else None
    linked = {file.name: file for file in revision.files} if revision is not None else {}
    fetches: dict[str, Fetch] = {}
    links: list[Link] = []
    needs = 0
    for name in sorted(wanted):
        file = files[name]
        cached = linked.get(name)
        if cached is not None and _is_correct(cached, file):
            continue
        path = layout.file_path(snapshot, name)
        if repo is not None and repo.holds(file):
            links.append(Link(repo_name, name, path, file.etag, _why_link(cached, revision)))
        elif (lent := state.lends(repo_folder, file)) is not None:
            links.append(Link(repo_name, name, path, file.etag, f"in the base {lent.base}"))
        elif state.shares(repo, file):
            links.append(Link(repo_name, name, path, file.etag, "in the shared store already"))
        elif state.takes_back(repo_folder, file):
            links.append(Link(repo_name, name, path, file.etag, "in the trash"))
        elif file.etag in fetches:
            links.append(Link(repo_name, name, path, file.etag, "the same content as another file"))
        else:
            have, credit = begun_bytes(repo, file, state.scanned_at)
            size = file.content_size
            reason = _why_fetch(repo, cached, file, have)
            fetches[file.etag] = Fetch(repo_name, name, path, file.etag, size, have, reason)
            needs += size - credit
    largest_first = sorted(fetches.values(), key=lambda fetch: -fetch.size)
    actions: list[Action] = [*largest_first, *links]
    if ref != commit and (repo is None or not _names(repo, ref, commit)):
        old = repo.refs.get(ref) if repo is not None else None
        reason = "new" if old is None else "malformed" if old == commit else f"was {old}"
        path = layout.ref_path(folder, ref)
        actions.append(WriteRef(repo_name, ref, path, commit, reason))
    return Plan(tuple(actions), needs=needs)


def lent_for(
    state: CacheState, repo_name: str, plan: Plan, files: Mapping[str, TreeFile]
) -> dict[str, Lent]:
    """Return the etags that a plan links -> where a base has each."""
    folder = layout.folder_of(repo_name)
    lent = {
        action.etag: state.lends(folder, files[action.file])
        for action in plan.actions
        if isinstance(action, Link) and action.file in files
    }
    return {etag: where for etag, where in lent.items() if where is not None}


def _is_correct(cached: File, listed: TreeFile) -> bool:
    """Whether a snapshot's file is the one that the hub lists, as far as a stat can tell."""
    if cached.size != listed.content_size or cached.damaged:
        return False
    return cached.kind == "copy" or (cached.kind == "link" and cached.blob == listed.etag)


def _names(repo: Repo, ref: str, commit: str) -> bool:
    """Whether a ref exists and holds the commit and nothing else."""
    return repo.refs.get(ref) == commit and not ref_is_malformed(repo, ref)


def _why_link(cached: File | None, revision: Revision | None) -> str:
    if cached is not None and cached.kind in ("copy", "stub"):
        return "a file is in the place of the link"
    if cached is not None and cached.kind != "link":
        return f"the link is {cached.kind}"
    if cached is not None:
        return "the link points to other content"
    return "not linked yet" if revision is not None else "in another revision already"


def _why_fetch(repo: Repo | None, cached: File | None, listed: TreeFile, have: int) -> str:
    blob = repo.blobs.get(listed.etag) if repo is not None else None
    if blob is not None and blob.damaged:
        return "damaged: verify found other content"
    if blob is not None and blob.present:
        return f"damaged: {blob.size} of {listed.content_size} bytes"
    if have:
        return "begun"
    if cached is not None:
        return "damaged: its content is missing" if blob is None else "damaged"
    return "missing"
