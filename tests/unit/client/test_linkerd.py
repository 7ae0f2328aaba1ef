"""The client that asks as a proxy does, and what it does not take."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bridge._proto.linkerd_identity_pb2 import CertifyResponse
from bridge.client.linkerd import (
    LinkerdRequest,
    _accepted,
    certify,
    is_identity,
    proxy_csr,
)
from bridge.errors import BackendRefusedError, MisissuedError
from bridge.policy.linkerd_names import read_csr, require_csr_names
from tests.support.parts import netports
from tests.support.parts.pki import NOW, Authority, new_chain, new_key
from tests.vectors.generate_linkerd import IDENTITY, OTHER

KEY = ec.generate_private_key(ec.SECP256R1())
CHAIN = new_chain()
LONG = f"linkerd-destination.{IDENTITY}"


def wish(**changed: Any) -> LinkerdRequest:
    values: dict[str, Any] = {
        "address": "127.0.0.1:1",
        "anchors": [CHAIN.root],
        "identity": IDENTITY,
        "token": b"t",
    }
    return LinkerdRequest(**values | changed)


def der(*certificates: x509.Certificate) -> list[bytes]:
    return [one.public_bytes(Encoding.DER) for one in certificates]


def reply(
    *names: x509.GeneralName,
    issuer: Authority = CHAIN,
    key: Any = KEY,
    ends: datetime | None = NOW + timedelta(minutes=50),
    **more: Any,
) -> CertifyResponse:
    san = names or (x509.DNSName(IDENTITY),)
    leaf = issuer.issue_leaf(*san, key=key, **more)
    made = CertifyResponse(
        leaf_certificate=der(leaf)[0], intermediate_certificates=der(*issuer.chain)
    )
    if ends is not None:
        made.valid_until.FromDatetime(ends)
    return made


def test_the_csr_is_the_one_of_proxy_identity() -> None:
    csr = read_csr(proxy_csr(KEY, LONG))
    require_csr_names(csr, LONG)
    assert csr.public_key == KEY.public_key()
    assert LONG.encode() in csr.subject


def test_a_good_answer_is_taken() -> None:
    found = _accepted(reply(), KEY, wish(), NOW)
    assert found.certificates() == [found.leaf, *CHAIN.chain, CHAIN.root]
    assert found.valid_until == NOW + timedelta(minutes=50)


def without_order(made: CertifyResponse) -> CertifyResponse:
    del made.intermediate_certificates[0]
    return made


def in_pem(made: CertifyResponse) -> CertifyResponse:
    leaf = x509.load_der_x509_certificate(made.leaf_certificate)
    made.leaf_certificate = leaf.public_bytes(Encoding.PEM)
    return made


@pytest.mark.parametrize(
    ("made", "text"),
    [
        pytest.param(lambda: reply(ends=None), "how long", id="no end"),
        pytest.param(lambda: reply(ends=NOW), "not valid any more", id="past"),
        pytest.param(lambda: in_pem(reply()), "a proxy would refuse", id="PEM"),
        pytest.param(
            lambda: without_order(reply()), "a proxy would refuse", id="no issuing CA"
        ),
        pytest.param(
            lambda: reply(issuer=new_chain()), "a proxy would refuse", id="root"
        ),
        pytest.param(
            lambda: reply(not_before=NOW + timedelta(minutes=1)),
            "not valid yet",
            id="early",
        ),
        pytest.param(
            lambda: reply(not_before=NOW - timedelta(hours=2)), "expired", id="expired"
        ),
        pytest.param(
            lambda: reply(x509.DNSName(OTHER)), "another identity", id="identity"
        ),
        pytest.param(lambda: reply(key=new_key()), "another key", id="key"),
        pytest.param(CertifyResponse, "how long", id="nothing"),
    ],
)
def test_what_a_proxy_would_not_take_is_refused(
    made: Callable[[], CertifyResponse], text: str
) -> None:
    with pytest.raises(MisissuedError, match=text):
        _accepted(made(), KEY, wish(), NOW)


def test_a_bridge_that_does_not_answer_is_named() -> None:
    address = netports.address()
    with pytest.raises(BackendRefusedError, match=f"^{address}: UNAVAILABLE"):
        certify(wish(address=address, timeout_seconds=5))


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(wish(token=b"secret"))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (IDENTITY, True),
        (IDENTITY.upper(), False),
        (f"{IDENTITY}.", False),
        ("web.shop", False),
        ("", False),
        ("spiffe://corp.example/ns/shop/sa/web", False),
    ],
)
def test_an_identity_is_told_from_other_text(text: str, *, good: bool) -> None:
    assert is_identity(text) is good
