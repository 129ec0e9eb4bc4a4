"""`clean --duplicates` removes weights only if the same tensors stay, by the files' content."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, model_files, safetensors, torch_weights
from vlmcache.cache.scan import scan
from vlmcache.commands.remove.clean import clean
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.config import CacheLocation, Config, Environment, Limits, Session

Tensors = Mapping[str, tuple[list[int], bytes]]


def numbers(count: int, start: int = 1) -> bytes:
    """Return so many float16 numbers."""
    return struct.pack(f"<{count}e", *range(start, start + count))


A, B = numbers(6), numbers(4, 50)
TENSORS: Tensors = {"a": ([2, 3], A), "b": ([4], B)}
STORED = safetensors(TENSORS)
PICKLED = torch_weights(TENSORS)
HALVES = safetensors({"a": TENSORS["a"]}), safetensors({"b": TENSORS["b"]})
PICKLED_HALVES = torch_weights({"a": TENSORS["a"]}), torch_weights({"b": TENSORS["b"]})
BESIDE = {name: data for name, data in model_files().items() if not name.endswith(".safetensors")}


def index(stem: str, ending: str) -> bytes:
    shards = {"a": f"{stem}-00001-of-00002.{ending}", "b": f"{stem}-00002-of-00002.{ending}"}
    return json.dumps({"weight_map": shards}).encode()


SHARDED = {
    "model-00001-of-00002.safetensors": HALVES[0],
    "model-00002-of-00002.safetensors": HALVES[1],
    "model.safetensors.index.json": index("model", "safetensors"),
}
PICKLED_SHARDS = {
    "pytorch_model-00001-of-00002.bin": PICKLED_HALVES[0],
    "pytorch_model-00002-of-00002.bin": PICKLED_HALVES[1],
    "pytorch_model.bin.index.json": index("pytorch_model", "bin"),
}


def removed(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    absent: frozenset[str] = frozenset(),
    tree: bool = True,
) -> dict[str, str]:
    """Clean a cache that holds the files, and return what is gone -> the reason in the plan."""
    cache = CacheBuilder(folder / "hub")
    repo = cache.repo("org/name")
    files = {**BESIDE, **files}
    repo.revision(files, downloaded=set(files) - absent, tree=tree)
    done = clean(
        Session(
            Environment({"HF_HOME": str(folder / "hf")}, frozenset(), str(folder)),
            Config("config.yaml", "--config", {}, Limits()),
            CacheLocation(str(cache.root), "--cache-dir"),
        ),
        CleanOptions(duplicates=True),
    )
    (revision,) = scan(cache.root).repos[0].revisions
    gone = set(files) - absent - {file.name for file in revision.files}
    reasons = {
        name: action.reason
        for action in done.plan.actions
        for name in files
        if getattr(action, "path", "").endswith(f"/{revision.commit}/{name}")
    }
    assert set(reasons) == gone
    return reasons


@pytest.mark.parametrize("tree", [True, False], ids=["listed", "unlisted"])
@pytest.mark.parametrize(
    ("second", "twin", "where"),
    [
        ({"pytorch_model.bin": PICKLED}, {"model.safetensors": STORED}, "model.safetensors"),
        (PICKLED_SHARDS, {"model.safetensors": STORED}, "model.safetensors"),
        (
            {"pytorch_model.bin": PICKLED},
            SHARDED,
            "the 2 shards of model.safetensors.index.json",
        ),
        (PICKLED_SHARDS, SHARDED, "the 2 shards of model.safetensors.index.json"),
        ({"tf_model.h5": b"tf"}, {"model.safetensors": STORED}, "model.safetensors"),
        ({"flax_model.msgpack": b"flax"}, SHARDED, "the 2 shards of model.safetensors.index.json"),
        ({"rust_model.ot": b"rust"}, {"pytorch_model.bin": PICKLED}, "pytorch_model.bin"),
        (
            {"tf_model.h5": b"tf"},
            PICKLED_SHARDS,
            "the 2 shards of pytorch_model.bin.index.json",
        ),
    ],
    ids=range(8),
)
def test_a_second_format_is_removed_and_the_reason_says_where_its_weights_stay(
    tmp_path: Path,
    second: dict[str, bytes],
    twin: dict[str, bytes],
    where: str,
    tree: bool,
) -> None:
    gone = removed(tmp_path, {**second, **twin}, tree=tree)
    assert gone == dict.fromkeys(second, f"the same weights are in {where}")


OTHER: dict[str, Tensors] = {
    "one more tensor": {**TENSORS, "c": ([4], numbers(4, 90))},
    "another name": {"a": TENSORS["a"], "model.b": TENSORS["b"]},
    "another shape": {"a": ([3, 2], A), "b": TENSORS["b"]},
    "other values": {"a": TENSORS["a"], "b": ([4], numbers(4, 51))},
    "nothing": {},
    "nothing in common": {"c": ([4], numbers(4, 90))},
}


@pytest.mark.parametrize("tensors", OTHER.values(), ids=OTHER)
def test_a_pickle_of_other_weights_stays(tmp_path: Path, tensors: Tensors) -> None:
    files = {"model.safetensors": STORED, "pytorch_model.bin": torch_weights(tensors)}
    assert not removed(tmp_path, files)


def test_a_shard_of_other_weights_keeps_all_shards_and_their_index(tmp_path: Path) -> None:
    other = torch_weights({"c": ([4], numbers(4, 90))})
    shards = PICKLED_SHARDS | {"pytorch_model-00002-of-00002.bin": other}
    assert not removed(tmp_path, {**shards, **SHARDED})


@pytest.mark.parametrize("content", [b"pickled", PICKLED[:-10], b"\x80\x02}."])
def test_a_pickle_that_cannot_be_read_stays(tmp_path: Path, content: bytes) -> None:
    assert not removed(tmp_path, {"model.safetensors": STORED, "pytorch_model.bin": content})


def test_a_name_that_only_the_pickle_has_agrees_if_it_is_tied_to_a_shared_name(
    tmp_path: Path,
) -> None:
    tied = torch_weights({**TENSORS, "head": ([3, 2], A)})
    assert removed(tmp_path, {"model.safetensors": STORED, "pytorch_model.bin": tied})


def test_a_pickle_that_holds_a_part_of_the_weights_is_removed(tmp_path: Path) -> None:
    files = {"model.safetensors": STORED, "pytorch_model.bin": PICKLED_HALVES[0]}
    assert removed(tmp_path, files)


def test_what_torch_and_safetensors_save_of_one_model_agrees_and_another_precision_does_not(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    class Tied(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(50, 8)
            self.layer = torch.nn.Linear(8, 8)
            self.head = torch.nn.Linear(8, 50, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    for precision, agrees in (("float32", True), ("float16", False)):
        state = model.state_dict()
        torch.save(state, tmp_path / "x.bin")
        kept = {
            name: tensor.to(getattr(torch, precision)).contiguous()
            for name, tensor in state.items()
            if name != "head.weight"
        }
        save_file(kept, tmp_path / "x.safetensors")
        folder = tmp_path / precision
        folder.mkdir()
        files = {
            "pytorch_model.bin": (tmp_path / "x.bin").read_bytes(),
            "model.safetensors": (tmp_path / "x.safetensors").read_bytes(),
        }
        assert bool(removed(folder, files)) == agrees


SECONDS = pytest.mark.parametrize(
    "second", [{"pytorch_model.bin": PICKLED}, {"tf_model.h5": b"tf"}], ids=["pickled", "tf"]
)


@SECONDS
@pytest.mark.parametrize("tree", [True, False], ids=["listed", "unlisted"])
@pytest.mark.parametrize(
    "absent", ["model-00002-of-00002.safetensors", "model.safetensors.index.json"]
)
def test_next_to_an_incomplete_twin_everything_stays(
    tmp_path: Path, second: dict[str, bytes], absent: str, tree: bool
) -> None:
    assert not removed(tmp_path, {**SHARDED, **second}, absent=frozenset({absent}), tree=tree)


@SECONDS
@pytest.mark.parametrize(
    "twin",
    [
        {"model.safetensors": STORED[:-2]},
        {"model.safetensors": b"\0" * 100},
        {**SHARDED, "model.safetensors.index.json": b"{"},
        {**SHARDED, "model-00001-of-00002.safetensors": HALVES[0][:-2]},
    ],
)
def test_a_twin_that_cannot_be_read_replaces_nothing(
    tmp_path: Path, second: dict[str, bytes], twin: dict[str, bytes]
) -> None:
    assert not removed(tmp_path, {**twin, **second})


@pytest.mark.parametrize(
    "name",
    [
        "flow.pt",
        "hift.pth",
        "speakers.bin",
        "model.bin",
        "model.pt",
        "model.onnx",
        "onnx/model.onnx",
        "campplus.onnx",
        "model.ckpt",
        "model.gguf",
        "voices.npz",
        "training_args.bin",
        "optimizer.pt",
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "pytorch_model.fp16.bin",
        "pooling/pytorch_model.bin",
        "other_model.h5",
    ],
)
def test_nothing_else_is_ever_a_duplicate(tmp_path: Path, name: str) -> None:
    for number, content in enumerate((PICKLED, b"other")):
        folder = tmp_path / str(number)
        files = {"model.safetensors": STORED, "pytorch_model.bin": PICKLED, name: content}
        assert set(removed(folder, files)) == {"pytorch_model.bin"}


PARTS = {
    "model_index.json": b"{}",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": STORED,
    "unet/diffusion_pytorch_model.bin": PICKLED,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": STORED,
    "vae/diffusion_pytorch_model.bin": PICKLED,
}


def test_the_pickles_of_a_pipeline_are_removed_if_every_part_has_the_same_weights_as_safetensors(
    tmp_path: Path,
) -> None:
    gone = removed(tmp_path, PARTS)
    assert gone == {
        f"{part}/diffusion_pytorch_model.bin": "the same weights are in "
        f"{part}/diffusion_pytorch_model.safetensors"
        for part in ("unet", "vae")
    }


@pytest.mark.parametrize(
    "more",
    [
        {"checker/config.json": b"{}", "checker/pytorch_model.bin": PICKLED},
        {"vae/diffusion_pytorch_model.bin": torch_weights(OTHER["other values"])},
        {"unet/diffusion_pytorch_model.fp16.bin": PICKLED},
    ],
)
def test_a_pipeline_keeps_every_pickle_if_one_part_needs_its_own(
    tmp_path: Path, more: dict[str, bytes]
) -> None:
    assert not removed(tmp_path, {**PARTS, **more})
