"""`Cache`: every command as a method, for people who write Python.

Keyword arguments are named like the options of the command line. For a size an int is bytes, for a
duration a number is seconds; a string of either needs its unit (`"30GB"`, `"12h"`). Where the
command line would ask before it acts, a method acts: look at what `dry_run=True` returns first.

The module is long for the reason that `Cache` is: every command is a method of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from vlmcache.arguments import (
    Duration,
    Names,
    Path,
    Size,
    as_bytes,
    as_count,
    as_list,
    as_names,
    as_path,
    as_rate,
    as_seconds,
)
from vlmcache.config import (
    Session,
    at_revision,
    cached_models,
    matching_names,
    names_of_all,
    open_session,
    without_addresses,
)
from vlmcache.errors import UsageError, VlmcacheError

if TYPE_CHECKING:
    from vlmcache.codes import Explanation
    from vlmcache.commands.attach.values import AttachReport
    from vlmcache.commands.backup.values import Backup, Restored
    from vlmcache.commands.doctor.values import Diagnosis
    from vlmcache.commands.fleet.fleet import FleetCache
    from vlmcache.commands.init.values import InitReport
    from vlmcache.commands.move.values import MoveReport, RecallReport
    from vlmcache.commands.pull.plan import VariantError
    from vlmcache.commands.pull.values import PullReport
    from vlmcache.commands.remove.offered import Offer
    from vlmcache.commands.remove.values import Removal
    from vlmcache.commands.schedule.values import ScheduleReport
    from vlmcache.commands.serve.serve import Server
    from vlmcache.commands.status.values import Status
    from vlmcache.commands.trash.values import TrashReport, UndoReport
    from vlmcache.commands.verify.values import RepairReport, Verification, VerifyOptions
    from vlmcache.commands.watch.values import Observation
    from vlmcache.load.quantized import Quantization
    from vlmcache.load.report import LoadReport
    from vlmcache.load.steps import Step
    from vlmcache.load.warm import WarmReport
    from vlmcache.progress import Progress


class Cache:
    """A hub cache, and the configuration by which it is managed.

    Both are found when the object is made. Every method returns a report: `.problem` is what went
    wrong or `None`, `.check()` raises it or returns the report, `.ids` is what `--quiet` prints.
    What cannot begin at all (a name that means no model, an argument that makes no sense) is raised
    by the method itself.

    The class is long, and its methods have many arguments, because it has a method for each command
    and an argument for each option; most of it is documentation that editors show.

    Args:
        cache_dir: the hub cache; the one that the environment names if not given.
        config: the config.yaml to use; the first one found if not given.
        session: both, if they are known already.

    Raises:
        ConfigError: the configuration or the `.env` cannot be read, or holds a wrong value.
    """

    def __init__(
        self,
        cache_dir: Path | None = None,
        config: Path | None = None,
        *,
        session: Session | None = None,
    ) -> None:
        self.session = session or open_session(as_path(config), as_path(cache_dir))
        self.progress: Progress | None = None
        """Receives the progress of transfers, from several threads."""
        self.on_step: Callable[[Step], None] = lambda _step: None
        """Is called with what a load test or a quantization does next."""
        self.confirm: Callable[[Any], bool] | None = None
        """Is called with a plan before anything is removed, and returns whether to continue."""
        self.agree: Callable[[Any], bool] | None = None
        """Is called with other repos that a pull needs, and returns whether to fetch them."""
        self.choose: Callable[[VariantError], str] | None = None
        """Is called with the variants of a model to pull, if none is named, and returns one."""
        self.select: Callable[[Offer], Sequence[int]] | None = None
        """Is called with all that can be removed, if nothing is named, and returns the numbers of
        what to remove, counted from 0."""
        self.named: Callable[[str], str] = str
        """Returns the name of an argument for messages."""

    def __repr__(self) -> str:
        return f"Cache(cache_dir={self.session.cache.dir!r}, config={self.session.config.path!r})"

    def status(
        self,
        models: Names | None = None,
        *,
        check: bool = False,
        outdated: bool = False,
        sort: str | None = None,
        filter: Names = (),
        context: int | None = None,
    ) -> Status:
        """Return the state of the cache and of models, all configured ones by default.

        Args:
            models: keys of config.yaml or repo ids, with an optional `@revision`, or patterns of
                them such as `org/*`.
            check: count it as a problem if one of them is not cached.
            outdated: ask the hub for newer revisions.
            sort: `name`, `size`, `state`, `type` or `used`.
            filter: tests such as `size>1GB` that every model and repo of the report passes.
            context: tokens of a context whose key-value cache counts as memory.

        Raises:
            UnknownModelError: a name is neither a key nor a repo id.
            UsageError: the order or a test has no known form.
        """
        from vlmcache.commands.status import status

        tokens = as_count(self.named("context"), context) if context is not None else 0
        names = self._matching(models, missing=True)
        value = status.status(self.session, names, context=tokens)
        if outdated:
            from vlmcache.commands.status import outdated as updates

            value = updates.with_updates(self.session, value, progress=self.progress)
        problem = value.not_cached if check else None
        return status.select_rows(value, as_list(filter), sort).with_problem(problem)

    def pull(
        self,
        models: Names | None = None,
        *,
        all: bool = False,
        revision: str | None = None,
        include: Names = (),
        exclude: Names = (),
        all_files: bool = False,
        dry_run: bool = False,
        max_workers: int | None = None,
        limit_rate: Size | None = None,
        max_wait: Duration | None = None,
        make_room: bool = False,
        token: str | None = None,
        add: bool = False,
        sources: Names = (),
    ) -> PullReport:
        """Download what is missing of models, and only that.

        Args:
            models: keys of config.yaml or repo ids, with an optional `@revision`; those of
                datasets and spaces as `datasets/owner/name`.
            all: pull every configured model.
            revision: a branch, tag or commit, for every model that is named.
            include: patterns; only files that match one are pulled, of every format.
            exclude: patterns; no file that matches one is pulled.
            all_files: pull second weight formats too.
            dry_run: return the plan and write nothing.
            max_workers: files at a time, 1 to 64; 8 if not given.
            limit_rate: bytes a second for all files together.
            max_wait: how long a busy hub may ask to wait (ten minutes if not given), and how long
                to wait for another process that downloads a file (as long as the file grows if not
                given).
            make_room: remove the least recently used models if the disk is too full.
            token: in place of the one that huggingface_hub finds.
            add: add the models that are then complete to the user's config.yaml.
            sources: where to look for contents before the hub: addresses of `vlmcache serve`, hub
                caches, backups, tars and Ollama stores. The user's `sources:` come after them.

        Raises:
            UnknownModelError: a name is neither a key nor a repo id.
            UsageError: no model is named, or an argument makes no sense.
            ConfigWriteError: nothing can be added to the user's config.yaml.
        """
        from vlmcache.commands.pull import plan, pull, values

        if all == (models is not None):
            both = ", not both" if all else ""
            raise UsageError(f"name models or use {self.named('all')}{both}")
        names: Sequence[str] = without_addresses(self.session.config, as_names(models))
        if all:
            names = names_of_all(self.session.config, cached_models(self.session.cache))
            if not names:
                raise UsageError(
                    f"no model is configured: {self.named('all')} has nothing to pull",
                    "name one to pull, such as owner/name; 'vlmcache init' writes a config.yaml",
                )
        names = at_revision(names, revision, self.named("revision"))
        workers = values.WORKERS if max_workers is None else max_workers
        options = values.PullOptions(
            selection=plan.FileSelection(as_list(include), as_list(exclude), all_files),
            dry_run=dry_run,
            max_workers=as_count(self.named("max_workers"), workers, 64),
            limit_rate=as_rate(self.named("limit_rate"), limit_rate),
            token=token,
            make_room=make_room,
            confirm=self.confirm,
            agree=self.agree,
            choose=self.choose,
            max_wait=as_seconds(self.named("max_wait"), max_wait, ("s", "m")),
            add=add,
            sources=as_list(sources),
        )
        if not add:
            return pull.pull(self.session, names, options, self.progress)
        from vlmcache.commands.init.add import ConfigAdder

        adder = ConfigAdder(self.session, names)
        report = pull.pull(self.session, names, options, self.progress)
        try:
            return report.with_added(adder.add(report.complete, dry_run=dry_run))
        except VlmcacheError as error:
            return report.with_problem(report.problem or error)

    def init(self, config: Path | None = None, *, dry_run: bool = False) -> InitReport:
        """Write a config.yaml that names the models in the cache, or three to start from.

        Args:
            config: the file, which must not exist; the one in the user's configuration folder if
                not given.
            dry_run: return what would be written and write nothing.

        Raises:
            ConfigExistsError: something has the file's name already.
            ConfigWriteError: it cannot be written.
            SpaceError: the disk is full.
        """
        from vlmcache.commands.init import init

        return init.init(self.session, as_path(config), dry_run=dry_run)

    def remove(
        self,
        models: Names | None = None,
        *,
        revision: str | None = None,
        include: Names = (),
        dry_run: bool = False,
        force: bool = False,
        trash: bool | None = None,
    ) -> Removal:
        """Remove models, revisions, variants or files; nobody is asked. Nothing in use is removed.

        Args:
            models: keys of config.yaml or repo ids, with an optional `@revision` and `:VARIANT`;
                `datasets/owner/name`; patterns such as `org/*`; or paths in the cache; what
                `self.select` returns if not given.
            revision: remove only this branch, tag or commit.
            include: remove only files that match one of these patterns.
            dry_run: return the plan and remove nothing.
            force: remove although a process uses it.
            trash: keep it in the trash, or with False free its bytes at once; if `None`, only what
                `self.confirm` has confirmed is kept, if enough is free without it.

        Raises:
            UnknownModelError: nothing of a name is in the cache.
            CacheError: it should be kept, but there is no place for the trash.
            UsageError: an address is that of a file, so the complete model cannot be meant; or
                nothing is named.
            UnconfirmedError: `self.select` returns nothing.
        """
        from vlmcache.commands.remove import remove, values

        if models is None and (self.select is None or revision is not None or include):
            raise UsageError("no model to remove is named")
        names = () if models is None else self._matching(models)
        options = values.RemoveOptions(revision, force, as_list(include), trash)
        return remove.remove(
            self.session,
            names,
            options,
            dry_run=dry_run,
            confirm=self.confirm,
            choose=self.select if models is None else None,
        )

    def clean(
        self,
        models: Names = (),
        *,
        older_than: Duration | None = None,
        max_size: Size | None = None,
        free: Size | None = None,
        to: Path | None = None,
        duplicates: bool = False,
        partials: bool = False,
        keep: Names = (),
        all: bool = False,
        xet: bool = False,
        modules: bool = False,
        trash: bool | None = None,
        interactive: bool = False,
        dry_run: bool = False,
    ) -> Removal:
        """Remove what nobody needs, and what was not used for a while; nobody is asked.

        Args:
            models: configured models that older_than, max_size and free may remove too.
            older_than: remove models that were not used for this long.
            max_size: remove the least recently used models until the cache is no larger.
            free: remove the least recently used models until the disk has this much free.
            to: a folder on another drive, to which models are moved instead of being removed; the
                user's `archive:` if not given.
            duplicates: remove second weight formats.
            partials: remove unfinished downloads that were not written for an hour.
            keep: models of which nothing is removed.
            all: remove everything.
            xet: empty the cache of Xet chunks too.
            modules: empty the cache of remote code too.
            trash: keep in the trash what is removed; if `None`, its bytes are freed at once.
            interactive: remove only what `self.select` returns of all that could be removed.
            dry_run: return the plan and remove nothing.

        Raises:
            UnknownModelError: a name to keep or to remove is not a model.
            UsageError: `interactive` is given with a goal or a folder, or without `self.select`;
                models cannot be moved to the folder, or nothing would be gained by it.
            UnconfirmedError: `self.select` returns nothing.
            AwayError: the drive with the models that were moved there is not mounted.
            ConfigError: another config.yaml, which may protect models, cannot be read.
        """
        from vlmcache.commands.remove import clean, values

        if interactive:
            goals = {"all": all, "xet": xet, "modules": modules}
            goals |= {"free": free is not None, "max_size": max_size is not None}
            goals["to"] = to is not None
            given = next((self.named(goal) for goal, is_given in goals.items() if is_given), None)
            if given is not None:
                option = self.named("interactive")
                raise UsageError(f"{given} and {option} both choose what to remove", "give one")
            if self.select is None:
                raise UsageError(
                    f"{self.named('interactive')} needs somebody who chooses",
                    "set Cache.select to a function that does",
                )
        options = values.CleanOptions(
            older_than=as_seconds(self.named("older_than"), older_than),
            max_size=as_bytes(self.named("max_size"), max_size),
            free=as_bytes(self.named("free"), free),
            duplicates=duplicates,
            everything=all,
            evict=as_list(models),
            keep=as_list(keep),
            xet=xet,
            modules=modules,
            partials=partials,
            trash=trash,
        )
        if not interactive:
            options = clean.with_archive(options, self.session.config, as_path(to))
        if options.to is not None:
            from vlmcache.commands.move.archive import clean_to

            return clean_to(
                self.session, options, dry_run=dry_run, confirm=self.confirm, progress=self.progress
            )
        choose = self.select if interactive else None
        return clean.clean(
            self.session, options, dry_run=dry_run, confirm=self.confirm, choose=choose
        )

    def undo(self, removal: str | None = None, *, dry_run: bool = False) -> UndoReport:
        """Restore what a removal has put into the trash, exactly as it was.

        Args:
            removal: its id, from `trash` or the removal's receipt; the last removal if not given.
            dry_run: only return what would be restored.

        Raises:
            NothingToUndoError: there is no such removal in the trash.
            NameTakenError: something else has the name of what should be restored.
            AwayError: a part of it is on a drive that is not mounted.
        """
        from vlmcache.commands.trash import undo

        return undo.undo(self.session, removal, dry_run=dry_run)

    def trash(self, *, empty: bool = False, dry_run: bool = False) -> TrashReport:
        """Return what is in the trash, the latest first.

        Args:
            empty: remove all of it for good.
            dry_run: with `empty`, only return what that would remove.
        """
        from vlmcache.commands.trash import trash

        return trash.trash(self.session, empty=empty, dry_run=dry_run, confirm=self.confirm)

    def verify(
        self,
        models: Names | None = None,
        *,
        max_age: Duration | None = None,
        workers: int | None = None,
    ) -> Verification:
        """Compare every file with its hash, without the network. Nothing is changed.

        Args:
            models: keys, repo ids or `datasets/owner/name`, or patterns such as `org/*`; everything
                if not given.
            max_age: skip what was verified since and has not changed; 7 days if not given, 0 reads
                everything.
            workers: threads, 1 to 256; one per core if not given.

        Raises:
            UnknownModelError: nothing of a name is configured or in the cache.
        """
        from vlmcache.commands.verify import verify

        options = self._verify_options(max_age, workers)
        return verify.verify(self.session, self._matching(models), options, self.progress)

    def repair(
        self,
        models: Names | None = None,
        *,
        dry_run: bool = False,
        max_age: Duration | None = None,
        workers: int | None = None,
    ) -> RepairReport:
        """Verify, then fetch what is damaged or missing, and only that.

        Args:
            models: as for `verify`.
            dry_run: return the plan and change nothing.
            max_age: as for `verify`.
            workers: as for `verify`.

        Raises:
            UnknownModelError: nothing of a name is configured or in the cache.
        """
        from vlmcache.commands.verify import repair

        options = self._verify_options(max_age, workers, dry_run=dry_run)
        return repair.repair(self.session, self._matching(models), options, self.progress)

    def move(
        self,
        destination: Path | None = None,
        models: Names | None = None,
        *,
        no_link: bool = False,
        undo: bool = False,
        relink: Path | None = None,
        dry_run: bool = False,
    ) -> MoveReport:
        """Move models to another drive: copied and hashed there, then switched.

        Args:
            destination: the folder to move to, a hub cache of its own.
            models: keys, repo ids or `datasets/owner/name`; everything if not given.
            no_link: leave no links in the cache.
            undo: roll back an unfinished move to the destination.
            relink: let links that lead nowhere lead to this folder, and move nothing.
            dry_run: return the plan and change nothing.

        Raises:
            UsageError: the arguments do not go together, or the destination cannot be one.
            UnknownModelError: nothing of a name is in the cache.
            SpaceError: the destination has too little room.
        """
        from vlmcache.commands.move import move, values

        if relink is not None:
            if destination is not None or models is not None or no_link or undo:
                option = self.named("relink")
                raise UsageError(f"{option} rewrites links and moves nothing: name only its folder")
            return move.relink(
                self.session, os.fspath(relink), dry_run=dry_run, confirm=self.confirm
            )
        if destination is None:
            raise UsageError(f"move needs a destination or {self.named('relink')}")
        destination = os.fspath(destination)
        if undo:
            if models is not None or no_link:
                option, other = self.named("undo"), self.named("no_link")
                raise UsageError(
                    f"{option} rolls back all that is unfinished: give no MODEL and no {other}"
                )
            return move.undo_move(self.session, destination, dry_run=dry_run)
        options = values.MoveOptions(link=not no_link, dry_run=dry_run)
        return move.move(self.session, destination, as_names(models), options, self.progress)

    def recall(self, models: Names, *, dry_run: bool = False) -> RecallReport:
        """Bring models back from the drives to which `clean` and `move` have moved them.

        Args:
            models: keys, repo ids or `datasets/owner/name`, or patterns such as `org/*`.
            dry_run: return the plan and change nothing.

        Raises:
            UnknownModelError: nothing of a name is in the cache.
            UsageError: no model is named, or a name is not a complete model.
            AwayError: their drives are not mounted.
            SpaceError: the cache's disk has too little room.
        """
        from vlmcache.commands.move import recall

        names = self._matching(models)
        return recall.recall(self.session, names, dry_run=dry_run, progress=self.progress)

    def attach(self, base: Path | None = None, *, dry_run: bool = False) -> AttachReport:
        """Put a read-only cache beneath this one: what it has is linked, and takes no room here.

        Args:
            base: the folder of that cache; the one that the configuration names if not given.
            dry_run: return the plan and change nothing.

        Raises:
            UsageError: no base is named, or it is not a cache, or this very cache.
        """
        from vlmcache.commands.attach import attach

        return attach.attach(self.session, as_path(base), dry_run=dry_run)

    def detach(self, base: Path | None = None, *, dry_run: bool = False) -> AttachReport:
        """Remove the links into a base; nobody is asked. The base is not touched.

        Args:
            base: the folder of the base; the only one if not given.
            dry_run: return the plan and change nothing.

        Raises:
            UsageError: nothing here is linked into that base, or one of several must be named.
        """
        from vlmcache.commands.attach import attach

        return attach.detach(self.session, as_path(base), dry_run=dry_run, confirm=self.confirm)

    def backup(
        self,
        destination: Path,
        models: Names | None = None,
        *,
        verify: bool = False,
        dry_run: bool = False,
    ) -> Backup:
        """Save models, every byte checked on the way.

        Args:
            destination: a folder or an address for a store; a file or an address that ends in
                `.tar` for one tar stream; `-` for stdout.
            models: keys, repo ids or `datasets/owner/name`, or patterns such as `org/*`; everything
                if not given.
            verify: read what the store has, and write again what is damaged there.
            dry_run: return what would be written and write nothing.

        Raises:
            UnknownModelError: nothing of a name is in the cache.
            BackupError: something is damaged.
            PlaceError: the destination cannot be reached or written.
        """
        from vlmcache.commands.backup import backup, values

        options = values.BackupOptions(verify, dry_run)
        return backup.backup(
            self.session,
            os.fspath(destination),
            self._matching(models),
            options,
            self.progress,
        )

    def restore(
        self,
        source: Path,
        models: Names | None = None,
        *,
        overwrite: bool = False,
        dry_run: bool = False,
    ) -> Restored:
        """Restore a backup, every byte checked before it counts.

        Args:
            source: the store, file or address to read, or `-` for stdin.
            models: keys, repo ids or `datasets/owner/name`; everything if not given.
            overwrite: let refs of the backup replace those that differ here.
            dry_run: return the plan and write nothing.

        Raises:
            UnknownModelError: nothing of a name is in the backup.
            BackupError: it is not a backup, or a damaged one.
            PlaceError: the source cannot be reached or read.
        """
        from vlmcache.commands.backup import restore, values

        options = values.RestoreOptions(overwrite, dry_run)
        return restore.restore(
            self.session, os.fspath(source), as_names(models), options, self.progress
        )

    def watch(
        self,
        *,
        interval: Duration = 5.0,
        once: bool = False,
        min_free: Size | None = None,
    ) -> Generator[Observation, None, None]:
        """Yield what the cache holds and what happened: at once, then whenever something changed.

        Args:
            interval: the longest time between two checks, 0.1 seconds to a day.
            once: check once and end.
            min_free: the free space below which `snapshot.low` is set.

        Raises:
            UsageError: an argument makes no sense.
        """
        from vlmcache.commands.watch import watch

        session, seconds = watched(self, interval, min_free)
        if once:
            return watch.watch(session, interval=seconds, wait=lambda *_: False, notify=False)
        return watch.watch(session, interval=seconds)

    def serve(
        self,
        models: Names | None = None,
        *,
        listen: str | None = None,
        all: bool = False,
        token_file: Path | None = None,
        allow: Names = (),
        include_gated: bool = False,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        limit_rate: Size | None = None,
        max_connections: int | None = None,
    ) -> Server:
        """Return a server of the cache, read-only, for the hub's clients on other machines.

        It answers in a thread while its `with` block runs, and until a signal with its `run()`.

        Args:
            models: keys of config.yaml or repo ids, with an optional `@revision`, of datasets and
                spaces as `datasets/owner/name`; everything on the loopback if not given.
            listen: `ADDRESS:PORT`; port 9401 of the loopback if not given.
            all: serve every complete model to other machines.
            token_file: holds the token of clients; `VLMCACHE_SERVE_TOKEN` if not given.
            allow: networks such as `192.168.1.0/24` from which no token is asked for.
            include_gated: serve named models that the hub gives to some users only.
            tls_cert: the certificate, a PEM file; plain HTTP if not given.
            tls_key: its key, if that is in another file.
            limit_rate: bytes a second for all clients together.
            max_connections: connections at a time, 1 to 65536; 256 if not given.

        Raises:
            UnknownModelError: a name is neither a key nor a repo id.
            NotDownloadedError: a model is not cached, or not completely.
            UsageError: the arguments do not go together, or a token is needed.
            MissingPackageError: uvicorn or starlette is not installed.
            ServeError: the address cannot be listened on.
        """
        from vlmcache.commands.serve import serve, values

        connections = values.CONNECTIONS if max_connections is None else max_connections
        options = values.ServeOptions(
            listen=listen,
            all=all,
            token_file=as_path(token_file),
            allow=as_list(allow),
            include_gated=include_gated,
            tls_cert=as_path(tls_cert),
            tls_key=as_path(tls_key),
            limit_rate=as_rate(self.named("limit_rate"), limit_rate),
            max_connections=as_count(self.named("max_connections"), connections, 65536),
        )
        return serve.Server(self.session, as_names(models), options, self.confirm)

    def schedule(
        self,
        command: Names | None = None,
        *,
        every: Duration | None = None,
        name: str | None = None,
        show: bool = False,
        remove: bool = False,
        dry_run: bool = False,
    ) -> ScheduleReport:
        """Let a timer of this machine run a command, or show or remove what is scheduled.

        Args:
            command: `clean`, `verify` or `status --check` with its options, as a shell takes it or
                as a list of words; with `remove` the name of a schedule. If not given, what is
                scheduled is returned.
            every: how often, 1 minute to 1 year, such as `15m`, `6h` or `1d`.
            name: of the schedule; that of its command if not given.
            show: return what is scheduled.
            remove: remove the schedule.
            dry_run: return what would be written or removed, and change nothing.

        Raises:
            UsageError: the arguments do not go together, or the command cannot be scheduled.
            NoSchedulerError: there is no systemd, cron or launchd for this user.
            ScheduleError: the timer cannot be written or removed.
        """
        from vlmcache.commands.schedule import schedule

        seconds = as_seconds(self.named("every"), every)
        if show and (remove or (command, name, every) != (None, None, None)):
            raise UsageError(
                f"{self.named('show')} shows every schedule: give nothing else with it"
            )
        if remove and every is not None:
            raise UsageError(
                f"{self.named('remove')} makes no schedule: leave out {self.named('every')}"
            )
        words = None if command is None else as_list(command)
        line = words[0] if words is not None and len(words) == 1 else words
        if remove:
            return schedule.remove(
                self.session, name or (words[0] if words else None), dry_run=dry_run
            )
        if line is None:
            if every is not None or name is not None:
                raise UsageError("no command to schedule", "vlmcache schedule verify --every 7d")
            return schedule.show(self.session)
        if seconds is None:
            raise UsageError(
                f"how often? {self.named('every')} is missing", "for example --every 1d"
            )
        return schedule.make(
            self.session, line, seconds, name=name, dry_run=dry_run, confirm=self.confirm
        )

    def fleet(self, address: str | None = None, nodes: Names = ()) -> FleetCache:
        """Return the caches of a Ray cluster's nodes; its methods are those of `Cache`.

        Args:
            address: `auto`, `HOST:PORT` or `ray://HOST:PORT`; RAY_ADDRESS, else `auto`, if not
                given.
            nodes: names, addresses, labels `KEY=VALUE`, patterns, or ranges such as `gpu[1-4]`; all
                nodes if not given.
        """
        from vlmcache.commands.fleet.fleet import FleetCache

        return FleetCache(self.session, address, nodes, self.named)

    def doctor(
        self, *, shared: str | None = None, fix: bool = False, dry_run: bool = False
    ) -> Diagnosis:
        """Check paths, permissions, the disk, versions and devices.

        Args:
            shared: a group of users; check whether it can share the cache.
            fix: correct the permissions of the cache.
            dry_run: with `fix`, return the plan and change nothing.

        Raises:
            UsageError: there is no such group.
        """
        from vlmcache.commands.doctor import doctor
        from vlmcache.commands.schedule import schedule

        ask_torch = shared is None and not fix
        diagnosis = doctor.diagnose(
            self.session, ask_torch=ask_torch, shared=shared, fix=fix, dry_run=dry_run
        )
        return diagnosis.with_findings(schedule.show(self.session).findings)

    def explain(self, code: str) -> Explanation:
        """Return what the code of a finding or of an error means, and what to do about it.

        Args:
            code: as a finding or an error carries it, such as `no-space`.

        Raises:
            UsageError: there is no such code.
        """
        from vlmcache import codes

        return codes.explain(code)

    def load_test(
        self,
        models: Names | None = None,
        *,
        precision: Names = (),
        device: str = "auto",
        trials: int = 3,
        cold: bool | None = None,
        synthetic: Names = (),
        tokens: int = 1,
        loader: Names = (),
        attention: str | None = None,
        save: Path | None = None,
        compare: Path | None = None,
        history: bool = False,
        trust_remote_code: bool = False,
        context: int | None = None,
        cold_libraries: bool = False,
    ) -> LoadReport:
        """Measure how fast models load, each load in a fresh process.

        Args:
            models: keys or repo ids, or patterns such as `org/*`; the configured models that are
                cached if not given.
            precision: fp32, fp16, bf16, int8 or int4; each model's configured one if not given,
                else the type in which it is stored.
            device: `auto`, `cpu`, `cuda:0`, `xpu`, `mps`.
            trials: loads of each kind.
            cold: measure only cold loads, or with False only warm ones.
            synthetic: models with random weights to make, measure and remove, such as `tiny`.
            tokens: how many to generate after a load.
            loader: plain, readahead, pinned, fastsafetensors or runai; the fastest known if not
                given.
            attention: sdpa, eager or flash_attention_2; the configured one if not given, else the
                model's own choice.
            save: a file to write the report to, as JSON.
            compare: a file that `save` wrote, to compare the report with.
            history: measure nothing and return the results of earlier runs.
            trust_remote_code: let Python code of the repo run.
            context: tokens of a context whose key-value cache counts as memory.
            cold_libraries: before a cold load, let torch and transformers leave memory too.

        Raises:
            UnknownModelError: a name is neither a key nor a repo id.
            MissingPackageError: a package that loading needs is not installed.
            NoDeviceError: there is no such device.
        """
        from vlmcache.load import bench, options, saved

        if history:
            return saved.history(self.session, as_names(models))
        wanted = options.LoadTestOptions(
            precisions=options.parse_precisions(as_list(precision)),
            device=device,
            trials=as_count(self.named("trials"), trials),
            cold=cold,
            tokens=as_count(self.named("tokens"), tokens),
            loaders=options.parse_loaders(as_list(loader)),
            trust_remote_code=trust_remote_code,
            attention=options.parse_one_attention(attention),
            synthetic=as_list(synthetic),
            context=as_count(self.named("context"), context) if context is not None else 0,
            cold_libraries=cold_libraries,
        )
        earlier = saved.read_report(os.fspath(compare)) if compare is not None else None
        saved.check_targets(as_path(save))
        report = bench.load_test(self.session, self._matching(models), wanted, self.on_step)
        report = saved.compared(report, earlier)
        return report if save is None else saved.save_report(os.fspath(save), report)

    def quantize(
        self,
        model: str,
        *,
        precision: str = "int8",
        device: str = "auto",
        remove: bool = False,
        dry_run: bool = False,
        trust_remote_code: bool = False,
    ) -> Quantization:
        """Keep a quantized copy of a model, so that later loads are fast.

        Args:
            model: a key of config.yaml or a repo id, with an optional `@revision`.
            precision: int8 or int4.
            device: `auto`, `cpu`, `cuda:0`, `xpu`.
            remove: remove the copy instead.
            dry_run: return the plan and write nothing.
            trust_remote_code: let Python code of the repo run.

        Raises:
            UnknownModelError: the name is neither a key nor a repo id.
            UnloadableError: the model cannot be loaded or quantized with these settings.
            SpaceError: the copy would leave too little space free.
        """
        from vlmcache.load import options, quantized

        wanted = options.parse_one_precision(precision)
        if remove:
            return quantized.remove_quantized(self.session, model, wanted, dry_run=dry_run)
        return quantized.quantize(
            self.session,
            model,
            wanted,
            device=device,
            dry_run=dry_run,
            trust_remote_code=trust_remote_code,
            progress=self.progress,
        )

    def warm(self, models: Names, *, dry_run: bool = False) -> WarmReport:
        """Read into the page cache what loading some models opens, as far as memory has room.

        Args:
            models: keys of config.yaml or repo ids, with an optional `@revision` and `:VARIANT`.
            dry_run: return what would be read, and read nothing.

        Raises:
            UnknownModelError: a name is neither a key nor a repo id.
            NotDownloadedError: a model is not cached, or not completely.
            AwayError: it is on a drive that is not mounted.
        """
        from vlmcache.load import warm

        return warm.warm(self.session, as_names(models), self.progress, dry_run=dry_run)

    def load_model(
        self,
        key: str,
        precision: str | None = None,
        device: str = "auto",
        *,
        trust_remote_code: bool = False,
        attention: str | None = None,
    ) -> tuple[Any, Any]:
        """Return a model and its processor, every weight on the device.

        The arguments are those of `vlmcache.load_model`, and so is what it raises.
        """
        from vlmcache.loading import load_from

        return load_from(
            self.session,
            key,
            precision,
            device,
            trust_remote_code=trust_remote_code,
            attention=attention,
        )

    def _matching(self, models: Names | None, *, missing: bool = False) -> tuple[str, ...]:
        return matching_names(self.session, as_names(models), missing=missing)

    def _verify_options(
        self, max_age: Duration | None, workers: int | None, *, dry_run: bool = False
    ) -> VerifyOptions:
        from vlmcache.commands.verify.values import MAX_AGE, VerifyOptions

        age = as_seconds(self.named("max_age"), max_age)
        threads = None if workers is None else as_count(self.named("workers"), workers, 256)
        return VerifyOptions(MAX_AGE if age is None else age, threads, dry_run)


def watched(cache: Cache, interval: Duration, min_free: Size | None) -> tuple[Session, float]:
    """Return the session to watch, its minimum of free space replaced, and the seconds at most.

    Raises:
        UsageError: an argument makes no sense.
    """
    import msgspec

    session, name = cache.session, cache.named("interval")
    seconds = as_seconds(name, interval, ("s", "m"))
    if seconds is None or not 0.1 <= seconds <= 86400:
        raise UsageError(f"{name} must be 0.1s to 1d")
    bound = as_bytes(cache.named("min_free"), min_free)
    if bound is not None:
        limits = msgspec.structs.replace(session.config.limits, min_free=bound)
        session = session._replace(config=msgspec.structs.replace(session.config, limits=limits))
    return session, seconds
