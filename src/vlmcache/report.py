"""What every command returns: a value that `--json` prints, and what it has to say about itself."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from vlmcache.errors import VlmcacheError

_R = TypeVar("_R", bound="Report")


class Report(msgspec.Struct, frozen=True, dict=True):
    """The result of a command. Its fields are the keys of `--json`."""

    @property
    def ids(self) -> list[str]:
        """One line for each thing that the report is about, as `--quiet` prints them."""
        return []

    @property
    def in_one_line(self) -> str:
        """What was done, for the record of a scheduled run; empty if the exit code says it all."""
        return ""

    @property
    def problem(self) -> VlmcacheError | None:
        """What went wrong, or `None` if everything that was asked for was done."""
        problem: VlmcacheError | None = self.__dict__.get("_problem")
        return problem

    def with_problem(self: _R, problem: VlmcacheError | None) -> _R:
        """Return the same report with what went wrong, which is no part of `--json`'s document."""
        report = msgspec.structs.replace(self)
        report.__dict__["_problem"] = problem
        return report

    def check(self: _R) -> _R:
        """Return the report itself.

        Raises:
            VlmcacheError: the problem, if there is one.
        """
        problem = self.problem
        if problem is not None:
            raise problem
        return self
