"""What torch and transformers raise, as errors that say what to do."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from types import FrameType

from vlmcache.errors import (
    DamagedWeightsError,
    MissingPackageError,
    NotEnoughMemoryError,
    UnloadableError,
    less_memory,
    reason_of,
)
from vlmcache.installing import install_extra, install_package
from vlmcache.load.own_code import untrusted_code
from vlmcache.load.source import ModelFiles

_DISTRIBUTIONS = {
    "pil": "pillow",
    "pytorch": "torch",
    "cv2": "opencv-python-headless",
    "flash_attn": "flash-attn",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Module, in lower case -> its package on PyPI, if that has another name."""
_NOT_FOUND = re.compile(
    r"packages that were not found in your environment: (?P<many>[\w-]+(?:, [\w-]+)*)"
    r"|requires the (?P<one>[\w-]+) library but it was not found"
    r"|(?P<old>[\w-]+[<>=!~]+[\w.*]+) is required for a normal functioning"
    r"|pip install (?:(?:-U|--upgrade) )?(?P<advised>[\w-]+(?:[<>=!~]+[\w.*]*\w)?)"
)
"""How transformers says what is missing or too old."""
_CODE = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")
"""How torch says that a pickle would run something."""
_READS_PICKLES = "torch.serialization"
_OF_A_REPO = "transformers_modules"
"""The package that transformers puts the code of repos in."""
_UNFIT_ADAPTER = ("size mismatch", "arget modules", "not found in the base model")
"""What torch and peft say of an adapter for another model."""
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
        raise MissingPackageError(
            f"loading models needs {' and '.join(missing)}", install_extra("load")
        )


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
    """Return the command that installs a package in a version that fits the installed ones."""
    if package == "torchvision":
        return _install_torchvision()
    if package in ("torch", "transformers", "accelerate", "pillow"):
        return install_extra("load")
    return install_extra("adapters") if package == "peft" else install_package(package)


def _install_torchvision() -> str:
    """Return the command for the torchvision that was built for the installed torch.

    Another one, such as PyPI's for CUDA next to a torch for the CPU, breaks every load. Its minor
    version is its torch's plus fifteen (https://github.com/pytorch/vision#installation).
    """
    try:
        version, _, build = importlib.metadata.version("torch").partition("+")
        minor = int(version.split(".")[1]) + 15
    except (importlib.metadata.PackageNotFoundError, LookupError, ValueError):
        return install_extra("vision")
    index = ["--index-url", f"https://download.pytorch.org/whl/{build}"] if build else []
    return install_package(f"torchvision==0.{minor}.*", *index)


def package_error(source: ModelFiles, error: BaseException) -> MissingPackageError | None:
    """Return the error of a missing or broken package, if that is what caused another error."""
    chain = list(_chain(error))
    for cause in chain:
        match = _NOT_FOUND.search(" ".join(str(cause).split()))
        if match is not None and (match["old"] or match["advised"]):
            return _unfit(source, match["old"] or match["advised"], cause)
        if match is not None:
            names = re.split(", ", match["many"] or match["one"].lower())
            return _missing(source, *(_DISTRIBUTIONS.get(name.lower(), name) for name in names))
    cause = chain[-1]
    is_import = any(isinstance(cause, ImportError) for cause in chain)
    if not is_import and next(_raisers(cause, importing=True), None) is None:
        return None
    words = " ".join(str(cause).split()) or type(cause).__name__
    package = _package_of(cause)
    if package is None:
        return MissingPackageError(
            f"{source.model}: a package is broken: {type(cause).__name__}: {words[:200]}",
            "reinstall the package that this names",
        )
    if isinstance(cause, ModuleNotFoundError) and not _has_other_parts(cause.name):
        return _missing(source, package)
    again = install_package("--force-reinstall", "--no-deps", package)
    return MissingPackageError(
        f"{source.model}: the package {package} is broken: {type(cause).__name__}: {words[:200]}",
        install(package) if package == "torchvision" else again,
    )


def _missing(source: ModelFiles, *packages: str) -> MissingPackageError:
    are = "packages are" if len(packages) > 1 else "a package is"
    return MissingPackageError(
        f"{source.model}: {are} missing: {', '.join(packages)}",
        " && ".join(dict.fromkeys(map(install, packages))),
    )


def _unfit(source: ModelFiles, requirement: str, error: BaseException) -> MissingPackageError:
    """Return the error of a package that a library needs in another version, or at all."""
    package = re.split("[<>=!~]", requirement)[0]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _missing(source, package)
    return MissingPackageError(
        f"{source.model}: the installed {package} {version} does not fit: {reason_of(error)[:200]}",
        install_package("--upgrade", requirement),
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
    """Return whether a missing module is part of a package that can be imported."""
    root, dot, _ = (name or "").partition(".")
    return bool(dot) and root in sys.modules


def _package_of(error: BaseException) -> str | None:
    """Return the package that is missing, or in whose files an error was raised."""
    name = getattr(error, "name", None) if isinstance(error, ImportError) else None
    package = name.partition(".")[0] if name else next(_raisers(error), None)
    return _DISTRIBUTIONS.get(package.lower(), package) if package else None


def _raisers(error: BaseException, *, importing: bool = False) -> Iterator[str]:
    """Yield the packages in whose code an error was raised, the innermost first.

    Code that is not installed counts while it is imported: it may lie anywhere on `sys.path`.

    Args:
        error: the error.
        importing: whether only code counts that ran because it was imported.
    """
    for frame in reversed(_frames(error)):
        module = str(frame.f_globals.get("__name__"))
        package = module.partition(".")[0]
        if module == _OF_A_REPO or module.startswith(f"{_OF_A_REPO}."):
            return
        imported = frame.f_code.co_name == "<module>" and package != "__main__"
        installed = "-packages/" in frame.f_code.co_filename.replace("\\", "/")
        if package not in sys.stdlib_module_names and (imported or (installed and not importing)):
            yield package


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _explain(source: ModelFiles, error: Exception) -> UnloadableError:
    words = reason_of(error)
    if isinstance(error, MemoryError) or any(sign in words.lower() for sign in _NO_MEMORY):
        return NotEnoughMemoryError(
            f"{source.model} at {source.precision} does not fit into memory: {words[:200]}",
            less_memory(source.precision),
        )
    package = package_error(source, error)
    if package is not None:
        return package
    code = _CODE.search(words)
    if code is not None:
        return UnloadableError(
            f"{source.model}: its pickled weights would run code ({code[1]}), which is not done",
            "look for a repo or revision of it with safetensors",
        )
    if isinstance(error, KeyError) and error.args == ("metadata",):
        return UnloadableError(
            f"{source.model}: the index of its weights has no 'metadata', which transformers needs",
            "look for another revision of it, or add '\"metadata\": {}' to the index in a copy",
        )
    if source.adapter is not None and any(sign in words for sign in _UNFIT_ADAPTER):
        return UnloadableError(
            f"{source.model}: the adapter does not fit its base model: {words[:200]}",
            "base_model_name_or_path in adapter_config.json must name the model it was made for",
        )
    modules = [frame.f_globals.get("__name__") for frame in _frames(error)]
    if type(error).__name__ == "SafetensorError" or _READS_PICKLES in modules:
        # torch begins with advice to run whatever the pickle holds.
        if words.startswith("Weights only load failed"):
            words = words.partition("WeightsUnpickler error: ")[2] or "not pickled tensors"
        return DamagedWeightsError(
            f"{source.model}: the weights cannot be read: {words[:200]}", source.repair
        )
    # transformers says so, or has used a class of its own that the files were not made for.
    needs_code = "trust_remote_code" in words or bool(source.classes)
    if needs_code and not source.trust_remote_code:
        return untrusted_code(source)
    attention = "--attention eager" if source.attention and "attention" in words.lower() else None
    return UnloadableError(
        f"{source.model} cannot be loaded: {type(error).__name__}: {words[:300]}", attention
    )
