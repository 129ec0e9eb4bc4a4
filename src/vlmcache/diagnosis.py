"""`doctor`: facts about paths, disk, versions and devices, and findings with their remedies."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import stat as modes
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import msgspec

from vlmcache import advice
from vlmcache.cache import layout
from vlmcache.cache.moves import DRIVE_AWAY
from vlmcache.cache.state import Finding
from vlmcache.cache.usage import AccessTimes, mount_of, nearest_folder
from vlmcache.change.plan import Plan, Receipt
from vlmcache.config import (
    CacheLocation,
    Config,
    Environment,
    hub_home,
    own_home,
    side_caches,
)
from vlmcache.errors import CacheError, ConfigError, UnloadableError
from vlmcache.overview import Status, status
from vlmcache.recommending import Advice, what_frees
from vlmcache.sharing import Sharing, check_access
from vlmcache.units import size_text

PACKAGES = (
    "huggingface_hub",
    "hf_xet",
    "transformers",
    "torch",
    "torchvision",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "tokenizers",
    "pillow",
)
INSTALL_LOAD = "pip install 'vlmcache[load]'"
_GPU_TIMEOUT = 10.0
_SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")


class PathFact(msgspec.Struct, frozen=True):
    """A folder or file that vlmcache uses, and the setting that chose it."""

    name: str
    path: str
    source: str
    exists: bool
    writable: bool


class Filesystem(msgspec.Struct, frozen=True):
    """What the cache's filesystem can do; `None` where it could not be tried. Sizes are bytes."""

    type: str | None
    mount_point: str | None
    network: bool
    free: int | None
    total: int | None
    symlinks: bool | None
    hard_links: bool | None
    locks: bool | None
    case_sensitive: bool | None
    access_times: AccessTimes


class Device(msgspec.Struct, frozen=True):
    """An accelerator. `memory` is bytes; `torch` is how torch names it, if it sees it."""

    name: str
    memory: int | None
    driver: str | None
    torch: str | None = None


class Offline(msgspec.Struct, frozen=True):
    """Whether the configured models load without a network."""

    ready: bool
    lacking: tuple[str, ...]
    forced: bool
    """True where HF_HUB_OFFLINE is set."""


class Diagnosis(msgspec.Struct, frozen=True):
    """What `vlmcache doctor` answers.

    With `--shared` or `--fix`: plan is what has to change in the cache's permissions, receipt what
    was changed.
    """

    paths: tuple[PathFact, ...]
    variables: dict[str, str]
    filesystem: Filesystem
    python: str
    platform: str
    versions: dict[str, str | None]
    devices: tuple[Device, ...]
    quantization: str | None
    offline: Offline
    findings: tuple[Finding, ...]
    shared: Sharing | None = None
    plan: Plan | None = None
    receipt: Receipt | None = None

    @property
    def has_errors(self) -> bool:
        """Whether something stops models from being pulled or loaded."""
        return any(finding.severity == "error" for finding in self.findings)


def diagnose(
    environment: Environment,
    config: Config,
    location: CacheLocation,
    *,
    ask_torch: bool = False,
    shared: str | None = None,
    fix: bool = False,
) -> Diagnosis:
    """Return what can be known of this machine. Nothing is left behind; no network is touched.

    Args:
        environment: the variables in force.
        config: the configuration in force.
        location: the hub cache.
        ask_torch: also ask torch, in a process of its own, for the devices that it can use; that
            takes the seconds that its import takes.
        shared: the group that is to share the cache.
        fix: set the cache's permissions so that the group shares it; without one, so that its owner
            can use it and not everybody can change it.

    Raises:
        UsageError: there is no such group.
    """
    # First, so that what was mended is not told of.
    access = check_access(location.dir, shared, fix=fix) if shared is not None or fix else None
    findings: list[Finding] = [] if access is None else list(access.findings)
    paths = tuple(_paths(environment, config, location))
    filesystem = _filesystem(location.dir)
    versions = {"vlmcache": _version("vlmcache")} | {name: _version(name) for name in PACKAGES}
    devices = _devices(findings)
    if ask_torch and versions["torch"] is not None and versions["transformers"] is not None:
        devices = _seen_by_torch(devices, findings)
    found: Status | None = None
    lacking: tuple[str, ...] = ()
    try:
        found = status(config, location, environment=environment)
        lacking = tuple(model.key for model in found.models if model.state != "cached")
    except (CacheError, ConfigError) as error:
        findings.append(_finding("cache-path", "error", location.dir, error.message, error.hint))
    findings += _check_paths(paths, location, environment)
    steps = found.recommendations if found is not None else ()
    advised = Advice(config, location)
    findings += _check_filesystem(filesystem, location.dir, config, what_frees(steps, advised))
    findings += _check_permissions(location.dir)
    findings += _check_versions(versions)
    if found is not None:
        findings += _check_cache(found)
    findings += (_finding("configuration", "warning", config.path, text) for text in config.notices)
    findings += (
        _finding("configuration", "info", os.path.join(environment.folder, ".env"), text)
        for text in environment.ignored
    )
    return Diagnosis(
        paths=paths,
        variables=_variables(environment),
        filesystem=filesystem,
        python=f"{platform.python_version()} ({sys.executable})",
        platform=platform.platform(),
        versions=versions,
        devices=devices,
        quantization=f"bitsandbytes {version}" if (version := versions["bitsandbytes"]) else None,
        offline=Offline(
            not lacking and found is not None, lacking, environment.offline_by is not None
        ),
        findings=tuple(map(advised.completed, findings)),
        shared=access.sharing if access is not None else None,
        plan=access.plan if access is not None else None,
        receipt=access.receipt if access is not None else None,
    )


def _finding(
    code: str, severity: str, path: str, detail: str, remedy: str | None = None
) -> Finding:
    return Finding(code, severity, None, path, detail, remedy)  # type: ignore[arg-type]


def _paths(environment: Environment, config: Config, location: CacheLocation) -> Iterator[PathFact]:
    home, home_source = own_home(environment)
    hub = hub_home(environment)
    hub_source = environment.source("HF_HOME") if environment.get("HF_HOME") else "default"
    beside = side_caches(environment)

    def source_of(variable: str) -> str:
        names = (name for name in (variable, "HF_HOME") if environment.own(name))
        return next(names, "default")

    for name, path, source in (
        ("cache", location.dir, location.source),
        ("config", config.path, config.source),
        ("vlmcache", home, home_source),
        ("huggingface", hub, hub_source),
        ("xet chunks", beside["xet"], source_of("HF_XET_CACHE")),
        ("remote code", beside["modules"], source_of("HF_MODULES_CACHE")),
    ):
        yield PathFact(name, path, source, os.path.exists(path), _writable(path))


def _writable(path: str) -> bool:
    """Return whether the path, or the folder that would hold it, can be written."""
    return os.access(path if os.path.exists(path) else nearest_folder(path), os.W_OK)


def _variables(environment: Environment) -> dict[str, str]:
    """Return the variables that bear on the cache; of secrets only that they are set."""
    names = sorted(
        name
        for name in environment.variables
        if name.startswith(("HF_", "HUGGING", "VLMCACHE_", "TRANSFORMERS_"))
        or name
        in ("XDG_CACHE_HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "CUDA_VISIBLE_DEVICES")
    )
    return {environment.source(name): _told(name, environment.variables[name]) for name in names}


def _told(name: str, value: str) -> str:
    if any(word in name for word in _SECRETS) and not name.endswith("_PATH"):
        return "(set)" if value else ""
    if "PROXY" in name or "ENDPOINT" in name:
        # user:password@host
        scheme, separator, rest = value.rpartition("://")
        return scheme + separator + rest.rpartition("@")[2]
    return value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _filesystem(path: str) -> Filesystem:
    where = nearest_folder(path)
    mount = mount_of(where)
    try:
        usage = shutil.disk_usage(where)
    except OSError:
        usage = None
    trials = _try_abilities(where) if os.access(where, os.W_OK) else {}
    return Filesystem(
        type=mount.type if mount else None,
        mount_point=mount.point if mount else None,
        network=mount.network if mount else False,
        free=usage.free if usage else None,
        total=usage.total if usage else None,
        symlinks=trials.get("symlinks"),
        hard_links=trials.get("hard_links"),
        locks=trials.get("locks"),
        case_sensitive=trials.get("case_sensitive"),
        access_times=mount.access_times if mount else "unknown",
    )


def _try_abilities(folder: str) -> dict[str, bool]:
    """Try what the hub's layout relies on, in a folder that is gone afterwards."""
    trials: dict[str, bool] = {}
    try:
        with tempfile.TemporaryDirectory(prefix=".vlmcache-doctor-", dir=folder) as trial:
            file = os.path.join(trial, "file")
            with open(file, "wb") as handle:
                trials["locks"] = _can_lock(handle.fileno())
            for name, make in (("symlinks", os.symlink), ("hard_links", os.link)):
                try:
                    make(file, os.path.join(trial, name))
                    trials[name] = True
                except (OSError, NotImplementedError):
                    trials[name] = False
            trials["case_sensitive"] = not os.path.exists(os.path.join(trial, "FILE"))
    except OSError:
        pass
    return trials


def _can_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _devices(findings: list[Finding]) -> tuple[Device, ...]:
    """Return the NVIDIA GPUs that the driver names; torch is not imported for it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [
        program,
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_GPU_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        detail = f"the driver does not answer: {error}"
        findings.append(_finding("gpu-driver", "warning", program, detail, "run nvidia-smi"))
        return ()
    devices = []
    for line in done.stdout.splitlines():
        name, memory, driver = ([part.strip() for part in line.split(",")] + ["", "", ""])[:3]
        size = int(memory) * 1024 * 1024 if memory.isdigit() else None
        devices.append(Device(name, size, driver or None))
    return tuple(devices)


def _seen_by_torch(devices: tuple[Device, ...], findings: list[Finding]) -> tuple[Device, ...]:
    """Return the devices with torch's names for them, and those that only torch names."""
    from vlmcache.load.child import run_child

    try:
        answer = run_child({"task": "facts", "device": "auto", "precisions": [], "measure": False})
    except UnloadableError as error:
        findings.append(
            _finding("torch-broken", "warning", sys.prefix, error.message, INSTALL_LOAD)
        )
        return devices
    seen = answer["accelerators"]
    if devices and not seen:
        findings.append(
            _finding(
                "torch-without-gpu",
                "warning",
                sys.prefix,
                f"the driver names {devices[0].name}, and the installed torch cannot use it",
                "install the build of torch for this device: https://pytorch.org/get-started",
            )
        )
    named = {device.name: device for device in devices}
    others = [device for device in devices if device.name not in {one["name"] for one in seen}]
    return (
        *(
            Device(
                one["name"],
                one["memory"],
                named[one["name"]].driver if one["name"] in named else None,
                one["device"],
            )
            for one in seen
        ),
        *others,
    )


def _check_paths(
    paths: tuple[PathFact, ...], location: CacheLocation, environment: Environment
) -> Iterator[Finding]:
    for conflict in location.conflicts:
        yield _finding(
            "conflicting-settings",
            "warning",
            location.dir,
            conflict,
            "unset the one that is not meant",
        )
    for path in _other_caches(location, environment):
        yield _finding(
            "second-cache",
            "warning",
            path,
            f"another cache with models lies at {path}; {location.source} decides for "
            f"{location.dir}",
            advice.command("status", "--cache-dir", path),
        )
    for fact in paths:
        if fact.name == "vlmcache" and not fact.writable:
            yield _finding(
                "home-not-writable",
                "warning",
                fact.path,
                "vlmcache cannot remember when models were used",
                "name a writable folder with VLMCACHE_HOME",
            )


def _other_caches(location: CacheLocation, environment: Environment) -> Iterator[str]:
    """Yield the usual places of a cache that hold repos and are not the chosen one."""
    home = os.path.expanduser("~")
    candidates = [
        os.path.join(home, ".cache", "huggingface", "hub"),
        os.path.join(home, ".cache", "huggingface", "transformers"),
        os.path.join(hub_home(environment), "hub"),
    ]
    if environment.get("XDG_CACHE_HOME"):
        base = os.path.expanduser(environment.variables["XDG_CACHE_HOME"])
        candidates.append(os.path.join(base, "huggingface", "hub"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        value = environment.get(name)
        if value:
            candidates.append(os.path.abspath(os.path.expanduser(value)))
    seen = {os.path.realpath(location.dir)}
    for path in candidates:
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            populated = any(map(layout.parse_repo_folder, os.listdir(path)))
        except OSError:
            continue
        if populated:
            yield path


def _check_filesystem(
    filesystem: Filesystem, path: str, config: Config, frees: str
) -> Iterator[Finding]:
    if filesystem.symlinks is False:
        yield _finding(
            "no-symlinks",
            "warning",
            path,
            "this filesystem has no symbolic links: each revision keeps copies of its own",
            "use a filesystem with links; on Windows turn on developer mode",
        )
    if filesystem.locks is False:
        yield _finding(
            "no-locks",
            "warning",
            path,
            "this filesystem has no locks: two downloads of one file can run at once",
            "pull from one machine at a time",
        )
    if filesystem.access_times == "never":
        yield _finding(
            "no-access-times",
            "info",
            path,
            "this mount keeps no access times: only vlmcache's own journal tells the last use",
        )
    free = filesystem.free
    if free is not None and free < config.limits.min_free:
        yield _finding(
            "low-disk",
            "warning",
            path,
            f"{size_text(free)} free, below the minimum of {size_text(config.limits.min_free)}",
            frees,
        )


def _check_permissions(path: str) -> Iterator[Finding]:
    if not os.path.isdir(path):
        if not os.access(nearest_folder(path), os.W_OK):
            yield _finding(
                "cache-not-writable",
                "error",
                path,
                "the cache is not there and cannot be made here",
                "name another with --cache-dir or HF_HUB_CACHE",
            )
        return
    if not os.access(path, os.R_OK | os.X_OK):
        remedy = f"ask the owner for read access to {path}"
        yield _finding("cache-not-readable", "error", path, "the cache cannot be read", remedy)
    elif not os.access(path, os.W_OK):
        yield _finding(
            "cache-read-only",
            "warning",
            path,
            "the cache cannot be written: status and loading work, pull and rm do not",
            "name another with --cache-dir or HF_HUB_CACHE",
        )
    if sys.platform != "win32":
        status = os.stat(path)
        if status.st_mode & modes.S_IWOTH and not status.st_mode & modes.S_ISVTX:
            yield _finding(
                "world-writable",
                "warning",
                path,
                "every user of this machine can change the cache",
                "vlmcache doctor --fix",
            )
        if status.st_uid != os.geteuid() and os.geteuid() != 0:
            yield _finding(
                "other-owner", "info", path, f"the cache belongs to user {status.st_uid}"
            )


def _check_versions(versions: dict[str, str | None]) -> Iterator[Finding]:
    if versions["torch"] is None or versions["transformers"] is None:
        missing = " and ".join(name for name in ("torch", "transformers") if versions[name] is None)
        yield _finding(
            "loading-not-installed",
            "info",
            sys.prefix,
            f"{missing} not installed: load-test cannot run; everything else does",
            INSTALL_LOAD,
        )
    elif versions["bitsandbytes"] is None:
        yield _finding(
            "quantization-not-installed",
            "info",
            sys.prefix,
            "bitsandbytes is not installed: int8 and int4 cannot be loaded",
            "pip install bitsandbytes",
        )


def _check_cache(found: Status) -> Iterator[Finding]:
    yield from (finding for finding in found.findings if finding.code == DRIVE_AWAY)
    errors = [finding for finding in found.findings if finding.severity == "error"]
    if errors:
        repos = sorted({finding.repo for finding in errors if finding.repo})
        yield _finding(
            "damaged-repos",
            "error",
            found.cache.dir,
            f"{len(errors)} {'error' if len(errors) == 1 else 'errors'} in the cache: "
            + (", ".join(repos) or found.cache.dir),
            "vlmcache status -v",
        )
