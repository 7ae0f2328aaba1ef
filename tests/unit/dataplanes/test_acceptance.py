"""What only some data planes refuse is refused where they are served.

That each data plane does so is in `tests/interop/planes`.
"""

from datetime import UTC, datetime

import pytest
from cryptography import x509

from bridge.dataplanes.acceptance import acceptance_warnings, require_accepted
from bridge.dataplanes.planes import DataPlane
from bridge.errors import ConfigError
from tests.interop.planes.certificates import build
from tests.interop.planes.oddities import change_of
from tests.support.parts.pki import new_root

SIDECAR, AMBIENT, LINKERD = DataPlane.SIDECAR, DataPlane.AMBIENT, DataPlane.LINKERD
DIRECTORY = x509.NameConstraints([x509.DirectoryName(x509.Name([]))], None)
URI = x509.NameConstraints([x509.UniformResourceIdentifier("corp.example")], None)


def odd(oddity: str, tier: str = "intermediate") -> list[x509.Certificate]:
    chain = build(change_of(oddity, tier), datetime.now(UTC))
    return [x509.load_der_x509_certificate(one) for one in chain.cas]


def constrained(constraints: x509.NameConstraints) -> list[x509.Certificate]:
    issuing = new_root().issue_ca("issuing", constraints=constraints)
    return [*issuing.chain, issuing.root]


REFUSED = [
    (
        "pss-sha256-signature",
        "intermediate",
        [LINKERD],
        "which linkerd2-proxy does not accept",
    ),
    ("rsa-signature-without-null", "intermediate", [LINKERD], "lacks the parameters"),
    ("critical-policies", "intermediate", [AMBIENT, LINKERD], "has critical certific"),
    ("critical-policies", "issuing", [AMBIENT, LINKERD], "has critical certific"),
    ("critical-policies", "anchor", [], ""),
    ("unique-id", "issuing", [AMBIENT, LINKERD], "has a unique identifier"),
    ("unique-id", "anchor", [AMBIENT, LINKERD], "has a unique identifier"),
    ("other-algorithm-inside", "anchor", [AMBIENT, LINKERD], "leave such an anchor"),
    ("plain", "issuing", [], ""),
]


@pytest.mark.parametrize(("oddity", "tier", "planes", "text"), REFUSED)
def test_what_some_refuse_is_refused_there_and_a_warning_elsewhere(
    oddity: str, tier: str, planes: list[DataPlane], text: str
) -> None:
    path = odd(oddity, tier)
    for plane in DataPlane:
        served = {plane: True}
        told = acceptance_warnings(path, served, source="x.pem")
        if plane in planes:
            with pytest.raises(ConfigError, match=rf"x.pem: .*{text}") as refusal:
                require_accepted(path, served, source="x.pem")
            assert refusal.value.rule == "config.chain"
            assert told == ""
        else:
            require_accepted(path, served, source="x.pem")
            assert bool(told) == bool(planes)


@pytest.mark.parametrize(
    ("oddity", "text"),
    [
        ("negative-serial", "has a negative serial number, and programs in Go"),
        (
            "compressed-point-key",
            "has a key whose point is compressed, and programs in Go",
        ),
        ("no-key-usage", "has no keyUsage: every data plane takes it"),
    ],
)
def test_what_no_data_plane_refuses_is_a_warning_everywhere(
    oddity: str, text: str
) -> None:
    path, served = odd(oddity), dict.fromkeys(DataPlane, True)
    require_accepted(path, served, source="x.pem")
    (line,) = acceptance_warnings(path, served, source="x.pem").splitlines()
    assert line.startswith(f"x.pem: certificate 2 (CN=intermediate) {text}")


@pytest.mark.parametrize(
    ("constraints", "served", "text"),
    [
        (URI, {AMBIENT: True}, "has a URI constraint, under which ztunnel"),
        (URI, {LINKERD: True}, "has a URI constraint, under which linkerd2-proxy"),
        (URI, {LINKERD: False}, ""),
        (URI, {SIDECAR: True}, ""),
        (DIRECTORY, {AMBIENT: True}, "has a directory name constraint, under which z"),
        (DIRECTORY, {LINKERD: False}, "has a directory name constraint, under which l"),
        (DIRECTORY, {SIDECAR: True}, ""),
    ],
)
def test_constraints_are_refused_where_rustls_is_served(
    constraints: x509.NameConstraints, served: dict[DataPlane, bool], text: str
) -> None:
    path = constrained(constraints)
    # `data_plane_problems` tells of it where it is no refusal.
    assert acceptance_warnings(path, served, source="x.pem") == ""
    if not text:
        require_accepted(path, served, source="x.pem")
        return
    with pytest.raises(ConfigError, match=text):
        require_accepted(path, served, source="x.pem")


def test_all_that_is_in_the_way_is_told_at_once_and_by_certificate() -> None:
    both = x509.NameConstraints([*(DIRECTORY.permitted_subtrees or ())], None)
    regional = new_root().issue_ca("regional", constraints=DIRECTORY)
    issuing = regional.issue_ca("issuing", constraints=both)
    path = [*issuing.chain, issuing.root]
    with pytest.raises(ConfigError, match="directory name constraint") as refusal:
        require_accepted(path, {LINKERD: True}, source="x.pem")
    lines = str(refusal.value).splitlines()
    assert [line.partition(" has ")[0] for line in lines] == [
        "x.pem: certificate 1 (CN=issuing)",
        "x.pem: certificate 2 (CN=regional)",
    ]
