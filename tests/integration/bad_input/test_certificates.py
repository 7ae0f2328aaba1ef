"""Bad client certificates on the port where they are the credential.

What TLS refuses never becomes a call; what it lets through is refused by its names.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from tests.support.clients.istio_raw import (
    Answer,
    Wire,
    bearer,
    mtls_channel,
    request,
    token,
)
from tests.support.harness.core import csr
from tests.support.harness.real_process import Bridge
from tests.support.parts.pki import Authority, Key, bundle, key_pem, new_chain, new_key

pytestmark = pytest.mark.xdist_group("bad-input-certificates")

VM = "spiffe://corp.example/ns/shop/sa/vm"
MINUTE = timedelta(minutes=1)


def uri(name: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(name)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def show(bridge: Bridge, wire: Wire) -> Iterator[Callable[..., Answer]]:
    """Return a way to make a call with a certificate, and with a good token too."""
    opened = []

    def call(
        issuer: Authority | None,
        *names: x509.GeneralName,
        begin: datetime | None = None,
        lasts: timedelta = 60 * MINUTE,
    ) -> Answer:
        chain: bytes | None = None
        private: bytes | None = None
        if issuer is not None:
            key: Key = new_key()
            starts = begin or now() - 2 * MINUTE
            leaf = issuer.issue_leaf(
                *names, key=key, not_before=starts, not_after=starts + lasts
            )
            chain, private = bundle(leaf, *issuer.chain), key_pem(key)
        opened.append(mtls_channel(bridge, chain, private))
        # A token is no second chance on this port.
        return wire.send(request(), bearer(token()), on=opened[-1])

    yield call
    for channel in opened:
        channel.close()


def test_a_good_certificate_gets_one_for_its_own_name(wire: Wire) -> None:
    key = new_key()
    first = wire.send(request(csr(key=key)), bearer(token("shop", "vm")))
    assert first.uris == [VM]
    wire.new_outcome()
    chain = "".join(first.chain[:-1]).encode()
    wire.bridge.await_archived(first.leaf.serial_number)
    channel = mtls_channel(wire.bridge, chain, key_pem(key))
    answer = wire.send(request(), on=channel)
    channel.close()
    assert answer.uris == [VM]
    row = wire.new_outcome()
    assert (row["kind"], row["caller"]) == ("issued", VM)


def test_a_certificate_that_a_thief_of_the_ca_made_is_refused(
    bridge: Bridge, wire: Wire, show: Callable[..., Answer]
) -> None:
    first = wire.send(request(), bearer(token()))
    wire.new_outcome()
    bridge.await_archived(first.leaf.serial_number)
    answer = show(bridge.stolen_ca, uri(VM), begin=now() - 30 * MINUTE)
    assert answer.code == "UNAUTHENTICATED"
    assert answer.text.startswith("renewal.unknown: ")
    assert wire.new_outcome()["rule"] == "renewal.unknown"


def test_an_identity_that_is_not_listed_is_refused(
    bridge: Bridge, wire: Wire, show: Callable[..., Answer]
) -> None:
    other = uri(VM.replace("/ns/shop/", "/ns/other/"))
    answer = show(bridge.stolen_ca, other, begin=now() - 30 * MINUTE)
    assert answer.code == "PERMISSION_DENIED"
    assert answer.text.startswith("renewal.identity: ")
    assert wire.new_outcome()["rule"] == "renewal.identity"


def test_no_certificate_is_no_connection(
    wire: Wire, show: Callable[..., Answer]
) -> None:
    assert show(None).code == "UNAVAILABLE"
    wire.require_no_outcome()


def test_a_certificate_of_another_root_is_no_connection(
    wire: Wire, show: Callable[..., Answer]
) -> None:
    foreign = new_chain(not_before=now() - timedelta(days=1))
    assert show(foreign, uri(VM)).code == "UNAVAILABLE"
    wire.require_no_outcome()


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(timedelta(hours=-3), id="expired"),
        pytest.param(timedelta(hours=2), id="not yet valid"),
    ],
)
def test_a_certificate_out_of_time_is_no_connection(
    bridge: Bridge, wire: Wire, show: Callable[..., Answer], begin: timedelta
) -> None:
    answer = show(bridge.stolen_ca, uri(VM), begin=now() + begin)
    assert answer.code == "UNAVAILABLE"
    wire.require_no_outcome()


@pytest.mark.parametrize(
    "name",
    [uri("spiffe://foreign.example/ns/shop/sa/vm"), x509.DNSName(VM)],
    ids=["trust domain", "DNS name"],
)
def test_a_name_outside_the_constraints_is_no_connection(
    bridge: Bridge, wire: Wire, show: Callable[..., Answer], name: x509.GeneralName
) -> None:
    assert show(bridge.stolen_ca, name).code == "UNAVAILABLE"
    wire.require_no_outcome()


@pytest.mark.parametrize(
    "names",
    [
        (uri(VM), uri(f"{VM}2")),
        (uri(VM), uri(VM)),
        (x509.DNSName("vm.corp.example"),),
        (uri("https://corp.example/ns/shop/sa/vm"),),
        (uri("spiffe://corp.example"),),
        (uri("spiffe://corp.example/ns/shop/sa/vm/x"),),
        (uri("spiffe://corp.example/ns/Shop/sa/vm"),),
        (uri("spiffe://corp.example/ns/shop/sa/vm,x"),),
        (uri("spiffe://corp.example/ns/shop/sa/"),),
    ],
)
def test_a_certificate_with_other_names_is_refused(
    bridge: Bridge,
    wire: Wire,
    show: Callable[..., Answer],
    names: tuple[x509.GeneralName, ...],
) -> None:
    answer = show(bridge.stolen_ca, *names)
    assert answer.code == "UNAUTHENTICATED"
    assert answer.text.startswith("certificate.san: ")
    row = wire.new_outcome()
    assert (row["kind"], row["status"]) == ("refused", "UNAUTHENTICATED")
    assert (row["rule"], row["caller"]) == ("certificate.san", "")
