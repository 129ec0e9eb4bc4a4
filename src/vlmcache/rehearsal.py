"""What `schedule` lets a command do before it is written into a timer: everything but its work.

The command line is parsed, names and values are checked, and `clean` plans; nothing is changed, and
nothing is read that takes long. What would be refused at night is refused now.
"""

from __future__ import annotations

from typing import Any

from vlmcache.api import Cache
from vlmcache.arguments import Names
from vlmcache.errors import UsageError

_UNASKED = ("all", "xet", "modules")
"""Options of `clean` that remove more than anybody should find removed one morning."""


class Rehearsal(Cache):
    """A cache on which the commands that can be scheduled only check what they are given."""

    def clean(self, models: Names = (), **options: Any) -> Any:
        """Return the plan.

        Raises:
            UsageError: an option would remove more than may be removed without asking.
        """
        refused = next((name for name in _UNASKED if options.get(name)), None)
        if refused is not None:
            raise UsageError(
                f"'clean' with {self.named(refused)} cannot be scheduled: it removes what may be "
                "needed, and nobody would be asked",
                "run it yourself when it is needed",
            )
        return super().clean(models, **{**options, "dry_run": True})

    def verify(self, models: Names | None = None, **options: Any) -> Any:
        """Return an empty report, once something to verify is found for each name."""
        from vlmcache.cache.scan import scan
        from vlmcache.commands.verify.scope import Results, find_scopes

        self._verify_options(options.get("max_age"), options.get("workers"))
        state, results = scan(self.session.cache.dir), Results()
        find_scopes(state, self.session.config, self._matching(models), results)
        return results.verification(0.0)

    def repair(self, models: Names | None = None, **options: Any) -> Any:
        """Return the same as `verify`."""
        return self.verify(models, **options)

    def status(self, models: Names | None = None, *, check: bool = False, **options: Any) -> Any:
        """Return the state.

        Raises:
            UsageError: it is not a check, so nobody would read it.
        """
        if not check:
            raise UsageError(
                "'status' can be scheduled only with --check: otherwise nobody reads it",
                "add --check",
            )
        return super().status(models, check=check, **{**options, "outdated": False})
