"""What a move writes down: a note at its destination, and a record in the cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence

from vlmcache.cache import layout
from vlmcache.cache.moved import MoveRecord, leads_back, read_moves
from vlmcache.change.moved_note import record_size, remove_record, write_moves, write_record
from vlmcache.change.plan import Move, Outcome
from vlmcache.errors import CacheError


class MoveNotes:
    """The notes and records of moves from one cache to one destination.

    Args:
        cache_dir: the cache's real path.
        destination: the other cache's real path.
    """

    def __init__(self, cache_dir: str, destination: str) -> None:
        self.cache_dir = cache_dir
        self.destination = destination
        self.freed = 0
        """Bytes of disk that records gave back, less what they occupy now."""

    def begin(self, moves: Sequence[Move]) -> set[str]:
        """Note which repos are on their way, and return the folders that others have put there.

        Raises:
            OSError: the system refuses.
        """
        # Read again, now that no other move can change it.
        noted = dict(read_moves(self.destination))
        foreign: set[str] = set()
        for move in moves:
            folder = os.path.basename(move.path)
            known = noted.get(folder)
            ours = known is not None and known.cache == self.cache_dir and not known.finished
            linked = leads_back(self.destination, folder, self.cache_dir)
            if os.path.lexists(move.destination) and not ours and not linked:
                foreign.add(folder)
            else:
                noted[folder] = MoveRecord(self.cache_dir, finished=False)
        if moves:
            write_moves(self.destination, noted)
        return foreign

    def record(self, folder: str) -> None:
        """Record where a repo goes, before its link is all that there is of it here."""
        with self._counted(folder):
            write_record(self.cache_dir, folder, self.destination)

    def forget(self, folder: str) -> None:
        """Remove the record of a repo that stays, as far as the system allows it."""
        with contextlib.suppress(OSError), self._counted(folder):
            remove_record(self.cache_dir, folder)

    @contextlib.contextmanager
    def _counted(self, folder: str) -> Iterator[None]:
        """Count the bytes that a repo's record frees or occupies, whatever happens."""
        before = record_size(self.cache_dir, folder)
        try:
            yield
        finally:
            self.freed += before - record_size(self.cache_dir, folder)

    def finish(self, *, link: bool) -> Outcome | None:
        """Note as finished whatever has its link now, and forget what is to have no link.

        Returns:
            What failed, if anything did.
        """
        before = read_moves(self.destination)
        noted = dict(before)
        for folder, move in before.items():
            path = os.path.join(self.cache_dir, folder)
            if move.cache != self.cache_dir or move.finished:
                continue
            if os.path.islink(path):
                noted[folder] = MoveRecord(move.cache, finished=True)
            elif not link and not os.path.lexists(path) and not self._has_leftovers(folder):
                del noted[folder]
        if noted != before:
            try:
                write_moves(self.destination, noted)
            except OSError as error:
                detail = f"the note cannot be written: {error.strerror}: {self.destination}"
                return Outcome("note", self.destination, "failed", detail=detail)
        return None

    def _has_leftovers(self, folder: str) -> bool:
        top = os.path.join(self.cache_dir, layout.LEFTOVERS)
        jobs = os.listdir(top) if os.path.isdir(top) else []
        return any(os.path.lexists(os.path.join(top, job, folder)) for job in jobs)

    def forget_return(self, back: Collection[str]) -> None:
        """Forget here that repos had come from the destination, to which they are back."""
        before = read_moves(self.cache_dir)
        for folder in back:
            if not os.path.islink(os.path.join(self.destination, folder)):
                with contextlib.suppress(OSError):
                    remove_record(self.destination, folder)
        noted = {
            folder: move
            for folder, move in before.items()
            if folder not in back or move.cache != self.destination
        }
        if noted != before:
            with contextlib.suppress(OSError, CacheError):
                write_moves(self.cache_dir, noted)
