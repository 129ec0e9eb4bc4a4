"""Stubs of systemctl, loginctl, crontab and launchctl that record how they are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlmcache.commands.schedule import schedule, timers

STUB = """#!/bin/sh
echo "${{0##*/}} $*" >>'{place}/calls'
for word in "$@"; do
    if [ -e "{place}/refuse-$word" ]; then echo "refused: $word" >&2; exit 1; fi
done
{rest}
"""
RESTS = {
    "systemctl": '[ "$1" = --user ] && shift\n[ "$1" = show ] && echo Version=252\nexit 0',
    "loginctl": "[ -e '{place}/lingers' ] && echo Linger=yes || echo Linger=no",
    "crontab": "T='{place}/crontab'\n"
    'if [ "$1" = -l ]; then\n'
    '    [ -f "$T" ] && exec /bin/cat "$T"\n'
    "    echo 'no crontab for you' >&2; exit 1\n"
    "fi\n"
    '/bin/cat >"$T.new" && exec /bin/mv "$T.new" "$T"',
    "launchctl": "exit 0",
}


class Machine:
    """A machine that has some of the programs, and nothing else on its search path."""

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.bin = place / "bin"
        self.bin.mkdir(parents=True)
        self.home = Path(os.environ["HOME"])
        self.user_units = self.home / ".config/systemd/user"
        self.system_units = place / "system"
        patch.setenv("PATH", str(self.bin))
        patch.delenv("SUDO_USER", raising=False)
        patch.setattr(timers, "SYSTEM_UNITS", str(self.system_units))
        patch.setattr(timers, "SYSTEM_AGENTS", str(place / "daemons"))
        self._patch = patch
        self.be_root(False)

    def be_root(self, root: bool) -> None:
        """Let schedules be those of root, or of another user."""
        for module in (timers, schedule):
            self._patch.setattr(module, "is_root", lambda: root)

    def have(self, *programs: str) -> None:
        """Install programs."""
        for name in programs:
            text = STUB.format(place=self.place, rest=RESTS[name].format(place=self.place))
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def refuse(self, word: str, *, yes: bool = True) -> None:
        """Let every program fail that is called with a word."""
        path = self.place / f"refuse-{word}"
        path.touch() if yes else path.unlink()

    @property
    def calls(self) -> list[str]:
        """How the programs were called that change something."""
        text = (self.place / "calls").read_text() if (self.place / "calls").exists() else ""
        asked = (" show", " is-active", "show-user", "crontab -l")
        return [line for line in text.splitlines() if not any(word in line for word in asked)]

    @property
    def crontab(self) -> str:
        """The crontab."""
        path = self.place / "crontab"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine without any timers."""
    return Machine(tmp_path / "machine", monkeypatch)
