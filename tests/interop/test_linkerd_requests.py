"""What Linkerd's published API is told, and how many may ask at once."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.clients import linkerd_go
from tests.support.clients.linkerd_go import AUDIENCE, Answer, ask_bridge, name_of
from tests.support.harness.real_process import Bridge
from tests.support.parts.proxies import Proxy, verifiers
from tests.support.parts.tokens import TokenIssuer

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("interop-linkerd-requests")]

_PROXIES = 1000


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    folder = tmp_path_factory.mktemp("bridge") / "served"
    with Bridge(folder, fronts=["linkerd", "istio"]) as served:
        yield served


def test_name_longer_than_a_common_name_may_be(bridge: Bridge, tmp_path: Path) -> None:
    account = "a" * 63
    answer = ask_bridge(bridge, tmp_path, account)
    assert answer.code == "OK", answer.error
    roots = bridge.roots.read_bytes()
    for judge in verifiers().values():
        assert judge.refusal(Proxy.of(answer, roots), name_of(account)) == ""


def test_authority_may_be_written_with_and_without_a_dot(
    bridge: Bridge, tmp_path: Path
) -> None:
    for authority in ("localhost.:8080", "linkerd-identity:8080"):
        answer = ask_bridge(bridge, tmp_path, "web", "-authority", authority)
        assert answer.code == "OK", answer.error


def test_each_of_1000_proxies_gets_its_certificate_at_the_first_try(
    tmp_path: Path,
) -> None:
    issuer = TokenIssuer(algorithm="ES256")
    callers = [_caller(issuer, number) for number in range(_PROXIES)]
    with Bridge(
        tmp_path / "served", issuers=[issuer], fronts=["linkerd", "istio"]
    ) as bridge:
        answers = linkerd_go.ask_together(
            bridge.linkerd_address, callers, tmp_path, clients=_PROXIES, within=0.9
        )
        bridge.await_rows(_PROXIES, kind="issued", purpose="workload")
    refused = {(one.code, one.error) for one in answers if one.code != "OK"}
    assert refused == set()
    serials = {one.certificate.serial_number for one in answers}
    assert len(serials) == _PROXIES
    _require_own_names(answers)


def _caller(issuer: TokenIssuer, number: int) -> tuple[str, str]:
    account = f"app-{number % 40}"
    token = issuer.token("shop", account, audiences=[AUDIENCE], now=datetime.now(UTC))
    return name_of(account), token


def _require_own_names(answers: Sequence[Answer]) -> None:
    for answer in answers:
        names = answer.certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        assert list(names.value) == [x509.DNSName(answer.identity)]
