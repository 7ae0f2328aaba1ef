"""The rules of `issuance` over the wire, for both meshes at once.

A mesh and a namespace have an issuing CA of their own, lives differ, some are refused,
and whoever asks without end meets a ceiling. Each refusal is on record.
"""

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.support.clients import linkerd_raw
from tests.support.clients.istio_raw import MAIN, Wire, bearer, token
from tests.support.clients.linkerd_raw import SUFFIX, Certify
from tests.support.harness.real_process import MESHCA, Bridge
from tests.support.parts.pki import Authority, bundle, key_pem, write_private

pytestmark = pytest.mark.xdist_group("rules")

BURST = 3
RULES = [
    {"namespaces": ["sandbox"], "service_accounts": ["builder"], "refuse": False},
    {"namespaces": ["sandbox"], "refuse": True},
    {
        "namespaces": ["payments", "audit"],
        "max_ttl": "1h",
        "on_excess_ttl": "clamp",
        "issuing_cas": ["pci"],
    },
    {"fronts": ["linkerd"], "default_ttl": "2h", "issuing_cas": ["mesh"]},
]
OVERRIDES: dict[str, Any] = {
    "issuing_cas": {
        name: {
            "plugin": "file",
            "chain": f"{name}.pem",
            "options": {"key": f"{name}.key"},
        }
        for name in ("pci", "mesh")
    },
    "issuance": {"rules": RULES, "cert_signers": {"gold": ["file-1"]}},
    "limits": {"per_identity": {"rate": 0.001, "burst": BURST}},
}


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    made = Bridge(
        tmp_path_factory.mktemp("rules") / "served",
        overrides=OVERRIDES,
        issuers=(MAIN,),
        fronts=("istio", "linkerd"),
    )
    _add_issuing_cas(made)
    with made as served:
        yield served
    assert "Traceback" not in made.log()


def _add_issuing_cas(bridge: Bridge) -> None:
    above = intermediate_of(bridge)
    # Whoever wrote the rule forgot that this one is for one namespace.
    narrow = x509.NameConstraints([x509.DNSName(f"payments{SUFFIX}")], None)
    for name, constraints in {"pci": narrow, "mesh": None}.items():
        issuing = above.issue_ca(
            f"issuing {name}", path_length=0, constraints=constraints
        )
        write_private(bridge.folder / f"{name}.key", key_pem(issuing.key))
        (bridge.folder / f"{name}.pem").write_bytes(bundle(*issuing.chain))


def intermediate_of(bridge: Bridge) -> Authority:
    folder = bridge.folder / "hierarchy"
    intermediate, root = (
        x509.load_pem_x509_certificate((folder / name).read_bytes())
        for name in ("intermediate.pem", "roots.pem")
    )
    key = load_pem_private_key((folder / "intermediate.key").read_bytes(), None)
    return Authority(intermediate, key, (Authority(root, key),))  # type: ignore[arg-type]


@pytest.fixture
def istio(bridge: Bridge) -> Iterator[Wire]:
    with Wire(bridge) as opened:
        yield opened


@pytest.fixture
def linkerd(bridge: Bridge) -> Iterator[Certify]:
    with Certify(bridge) as opened:
        yield opened


def by_istio(wire: Wire, namespace: str, account: str, **asked: Any) -> Any:
    return wire.ask(bearer(token(namespace, account)), **asked)


def by_linkerd(client: Certify, namespace: str, account: str) -> Any:
    identity = f"{account}.{namespace}{SUFFIX}"
    return client.ask(
        identity=identity,
        credential=linkerd_raw.token(namespace, account),
        csr=linkerd_raw.new_csr(identity),
    )


def issuer_of(answer: Any) -> str:
    assert answer.code == "OK", answer
    (name,) = answer.leaf.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(name.value)


def life_of(answer: Any) -> timedelta:
    """Return how long a leaf has to live, to the minute."""
    left = answer.leaf.not_valid_after_utc - datetime.now(UTC)
    return timedelta(minutes=round(left / timedelta(minutes=1)))


def recorded(
    bridge: Bridge, front: str, namespace: str, account: str, **fields: str
) -> list[dict[str, Any]]:
    """Return the one outcome of a caller with these fields, once it is there."""
    caller = f"spiffe://corp.example/ns/{namespace}/sa/{account}"
    kind = "refused" if "rule" in fields else "issued"
    return bridge.await_rows(1, kind=kind, front=front, caller=caller, **fields)


def test_a_mesh_and_a_namespace_have_an_issuing_ca_of_their_own(
    bridge: Bridge, istio: Wire, linkerd: Certify
) -> None:
    assert issuer_of(by_istio(istio, "shop", "a")).startswith("Throwaway issuing CA")
    assert issuer_of(by_linkerd(linkerd, "shop", "a")) == "issuing mesh"
    assert issuer_of(by_istio(istio, "payments", "a")) == "issuing pci"
    assert issuer_of(by_linkerd(linkerd, "payments", "a")) == "issuing pci"
    # On record is the one that signed.
    (row,) = recorded(bridge, "linkerd", "payments", "a")
    assert (row["kind"], row["issuing_ca"]) == ("issued", "pci")


def test_a_namespace_has_lives_of_its_own(istio: Wire, linkerd: Certify) -> None:
    hour = timedelta(hours=1)
    assert life_of(by_linkerd(linkerd, "shop", "b")) == 2 * hour
    # Proxies ask for no life: the default is brought inside the bounds.
    assert life_of(by_linkerd(linkerd, "payments", "b")) == hour
    assert life_of(by_istio(istio, "shop", "b", ttl_seconds=86_400)) == 24 * hour
    assert life_of(by_istio(istio, "payments", "b", ttl_seconds=86_400)) == hour


def ask(front: str, istio: Wire, linkerd: Certify, *whom: str) -> Any:
    if front == "istio":
        return by_istio(istio, *whom)
    return by_linkerd(linkerd, *whom)


@pytest.mark.parametrize(
    ("front", "code"),
    [("istio", "PERMISSION_DENIED"), ("linkerd", "FAILED_PRECONDITION")],
)
def test_a_namespace_is_refused_but_for_one_account(
    bridge: Bridge, istio: Wire, linkerd: Certify, front: str, code: str
) -> None:
    refused = ask(front, istio, linkerd, "sandbox", "web")
    words = "rule.refuse: the configuration refuses certificates to this caller"
    assert (refused.code, refused.text) == (code, words)
    (row,) = recorded(bridge, front, "sandbox", "web", rule="rule.refuse")
    assert row["status"] == code
    assert "issuance.rules[1]" in row["detail"]
    # An exception is to the top level's terms, whatever later rules say.
    excepted = ask(front, istio, linkerd, "sandbox", "builder")
    assert issuer_of(excepted).startswith("Throwaway issuing CA")


def test_a_name_that_the_chain_does_not_permit_is_not_issued(
    bridge: Bridge, linkerd: Certify
) -> None:
    assert by_linkerd(linkerd, "payments", "d").code == "OK"
    refused = by_linkerd(linkerd, "audit", "d")
    assert refused.code == "FAILED_PRECONDITION"
    assert refused.text == (
        "constraint.permitted: the name is outside what the certificate of tier 1 of "
        "the chain permits"
    )
    recorded(bridge, "linkerd", "audit", "d", rule="constraint.permitted")


def test_a_signer_does_not_lead_out_of_the_rule(istio: Wire) -> None:
    signer = {"CertSigner": "gold"}
    denied = by_istio(istio, "payments", "c", extra=signer)
    assert denied.code == "PERMISSION_DENIED"
    assert denied.text.startswith("signer.denied: the caller may not have")
    assert by_istio(istio, "shop", "c", extra=signer).code == "OK"


@pytest.mark.parametrize(
    ("front", "code"), [("istio", "RESOURCE_EXHAUSTED"), ("linkerd", "UNAVAILABLE")]
)
def test_a_caller_in_a_loop_meets_a_rate_limit(
    bridge: Bridge, istio: Wire, linkerd: Certify, front: str, code: str
) -> None:
    # Each pod of a restart gets its own.
    for _ in range(BURST):
        assert ask(front, istio, linkerd, "shop", "loop").code == "OK"
    above = ask(front, istio, linkerd, "shop", "loop")
    words = "overload.identity: this identity asks too often"
    assert (above.code, above.text) == (code, words)
    assert ask(front, istio, linkerd, "shop", "quiet").code == "OK"
    (row,) = recorded(bridge, front, "shop", "loop", rule="overload.identity")
    assert row["status"] == code


@pytest.mark.parametrize(
    ("rule", "is_refused"),
    [
        ({"namespaces": ["narrow"]}, True),
        ({"fronts": ["linkerd"], "namespaces": ["narrow"]}, True),
        # What Linkerd's proxies never see is a matter of other verifiers.
        ({"fronts": ["istio"], "namespaces": ["narrow"]}, False),
    ],
)
def test_linkerds_calls_are_not_led_to_what_its_proxies_cannot_verify(
    bridge: Bridge, rule: dict[str, Any], *, is_refused: bool
) -> None:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "narrow")])
    names = x509.NameConstraints([x509.DirectoryName(subject)], None)
    issuing = intermediate_of(bridge).issue_ca("narrow", constraints=names)
    (bridge.folder / "narrow.key").unlink(missing_ok=True)
    write_private(bridge.folder / "narrow.key", key_pem(issuing.key))
    (bridge.folder / "narrow.pem").write_bytes(bundle(*issuing.chain))
    tree = yaml.safe_load(bridge.configuration.read_text())
    options = {"chain": "narrow.pem", "options": {"key": "narrow.key"}}
    tree["issuing_cas"]["narrow"] = {"plugin": "file", **options}
    tree["issuance"]["rules"].insert(0, {**rule, "issuing_cas": ["narrow"]})
    other = bridge.folder / "other.yaml"
    other.write_text(yaml.safe_dump(tree))
    checked = subprocess.run(
        [MESHCA, "check", "-c", other], capture_output=True, text=True, check=False
    )
    assert checked.returncode == (1 if is_refused else 0), checked.stdout
    told = "certificate 1 (CN=narrow) has a directory name constraint, under which link"
    assert (told in checked.stderr) is is_refused
