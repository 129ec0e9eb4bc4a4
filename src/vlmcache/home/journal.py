"""What vlmcache remembers, in one SQLite file of its own; all of it can be lost without harm.

Every function works without the file: on a read-only home or a full disk nothing is remembered, and
nothing fails. A damaged file is replaced when there is something to remember. Root remembers
nothing in the home of another user, and reads what that user's file says out of a copy in memory.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vlmcache import log
from vlmcache.cache.owners import is_anothers
from vlmcache.cache.reading import read_bytes
from vlmcache.cache.tree import is_root
from vlmcache.config import Environment, own_home
from vlmcache.paths import real_path

# Most commands look here and find no file yet; they need not wait for the library.
if TYPE_CHECKING:
    import sqlite3

    from vlmcache.cache.hashing import Identity
    from vlmcache.cache.state import RevisionKey

FILE = "memory.sqlite"
_BUSY_SECONDS = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS uses (
    cache TEXT NOT NULL, type TEXT NOT NULL, repo TEXT NOT NULL, commit_hash TEXT NOT NULL,
    what TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (cache, type, repo, commit_hash, what)
);
CREATE TABLE IF NOT EXISTS loads (at REAL NOT NULL, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS verified (
    device TEXT NOT NULL, inode TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL, hash TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (device, inode, hash)
);
CREATE TABLE IF NOT EXISTS disks (
    disk TEXT PRIMARY KEY, readers INTEGER NOT NULL, at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS restricted (
    type TEXT NOT NULL, repo TEXT NOT NULL, how TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (type, repo)
);
"""
# Devices and inodes are text, since they can be longer than SQLite's integers.
_DAMAGED = ""
"""In place of the hash of a file that was found to have other content than its hash says."""
_MOST_ROWS = 1_000_000
"""Rows that are read of a table: of a file that somebody else has filled, no more."""
_LONGEST_LOAD = 1_000_000
"""Bytes of a result of a load test."""
_LONGEST_FOREIGN = 64_000_000
"""Bytes of another user's file that root reads."""
_FORGET_AFTER = 400 * 86400.0


class Journal(contextlib.AbstractContextManager["Journal"]):
    """The open file, or nothing if it cannot be opened. Use it as a context manager.

    Args:
        home: vlmcache's own folder (`config.own_home`).
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._connection: sqlite3.Connection | None = None
        self._foreign = False

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self, *, create: bool) -> sqlite3.Connection | None:
        if self._connection is not None:
            return self._connection
        path = os.path.join(self._home, FILE)
        if is_anothers(self._home) or not _is_roots(path):
            _say_foreign(self._home)
            self._foreign, self._connection = True, _copy(path)
            return self._connection
        if not create and not os.path.exists(path):
            return None
        import sqlite3

        with contextlib.suppress(OSError, sqlite3.OperationalError):
            os.makedirs(self._home, exist_ok=True)
            # The rollback journal, not WAL: that needs shared memory, and network homes have none.
            connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                connection.executescript(_SCHEMA)
            except sqlite3.Error:
                # A database that can be read and not written is still good for reading.
                if create:
                    connection.close()
                    raise
            self._connection = connection
        return self._connection

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Remember something; a file that is damaged is replaced by a new one."""
        import sqlite3

        for again in (True, False):
            try:
                connection = self._open(create=True)
                if connection is not None and not self._foreign:
                    work(connection)
                return
            except sqlite3.Error as error:
                # The subclasses are for what passes, such as a full disk or a lock.
                if type(error) is not sqlite3.DatabaseError or not again:
                    return
            self._close()
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._home, FILE))

    def record_use(
        self, cache: str, revision: RevisionKey, what: str, at: float | None = None
    ) -> None:
        """Remember that a revision was used.

        Args:
            cache: the hub cache's folder.
            revision: which.
            what: what used it: `pull`, `load`, `load-test`.
            at: seconds since the epoch; now if not given.
        """
        when = time.time() if at is None else at
        row = (real_path(cache), *revision, what, when)
        self._write(
            lambda connection: connection.execute(
                "INSERT INTO uses VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (cache, type, repo, commit_hash, what) "
                "DO UPDATE SET at = max(at, excluded.at)",
                row,
            )
        )

    def _ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows that a query gives; none if nothing is remembered or can be read."""
        connection = self._open(create=False)
        if connection is None:
            return []
        import sqlite3

        with contextlib.suppress(sqlite3.Error):
            return connection.execute(query, values).fetchall()
        return []

    def uses(self, cache: str) -> dict[RevisionKey, float]:
        """Return revision -> seconds since the epoch of the last use remembered."""
        rows = self._ask(
            "SELECT type, repo, commit_hash, max(at) FROM uses "
            "WHERE cache = ? AND typeof(at) = 'real' AND at BETWEEN 0 AND 1e11 "
            "GROUP BY type, repo, commit_hash LIMIT ?",
            real_path(cache),
            _MOST_ROWS,
        )
        return {(kind, repo, commit): at for kind, repo, commit, at in rows}

    def forget(self, cache: str, revision: RevisionKey) -> None:
        """Forget the uses of a revision that was removed."""
        self._ask(
            "DELETE FROM uses WHERE cache = ? AND type = ? AND repo = ? AND commit_hash = ?",
            real_path(cache),
            *revision,
        )

    def record_load(self, content: bytes, at: float | None = None) -> None:
        """Remember the result of a load test.

        Args:
            content: the result as JSON; what it says is of no interest here.
            at: seconds since the epoch; now if not given.
        """
        row = (time.time() if at is None else at, content)
        self._write(lambda connection: connection.execute("INSERT INTO loads VALUES (?, ?)", row))

    def loads(self, limit: int = 1000) -> list[bytes]:
        """Return the results remembered, the latest first."""
        rows = self._ask(
            "SELECT content FROM loads WHERE typeof(content) = 'blob' AND length(content) <= ? "
            "ORDER BY at DESC, rowid DESC LIMIT ?",
            _LONGEST_LOAD,
            limit,
        )
        return [bytes(content) for (content,) in rows]

    def record_readers(self, disk: str, count: int) -> None:
        """Remember how many readers at once were found to suit a disk."""
        row = (disk, count, time.time())
        self._write(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO disks VALUES (?, ?, ?)", row
            )
        )

    def readers(self, disk: str) -> int | None:
        """Return how many readers suit a disk; `None` if that was not measured."""
        rows = self._ask("SELECT readers FROM disks WHERE disk = ?", disk)
        return rows[0][0] if rows and isinstance(rows[0][0], int) else None

    def record_restriction(self, repo_type: str, repo: str, how: str | None) -> None:
        """Remember that the hub gives a repo to some users only, or forget it.

        Args:
            repo_type: `model`, `dataset` and so on.
            repo: the repo's id.
            how: `gated` or `private`; `None` if everybody may have it.
        """
        if how is None and (repo_type, repo) not in self.restricted():
            return
        row = (repo_type, repo, how or "", time.time())
        self._write(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO restricted VALUES (?, ?, ?, ?)", row
            )
        )

    def restricted(self) -> dict[tuple[str, str], str]:
        """Return (type, repo) -> `gated` or `private`, of the repos that pulls have found so."""
        rows = self._ask(
            "SELECT type, repo, how FROM restricted WHERE how IN ('gated', 'private') LIMIT ?",
            _MOST_ROWS,
        )
        return {(kind, repo): how for kind, repo, how in rows}

    def verified(self) -> dict[tuple[Identity, str], float]:
        """Return (file, hash) -> seconds since the epoch when the file was found to have it.

        What another user says of it does not count for root.
        """
        rows = self._ask(
            "SELECT device, inode, size, mtime_ns, ctime_ns, hash, at FROM verified "
            "WHERE typeof(at) = 'real' AND at BETWEEN 0 AND 1e11 ORDER BY at DESC LIMIT ?",
            _MOST_ROWS,
        )
        if not rows or self._foreign:
            return {}
        from vlmcache.cache.hashing import Identity

        with contextlib.suppress(ValueError):
            return {
                (Identity(int(device), int(inode), size, mtime_ns, ctime_ns), name): at
                for device, inode, size, mtime_ns, ctime_ns, name, at in rows
            }
        return {}

    def damaged(self) -> set[tuple[int, int, int, int]]:
        """Return (device, inode, size, mtime in ns) of the files that were found to be damaged."""
        rows = self._ask(
            "SELECT device, inode, size, mtime_ns FROM verified WHERE hash = ? "
            "AND typeof(device) = 'text' AND typeof(inode) = 'text' LIMIT ?",
            _DAMAGED,
            _MOST_ROWS,
        )
        with contextlib.suppress(ValueError):
            return {(int(device), int(inode), size, mtime) for device, inode, size, mtime in rows}
        return set()

    def record_damaged(self, files: Iterable[Identity], at: float) -> None:
        """Remember files whose content is not what their hash says.

        Args:
            files: the files.
            at: seconds since the epoch.
        """
        self.record_verified(((file, _DAMAGED) for file in files), at)

    def record_verified(self, files: Iterable[tuple[Identity, str]], at: float) -> None:
        """Remember files that were found to have the content that a hash names.

        Args:
            files: each file, and the hash.
            at: seconds since the epoch.
        """
        rows = [
            (str(file.device), str(file.inode), file.size, file.mtime_ns, file.ctime_ns, name, at)
            for file, name in files
        ]

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN")
            try:
                # A file that is good now was repaired since.
                connection.executemany(
                    "DELETE FROM verified WHERE device = ? AND inode = ? AND hash = ?",
                    [(row[0], row[1], _DAMAGED) for row in rows],
                )
                connection.executemany(
                    "INSERT OR REPLACE INTO verified VALUES (?, ?, ?, ?, ?, ?, ?)", rows
                )
                connection.execute("DELETE FROM verified WHERE at < ?", (at - _FORGET_AFTER,))
            finally:
                connection.execute("COMMIT")

        self._write(work)


def _is_roots(path: str) -> bool:
    """Return whether root may open a file to write: there is none, or it is a plain one of root's.

    Of other users than root, any file will do.
    """
    if not is_root():
        return True
    try:
        status = os.lstat(path)
    except OSError:
        return True
    return stat.S_ISREG(status.st_mode) and status.st_uid == 0


@functools.cache
def _say_foreign(home: str) -> None:
    log.info("journal", "nothing is remembered: root does not write to another's '%s'", home)


def _copy(path: str) -> sqlite3.Connection | None:
    """Return what a file of another user's holds, in memory; `None` if it is not plain tables."""
    import sqlite3

    connection = sqlite3.connect(":memory:", isolation_level=None)
    # A view could be made to give rows without end. Python 3.10 cannot read out of memory.
    others = "SELECT 1 FROM sqlite_master WHERE type NOT IN ('table', 'index')"
    fill = getattr(connection, "deserialize", None)
    with contextlib.suppress(OSError, sqlite3.Error):
        content = read_bytes(path, _LONGEST_FOREIGN, follow=False)
        if content and fill is not None:
            fill(content)
            if connection.execute(others).fetchone() is None:
                return connection
    connection.close()
    return None


def read_restricted(environment: Environment) -> dict[tuple[str, str], str]:
    """Return the repos that the user's pulls have found restricted, see `Journal.restricted`."""
    with Journal(own_home(environment)[0]) as journal:
        return journal.restricted()


def read_damaged(environment: Environment) -> set[tuple[int, int, int, int]]:
    """Return what the user's journal says of damaged files, see `Journal.damaged`."""
    with Journal(own_home(environment)[0]) as journal:
        return journal.damaged()
