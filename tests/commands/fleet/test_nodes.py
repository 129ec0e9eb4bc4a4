"""Which nodes are meant, what they are called, and whether their versions fit; without Ray."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmcache.commands.fleet.actor import Hello
from vlmcache.commands.fleet.nodes import (
    expand_ranges,
    named_nodes,
    require_same_versions,
    select_nodes,
)
from vlmcache.commands.fleet.values import VersionsError
from vlmcache.commands.fleet.wire import NodeFacts
from vlmcache.errors import UsageError


def facts(number: int, name: str, *, alive: bool = True) -> NodeFacts:
    return NodeFacts(f"{number:06x}" + "0" * 50, name, name, f"10.0.0.{number}", alive)


NODES = named_nodes(
    [facts(number, f"gpu{number}") for number in (10, 1, 2, 3)]
    + [NodeFacts("f" * 56, "head", "head", "10.0.0.99", True, {"rack": "a"})]
)


def names(*wanted: str) -> list[str]:
    return [node.name for node in select_nodes(NODES, wanted)]


def test_nodes_are_sorted_as_people_count() -> None:
    assert [node.name for node in NODES] == ["gpu1", "gpu2", "gpu3", "gpu10", "head"]
    assert names() == ["gpu1", "gpu2", "gpu3", "gpu10", "head"]


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        (["gpu1"], ["gpu1"]),
        (["GPU1"], ["gpu1"]),
        (["gpu[1-3]"], ["gpu1", "gpu2", "gpu3"]),
        (["gpu[1,3]"], ["gpu1", "gpu3"]),
        (["gpu[2-3,10],head"], ["gpu2", "gpu3", "gpu10", "head"]),
        (["gpu10", "gpu1"], ["gpu1", "gpu10"]),
        (["gpu*"], ["gpu1", "gpu2", "gpu3", "gpu10"]),
        (["10.0.0.2"], ["gpu2"]),
        (["rack=a"], ["head"]),
        (["ffffff"], ["head"]),
        ([" gpu1 , gpu1,"], ["gpu1"]),
    ],
)
def test_nodes_are_named_by_name_address_label_pattern_or_range(
    wanted: list[str], meant: list[str]
) -> None:
    assert names(*wanted) == meant


@pytest.mark.parametrize(
    "wanted", ["gpu4", "gpu[1-4]", "rack=b", "gpu[a-b]", "gpu[3-1]", f"gpu[{'9' * 5000}]", "10.0.0"]
)
def test_a_name_that_means_no_node_is_a_usage_error(wanted: str) -> None:
    with pytest.raises(UsageError):
        names(wanted)


def test_a_range_keeps_the_zeros_that_are_typed() -> None:
    assert list(expand_ranges("n[08-11].lan")) == ["n08.lan", "n09.lan", "n10.lan", "n11.lan"]
    assert list(expand_ranges("r[1-2]n[1-2]")) == ["r1n1", "r1n2", "r2n1", "r2n2"]


@given(st.integers(0, 300), st.integers(0, 50))
def test_a_range_is_all_numbers_from_the_first_to_the_last(first: int, more: int) -> None:
    expanded = list(expand_ranges(f"gpu[{first}-{first + more}]"))
    assert expanded == [f"gpu{number}" for number in range(first, first + more + 1)]


def test_nodes_of_the_same_name_differ_by_their_ids_and_dead_ones_are_left_out() -> None:
    nodes = named_nodes([facts(1, "box"), facts(2, "box"), facts(3, "other", alive=False)])
    assert [node.name for node in nodes] == ["box-000001", "box-000002"]
    assert select_nodes(nodes, ["box-000002"]) == nodes[1:]
    assert select_nodes(nodes, ["box*"]) == nodes


def test_a_cluster_without_living_nodes_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no nodes"):
        select_nodes([], [])


def hello(**changes: str) -> Hello:
    return Hello(
        **({"vlmcache": "1.0", "python": "3.11.7", "ray": "2.60.0"} | changes), host="", pid=1
    )


def test_other_versions_are_one_line_that_names_the_nodes() -> None:
    others = {
        "gpu1": hello(),
        "gpu2": hello(vlmcache="0.9"),
        "gpu3": hello(vlmcache="0.9"),
        "gpu4": hello(python="3.12.1", ray="2.61.0"),
    }
    with pytest.raises(VersionsError) as caught:
        require_same_versions(hello(), others)
    assert caught.value.message == (
        "nodes have other versions: vlmcache 0.9 on gpu2, gpu3; Python 3.12, Ray 2.61.0 on gpu4; "
        "here vlmcache 1.0, Python 3.11, Ray 2.60.0"
    )


def test_another_patch_release_of_python_is_not_another_version() -> None:
    require_same_versions(hello(), {"gpu1": hello(python="3.11.9")})
