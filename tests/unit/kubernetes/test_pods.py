"""What is asked of an API server about pods, and what is made of its answers."""

from collections.abc import Mapping
from typing import Any

import pytest

from bridge.errors import ReviewError
from bridge.kubernetes.api import METADATA_LIST
from bridge.kubernetes.pods import FoundPod, LivePods
from bridge.resilience.budget import Budget

BUDGET = Budget.of_seconds(5)
POD: dict[str, Any] = {
    "kind": "Pod",
    "metadata": {"namespace": "shop", "name": "web-0", "uid": "u-1"},
    "spec": {"serviceAccountName": "web", "nodeName": "node-1"},
}


class Server:
    """Answers as a test tells it to."""

    def __init__(self, answer: Mapping[str, Any] | None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, Mapping[str, str | int], str]] = []

    def get(
        self,
        path: str,
        query: Mapping[str, str | int],
        budget: Budget,
        *,
        accept: str = "",
    ) -> Mapping[str, Any] | None:
        assert budget is BUDGET
        self.asked.append((path, query, accept))
        return self.answer


def look_up(answer: Mapping[str, Any] | None) -> tuple[Server, LivePods]:
    server = Server(answer)
    return server, LivePods(server)  # type: ignore[arg-type]


def test_a_pod_is_found_by_its_name() -> None:
    server, pods = look_up(POD)
    assert pods.pod("shop", "web-0", BUDGET) == FoundPod("u-1", "web", "node-1")
    assert server.asked == [("/api/v1/namespaces/shop/pods/web-0", {}, "")]


def test_a_pod_that_is_on_no_node_yet() -> None:
    _, pods = look_up(POD | {"spec": {"serviceAccountName": "web"}})
    assert pods.pod("shop", "web-0", BUDGET) == FoundPod("u-1", "web", "")


def test_a_pod_that_is_not_there() -> None:
    assert look_up(None)[1].pod("shop", "web-0", BUDGET) is None


def test_no_name_becomes_another_path() -> None:
    server, pods = look_up(None)
    pods.pod("a/../b", "x?y/z", BUDGET)
    assert server.asked[0][0] == "/api/v1/namespaces/a%2F..%2Fb/pods/x%3Fy%2Fz"


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"kind": "Status"}, id="another kind"),
        pytest.param({"metadata": None}, id="no metadata"),
        pytest.param({"spec": []}, id="no spec"),
        pytest.param(
            {"metadata": POD["metadata"] | {"name": "web-1"}}, id="another pod"
        ),
        pytest.param(
            {"metadata": POD["metadata"] | {"namespace": "pay"}}, id="another namespace"
        ),
        pytest.param(
            {"metadata": POD["metadata"] | {"uid": 1}}, id="a UID that is none"
        ),
        pytest.param({"spec": {"nodeName": "node-1"}}, id="no account"),
        pytest.param(
            {"spec": POD["spec"] | {"nodeName": None}}, id="a node that is none"
        ),
    ],
)
def test_a_pod_that_cannot_be_read_is_none_that_is_gone(
    changed: dict[str, Any],
) -> None:
    _, pods = look_up(POD | changed)
    with pytest.raises(ReviewError, match="cannot be read") as found:
        pods.pod("shop", "web-0", BUDGET)
    assert found.value.rule == "review.answer"


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        pytest.param(None, False, id="none, as the API server writes it"),
        pytest.param([], False, id="none"),
        pytest.param([{"metadata": {"namespace": "shop"}}], True, id="one"),
    ],
)
def test_one_pod_of_the_account_on_the_node_is_asked_for(
    items: list[Any] | None, *, expected: bool
) -> None:
    server, pods = look_up({"kind": "PartialObjectMetadataList", "items": items})
    assert pods.has_pod_on("node-1", "shop", "web", BUDGET) is expected
    selector = (
        "spec.nodeName=node-1,spec.serviceAccountName=web,"
        "status.phase!=Failed,status.phase!=Succeeded"
    )
    path, query = (
        "/api/v1/namespaces/shop/pods",
        {"fieldSelector": selector, "limit": 1},
    )
    assert server.asked == [(path, query, METADATA_LIST)]


@pytest.mark.parametrize(
    "item", [{}, 1, {"metadata": {"namespace": "pay"}}], ids=["none", "no", "another"]
)
def test_the_pods_of_another_namespace_are_no_answer(item: object) -> None:
    _, pods = look_up({"kind": "PartialObjectMetadataList", "items": [item]})
    with pytest.raises(ReviewError, match="cannot be read") as found:
        pods.has_pod_on("node-1", "shop", "web", BUDGET)
    assert "metadata of pods in shop" in found.value.detail


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(None, id="nothing"),
        pytest.param({"kind": "Status", "items": [{}]}, id="another kind"),
        pytest.param({"kind": "PartialObjectMetadataList"}, id="no items"),
        pytest.param(
            {"kind": "PartialObjectMetadataList", "items": {"a": 1}}, id="no list"
        ),
    ],
)
def test_a_list_that_cannot_be_read_is_none_that_is_empty(
    answer: Mapping[str, Any] | None,
) -> None:
    with pytest.raises(ReviewError, match="cannot be read"):
        look_up(answer)[1].has_pod_on("node-1", "shop", "web", BUDGET)
