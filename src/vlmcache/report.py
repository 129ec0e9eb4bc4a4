"""What every command returns: a value that `--json` prints, with its ids and its problem."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from vlmcache.errors import VlmcacheError

_R = TypeVar("_R", bound="Report")


class Report(msgspec.Struct, frozen=True, dict=True):
    """The result of a command. Its fields are the keys of `--json`."""

    @property
    def ids(self) -> list[str]:
        """What the report is about, one id per line of `--quiet`."""
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
        """Return the same report with what went wrong, which is not one of its fields."""
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
