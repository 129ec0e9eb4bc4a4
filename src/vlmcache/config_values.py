"""What a config.yaml says, as values: models, limits and where they come from (pure)."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from vlmcache import late
from vlmcache.cache.weights import Precision

ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "int4")
_PRECISIONS_BY_NAME: dict[str, Precision] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "bf16": "bf16",
    "int8": "int8",
    "int4": "int4",
    "float32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "8bit": "int8",
    "4bit": "int4",
    "nf4": "int4",
}
_VARIANT = late.pattern(r"[0-9A-Za-z][0-9A-Za-z._-]*(?:/[0-9A-Za-z._-]+)*")
Source: TypeAlias = Literal["--config", "VLMCACHE_CONFIG", "./config.yaml", "user", "shipped"]


class ModelConfig(msgspec.Struct, frozen=True):
    """A model as config.yaml names it, or as the command line named it by its repo id."""

    key: str
    repo: str
    revision: str = "main"
    precision: Precision | None = None
    """`None` loads the model in its stored type."""
    device_map: str | dict[str, Any] = "auto"
    trust_remote_code: bool = False
    attention: str | None = None
    """What computes attention, one of `ATTENTIONS`; the model's own choice if not given."""
    expected_size: int | None = None
    """Bytes of the download."""
    expected_memory: int | None = None
    """Bytes of the loaded model, at `precision` or as it is stored."""
    configured: bool = True
    """False if only the command line named it."""
    variant: str | None = None
    """The quantization of a repo of GGUF files, after a colon in `model_path`: `Q4_K_M`."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds on disk use. Sizes are bytes."""

    min_free: int = 10_000_000_000
    """A pull that would leave less free is refused."""
    comfortable_free: int = 30_000_000_000
    """If less is free, `status` advises what to remove."""
    max_size: int | None = None
    """The size that `clean` keeps the cache within."""
    trash_days: int = 7
    """Days for which `rm` keeps what it removes; 0 frees it at once."""


class Config(msgspec.Struct, frozen=True):
    """The active configuration, and the file it was read from."""

    path: str
    source: Source
    models: dict[str, ModelConfig]
    limits: Limits
    warnings: tuple[str, ...] = ()
    also: tuple[tuple[str, ModelConfig], ...] = ()
    """Models that other files on the search path name, each with its file: `clean` keeps them."""
    unread: str | None = None
    """Why one of these files cannot be read: what it names is not known, so nothing is evicted."""
    own_limits: Limits | None = None
    """The user's own limits, if `limits` are those of a working folder."""
    hub: str | None = None
    """The address of the hub that HF_ENDPOINT names."""
    unknown: tuple[str, ...] = ()
    """The warnings about unknown keys of `vlmcache:`."""
    sources: tuple[str, ...] = ()
    """What a pull asks for contents before the hub, as `--from` names it; the user's own only."""
    archive: str | None = None
    """A folder on a slower drive, to which `clean` moves models; the user's own only."""
    base: str | None = None
    """A read-only cache beneath the user's, as `attach` names it; the user's own only."""
    shipped: bool = False
    """Whether `models` are those that ship with the package: they are names and are protected, but
    nobody has configured them."""

    @property
    def listed(self) -> dict[str, ModelConfig]:
        """The models that somebody has configured, which is what `--all` means."""
        return {} if self.shipped else self.models

    @property
    def notices(self) -> tuple[str, ...]:
        """What `status` and `doctor` report about the files."""
        if self.unread is None:
            return self.warnings
        return *self.warnings, f"clean removes nothing until this is repaired: {self.unread}"

    @property
    def evict_for(self) -> int:
        """Bytes that making room may aim to have free: a working folder cannot raise them."""
        return min(self.limits.min_free, (self.own_limits or self.limits).min_free)

    @property
    def trash_days(self) -> int:
        """Days for which `rm` keeps what it removes; a working folder cannot set them."""
        return (self.own_limits or self.limits).trash_days

    @property
    def comfortable_for(self) -> int:
        """Bytes: removing is advised if less is free. A working folder cannot raise them."""
        own = self.own_limits or self.limits
        return min(self.limits.comfortable_free, own.comfortable_free)


def split_variant(text: str) -> tuple[str, str | None]:
    """Return what is before the colon of a name, and the variant after it, `None` if it has none.

    The colon of a drive letter, of `https://` or of a port begins no variant.
    """
    rest, _, variant = text.rpartition(":")
    # Variants that have the same name are called by their paths in the repo.
    is_address = "/" in variant and (len(rest) == 1 or "://" in rest)
    if not rest or is_address or _VARIANT.fullmatch(variant) is None:
        return text, None
    return rest, variant


def parse_precision(text: str) -> Precision:
    """Return a precision by its name or by one of torch's names for it.

    Raises:
        ValueError: the string does not name one.
    """
    precision = _PRECISIONS_BY_NAME.get(text.lower().removeprefix("torch."))
    if precision is None:
        raise ValueError(f"{text!r} is not one of {', '.join(PRECISIONS)}")
    return precision


def parse_attention(text: str) -> str:
    """Return transformers' name for what computes attention.

    Raises:
        ValueError: the string does not name one.
    """
    if text not in ATTENTIONS:
        raise ValueError(f"{text!r} is not one of {', '.join(ATTENTIONS)}")
    return text
