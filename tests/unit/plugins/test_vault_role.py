"""What a role and an issuer must say, and the times that a role gives a leaf.

`tests/integration/test_vault_role.py` shows each field on a real server.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.spi import BackendBrokenError
from bridge.testing.leaves import leaf_request
from bridge_vault.options import PKIOptions
from bridge_vault.role import (
    Limits,
    added_extensions,
    issuer_problems,
    role_problems,
)
from tests.support.harness.scripted_vault import ISSUER, OPENBAO, ROLE
from tests.support.parts.pki import new_chain, new_root

NOW = datetime(2026, 6, 1, 12, 0, 0, 500_000, tzinfo=UTC)
NAMES = (x509.UniformResourceIdentifier("spiffe://corp.example/a"),)
URLS = ["http://ca.example/1", "http://ca.example/2"]


def options(**more: object) -> PKIOptions:
    login = {"token": {"file": "/token"}}
    own = {"addresses": ["http://127.0.0.1:1"], "login": login, "role": "mesh"}
    return PKIOptions.model_validate({**own, "issuer": ISSUER, **more})


@pytest.mark.parametrize("more", [{}, OPENBAO])
def test_a_role_as_it_must_be_has_no_problem(more: dict[str, Any]) -> None:
    assert [*role_problems({**ROLE, **more}, new_chain().certificate)] == []


def test_a_role_that_cannot_be_read_has_every_problem_and_no_other_error() -> None:
    found = "\n".join(role_problems({}, new_chain().certificate))
    for name in ("server_flag", "no_store", "key_usage", "max_ttl", "key_type"):
        assert f"{name}: expected" in found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"server_flag": "true"}, "server_flag: expected True (found 'true')"),
        ({"organization": "x"}, "organization: expected [] (found 'x')"),
        ({"key_usage": "DigitalSignature"}, "key_usage: expected "),
        ({"ext_key_usage": {"CodeSigning": 1}}, "ext_key_usage: expected []"),
        ({"max_ttl": -1}, "max_ttl: expected 'a time above 0' (found -1)"),
        ({"max_ttl": "24h"}, "max_ttl: expected 'a time above 0' (found '24h')"),
        ({"max_ttl": 10**30}, "max_ttl: expected 'a time above 0'"),
        ({**OPENBAO, "ttl": 0}, "ttl: expected 'a time above 0' (found 0)"),
        ({"not_before_duration": "60s"}, "not_before_duration: expected 'a time'"),
        ({"key_type": "ec", "key_bits": 521}, "key_type: expected 'any, or ec"),
        ({"key_type": "ec", "key_bits": []}, None),
        ({"key_type": "ec", "key_bits": ["x"]}, "key_type: expected 'any, or ec"),
        ({"signature_bits": 384}, "signature_bits: expected 256 (found 384)"),
        ({"signature_bits": [0]}, "signature_bits: expected 256 (found [0])"),
        ({"signature_bits": 256}, None),
    ],
    ids=str,
)
def test_a_value_that_vault_should_not_give_is_told(
    changes: dict[str, Any], problem: str | None
) -> None:
    found = [*role_problems({**ROLE, **changes}, new_chain().certificate)]
    assert [one[: len(problem or "")] for one in found] == (
        [problem] if problem else []
    )


def test_an_ed25519_key_has_no_choice_of_signature_bits() -> None:
    certificate = new_chain("ed25519").certificate
    assert [*role_problems({**ROLE, "signature_bits": 512}, certificate)] == []


@pytest.mark.parametrize(
    ("ttl", "max_ttl", "asked"),
    [
        (86400, 86400, timedelta(hours=24)),
        (86400, 86400, timedelta(hours=24, seconds=3)),
        (3600, 86400, timedelta(hours=1)),
        (86400, 3600, timedelta(hours=1)),
    ],
)
def test_an_end_may_be_some_seconds_sooner_where_the_role_ends_there(
    ttl: int, max_ttl: int, asked: timedelta
) -> None:
    limits = Limits({**ROLE, **OPENBAO, "ttl": ttl, "max_ttl": max_ttl})
    request = leaf_request(NAMES, now=NOW, ttl=asked, backdate=timedelta(minutes=1))
    end = limits.end(request, NOW)
    assert timedelta() <= request.not_after - end <= timedelta(seconds=4)
    shortest = timedelta(seconds=min(ttl, max_ttl))
    assert end <= NOW + shortest - timedelta(seconds=1)
    assert end.microsecond == 0


@pytest.mark.parametrize("ttl", [86400, 3600])
def test_vault_holds_a_lifetime_to_max_ttl_alone(ttl: int) -> None:
    limits = Limits({**ROLE, "ttl": ttl})
    asked = timedelta(hours=2)
    request = leaf_request(NAMES, now=NOW, ttl=asked, backdate=timedelta(minutes=1))
    # A signature that is 2 s late ends when the request does.
    end = limits.end(request, NOW)
    assert request.not_after - end == timedelta(seconds=2)
    assert limits.fields(end, NOW) == {"ttl": "7197s"}


def test_a_longer_life_than_the_role_gives_is_refused_before_it_is_asked_for() -> None:
    limits = Limits({**ROLE, **OPENBAO, "ttl": 3600})
    asked = timedelta(hours=1, seconds=6)
    request = leaf_request(NAMES, now=NOW, ttl=asked, backdate=timedelta(minutes=1))
    with pytest.raises(BackendBrokenError, match=r"cut the lifetime short") as caught:
        limits.end(request, NOW)
    assert "ttl or max_ttl of the role is 1:00:00" in caught.value.detail


@pytest.mark.parametrize(
    ("duration", "ahead", "passes"),
    [(60, 0, True), (60, 24, True), (60, -24, True), (60, 27, False), (0, 0, False)],
)
def test_a_begin_that_the_bridge_would_refuse_is_not_asked_for(
    duration: int, ahead: int, *, passes: bool
) -> None:
    limits = Limits({**ROLE, **OPENBAO, "not_before_duration": duration})
    request = leaf_request(NAMES, now=NOW, backdate=timedelta(minutes=1))
    now = NOW + timedelta(seconds=ahead)
    if passes:
        limits.end(request, now)
        return
    with pytest.raises(BackendBrokenError, match=r"would date") as caught:
        limits.end(request, now)
    assert caught.value.rule == "vault.clock"


@pytest.mark.parametrize(
    ("issuer", "urls", "pinned", "problem"),
    [
        ({}, {}, {}, None),
        ({"certificate": "x"}, {}, {}, "certificate: expected that of CN=issuing "),
        ({"certificate": 5}, {}, {}, "certificate: expected that of CN=issuing "),
        ({"key_id": ""}, {}, {}, "key_id: expected the issuer's key (found none)"),
        ({"usage": "read-only"}, {}, {}, "usage: expected 'with issuing-cert"),
        ({"revoked": True}, {}, {}, "revoked: expected false (found true)"),
        ({}, {"ocsp_servers": URLS}, {}, "ocsp_servers of config/urls: expected"),
        ({}, {"ocsp_servers": URLS}, {"ocsp_servers": URLS}, None),
        ({}, {"ocsp_servers": 5}, {}, "ocsp_servers of config/urls: expected"),
        (
            {"ocsp_servers": URLS},
            {"issuing_certificates": URLS, "delta_crl_distribution_points": URLS},
            {"ocsp_servers": URLS},
            None,
        ),
        (
            {"ocsp_servers": URLS[::-1]},
            {"ocsp_servers": URLS},
            {"ocsp_servers": URLS},
            "ocsp_servers of the issuer: expected",
        ),
        (
            {},
            {"delta_crl_distribution_points": URLS},
            {},
            "delta_crl_distribution_points of config/urls: expected none",
        ),
        (
            {},
            {"ocsp_servers": ["http://{{issuer_id}}"], "enable_templating": True},
            {"ocsp_servers": ["http://{{issuer_id}}"]},
            "the URLs of config/urls: expected no templates",
        ),
        (
            {},
            {"ocsp_servers": URLS, "enable_templating": True},
            {"ocsp_servers": URLS},
            None,
        ),
    ],
)
def test_an_issuer_is_held_to_its_pins(
    issuer: dict[str, Any],
    urls: dict[str, Any],
    pinned: dict[str, Any],
    problem: str | None,
) -> None:
    certificate = new_chain().certificate
    usual = {
        "certificate": certificate.public_bytes(Encoding.PEM).decode(),
        "leaf_not_after_behavior": "err",
    }
    found = [
        *issuer_problems({**usual, **issuer}, urls, [certificate], options(**pinned))
    ]
    assert [one[: len(problem or "")] for one in found] == (
        [problem] if problem else []
    )


def test_the_issuer_may_have_the_other_half_of_a_cross_signed_pair() -> None:
    ca = new_root("a").issue_ca("issuing")
    twin = new_root("b").issue_ca("issuing", key=ca.key)
    stranger = new_root("c").issue_ca("issuing")
    chain = [one.certificate for one in (ca, stranger, twin)]
    usual = {"leaf_not_after_behavior": "err"}
    for one, problems in ((ca, 0), (twin, 0), (stranger, 1)):
        issuer = {**usual, "certificate": one.pem.decode()}
        assert len([*issuer_problems(issuer, {}, chain, options())]) == problems


def test_the_pinned_urls_are_the_extensions_that_vault_adds() -> None:
    pinned = options(
        issuing_certificate_urls=URLS[:1],
        ocsp_servers=URLS[1:],
        crl_distribution_points=URLS,
    )
    access, points = added_extensions(pinned)
    assert isinstance(access.value, x509.AuthorityInformationAccess)
    assert [one.access_location.value for one in access.value] == URLS[::-1]
    assert isinstance(points.value, x509.CRLDistributionPoints)
    assert [
        str(one.full_name[0].value) for one in points.value if one.full_name
    ] == URLS
    assert not access.critical
    assert not points.critical
    assert added_extensions(options()) == ()
