"""`vlmcache doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmcache.cli.options import (
    Answer,
    CacheDir,
    ConfigFile,
    Json,
    Output,
    Quiet,
    Verbose,
    open_session,
)
from vlmcache.errors import ExitCode

EXAMPLES = """Examples:

  vlmcache doctor
  HF_HOME=/data/hf vlmcache doctor
  vlmcache doctor --shared vlm
  sudo vlmcache doctor --shared vlm --fix --cache-dir /srv/hub
  vlmcache doctor --json | jq '.findings[]'"""


def doctor(
    shared: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP", help="Check whether this group of users can share the cache."
        ),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Set the cache's permissions right.")] = False,
    config: ConfigFile = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Answer:
    """Check paths, permissions, disk, versions, GPU.

    Says what to do about what is off. --shared shows what has to change before a group can use the
    cache together; --fix changes it.
    """
    from vlmcache.commands.doctor import doctor as doctor_command
    from vlmcache.commands.doctor import sharing

    session = open_session(config, cache_dir)
    value = doctor_command.diagnose(
        session.environment,
        session.config,
        session.cache,
        ask_torch=shared is None and not fix,
        shared=shared,
        fix=fix,
    )
    error = sharing.problem(value.receipt)

    def show() -> None:
        from vlmcache.commands.doctor import view

        view.show(value, verbose=verbose)

    return Answer(
        "doctor",
        value,
        Output(json, quiet, verbose),
        show,
        lambda: [finding.code for finding in value.findings],
        error,
        ExitCode.DAMAGE if value.has_errors else ExitCode.DONE,
    )
