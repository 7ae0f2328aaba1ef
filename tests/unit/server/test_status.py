from collections.abc import Iterator

import grpc
import pytest

import bridge.errors
from bridge.errors import (
    AuthenticationError,
    BackendAuthError,
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    BackendRefusedError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
    BarredError,
    BridgeError,
    CallerError,
    ConfigError,
    CSRError,
    DeniedError,
    LedgerError,
    MisissuedError,
    MismatchError,
    OperatorError,
    OverloadedError,
    PluginError,
    RequestError,
    ReviewError,
    SubjectError,
    TTLError,
)
from bridge.server.status import BUG, status_name, status_of

TABLE: dict[type[BridgeError], str] = {
    AuthenticationError: "UNAUTHENTICATED",
    SubjectError: "UNAUTHENTICATED",
    DeniedError: "PERMISSION_DENIED",
    BarredError: "PERMISSION_DENIED",
    MismatchError: "INVALID_ARGUMENT",
    CallerError: "INVALID_ARGUMENT",
    RequestError: "INVALID_ARGUMENT",
    CSRError: "INVALID_ARGUMENT",
    TTLError: "INVALID_ARGUMENT",
    OverloadedError: "RESOURCE_EXHAUSTED",
    ReviewError: "UNAVAILABLE",
    BackendCredentialError: "FAILED_PRECONDITION",
    BackendThrottledError: "RESOURCE_EXHAUSTED",
    BackendUnavailableError: "UNAVAILABLE",
    BackendAuthError: "UNAVAILABLE",
    BackendTimeoutError: "UNAVAILABLE",
    BackendError: "FAILED_PRECONDITION",
    BackendRefusedError: "FAILED_PRECONDITION",
    BackendBrokenError: "FAILED_PRECONDITION",
    MisissuedError: "FAILED_PRECONDITION",
    LedgerError: "UNAVAILABLE",
    # These never reach a peer; if one does, it is a bug.
    OperatorError: "INTERNAL",
    ConfigError: "INTERNAL",
    PluginError: "INTERNAL",
    BridgeError: "INTERNAL",
}


AT_LINKERD: dict[type[BridgeError], str] = TABLE | {
    AuthenticationError: "FAILED_PRECONDITION",
    SubjectError: "INVALID_ARGUMENT",
    DeniedError: "FAILED_PRECONDITION",
    BarredError: "PERMISSION_DENIED",
    MismatchError: "FAILED_PRECONDITION",
    OverloadedError: "UNAVAILABLE",
    ReviewError: "INTERNAL",
    BackendThrottledError: "UNAVAILABLE",
}


def every_error(root: type[BridgeError] = BridgeError) -> Iterator[type[BridgeError]]:
    yield root
    for kind in root.__subclasses__():
        if kind.__module__ == bridge.errors.__name__:
            yield from every_error(kind)


@pytest.mark.parametrize("kind", tuple(every_error()), ids=lambda kind: kind.__name__)
def test_each_error_has_the_code_of_the_design(kind: type[BridgeError]) -> None:
    assert status_name(kind("words")) == TABLE[kind]


@pytest.mark.parametrize("kind", tuple(every_error()), ids=lambda kind: kind.__name__)
def test_each_error_has_the_code_of_linkerds_table(kind: type[BridgeError]) -> None:
    assert status_name(kind("words"), "linkerd") == AT_LINKERD[kind]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(
            MismatchError("their words", rule="linkerd.x"), "their words", id="theirs"
        ),
        pytest.param(MismatchError("words", rule="x"), "x: words", id="ours"),
        pytest.param(
            AuthenticationError("it has expired", rule="token.expired"),
            "authentication token could not be authenticated",
            id="a bad token",
        ),
    ],
)
def test_linkerds_words_are_told_to_the_letter(error: BridgeError, text: str) -> None:
    assert status_of(error, "linkerd")[1] == text


def test_linkerds_text_holds_two_names_and_is_cut() -> None:
    text = status_of(MismatchError("x" * 100_000, rule="linkerd.x"), "linkerd")[1]
    assert len(text) == 1000


def test_istio_is_not_told_linkerds_words() -> None:
    assert status_of(MismatchError("words", rule="linkerd.x"))[1].startswith("linkerd")


def test_a_subclass_takes_the_code_of_its_nearest_class() -> None:
    class SealedError(BackendUnavailableError):
        pass

    assert status_name(SealedError("the store is sealed")) == "UNAVAILABLE"


def test_the_text_names_the_rule_first() -> None:
    error = CSRError("an RSA key has 2048 bits or more", rule="csr.rsa-size")
    assert status_of(error)[1] == "csr.rsa-size: an RSA key has 2048 bits or more"


def test_the_detail_never_leaves() -> None:
    assert "secret" not in status_of(DeniedError("no", detail="secret"))[1]


def test_a_text_is_cut_so_that_it_fits_into_a_header() -> None:
    assert len(status_of(RequestError("x" * 100_000))[1]) == 500


@pytest.mark.parametrize("kind", [LedgerError, ConfigError, PluginError, OperatorError])
def test_an_operators_error_tells_the_peer_nothing(kind: type[BridgeError]) -> None:
    text = status_of(kind("/var/lib/journal: disk full", rule="ledger.disk"))[1]
    assert "journal" not in text
    assert "disk" not in text


def test_a_bug_has_fixed_words() -> None:
    assert BUG[0] is grpc.StatusCode.INTERNAL
    assert status_of(BridgeError("/etc/secret")) == BUG


def test_the_table_of_this_test_is_whole() -> None:
    assert set(every_error()) == set(TABLE)
