"""`doctor`: facts about paths, disk, versions and devices, and findings with their remedies."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator

from vlmcache import log
from vlmcache.cache.mounts import mount_of, nearest_folder
from vlmcache.cache.owners import owners_of
from vlmcache.cache.state import Finding
from vlmcache.change.abilities import Abilities, probe
from vlmcache.change.tree import Tree
from vlmcache.commands.doctor.bases import check_bases
from vlmcache.commands.doctor.checks import (
    check_cache,
    check_paths,
    check_permissions,
    filesystem_findings,
    finding,
    missing_packages,
)
from vlmcache.commands.doctor.sharing import check_owners, check_sharing
from vlmcache.commands.doctor.values import Device, Diagnosis, Filesystem, Offline, PathFact
from vlmcache.commands.status.outdated import check_connection
from vlmcache.commands.status.recommend import what_frees
from vlmcache.commands.status.status import status
from vlmcache.commands.status.steps import Advice
from vlmcache.commands.status.values import Status
from vlmcache.config import Environment, Session, hub_home, own_home, side_caches
from vlmcache.environment import NETWORK_VARIABLES, SECRET_WORDS
from vlmcache.errors import CacheError, ConfigError, UnloadableError, reason_of
from vlmcache.installing import install_extra

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

_GPU_TIMEOUT = 10.0
_OTHER_VARIABLES = NETWORK_VARIABLES | {"XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES"}


def diagnose(
    session: Session,
    *,
    ask_torch: bool = False,
    shared: str | None = None,
    fix: bool = False,
    dry_run: bool = False,
) -> Diagnosis:
    """Return what can be found out about this machine; nothing is left behind, no network is used.

    Args:
        session: the environment, the configuration and the hub cache.
        ask_torch: also ask torch, in a separate process, which devices it can use; importing it
            takes seconds.
        shared: the group that is to share the cache.
        fix: set the cache's permissions so that the group shares it; without one, so that its owner
            can use it and not everybody can change it.
        dry_run: only plan what `fix` would set.

    Raises:
        UsageError: the group does not exist.
    """
    environment, config, location = session
    # First: what it repairs is not to be reported.
    access = None
    if shared is not None or fix:
        access = check_sharing(location.dir, shared, fix=fix and not dry_run)
    findings: list[Finding] = [] if access is None else list(access.findings)
    paths = tuple(_paths(session))
    filesystem = _filesystem(location.dir)
    versions = {"vlmcache": _version("vlmcache")} | {name: _version(name) for name in PACKAGES}
    devices = _devices(findings)
    if ask_torch and versions["torch"] is not None and versions["transformers"] is not None:
        devices = _seen_by_torch(devices, findings)
    cache_status: Status | None = None
    missing: tuple[str, ...] = ()
    try:
        cache_status = status(session)
        missing = tuple(cache_status.incomplete)
    except (CacheError, ConfigError) as error:
        findings.append(finding("cache-path", "error", location.dir, error.message, error.hint))
    findings += check_paths(session, paths)
    findings += check_bases(session)
    findings += check_connection(environment, location.dir)
    steps = cache_status.recommendations if cache_status is not None else ()
    advised = Advice(session)
    findings += filesystem_findings(filesystem, location.dir, config, what_frees(steps, advised))
    findings += check_permissions(location.dir)
    findings += check_owners(location.dir)
    findings += missing_packages(versions)
    if cache_status is not None:
        findings += check_cache(cache_status)
    findings += (finding("configuration", "warning", config.path, text) for text in config.notices)
    findings += (
        finding("configuration", "info", os.path.join(environment.folder, ".env"), text)
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
            not missing and cache_status is not None, missing, environment.offline_by is not None
        ),
        findings=tuple(map(advised.completed, findings)),
        shared=access.sharing if access is not None else None,
        plan=access.plan if access is not None else None,
        receipt=access.receipt if access is not None else None,
    ).with_problem(access.problem if access is not None else None)


def _paths(session: Session) -> Iterator[PathFact]:
    environment, config, location = session
    home, home_source = own_home(environment)
    hub = hub_home(environment)
    hub_source = environment.source("HF_HOME") if environment.get("HF_HOME") else "default"
    sides = side_caches(environment)

    def source_of(variable: str) -> str:
        return next(filter(environment.own, (variable, "HF_HOME")), "default")

    for name, path, source in (
        ("cache", location.dir, location.source),
        ("config", config.path, config.source),
        ("vlmcache", home, home_source),
        ("huggingface", hub, hub_source),
        ("xet chunks", sides["xet"], source_of("HF_XET_CACHE")),
        ("remote code", sides["modules"], source_of("HF_MODULES_CACHE")),
    ):
        owner = owners_of(path) if name == "cache" else None
        yield PathFact(name, path, source, os.path.exists(path), _writable(path), owner)


def _writable(path: str) -> bool:
    """Return whether the path, or the folder that would hold it, can be written."""
    return os.access(path if os.path.exists(path) else nearest_folder(path), os.W_OK)


def _variables(environment: Environment) -> dict[str, str]:
    """Return the variables that affect the cache; of secrets only that they are set."""
    return {
        environment.source(name): _without_secrets(name, value)
        for name, value in sorted(environment.variables.items())
        if name.startswith(("HF_", "HUGGING", "VLMCACHE_", "TRANSFORMERS_"))
        or name.upper() in _OTHER_VARIABLES
    }


def _without_secrets(name: str, value: str) -> str:
    if any(word in name for word in SECRET_WORDS) and not name.endswith("_PATH"):
        return "(set)" if value else ""
    if "PROXY" in name.upper() or "ENDPOINT" in name:
        return log.address_without_login(value)
    return value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _filesystem(path: str) -> Filesystem:
    where = nearest_folder(path)
    mount = mount_of(where)
    usage = None
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(where)
    abilities = probe(Tree(where), where) if os.access(where, os.W_OK) else Abilities()
    return Filesystem(
        type=mount.type if mount else None,
        mount_point=mount.point if mount else None,
        network=mount.network if mount else False,
        free=usage.free if usage else None,
        total=usage.total if usage else None,
        access_times=mount.access_times if mount else "unknown",
        **abilities._asdict(),
    )


def _devices(findings: list[Finding]) -> tuple[Device, ...]:
    """Return the NVIDIA GPUs that the driver names; torch is not imported for it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run(
            [
                program,
                "--query-gpu=name,memory.total,driver_version",
                "--format=csv,noheader,nounits",
            ],
            capture_output=True,
            text=True,
            timeout=_GPU_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        detail = f"the driver does not answer: {reason_of(error)}"
        findings.append(finding("gpu-driver", "warning", program, detail, "run nvidia-smi"))
        return ()
    devices = []
    for line in done.stdout.splitlines():
        name, memory, driver = ([part.strip() for part in line.split(",")] + ["", "", ""])[:3]
        size = int(memory) * 1024 * 1024 if memory.isdigit() else None
        devices.append(Device(name, size, driver or None))
    return tuple(devices)


def _seen_by_torch(devices: tuple[Device, ...], findings: list[Finding]) -> tuple[Device, ...]:
    """Return the devices with torch's names for them, and those that only torch names."""
    from vlmcache.load.worker import run_child

    try:
        answer = run_child({"task": "facts", "device": "auto", "precisions": [], "measure": False})
    except UnloadableError as error:
        findings.append(
            finding("torch-broken", "warning", sys.prefix, error.message, install_extra("load"))
        )
        return devices
    accelerators = answer["accelerators"]
    if devices and not accelerators:
        findings.append(
            finding(
                "torch-without-gpu",
                "warning",
                sys.prefix,
                f"the driver names {devices[0].name}, and the installed torch cannot use it",
                "install the build of torch for this device: https://pytorch.org/get-started",
            )
        )
    drivers = {device.name: device.driver for device in devices}
    named = {accelerator["name"] for accelerator in accelerators}
    return (
        *(
            Device(
                accelerator["name"],
                accelerator["memory"],
                drivers.get(accelerator["name"]),
                accelerator["device"],
            )
            for accelerator in accelerators
        ),
        *(device for device in devices if device.name not in named),
    )
