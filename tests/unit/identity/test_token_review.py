"""What the API server says of a token is believed only if all of it fits."""

from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest

from bridge.errors import AuthenticationError, ReviewError, SubjectError
from bridge.identity.caller import NO_POD, Pod, ServiceAccount
from bridge.identity.token_review import ReviewVerifier
from bridge.resilience.budget import Budget
from tests.support.parts.token_reviews import good_status
from tests.support.parts.tokens import OMIT, TokenIssuer

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
AUDIENCES = frozenset({"istio-ca", "istio-ca.corp"})
EXTRA = "authentication.kubernetes.io/"
UID = "7d3a1c9e-0000-4000-8000-000000000001"


class Server:
    """Says what a test tells it to."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Any]] = []
        self.changed: dict[str, Any] = {}
        self.user: dict[str, Any] = {}
        self.answer: Any = None
        self.error: ReviewError | None = None

    def post(
        self, path: str, body: Mapping[str, Any], budget: Budget
    ) -> Mapping[str, Any]:
        self.asked.append(body)
        if self.error is not None:
            raise self.error
        if self.answer is not None:
            return dict(self.answer)
        spec = body["spec"]
        status = good_status(spec["token"], spec["audiences"]) | self.changed
        if self.user:
            status["user"] = status["user"] | self.user
        return {"kind": "TokenReview", "spec": spec, "status": deepcopy(status)}

    def close(self) -> None:
        self.asked.clear()


@cache
def issuer() -> TokenIssuer:
    return TokenIssuer(algorithm="ES256")


def token(**changed: Any) -> str:
    return issuer().token(**{"now": NOW} | changed)


def verify(server: Server, shown: str) -> ServiceAccount:
    verifier = ReviewVerifier(server)  # type: ignore[arg-type]
    return verifier.verify(
        shown, audiences=AUDIENCES, now=NOW, budget=Budget.of_seconds(5)
    )


def test_a_good_token_is_its_service_account() -> None:
    server = Server()
    account = verify(server, shown := token())
    assert account == ServiceAccount("shop", "web", Pod("shop", "web-0", UID, "node-1"))
    assert server.asked == [
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": shown, "audiences": ["istio-ca", "istio-ca.corp"]},
        }
    ]


def test_nothing_is_cached() -> None:
    server, shown = Server(), token()
    verify(server, shown)
    server.changed = {"authenticated": False}
    with pytest.raises(AuthenticationError, match="does not accept"):
        verify(server, shown)


@pytest.mark.parametrize(
    ("pod", "expected"), [(None, NO_POD), (("web-0", UID), Pod("shop", "web-0", UID))]
)
def test_a_server_that_names_no_node(
    pod: tuple[str, str] | None, expected: Pod
) -> None:
    bound: dict[str, Any] = {"namespace": "shop", "serviceaccount": {"name": "web"}}
    if pod:
        bound["pod"] = {"name": pod[0], "uid": pod[1]}
    assert verify(Server(), token(claims={"kubernetes.io": bound})).pod == expected


JUNK: dict[str, tuple[str, str]] = {
    "nothing": ("", "token.format"),
    "too long": ("a" * 16_385, "token.size"),
    "two parts": ("a.b", "token.format"),
    "not base64url": ("a.b!.c", "token.format"),
    "no JSON": (f"{token().partition('.')[0]}.e30e.Yw", "token.json"),
    "a line break": (token() + "\n", "token.format"),
    "not ASCII": (token() + "\u00e9", "token.format"),
    "another audience": (token(audiences=["api"]), "token.audience"),
    "no audience": (token(claims={"aud": OMIT}), "token.audience"),
    "expired": (token(now=NOW - timedelta(hours=2)), "token.expired"),
    "without an end": (token(claims={"exp": OMIT}), "token.expiry"),
    "a user's": (token(claims={"sub": "jane"}), "token.subject"),
    "a node's": (token(claims={"sub": "system:node:n-1"}), "token.subject"),
    "five parts": (
        token(claims={"sub": "system:serviceaccount:shop:web:x"}),
        "token.subject",
    ),
    "claims of another account": (
        token(claims={"sub": "system:serviceaccount:pay:web"}),
        "token.claims",
    ),
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_costs_no_call(name: str) -> None:
    server, (shown, rule) = Server(), JUNK[name]
    with pytest.raises(AuthenticationError, match=r"\w") as refused:
        verify(server, shown)
    assert refused.value.rule == rule
    assert isinstance(refused.value, SubjectError) == (rule == "token.subject")
    assert server.asked == []


STATUSES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "not authenticated": ({"authenticated": False}, {}, "does not accept"),
    "authenticated is text": ({"authenticated": "true"}, {}, "does not accept"),
    "no verdict": ({"authenticated": None}, {}, "does not accept"),
    "an error": ({"error": "token expired"}, {}, "does not accept"),
    "no audiences": ({"audiences": None}, {}, "does not confirm"),
    "empty audiences": ({"audiences": []}, {}, "does not confirm"),
    "another audience": ({"audiences": ["api"]}, {}, "does not confirm"),
    "audiences in one text": ({"audiences": "istio-ca"}, {}, "does not confirm"),
    "audiences of no text": ({"audiences": [["istio-ca"]]}, {}, "does not confirm"),
    "no user": ({"user": None}, {}, "names no user"),
    "another account": (
        {},
        {"username": "system:serviceaccount:shop:other"},
        "names another user",
    ),
    "another namespace": (
        {},
        {"username": "system:serviceaccount:pay:web"},
        "names another user",
    ),
    "a user": ({}, {"username": "jane"}, "is no service account"),
    "no name": ({}, {"username": None}, "is no service account"),
    "five parts": (
        {},
        {"username": "system:serviceaccount:shop:web:x"},
        "is no service account",
    ),
    "no groups": ({}, {"groups": None}, "not in the groups"),
    "groups without all accounts": (
        {},
        {"groups": ["system:serviceaccounts:shop"]},
        "not in the groups",
    ),
    "groups of another namespace": (
        {},
        {"groups": ["system:serviceaccounts", "system:serviceaccounts:pay"]},
        "not in the groups",
    ),
    "extras that are a list": ({}, {"extra": []}, "extras cannot be read"),
    "two pods": (
        {},
        {"extra": {f"{EXTRA}pod-name": ["a", "b"], f"{EXTRA}pod-uid": ["1"]}},
        "pod-name is not one value",
    ),
    "a pod that is text": (
        {},
        {"extra": {f"{EXTRA}pod-name": "a", f"{EXTRA}pod-uid": ["1"]}},
        "pod-name is not one value",
    ),
    "a pod without a UID": (
        {},
        {"extra": {f"{EXTRA}pod-name": ["web-0"]}},
        "no name or no UID",
    ),
    "a pod with a bad name": (
        {},
        {"extra": {f"{EXTRA}pod-name": ["a/b"], f"{EXTRA}pod-uid": ["1"]}},
        "no valid name",
    ),
    "a bad UID": (
        {},
        {"extra": {f"{EXTRA}pod-name": ["web-0"], f"{EXTRA}pod-uid": ["1/2"]}},
        "no valid name",
    ),
    "a bad node": (
        {},
        {
            "extra": {
                f"{EXTRA}pod-name": ["web-0"],
                f"{EXTRA}pod-uid": [UID],
                f"{EXTRA}node-name": ["N 1"],
            }
        },
        "no valid name",
    ),
    "another pod": (
        {},
        {"extra": {f"{EXTRA}pod-name": ["web-1"], f"{EXTRA}pod-uid": [UID]}},
        "names another pod",
    ),
    "no pod where the token has one": ({}, {"extra": {}}, "names another pod"),
}


@pytest.mark.parametrize("name", STATUSES)
def test_a_review_that_does_not_fit_refuses(name: str) -> None:
    server = Server()
    server.changed, server.user, told = STATUSES[name]
    with pytest.raises(AuthenticationError, match=told):
        verify(server, token())


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"kind": "Status"},
        {"kind": "TokenReview"},
        {"kind": "TokenReview", "status": 1},
    ],
)
def test_an_answer_that_is_no_review_is_none(answer: dict[str, Any]) -> None:
    server = Server()
    server.answer = answer or {"x": 1}
    with pytest.raises(ReviewError, match="cannot be read") as caught:
        verify(server, token())
    assert caught.value.rule == "review.answer"


def test_the_review_of_another_token_is_none() -> None:
    server = Server()
    verify(server, other := token(account="web"))
    server.answer = {
        "kind": "TokenReview",
        "spec": server.asked[0]["spec"],
        "status": good_status(other, sorted(AUDIENCES)),
    }
    assert verify(server, other).name == "web"
    head, payload, _ = other.split(".")
    with pytest.raises(ReviewError, match="cannot be read") as caught:
        verify(server, f"{head}.{payload}.Zm9yZ2Vk")
    assert "of the token that was sent" in caught.value.detail


def test_what_fails_is_told_until_a_review_succeeds() -> None:
    server = Server()
    verifier = ReviewVerifier(server)  # type: ignore[arg-type]

    def ask() -> ServiceAccount:
        return verifier.verify(
            token(), audiences=AUDIENCES, now=NOW, budget=Budget.of_seconds(5)
        )

    server.error = ReviewError("no answer", rule="review.timeout", detail="at x")
    with pytest.raises(ReviewError, match="no answer"):
        ask()
    assert verifier.problems(NOW) == ["no answer: at x"]
    assert verifier.can_verify(NOW)  # nobody gets unready for it
    server.error = None
    ask()
    assert verifier.problems(NOW) == []
