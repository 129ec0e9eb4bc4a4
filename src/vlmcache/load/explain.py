"""What torch and transformers raise, as errors that say what to do."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator

from vlmcache import units
from vlmcache.errors import (
    DamagedWeightsError,
    MissingPackageError,
    NotEnoughMemoryError,
    UnloadableError,
    less_memory,
)
from vlmcache.load.own_code import refusal
from vlmcache.load.source import ModelFiles

INSTALL_LOAD = "pip install 'vlmcache[load]'"
INSTALL_VISION = "pip install 'vlmcache[vision]'"
INSTALL_ADAPTERS = "pip install 'vlmcache[adapters]'"
_DISTRIBUTIONS = {
    "pil": "pillow",
    "pytorch": "torch",
    "cv2": "opencv-python-headless",
    "flash_attn": "flash-attn",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Module, in lower case -> what it is called on PyPI, where that is something else."""
_NOT_FOUND = re.compile(
    r"packages that were not found in your environment: (?P<many>[\w-]+(?:, [\w-]+)*)"
    r"|requires the (?P<one>[\w-]+) library but it was not found"
)
"""How transformers says what is missing."""
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
)


def require_packages() -> None:
    """Make sure that torch and transformers are installed, without importing them.

    Raises:
        MissingPackageError: one is not.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"loading models needs {' and '.join(missing)}", INSTALL_LOAD)


@contextlib.contextmanager
def explained(source: ModelFiles) -> Iterator[None]:
    """Turn what torch and transformers raise into errors that say what to do.

    Raises:
        UnloadableError: whatever went wrong inside.
    """
    try:
        yield
    except UnloadableError:
        raise
    except Exception as error:
        raise _explain(source, error) from error


def install(package: str) -> str:
    """Return the command that installs a package which fits the packages that are here."""
    if package == "torchvision":
        return _install_torchvision()
    if package in ("torch", "transformers", "accelerate", "pillow"):
        return INSTALL_LOAD
    return INSTALL_ADAPTERS if package == "peft" else f"pip install {package}"


def _install_torchvision() -> str:
    """Return the command for the torchvision that was built for the installed torch.

    Another one, such as PyPI's for CUDA next to a torch for the CPU, breaks every load. Each has
    the minor version of its torch and fifteen (https://github.com/pytorch/vision#installation).
    """
    try:
        version, _, build = importlib.metadata.version("torch").partition("+")
        minor = int(version.split(".")[1]) + 15
    except (importlib.metadata.PackageNotFoundError, LookupError, ValueError):
        return INSTALL_VISION
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install 'torchvision==0.{minor}.*'{index}"


def package_error(source: ModelFiles, error: BaseException) -> MissingPackageError | None:
    """Return the error of a package that is missing or broken, if that is the cause of another."""
    chain = list(_chain(error))
    for cause in chain:
        found = _NOT_FOUND.search(" ".join(str(cause).split()))
        if found is not None:
            names = re.split(", ", found["many"] or found["one"].lower())
            packages = [_DISTRIBUTIONS.get(name.lower(), name) for name in names]
            commands = dict.fromkeys(map(install, packages))
            return MissingPackageError(
                f"{source.model}: packages are missing: {', '.join(packages)}"
                if len(packages) > 1
                else f"{source.model}: a package is missing: {packages[0]}",
                " && ".join(commands),
            )
    if not any(isinstance(cause, ImportError) for cause in chain):
        return None
    cause = chain[-1]
    words = " ".join(str(cause).split()) or type(cause).__name__
    package = _package_of(cause)
    if package is None:
        return MissingPackageError(
            f"{source.model}: a package is broken: {type(cause).__name__}: {words[:200]}",
            "install again what that names",
        )
    if isinstance(cause, ModuleNotFoundError) and not _has_other_parts(cause.name):
        return MissingPackageError(
            f"{source.model}: a package is missing: {package}", install(package)
        )
    again = f"pip uninstall {package}, then {install(package)}"
    return MissingPackageError(
        f"{source.model}: the package {package} is broken: {type(cause).__name__}: {words[:200]}",
        install(package) if package == "torchvision" else again,
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it, the real cause last."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        following = cause.__cause__
        if following is None and not cause.__suppress_context__:
            context = cause.__context__
            is_cause = isinstance(context, ImportError) or not isinstance(cause, ImportError)
            following = context if is_cause else None
        cause = following


def _has_other_parts(name: str | None) -> bool:
    """Return whether a module that is missing is part of a package that is here."""
    root, dot, _ = (name or "").partition(".")
    return bool(dot) and root in sys.modules


def _package_of(error: BaseException) -> str | None:
    """Return the package that is missing, or in whose files an error was raised."""
    name = getattr(error, "name", None) if isinstance(error, ImportError) else None
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        _, found, below = frame.filename.replace("\\", "/").rpartition("-packages/")
        if found and not name:
            name = below.partition("/")[0].removesuffix(".py")
    package = name.partition(".")[0] if isinstance(name, str) else None
    return _DISTRIBUTIONS.get(package.lower(), package) if package else None


def _explain(source: ModelFiles, error: Exception) -> UnloadableError:
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or any(sign in words.lower() for sign in _NO_MEMORY):
        return NotEnoughMemoryError(
            f"{source.model} at {source.precision} does not fit into memory: {words[:200]}",
            less_memory(source.precision),
        )
    package = package_error(source, error)
    if package is not None:
        return package
    if type(error).__module__.startswith("safetensors") or type(error).__name__ in (
        "SafetensorError",
        "UnpicklingError",
    ):
        return DamagedWeightsError(
            f"{source.model}: the weights cannot be read: {words[:200]}",
            units.command("verify", source.model, "--repair") if source.repo else None,
        )
    # transformers' own words, or a class of its own that its files were not made for.
    needs_code = "trust_remote_code" in words or bool(source.classes)
    if needs_code and not source.trust_remote_code:
        return refusal(source)
    attention = "--attention eager" if source.attention and "attention" in words.lower() else None
    return UnloadableError(
        f"{source.model} cannot be loaded: {type(error).__name__}: {words[:300]}", attention
    )
