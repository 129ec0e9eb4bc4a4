"""What a pull takes from another machine's server, by hash."""

from __future__ import annotations

import hashlib

import pytest

from tests.kit.caches import CacheBuilder
from tests.kit.pulls import QUICK
from tests.kit.served import TOKEN, serving
from vlmcache.config import read_environment
from vlmcache.errors import AccessError, VlmcacheError
from vlmcache.hub.listing import find_commit, list_files
from vlmcache.hub.served import ServedContents

WEIGHTS = bytes(range(256)) * 10_000
SHA = hashlib.sha256(WEIGHTS).hexdigest()


def test_a_content_is_found_and_sent_from_any_offset(
    cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMCACHE_SERVE_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_hub")
    commit = cache.repo("org/good").revision({"config.json": b"{}", "w.safetensors": WEIGHTS})
    with serving(cache.root) as ask:
        source = ServedContents(read_environment(), ask.address, TOKEN, patience=QUICK)
        assert source.has(SHA)
        assert not source.has("0" * 64)
        for offset in (0, 1, len(WEIGHTS) - 1):
            with source.open(SHA, offset) as pieces:
                assert b"".join(pieces) == WEIGHTS[offset:]
        with pytest.raises(VlmcacheError), source.open("0" * 64) as pieces:
            list(pieces)
        assert find_commit(source.client, "org/good", "main").commit == commit
        assert list_files(source.client, "org/good", commit)["w.safetensors"].etag == SHA
        wrong = ServedContents(read_environment(), ask.address, "another" * 4, patience=QUICK)
        with pytest.raises(AccessError):
            wrong.has(SHA)
