"""What many nodes answer becomes one report: merged, planned, compared; without Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from vlmcache.cache.state import Finding
from vlmcache.change.plan import Failure, Kept, Plan, Receipt, RemoveTree
from vlmcache.commands.fleet import removal, view
from vlmcache.commands.fleet.calls import LOST, Beat, Call, Node, Reply
from vlmcache.commands.fleet.joining import ClusterError
from vlmcache.commands.fleet.measuring import compare_nodes
from vlmcache.commands.fleet.on_node import Done, Planned
from vlmcache.commands.fleet.requests import CacheOnNode, RemovalRequest
from vlmcache.commands.fleet.status import merged, names_for_nodes
from vlmcache.commands.fleet.values import (
    DamagedModel,
    FleetCheckError,
    FleetRemoval,
    FleetVerification,
    LoadedModel,
    ModelOnNode,
    NodeLoads,
    NodeVerification,
    error_of,
    nodes_problem,
)
from vlmcache.commands.remove.values import Keeping, Removal
from vlmcache.config import shipped_config
from vlmcache.errors import (
    ChangedError,
    ExitCode,
    PartlyError,
    UnconfirmedError,
    UnknownModelError,
    UsageError,
)
from vlmcache.load.report import Spread
from vlmcache.progress import Progress

NODES = tuple(Node(f"id{number}", f"gpu{number}", f"10.0.0.{number}") for number in (1, 2, 3))
DEAD = Failure(LOST, "the node died", None, 1)


def stock(*models: ModelOnNode, repos: tuple[ModelOnNode, ...] = ()) -> CacheOnNode:
    return CacheOnNode("/hub", 5, 10, 3, models, repos)


def cached(repo: str, commit: str = "a" * 40) -> ModelOnNode:
    return ModelOnNode(repo, state="cached", progress=1.0, commit=commit, size_on_disk=7)


def test_a_model_that_one_node_reports_is_looked_up_on_all() -> None:
    report = merged(
        NODES,
        {
            "id1": stock(cached("org/a")),
            "id2": stock(cached("org/b"), repos=(cached("org/a"),)),
            "id3": stock(),
        },
        {},
    )
    assert report.models == ("org/a", "org/b")
    states = [[model.state for model in node.models] for node in report.nodes]
    assert states == [["cached", "missing"], ["cached", "cached"], ["missing", "missing"]]
    assert report.ids == ["gpu2"]
    assert report.problem is None


def test_check_is_exit_4_for_what_is_missing_and_for_commits_that_differ() -> None:
    stocks = {
        "id1": stock(cached("org/a"), cached("org/b")),
        "id2": stock(cached("org/a", "b" * 40), ModelOnNode("org/b", state="partial")),
        "id3": stock(cached("org/a"), cached("org/b")),
    }
    assert merged(NODES, stocks, {}).problem is None
    problem = merged(NODES, stocks, {}, checked=True).problem
    assert isinstance(problem, FleetCheckError)
    assert problem.exit_code == ExitCode.DAMAGE
    assert problem.message == (
        "the nodes do not all have the same: org/b is partial on gpu2; "
        "commits of org/a differ: aaaaaaa on gpu1, gpu3, bbbbbbb on gpu2"
    )
    same = {key: stock(cached("org/a")) for key in stocks}
    assert merged(NODES, same, {}, checked=True).problem is None


def test_a_node_that_died_is_a_row_with_its_error_and_the_rest_is_exit_3() -> None:
    report = merged(NODES, {"id1": stock(cached("org/a")), "id3": stock()}, {"id2": DEAD})
    assert [node.error for node in report.nodes] == [None, DEAD, None]
    assert isinstance(report.problem, PartlyError)
    assert "gpu2 (the node died)" in report.problem.message
    assert [cause.code for cause in report.problem.causes] == [LOST]
    checked = merged(
        NODES, {"id1": stock(cached("org/a"))} | {}, {"id2": DEAD, "id3": DEAD}, checked=True
    )
    assert checked.problem is not None
    assert (checked.problem.exit_code, "not known of gpu2, gpu3" in checked.problem.message) == (
        4,
        True,
    )


def test_a_key_crosses_as_the_repo_that_it_means_here() -> None:
    config = shipped_config()
    assert names_for_nodes(config, ["qwen_vl_2b", "qwen_vl_2b@v1", "org/x:Q4_K_M", "org/*"]) == (
        "Qwen/Qwen2-VL-2B-Instruct",
        "Qwen/Qwen2-VL-2B-Instruct@v1",
        "org/x:Q4_K_M",
        "org/*",
    )
    with pytest.raises(UsageError):
        names_for_nodes(config, ["./models--org--x"])


class Answers:
    """A fleet of nodes that answer as a function says."""

    def __init__(self, answer: Callable[[Node, str, Any], msgspec.Struct | Failure]) -> None:
        self.nodes = NODES
        self.lost: Mapping[str, str] = {}
        self.beats: Mapping[str, Beat] = {}
        self.asked: list[tuple[str, str]] = []
        self._answer = answer
        self._replies: deque[Reply] = deque()

    def call(
        self, node: Node, method: str, request: msgspec.Struct | None = None, *, silent: float = 0
    ) -> Call:
        call = Call(len(self.asked), node, method)
        self.asked.append((node.name, method))
        answer = self._answer(node, method, request)
        if isinstance(answer, Failure):
            self._replies.append(Reply(call, failure=answer))
        else:
            self._replies.append(Reply(call, msgspec.json.encode(answer)))
        return call

    def arrived(self, timeout: float) -> list[Reply]:
        replies, self._replies = list(self._replies), deque()
        return replies

    def stop(self) -> None: ...


def planned(frees: int) -> Removal:
    action = RemoveTree("/hub/models--org--a", "repo", "org/a", "asked for", frees, None)
    return Removal(Plan((action,), frees=frees), cache="/hub")


def done(report: Removal, failure: Failure | None = None) -> Done:
    return Done(msgspec.Raw(msgspec.json.encode(report)), failure, 99)


ABSENT = Failure("no-such-model", "nothing like org/a is in the cache", None, 7)
STALE = Failure("changed", "the cache changed", None, 10)


def remover(node: Node, method: str, request: Any) -> msgspec.Struct | Failure:
    """Let gpu1 and gpu2 have the model, and the cache of gpu2 change before the act."""
    if node.name == "gpu3":
        return ABSENT
    if method == "plan-removal":
        return Planned(True, done(planned(10)))
    if node.name == "gpu2":
        return done(msgspec.structs.replace(planned(10), receipt=Receipt(())), STALE)
    return done(msgspec.structs.replace(planned(10), receipt=Receipt((), freed=10)))


REQUEST = RemovalRequest(False, ("org/a",))


def test_one_question_is_asked_about_the_plans_of_all_nodes() -> None:
    asked: list[FleetRemoval] = []

    def confirm(report: FleetRemoval) -> bool:
        asked.append(report)
        return True

    fleet = Answers(remover)
    report = removal.remove_from_nodes(fleet, REQUEST, Progress(), confirm)
    assert [(report.frees, report.ids) for report in asked] == [(20, ["gpu1", "gpu2"])]
    assert [name for name, method in fleet.asked if method == "decide"] == ["gpu1", "gpu2"]
    # A cache that changed between plan and act is exit 10 for that node, and the rest is done.
    assert [node.error.exit_code if node.error else 0 for node in report.nodes] == [0, 10, 0]
    assert report.freed == 10
    assert isinstance(report.problem, PartlyError)
    assert "gpu2 (the cache changed)" in report.problem.message
    assert isinstance(report.problem.causes[0], ChangedError)


def test_a_plan_says_what_stays_on_which_nodes_and_what_would_be_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = "/hub/models--org--a"
    stays = Kept(f"{folder}/snapshots/{'a' * 40}", "org/a", "in use")
    finding = Finding("needed", "warning", "org/b", folder, "org/b needs it")
    rest = msgspec.structs.replace(
        planned(10), findings=(finding,), trash=Keeping(True, 7), missed_by=3
    )
    used = msgspec.structs.replace(rest, plan=Plan(rest.plan.actions, 10, kept=(stays,)))

    def answer(node: Node, method: str, request: Any) -> msgspec.Struct | Failure:
        return Planned(False, done(rest if node.name == "gpu3" else used))

    report = removal.remove_from_nodes(Answers(answer), REQUEST, Progress(), None)
    assert [node.trash.kept for node in report.nodes] == [True] * 3
    view.show_removal(report)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert f"gpu1, gpu2: org/a: {'a' * 40}  in use" in lines
    assert "gpu1, gpu2, gpu3: org/b: org/b needs it" in lines
    assert "gpu1, gpu2, gpu3: 3 B less than was asked for" in lines
    assert lines[-1] == "Frees 0 B now, 30 B when the trash is emptied."


def test_a_no_removes_nothing_anywhere() -> None:
    fleet = Answers(remover)
    with pytest.raises(UnconfirmedError):
        removal.remove_from_nodes(fleet, REQUEST, Progress(), lambda _: False)
    assert "decide" not in {method for _, method in fleet.asked}


def test_a_dry_run_decides_nothing() -> None:
    fleet = Answers(lambda node, method, request: Planned(False, done(planned(10))))
    report = removal.remove_from_nodes(fleet, REQUEST, Progress(), None)
    assert (report.frees, report.freed, len(fleet.asked)) == (30, 0, 3)


def test_a_model_that_no_node_has_is_an_unknown_model() -> None:
    with pytest.raises(UnknownModelError, match="of any node"):
        removal.remove_from_nodes(Answers(lambda *_: ABSENT), REQUEST, Progress(), None)


def test_if_all_nodes_fail_in_one_way_that_is_the_exit_code() -> None:
    report = removal.remove_from_nodes(Answers(lambda *_: STALE), REQUEST, Progress(), None)
    assert report.problem is not None
    assert report.problem.exit_code == ExitCode.CHANGED
    assert error_of(Failure("new-code", "later", None, 9)).exit_code == ExitCode.SPACE


def test_damage_on_a_node_is_exit_4_and_a_node_that_was_not_checked_exit_3() -> None:
    good = NodeVerification(node="gpu1", address="")
    lost = NodeVerification(node="gpu2", address="", error=DEAD)
    bad = NodeVerification(
        node="gpu3",
        address="",
        models=(DamagedModel("org/a", 1),),
        error=Failure("damaged", "1 damaged: org/a", None, ExitCode.DAMAGE),
    )
    for nodes, code in (
        ((good, good), None),
        ((good, lost), ExitCode.PARTLY),
        ((good, bad), ExitCode.DAMAGE),
        ((lost, bad), ExitCode.DAMAGE),
        ((bad, bad), ExitCode.DAMAGE),
    ):
        problem = FleetVerification(nodes).problem
        assert (problem and problem.exit_code) == code
        if bad in nodes:
            assert problem is not None
            assert "gpu3 (1 damaged: org/a)" in problem.message.replace("gpu3, ", "")
            assert problem.hint is not None
            assert "vlmcache fleet pull org/a" in problem.hint


def test_the_hint_on_a_machine_outside_a_cluster_says_how_it_joins() -> None:
    error = ClusterError.of("head:6379", "TimeoutError", "no answer in 60 s")
    assert error.hint is not None
    assert "--address ray://head:10001" in error.hint
    for address in ("auto", "ray://head:10001"):
        other = ClusterError.of(address, "TimeoutError", "no answer in 60 s")
        assert other.hint is not None
        assert "ray://" not in other.hint


def test_the_hint_for_a_missing_or_wrong_token_says_what_to_set() -> None:
    for words in ("couldn't find an authentication token", "no authentication token was found"):
        none = ClusterError.of("auto", "RuntimeError", f"Ray: {words}.")
        assert none.message.endswith("there is no token here")
        assert none.hint is not None
        assert "RAY_AUTH_TOKEN_PATH" in none.hint
    refused = ClusterError.of("head:6379", "ConnectionError", "Failed to connect")
    assert refused.hint is not None
    assert "RAY_AUTH_MODE=token" in refused.hint


@pytest.mark.parametrize(
    ("local", "fleet"),
    [
        ("vlmcache pull org/a", "vlmcache fleet pull org/a"),
        ("'vlmcache status --all' lists all", "'vlmcache fleet status' lists all"),
        (
            "'vlmcache verify a'; 'vlmcache pull a --include x' and 'vlmcache undo 1'",
            "'vlmcache fleet verify a'; 'vlmcache fleet pull a --include x' and 'vlmcache undo 1'",
        ),
        ("vlmcache pull org/a --make-room", "vlmcache pull org/a --make-room"),
        ("vlmcache fleet pull org/a", "vlmcache fleet pull org/a"),
        ("stop that first", "stop that first"),
    ],
)
def test_a_hint_of_nodes_names_the_command_for_all_of_them(local: str, fleet: str) -> None:
    failure = Failure("not-downloaded", "org/a is missing", local, 7)
    rows = tuple(NodeVerification(node=f"gpu{n}", address="", error=failure) for n in (1, 2))
    for nodes in (rows, rows[:1]):
        problem = nodes_problem(nodes)
        assert problem is not None
        assert problem.hint == fleet
        assert all(cause.hint == fleet for cause in problem.causes)


def loads(name: str, seconds: float, most: float | None = None) -> NodeLoads:
    cold = Spread(seconds, seconds, most or seconds, 3)
    model = LoadedModel("org/a", "bf16", "readahead", "cpu", cold, None)
    return NodeLoads(node=name, address="", models=(model,))


def test_the_node_that_loads_slower_than_chance_explains_is_named() -> None:
    report = compare_nodes([loads("gpu1", 5.0, 6.0), loads("gpu2", 5.2), loads("gpu3", 12.0)])
    assert report.slow == ("gpu3",)
    ratio = report.nodes[2].models[0].ratio
    assert ratio is not None
    assert 2.3 < ratio < 2.4
    assert compare_nodes([loads("gpu1", 5.0), loads("gpu2", 6.0)]).slow == ()
    assert compare_nodes([loads("gpu1", 5.0, 9.0), loads("gpu2", 8.0)]).slow == ()
    alone = compare_nodes([loads("gpu1", 5.0)])
    assert (alone.slow, alone.nodes[0].models[0].ratio) == ((), None)
