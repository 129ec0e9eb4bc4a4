"""`serve`: other machines pull from this cache as they do from the hub."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence

from vlmcache import units
from vlmcache.addresses import in_address, is_loopback, parse_address, parse_host
from vlmcache.cache.completeness import judge, resolve
from vlmcache.cache.moved import away_error
from vlmcache.cache.scan import repo_finder
from vlmcache.commands.serve.access import read_access
from vlmcache.commands.serve.catalog import Catalog, Wanted
from vlmcache.commands.serve.values import (
    DEFAULT_LISTEN,
    InterruptedServeError,
    ServedModel,
    ServeOptions,
    ServeReport,
    TerminatedServeError,
)
from vlmcache.commands.serve.vouching import Vouching
from vlmcache.config import Session, cached_repos, find_model, own_home, parse_name
from vlmcache.errors import MissingPackageError, NotDownloadedError, UsageError
from vlmcache.home.journal import Journal
from vlmcache.installing import install_extra
from vlmcache.progress import Throttle
from vlmcache.show.text import printable

_SPARE_FILES = 64
"""Descriptors for all else that a process opens."""


class Server(contextlib.AbstractContextManager["Server"]):
    """A server that is about to answer: in a thread while its block runs, or here with `run`.

    The address is taken when it is made, and given back by the end of its block or of `run`.

    Args:
        session: what to work on.
        names: keys or repo ids, with an optional `@revision`; everything if empty.
        options: how.
        confirm: is called with the models before `all` serves them to other machines.

    Raises:
        MissingPackageError: uvicorn or starlette is not installed.
        UsageError: the arguments do not go together, or a token is needed.
        UnknownModelError: a name is neither a key nor a repo id.
        NotDownloadedError: what is named is not cached, or not completely.
        ServeError: the address cannot be listened on.
    """

    def __init__(
        self,
        session: Session,
        names: Sequence[str] = (),
        options: ServeOptions | None = None,
        confirm: Callable[[Sequence[ServedModel]], bool] | None = None,
    ) -> None:
        check_packages()
        from vlmcache.commands.serve import server

        options = options or ServeOptions()
        host, port = parse_address(options.listen or DEFAULT_LISTEN)
        _check_names(names, options)
        server.check_tls(options)
        home = own_home(session.environment)[0]
        wanted = find_wanted(session, names, options, home)
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(server.listen(host, port, options.max_connections))
            place, port = listener.getsockname()[:2]
            access = read_access(options, session.environment, host, place)
            catalog = stack.enter_context(contextlib.closing(Catalog(session, wanted)))
            self.models = tuple(repo.summary() for repo in catalog.repos())
            """What is served."""
            self.not_served = catalog.not_served()
            """What is in the cache and not served, and why."""
            _raise_file_limit(sum(len(model.commits) for model in self.models), options)
            if options.listen is not None and options.all and confirm is not None:
                confirm(self.models)
            vouching = stack.enter_context(contextlib.closing(Vouching(home)))
            self._counts = server.Counts()
            served = server.Served(
                catalog,
                vouching,
                access,
                Throttle(options.limit_rate),
                self._counts,
                lambda: listener.live,
            )
            self._uvicorn = server.uvicorn_server(served, options)
            self._listener = listener
            self._stack = stack.pop_all()
        scheme = "http" if options.tls_cert is None else "https"
        self.address = f"{scheme}://{in_address(host)}:{port}"
        """The address, as this machine reaches it."""
        address = parse_host(place)
        everywhere = address is not None and address.is_unspecified
        named = socket.gethostname() if everywhere else in_address(host)
        self.client_address = f"{scheme}://{named}:{port}"
        """The address for other machines; what they call this one may be another name."""
        self.has_token = access.has_token
        """Whether there is a token, which clients send in HF_TOKEN."""
        self.encrypted = options.tls_cert is not None
        """Whether it speaks TLS."""
        self.on_loopback = is_loopback(place)
        """Whether only this machine reaches it."""
        self._begun = time.monotonic()
        self._thread: threading.Thread | None = None

    def run(self) -> ServeReport:
        """Answer until a signal arrives, and return what was served; its problem is the signal."""
        try:
            # A signal may arrive while its loop is being made, which must not be left half made.
            with self._uvicorn.capture_signals():
                self._uvicorn.run([self._listener])
        finally:
            self._stack.close()
        report = self.report()
        if self._uvicorn.ended_by is None:
            return report
        is_int = self._uvicorn.ended_by == signal.SIGINT
        kind = InterruptedServeError if is_int else TerminatedServeError
        return report.with_problem(kind(kind.code))

    def start_lines(self) -> list[str]:
        """Return what people want to know before it runs: where, what, and what clients need."""
        size = units.size_text(sum(model.size for model in self.models))
        lines = [f"Serving {units.counted(len(self.models), 'model')} ({size}) at {self.address}"]
        if self.has_token:
            lines.append(
                f"On clients: HF_ENDPOINT={self.client_address} and HF_TOKEN=(this server's "
                "token), or they send the token of their hub here"
            )
        elif not self.on_loopback:
            lines.append(
                f"On clients: HF_ENDPOINT={self.client_address} and "
                "HF_HUB_DISABLE_IMPLICIT_TOKEN=1, or they send the token of their hub here"
            )
        closed = sum(model.token_only for model in self.models)
        if closed and self.on_loopback and not self.has_token:
            lines.append(
                f"Of these, {units.counted(closed, 'model')} cannot be read by all users of this "
                "machine: nobody is sent their files without a token, see '--token-file'"
            )
        if not self.on_loopback and not self.encrypted:
            lines.append("Without --tls-cert, files and tokens cross the network in clear text")
        lines += [
            f"Not served: {omitted.repo}: {omitted.reason}" for omitted in self.not_served[:5]
        ]
        if len(self.not_served) > 5:
            lines.append(f"Not served: {units.and_more(len(self.not_served) - 5).strip()}")
        return [printable(line) for line in lines]

    def report(self) -> ServeReport:
        """Return what was served so far."""
        return ServeReport(
            self.address,
            self.models,
            self.not_served,
            self._counts.requests,
            self._counts.refused,
            len(self._counts.contents),
            self._counts.bytes_sent,
            time.monotonic() - self._begun,
        )

    def __enter__(self) -> Server:
        from vlmcache.commands.serve import server

        self._thread = server.answer_in_thread(self._uvicorn, self._listener)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and let go of the address."""
        self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join()
        self._stack.close()


def check_packages() -> None:
    """Make sure that what serving needs is installed.

    Raises:
        MissingPackageError: it is not.
    """
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"serve needs {' and '.join(missing)}", install_extra("serve"))


def _check_names(names: Sequence[str], options: ServeOptions) -> None:
    """Make sure that names and options say what is served.

    Raises:
        UsageError: they do not.
    """
    if names and options.all:
        raise UsageError("name models or use --all, not both")
    if options.listen is not None and not names and not options.all:
        raise UsageError("--listen needs the models to serve", "name them, or add --all")
    if options.include_gated and not names:
        raise UsageError("--include-gated needs the models to serve", "name them")


def find_wanted(session: Session, names: Sequence[str], options: ServeOptions, home: str) -> Wanted:
    """Return what is to be served.

    Args:
        session: what to work on.
        names: what was typed; everything if empty.
        options: how to serve.
        home: our own folder, whose journal remembers what pulls have learned.

    Raises:
        UnknownModelError: a name is neither a key nor a repo id.
        NotDownloadedError: it is not cached, or not completely.
        AwayError: it is on a drive that is not mounted.
        UsageError: it is gated or private, and nothing says that it may be served.
    """
    with Journal(home) as journal:
        restrictions = journal.restricted()
    # Without --listen, only this machine is answered.
    withholds = options.listen is not None and not options.include_gated
    if not names:
        return Wanted(None, withholds)
    cached = cached_repos(session.cache)
    finder = repo_finder(session.cache.dir)
    commits: dict[str, frozenset[str] | None] = {}
    for name in names:
        model = find_model(session.config, name, cached, others=True)
        repo = finder(model.repo)
        state = judge(repo, model.revision).state
        asked = parse_name(name).revision
        if repo is not None and repo.away is not None:
            raise away_error(repo, repo.away)
        if repo is not None and asked is None and state != "cached":
            states = {judge(repo, revision.commit).state for revision in repo.revisions}
            state = "cached" if "cached" in states else state
        if repo is None or state != "cached":
            raise NotDownloadedError(
                f"{name} is {state}, and only complete models are served",
                units.command("pull", name),
            )
        restriction = restrictions.get((repo.type, repo.id))
        if restriction is not None and withholds:
            raise UsageError(
                f"{name} is {restriction} on the hub: who may have it is decided there",
                "--include-gated serves it to everybody who has this server's token",
            )
        commit = resolve(repo, model.revision) if asked is not None else None
        earlier = commits.get(repo.folder, frozenset())
        commits[repo.folder] = None if commit is None or earlier is None else earlier | {commit}
    return Wanted(commits, withholds)


def _raise_file_limit(revisions: int, options: ServeOptions) -> None:
    """Let the process open as many files as its connections may need.

    Raises:
        UsageError: the system does not allow that many.
    """
    try:
        import resource
    except ImportError:
        return
    needed = 2 * options.max_connections + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UsageError(
            f"--max-connections {options.max_connections} needs {needed} open files, and the "
            f"system allows {hard}",
            "lower it, or raise the limit with 'ulimit -n'",
        )
    wanted = needed + revisions
    if soft != resource.RLIM_INFINITY and wanted > soft:
        raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
