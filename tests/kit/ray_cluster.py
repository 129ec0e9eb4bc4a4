"""Ray clusters of several nodes on this machine, each with folders of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.kit.caches import CacheBuilder

OBJECT_STORE = 80 << 20
"""Bytes of each node's object store, the least that Ray takes."""


class RayNode:
    """A node: its name, its folders, and Ray's handle of it."""

    def __init__(self, name: str, home: Path, handle: Any) -> None:
        self.name = name
        self.home = home
        self.hub = home / "hub"
        self.cache = CacheBuilder(self.hub)
        self.handle = handle


class RayCluster:
    """A running cluster.

    Args:
        folder: where the nodes have their folders.
        names: of the nodes; the first one is the head.
        environment: what all nodes have in theirs.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        from ray.cluster_utils import Cluster

        self._folder = folder
        self._environment = dict(environment or {})
        # The sockets in it have names of a hundred characters at most.
        self.scratch = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        # Ray writes the address of the head there, and does not make the folder.
        os.makedirs(os.path.join(tempfile.gettempdir(), "ray"), exist_ok=True)
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._cluster = Cluster()
        self.nodes: dict[str, RayNode] = {}
        for name in names:
            self.add(name)

    @property
    def address(self) -> str:
        """`HOST:PORT` of the head."""
        return str(self._cluster.address)

    def add(self, name: str, labels: Mapping[str, str] | None = None, **variables: str) -> RayNode:
        """Start one more node, with variables of its own."""
        home = self._folder / name
        home.mkdir(parents=True)
        environment = {
            "HOME": str(home),
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "VLMCACHE_HOME": str(home / "vlmcache"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "HF_HUB_OFFLINE": "1",
            **self._environment,
            **variables,
        }
        handle = self._cluster.add_node(
            num_cpus=1,
            node_name=name,
            labels=dict(labels or {}),
            env_vars=environment,
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
            temp_dir=self.scratch if not self.nodes else None,
        )
        node = self.nodes[name] = RayNode(name, home, handle)
        return node

    def kill(self, name: str) -> None:
        """Let a node die at once, as a machine does that loses its power."""
        self._cluster.remove_node(self.nodes.pop(name).handle, allow_graceful=False)

    def close(self) -> None:
        """End all processes."""
        with warnings.catch_warnings():
            # Ray leaves logs of its processes open.
            warnings.simplefilter("ignore", ResourceWarning)
            self._cluster.shutdown()
        shutil.rmtree(self.scratch, ignore_errors=True)


@contextlib.contextmanager
def ray_cluster(
    folder: Path, *names: str, environment: Mapping[str, str] | None = None
) -> Iterator[RayCluster]:
    """Let a cluster run; the first node is its head."""
    folder.mkdir(exist_ok=True)
    before = os.getcwd()
    os.chdir(folder)  # where the nodes look for a config.yaml
    cluster = None
    try:
        cluster = RayCluster(folder, names, environment)
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()
        os.chdir(before)
