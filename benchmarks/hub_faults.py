"""Faults of a hub and of the way to it: how `hf download` ends, and how `vlmcache pull` does.

    python -m benchmarks.hub_faults [--jobs 6] [--cap 120] [--write] [PART OF A NAME …]

Every run is a fresh process with a fresh cache and a fresh hub, which is a process too. The exit
code is not 0 if `hf` ends with exit 0 and the right bytes where we do not, or if we take more than
twice its time plus two seconds to end no better. `--write` puts the table into docs/hub-faults.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.fault_cases import CASES, REPO, WEIGHTS, Case
from benchmarks.pairs import BIN, machine
from benchmarks.pull import environment
from tests.kit.contents import Content, Synthetic
from tests.kit.counts import write_counts
from tests.kit.disks import NOBODY, becoming
from tests.kit.hub import LoopbackHub
from tests.kit.proxy import proxy
from tests.kit.tls import Authority

Side = Literal["hf", "vlmcache"]
SIDES: tuple[Side, Side] = ("hf", "vlmcache")
SLACK = 2.0


class End(NamedTuple):
    """How a run ended."""

    code: int | None
    """The exit code; `None` for a run that was ended at the cap."""
    right: bool
    """Whether all bytes are right."""
    seconds: float
    last_line: str
    """The last line of stderr, an error if there is one."""

    @property
    def good(self) -> bool:
        """Whether it ended with exit 0 and the right bytes."""
        return self.code == 0 and self.right

    def cells(self, cap: float) -> str:
        """Return its cells of the table."""
        code = "–" if self.code is None else str(self.code)
        seconds = f"> {cap:g}" if self.code is None else f"{self.seconds:.1f}"
        return f"{code} | {'yes' if self.right else 'no'} | {seconds}"


# The hub's process.


def serve(case: Case, folder: Path) -> None:
    """Serve a case: print what a client needs, and arm the fault when a line is read."""
    with contextlib.ExitStack() as stack:
        variables = {"HF_HUB_DISABLE_XET": "1"}
        authority = Authority(folder / "tls") if case.tls else None
        hub = stack.enter_context(
            LoopbackHub(
                tls=authority.context if authority else None, tls_of_cdn=case.tls != "hub only"
            )
        )
        if authority is not None:
            trusted = Authority(folder / "other") if case.tls == "another CA" else authority
            variables["SSL_CERT_FILE"] = str(trusted.certificate)
        if case.front is not None:
            between = stack.enter_context(proxy(folder / "proxy"))
            address = between.with_password if case.front == "proxy" else between.address
            variables |= between.variables(address)
        for name in (REPO, *case.others):
            repo = hub.add_repo(name, kind=case.kind)
            repo.commit(case.files, xet={WEIGHTS: "ab" * 32} if case.xet else None)
        models = {name: {"model_path": name} for name in (REPO, *case.others)}
        (folder / "config.yaml").write_text(json.dumps({"models": models}))
        case.build(folder)
        host = hub.url.partition("://")[2]
        given = {
            name: value.format(host=host, folder=folder) for name, value in case.variables.items()
        }
        print(json.dumps({"url": hub.url, "own": variables, "case": given}), flush=True)
        sys.stdin.readline()
        case.arm(hub)
        print("armed", flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def served(case: Case, folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.hub_faults", "--serve", case.name]
    with subprocess.Popen(
        [*command, "--folder", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as hub:
        try:
            yield hub
        finally:
            assert hub.stdin is not None
            # At the end of its input it ends, and so does the proxy that it has started.
            hub.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                hub.wait(20)
            hub.kill()


# The clients' runs.


def command(side: Side, case: Case) -> list[str]:
    if side == "hf":
        kind = [] if case.kind == "model" else ["--repo-type", case.kind]
        alone = [str(BIN / "hf"), "download", REPO, *kind, *case.options, "--quiet"]
        if not case.others:
            return alone
        each = f"{BIN / 'hf'} download $name --quiet || code=$?"
        return [
            "sh",
            "-c",
            f"for name; do {each}; done; exit ${{code:-0}}",
            "0",
            REPO,
            *case.others,
        ]
    name = REPO if case.kind == "model" else f"{case.kind}s/{REPO}"
    which = "--all" if case.others else name
    return [str(BIN / "vlmcache"), "pull", which, "--all-files", *case.options, "-q"]


def run(side: Side, case: Case, cap: float) -> End:
    """Run one client with one fault."""
    with tempfile.TemporaryDirectory(prefix="hub-faults-") as made:
        folder = Path(made)
        (folder / "hub").mkdir()
        with served(case, folder / "hub") as hub:
            assert hub.stdin is not None
            assert hub.stdout is not None
            answer = json.loads(hub.stdout.readline())
            variables = environment(answer["url"], folder / "cache") | answer["own"]
            variables["HOME"] = str(folder)
            variables["VLMCACHE_CONFIG"] = str(folder / "hub" / "config.yaml")
            words = command(side, case)
            if case.locked:
                leave_lock(folder, case)
                words = [*becoming(NOBODY), *words]
            if case.cached:
                subprocess.run(words, env=variables, check=True, capture_output=True, timeout=cap)
            hub.stdin.write("now\n")
            hub.stdin.flush()
            hub.stdout.readline()
            code, seconds, last_line = timed(words, variables | answer["case"], cap)
        return End(code, has_all(folder / "cache", case), seconds, last_line)


def leave_lock(folder: Path, case: Case) -> None:
    """Let root own the lock of the weights, in a folder that belongs to another user."""
    os.chown(folder, NOBODY, NOBODY)
    lock = folder / "cache" / ".locks" / f"models--{REPO.replace('/', '--')}"
    lock = lock / f"{sha256(case.files[WEIGHTS])}.lock"
    lock.parent.mkdir(parents=True)
    lock.touch(0o644)
    for above in list(lock.parents)[:3]:
        os.chown(above, NOBODY, NOBODY)


def timed(words: list[str], variables: dict[str, str], cap: float) -> tuple[int | None, float, str]:
    """Return exit code, seconds and the last line of a command; the code is `None` at the cap."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        child = subprocess.Popen(
            words, env=variables, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        code: int | None = None
        try:
            code = child.wait(cap)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        seconds = time.perf_counter() - begun
        stderr.seek(0)
        lines = [line for line in stderr.read().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return code, seconds, (errors or lines or [""])[-1]


def has_all(cache: Path, case: Case) -> bool:
    """Return whether a snapshot of each repo has the right bytes under every name it needs."""
    wanted = case.files.keys() - case.spared
    return all(
        any(
            all(sha256(folder / name) == sha256(case.files[name]) for name in wanted)
            for folder in cache.glob(f"*--{repo.replace('/', '--')}/snapshots/*")
        )
        for repo in (REPO, *case.others)
    )


def sha256(content: Content) -> str | None:
    digest = hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(content)
    elif isinstance(content, Synthetic):
        for block in content.blocks():
            digest.update(block)
    elif not content.is_file():
        return None
    else:
        with content.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# The table.


def problem_of(ends: dict[Side, End]) -> str | None:
    """Return why a row fails, `None` if it does not."""
    peer, ours = ends["hf"], ends["vlmcache"]
    if peer.good and not ours.good:
        return "hf ends with exit 0 and the right bytes"
    if ours.seconds > 2 * peer.seconds + SLACK and not (ours.good and not peer.good):
        return f"{ours.seconds:.1f} s, hf {peer.seconds:.1f} s"
    return None


def table(rows: dict[str, dict[Side, End]], cap: float, jobs: int) -> str:
    command = f"`python -m benchmarks.hub_faults --jobs {jobs} --cap {cap:g}`"
    load = f"load average over the last 5 minutes {os.getloadavg()[1]:.1f}"
    lines = [
        f"{machine()}; {time.strftime('%Y-%m-%d')}.",
        f"{command}: {jobs} rows at once, runs ended after {cap:g} s; {load}.",
        "",
        "| what is wrong | hf | right bytes | seconds | vlmcache | right bytes | seconds |",
        "| --- | ---: | --- | ---: | ---: | --- | ---: |",
    ]
    for name, ends in rows.items():
        cells = " | ".join(ends[side].cells(cap) for side in SIDES)
        lines.append(f"| {name.replace('|', '/')} | {cells} |")
    return "\n".join([*lines, ""])


def missing_tool(case: Case) -> str | None:
    """Return what a case needs and this machine does not have; `None` if it can run."""
    needs = {"openssl": case.tls is not None, "tinyproxy": case.front is not None}
    if case.tool is not None:
        needs[case.tool] = True
    if case.locked and os.geteuid() != 0:
        return "root"
    return next((name for name, used in needs.items() if used and not shutil.which(name)), None)


def measure(case: Case, cap: float) -> dict[Side, End]:
    ends = {side: run(side, case, cap) for side in SIDES}
    problem = problem_of(ends)
    shown = "; ".join(
        f"{side} {' '.join(end.cells(cap).split(' | '))}" for side, end in ends.items()
    )
    remark = f"  ({problem})" if problem else ""
    print(f"{case.name}: {shown}{remark}", file=sys.stderr, flush=True)
    for side, end in ends.items():
        if end.last_line:
            print(f"    {side}: {end.last_line[:200]}", file=sys.stderr, flush=True)
    return ends


def main() -> int:
    """Measure all cases, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="only cases whose names hold one of these")
    parser.add_argument("--jobs", type=int, default=6, help="rows at once")
    parser.add_argument("--cap", type=float, default=120.0, help="seconds that a run may take")
    parser.add_argument("--write", action="store_true", help="write docs/hub-faults.md")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(CASES[given.serve], given.folder)
        return 0
    chosen = [
        case
        for case in CASES.values()
        if not given.parts or any(part in case.name for part in given.parts)
    ]
    for case in [case for case in chosen if missing_tool(case)]:
        print(f"left out, needs {missing_tool(case)}: {case.name}", file=sys.stderr)
        chosen.remove(case)
    rows: dict[str, dict[Side, End]] = {}
    for jobs, busy in ((given.jobs, False), (1, True)):
        group = [case for case in chosen if case.busy is busy]
        with ThreadPoolExecutor(jobs) as pool:
            ends = pool.map(lambda case: measure(case, given.cap), group)
            rows |= dict(zip((case.name for case in group), ends, strict=True))
    rows = {case.name: rows[case.name] for case in chosen}
    text = table(rows, given.cap, given.jobs)
    print(text)
    if given.write:
        write_counts("hub-faults.md", "faults of the hub", text)
    failed = {name: problem for name, ends in rows.items() if (problem := problem_of(ends))}
    for name, problem in failed.items():
        print(f"{name}: {problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
