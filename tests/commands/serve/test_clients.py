"""The hub's own clients and ours, unmodified, pull from a server of the cache."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.caches import CacheBuilder, fingerprint, model_files
from tests.kit.commands import Vlmcache
from tests.kit.models import HAS_TORCH
from tests.kit.pulls import lies
from tests.kit.served import TOKEN, Asking, environment, serving
from vlmcache.cache import hashing
from vlmcache.commands.serve import vouching

SNAPSHOT = """
import sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

print(snapshot_download(sys.argv[1], revision=sys.argv[2], repo_type=sys.argv[3]))
if sys.argv[3] == "model":
    api = HfApi()
    info = api.model_info(sys.argv[1], revision=sys.argv[2], files_metadata=True)
    tree = [one.path for one in api.list_repo_tree(sys.argv[1], revision=sys.argv[2])]
    assert sorted(one.rfilename for one in info.siblings) == sorted(tree), (info, tree)
    assert api.get_paths_info(sys.argv[1], ["config.json"])[0].size > 0
    assert api.list_repo_refs(sys.argv[1]).branches[0].name == "main"
    assert api.file_exists(sys.argv[1], "config.json")
    assert not api.file_exists(sys.argv[1], "nothing.json")
    assert not api.repo_exists("org/absent")
"""


@pytest.fixture
def source(tmp_path: Path) -> CacheBuilder:
    built = CacheBuilder(tmp_path / "source")
    built.repo("org/good").revision(model_files())
    built.repo("org/set", "dataset").revision({"a/b.txt": b"b", "c.txt": b"c"})
    built.repo("org/part").revision(model_files(), downloaded={"config.json"})
    return built


@pytest.fixture
def ask(source: CacheBuilder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asking]:
    monkeypatch.setenv("VLMCACHE_SERVE_TOKEN", TOKEN)
    with serving(source.root) as asking:
        yield asking


def run(asking: Asking, vlmcache: Vlmcache, cache: Path, *words: str) -> str:
    """Run a program of Python's in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, *words],
        env=environment(asking, cache, vlmcache.environment),
        cwd=vlmcache.folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_vlmcache_pulls_and_the_cache_is_the_same(
    ask: Asking, source: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    vlmcache.config("vlmcache: {min_free: 0}\n")
    target = tmp_path / "target"
    variables = environment(ask, target, {})
    done = vlmcache("pull", "org/good", "datasets/org/set", **variables)
    assert done.code == 0, done.err
    assert lies(target) == []
    for repo in ("models--org--good", "datasets--org--set"):
        assert fingerprint(target / repo) == fingerprint(source.root / repo)
    # Nothing is left to fetch, and a wrong name and a wrong token are said in words.
    assert vlmcache("pull", "org/good", "--dry-run", **variables).code == 0
    absent = vlmcache("pull", "org/part", **variables)
    assert (absent.code, "no such model" in absent.err) == (7, True)
    refused = vlmcache("pull", "org/good@other", **(variables | {"HF_TOKEN": "wrong" * 5}))
    assert refused.code == 8
    assert "Traceback" not in refused.err


def test_huggingface_hub_downloads_and_asks(
    ask: Asking, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    run(ask, vlmcache, target, "-c", SNAPSHOT, "org/good", "main", "model")
    run(ask, vlmcache, target, "-c", SNAPSHOT, "org/set", "main", "dataset")
    assert lies(target) == []


def test_hf_download_downloads(ask: Asking, vlmcache: Vlmcache, tmp_path: Path) -> None:
    target = tmp_path / "target"
    words = ("-m", "huggingface_hub.cli.hf", "download", "org/good")
    path = Path(run(ask, vlmcache, target, *words).strip().splitlines()[-1].partition("=")[2])
    assert lies(target) == []
    assert (path.name and path.joinpath("config.json").exists()) or (
        target / "models--org--good/refs/main"
    ).exists()


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "vlmcache", "pull", "org/good"),
        pytest.param(
            ("-m", "huggingface_hub.cli.hf", "download", "org/good"), marks=pytest.mark.full
        ),
    ],
)
def test_a_client_waits_until_what_it_asks_for_is_checked(
    source: CacheBuilder,
    vlmcache: Vlmcache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    asked_again = threading.Event()
    plain, patient = hashing.hash_all, vouching.Vouching.check

    def held(*given: Any, **more: Any) -> Any:
        asked_again.wait(60)
        return plain(*given, **more)

    async def checking(self: vouching.Vouching, *given: Any) -> None:
        try:
            await patient(self, *given)
        except vouching.StillHashingError:
            asked_again.set()
            raise

    monkeypatch.setattr(vouching, "hash_all", held)
    monkeypatch.setattr(vouching, "PATIENCE", 0.1)
    monkeypatch.setattr(vouching.Vouching, "check", checking)
    monkeypatch.setenv("VLMCACHE_SERVE_TOKEN", TOKEN)
    vlmcache.config("vlmcache: {min_free: 0}\n")
    with serving(source.root) as asking:
        run(asking, vlmcache, tmp_path / "target", *words)
    assert asked_again.is_set()
    assert lies(tmp_path / "target") == []


MAKE = """
import sys
from transformers import Qwen2Config, Qwen2ForCausalLM

config = Qwen2Config(
    vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2,
)
Qwen2ForCausalLM(config).save_pretrained(sys.argv[1])
"""
LOAD = """
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("org/tiny")
assert sum(one.numel() for one in model.parameters()) > 0
"""


@pytest.mark.full
def test_from_pretrained_loads_from_a_server(
    tmp_path: Path, vlmcache: Vlmcache, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("transformers") is None or not HAS_TORCH:
        pytest.skip("needs torch and transformers")
    made = tmp_path / "made"
    vlmcache.environment.pop("PYTHONWARNINGS")
    subprocess.run([sys.executable, "-c", MAKE, str(made)], check=True, env=vlmcache.environment)
    source = CacheBuilder(tmp_path / "source")
    source.repo("org/tiny").revision({path.name: path.read_bytes() for path in made.iterdir()})
    monkeypatch.setenv("VLMCACHE_SERVE_TOKEN", TOKEN)
    with serving(source.root) as asking:
        run(asking, vlmcache, tmp_path / "target", "-c", LOAD)
    assert lies(tmp_path / "target") == []
