"""An error of a library names the package that is missing or broken, and one that fits."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.kit.commands import run_here
from vlmcache.errors import MissingPackageError, UnloadableError
from vlmcache.installing import install_extra, install_package
from vlmcache.load.explain import explained, install
from vlmcache.load.source import ModelFiles
from vlmcache.load.worker import crash

SOURCE = ModelFiles("org/model", None, None, "/nowhere", (), 0, "bf16", "qwen2")


def missing() -> None:
    import surely_absent  # type: ignore[import-not-found]  # noqa: F401


def missing_part() -> None:
    import surely_absent.part  # type: ignore[import-not-found]  # noqa: F401


def of_a_module_that_is_imported_lazily() -> None:
    try:
        missing()
    except ModuleNotFoundError as error:
        # As transformers' lazy modules do.
        words = "Could not import module 'Qwen2Model'. Are this object's requirements defined"
        raise ModuleNotFoundError(words) from error


def while_another_is_handled() -> None:
    try:
        missing()
    except ImportError:
        raise RuntimeError("no back end")  # noqa: B904


def of_code_of_a_repo() -> None:
    raise ImportError(
        "This modeling file requires the following packages that were not found in your "
        "environment: einops, flash_attn. Run `pip install einops flash_attn`"
    )


def of_a_back_end() -> None:
    raise ImportError("\nX requires the PIL library but it was not found in your environment.")


def broken() -> None:
    raise ImportError("libcudart.so.13: cannot open", name="torchvision._C")


def broken_below() -> None:
    try:
        raise RuntimeError("operator torchvision::nms does not exist")
    except RuntimeError as error:
        raise ImportError("Failed to import transformers.models.x") from error


def in_a_circle() -> None:
    first, second = ImportError("first", name="absent"), ValueError("second")
    first.__context__, second.__context__ = second, first
    raise first


def of_a_quantization() -> None:
    raise ImportError("GPTQ requires surely_absent (`pip install -U surely_absent>=1.2`)")


def of_an_old_version() -> None:
    raise ImportError(
        "msgspec>=9.8 is required for a normal functioning of this module, but found msgspec==0.1."
        " Try: `pip install transformers -U`"
    )


MISSING = "org/model: a package is missing: surely_absent"
UNFIT = (
    "org/model: the installed msgspec 0.1 does not fit: msgspec>=9.8 is required for a normal"
    " functioning of this module, but found msgspec==0.1. Try: `pip install transformers -U`"
)
CASES: tuple[tuple[Callable[[], None], str, str], ...] = (
    (missing, MISSING, install_package("surely_absent")),
    (missing_part, MISSING, install_package("surely_absent")),
    (of_a_module_that_is_imported_lazily, MISSING, install_package("surely_absent")),
    (while_another_is_handled, MISSING, install_package("surely_absent")),
    (
        of_code_of_a_repo,
        "org/model: packages are missing: einops, flash-attn",
        " && ".join(map(install_package, ("einops", "flash-attn"))),
    ),
    (of_a_back_end, "org/model: a package is missing: pillow", install_extra("load")),
    (
        broken,
        "org/model: the package torchvision is broken: ImportError: libcudart.so.13: cannot open",
        install("torchvision"),
    ),
    (
        broken_below,
        "org/model: a package is broken: RuntimeError: operator torchvision::nms does not exist",
        "reinstall the package that this names",
    ),
    (
        of_a_quantization,
        MISSING,
        install_package("surely_absent"),
    ),
    (
        of_an_old_version,
        UNFIT,
        install_package("--upgrade", "msgspec>=9.8"),
    ),
    (
        in_a_circle,
        "org/model: the package absent is broken: ImportError: first",
        install_package("--force-reinstall", "--no-deps", "absent"),
    ),
)


@pytest.mark.parametrize(("fails", "message", "hint"), CASES)
def test_the_package_and_the_real_cause_are_named(
    fails: Callable[[], None], message: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.1" if name == "msgspec" else version(name)
    )
    with pytest.raises(MissingPackageError) as caught, explained(SOURCE):
        fails()
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    "words",
    [
        "RuntimeError('operator torchvision::nms does not exist')",
        "OSError('libfoo.so: cannot open shared object file')",
        "ImportError('libcudart.so.12: cannot open')",
        "AttributeError('partially initialized')",
    ],
)
def test_a_package_that_fails_at_its_import_is_named_wherever_it_lies(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "surely_broken").mkdir()
    (tmp_path / "surely_broken" / "__init__.py").write_text(f"raise {words}")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingPackageError) as caught, explained(SOURCE):
        importlib.import_module("surely_broken")
    kind, _, said = words.partition("('")
    expected = f"org/model: the package surely_broken is broken: {kind}: {said[:-2]}"
    assert caught.value.message == expected
    assert caught.value.hint == install_package("--force-reinstall", "--no-deps", "surely_broken")


CPU = "https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize(
    ("version", "command"),
    [
        ("2.13.0+cpu", install_package("torchvision==0.28.*", "--index-url", CPU)),
        ("2.4.1+cpu", install_package("torchvision==0.19.*", "--index-url", CPU)),
        (
            "2.9.0+cu130",
            install_package("torchvision==0.24.*", "--index-url", f"{CPU[:-3]}cu130"),
        ),
        ("2.13.0", install_package("torchvision==0.28.*")),
        ("unknown", install_extra("vision")),
    ],
)
def test_the_torchvision_to_install_is_the_one_of_the_installed_torch(
    monkeypatch: pytest.MonkeyPatch, version: str, command: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    assert install("torchvision") == command


@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_no_hint_for_a_model_that_does_not_fit_names_a_precision_that_takes_more(
    precision: str,
) -> None:
    import msgspec

    source = msgspec.structs.replace(SOURCE, precision=precision)
    with pytest.raises(UnloadableError) as caught, explained(source):
        raise MemoryError
    hint = caught.value.hint or ""
    named = re.findall(r"int\d", hint)
    assert named == {"int8": ["int4"], "int4": [], "fp16": ["int8", "int4"]}[precision]
    crashed = crash("org/model", -9, ["killed"], precision, "quantize").hint or ""
    assert re.findall(r"int\d", crashed) == named
    if precision != "fp16":
        # What `quantize` may say.
        assert "--loader" not in (crash("org/model", -11, [], precision, "quantize").hint or "")
        assert not set(named) - set(re.findall(r"int\d", run_here("help", "quantize").out))


def test_an_index_without_metadata_is_named_and_no_key_of_a_dictionary() -> None:
    with pytest.raises(UnloadableError) as caught, explained(SOURCE):
        raise KeyError("metadata")
    assert caught.value.message.startswith("org/model: the index of its weights has no 'metadata'")


def test_an_adapter_of_another_model_is_said_not_to_fit_its_base() -> None:
    source = msgspec.structs.replace(SOURCE, adapter="/cache/adapter")
    with pytest.raises(UnloadableError) as caught, explained(source):
        raise RuntimeError("Error(s) in loading state_dict for X: size mismatch for a.lora_A")
    assert "the adapter does not fit its base model" in caught.value.message
    assert "adapter_config.json" in (caught.value.hint or "")
