"""What `vault-pki` asks of the PKI engine, and what it makes of the answers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.spi import (
    BackendBrokenError,
    BackendError,
    BackendRefusedError,
    BackendUnavailableError,
    IssuedChain,
    LeafRequest,
    MisissuedError,
    PluginContext,
)
from bridge.testing.leaves import leaf_request, require_issued
from bridge_vault.pki import VaultPKICA
from tests.support.harness.fake_ca import Answer
from tests.support.harness.scripted_vault import ISSUER, OPENBAO, ROLE, ScriptedVault
from tests.support.parts.pki import bundle, new_chain, new_root, write_private

NOW = datetime(2026, 6, 1, 12, 0, 0, 400_000, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SPIFFE_ID = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/cart")
DNS_NAME = x509.DNSName("cart.shop.serviceaccount.identity.linkerd.cluster.local")


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Ground:
    """An issuing CA of the plugin in front of a scripted Vault."""

    vault: ScriptedVault = field(repr=False)
    ca: VaultPKICA
    clock: Clock

    def request(self, *names: x509.GeneralName, **more: Any) -> LeafRequest:
        more = {"now": self.clock.now, "backdate": MINUTE, **more}
        return leaf_request(names or (SPIFFE_ID,), **more)

    def issue(self, *names: x509.GeneralName, **more: Any) -> x509.Certificate:
        """Issue as the core does, with its own comparison of the leaf."""
        prepared = self.ca.prepare(self.request(*names, **more))
        issued = self.ca.issue(prepared, timeout=5)
        return require_issued(issued, prepared, self.ca.describe())

    def is_leaf_or_open(self) -> bool:
        """Issue; tell if that ends with a leaf, or leaves open whether there is one."""
        self.vault.signed.clear()  # hypothesis writes all of it, should a test fail
        prepared = self.ca.prepare(self.request())
        try:
            issued = self.ca.issue(prepared, timeout=5)
        except BackendError as error:
            return error.certificate_may_exist
        return isinstance(issued, IssuedChain)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ground]:
    authority = new_chain()
    chain = [one.certificate for one in (authority, authority.above[0])]
    write_private(tmp_path / "token", b"t\n")

    def made(*before: x509.Certificate, **fields: Any) -> Ground:
        (tmp_path / "chain.pem").write_bytes(bundle(*before, *chain))
        clock = Clock()
        vault = ScriptedVault(authority, clock, **fields)
        monkeypatch.setattr("bridge_vault.pki.SharedSession", vault)
        options = {
            "addresses": ["http://127.0.0.1:1"],
            "login": {"token": {"file": "token"}},
            "issuer": ISSUER,
            "role": "mesh",
        }
        context = PluginContext(
            name="vault", base=tmp_path, chain=tmp_path / "chain.pem", clock=clock
        )
        return Ground(vault, VaultPKICA(options, context), clock)

    return made


@pytest.fixture
def ground(make: Callable[..., Ground]) -> Ground:
    return make()


def test_a_stranger_in_front_is_not_taken_for_the_issuing_ca(
    make: Callable[..., Ground],
) -> None:
    stranger = new_root("stranger").issue_ca("of a stranger").certificate
    ground = make(stranger)
    assert ground.ca.describe().certificate == ground.vault.authority.certificate
    assert stranger in ground.ca.describe().intermediates
    ground.ca.check(timeout=5)
    ground.issue()


@pytest.mark.parametrize(
    "names",
    [
        (),
        (SPIFFE_ID, SPIFFE_ID),
        (x509.DNSName("meshca_probe.shop.example"),),
        (x509.DNSName("a.example."),),
        (x509.DNSName("*.example"),),
        (x509.DNSName("a.example,b.example"),),
        (x509.DNSName(" a.example"),),
        (x509.DNSName("a..example"),),
        (x509.DNSName("-a.example"),),
        (x509.DNSName("a@example"),),
        (x509.DNSName("::1"),),
        (x509.DNSName(f"{'a' * 64}.example"),),
        (x509.DNSName(".".join(["a" * 49] * 6)),),
        (x509.UniformResourceIdentifier("SPIFFE://corp.example/a"),),
        (x509.UniformResourceIdentifier("spiffe://corp.example/a%41"),),
        (x509.UniformResourceIdentifier("spiffe://corp.example/a b"),),
        (x509.UniformResourceIdentifier("spiffe://corp.example/a\n"),),
        (x509.UniformResourceIdentifier("spiffe://corp.example/a#"),),
        (x509.UniformResourceIdentifier("https://corp.example/a"),),
        (x509.IPAddress(ip_address("::1")),),
        (x509.RFC822Name("a@example"),),
        (SPIFFE_ID, x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))),
    ],
    ids=str,
)
def test_names_that_vault_would_not_keep_are_refused_unasked(
    ground: Ground, names: tuple[x509.GeneralName, ...]
) -> None:
    request = leaf_request(names)
    with pytest.raises(BackendRefusedError, match=r"^Vault cannot be asked") as caught:
        ground.ca.prepare(request)
    assert caught.value.rule == "vault.name"


def test_each_name_is_asked_for_by_its_type(ground: Ground) -> None:
    more = [x509.DNSName(f"n{number}.example") for number in range(20)]
    ground.issue(SPIFFE_ID, DNS_NAME, x509.DNSName("xn--mnchen-3ya.example"), *more)
    (body,) = ground.vault.signed
    assert body["uri_sans"] == [SPIFFE_ID.value]
    asked = body["alt_names"].split(",")
    assert asked[:2] == [DNS_NAME.value, "xn--mnchen-3ya.example"]
    assert len(asked) == 22
    assert body["common_name"] == ""
    assert body["exclude_cn_from_sans"] is True


def test_openbao_is_asked_for_the_end_itself(ground: Ground) -> None:
    ground.vault.ahead = 20.0
    leaf = ground.issue()
    (body,) = ground.vault.signed
    assert body["not_after"] == "2026-06-01T13:00:00Z"
    assert "ttl" not in body
    assert leaf.not_valid_after_utc == NOW.replace(microsecond=0, hour=13)


@pytest.mark.parametrize("ahead", [0.0, 20.0, -20.0])
@pytest.mark.parametrize("late", [0.0, 6.0])
def test_vault_is_asked_for_a_lifetime_by_its_own_clock(
    make: Callable[..., Ground], ahead: float, late: float
) -> None:
    ground = make(role={**ROLE}, ahead=ahead, late=late)
    leaf = ground.issue()
    (body,) = ground.vault.signed
    assert "not_after" not in body
    end = NOW.replace(hour=13)
    assert abs(leaf.not_valid_after_utc - end) <= timedelta(seconds=5)


def test_the_attempt_goes_along_with_a_request_to_sign(ground: Ground) -> None:
    prepared = ground.ca.prepare(ground.request())
    ground.ca.issue(prepared, timeout=5)
    assert ground.vault.attempts == [(prepared.request.attempt, True)]


def test_a_clock_that_the_header_date_does_not_show_is_learned_from_a_leaf(
    make: Callable[..., Ground],
) -> None:
    ground = make(role={**ROLE}, ahead=20.0, shown=0.0)
    with pytest.raises(BackendUnavailableError, match=r"clock is another") as caught:
        ground.issue()
    assert caught.value.rule == "vault.clock"
    assert caught.value.certificate_may_exist
    assert "Vault signed " in caught.value.detail
    for _ in range(3):
        ground.issue()
    # The node that forwards is asked no more about the time.
    ground.vault.ahead, ground.vault.shown = 20.0, -20.0
    ground.issue()


@pytest.mark.parametrize("ahead", [40.0, -40.0])
@pytest.mark.parametrize("role", [{**ROLE}, {**ROLE, **OPENBAO}])
def test_a_clock_too_far_off_is_an_error_and_no_mis_issuance(
    make: Callable[..., Ground], ahead: float, role: dict[str, Any]
) -> None:
    ground = make(role=role, ahead=ahead, shown=0.0)
    with pytest.raises(BackendBrokenError, match=r"would date") as caught:
        ground.issue()
    assert caught.value.certificate_may_exist
    with pytest.raises(BackendBrokenError, match=r"would date") as caught:
        ground.issue()
    assert not caught.value.certificate_may_exist
    assert len(ground.vault.signed) == 1


@pytest.mark.parametrize("ahead", [90.0, -90.0])
@pytest.mark.parametrize("role", [{**ROLE}, {**ROLE, **OPENBAO}])
def test_a_clock_that_the_answer_itself_shows_is_no_mis_issuance(
    make: Callable[..., Ground], ahead: float, role: dict[str, Any]
) -> None:
    ground = make(role=role, ahead=ahead, shown=0.0)

    def show(_: Answer) -> None:
        ground.vault.shown = ahead

    ground.vault.lie = show
    with pytest.raises(BackendBrokenError, match=r"would date") as caught:
        ground.issue()
    assert caught.value.certificate_may_exist
    assert caught.value.rule == "vault.clock"


@pytest.mark.parametrize("is_shown", [True, False])
def test_a_clock_that_is_set_right_is_asked_again(
    make: Callable[..., Ground], monkeypatch: pytest.MonkeyPatch, *, is_shown: bool
) -> None:
    ground = make(ahead=90.0, shown=0.0)
    for _ in range(2):
        with pytest.raises(BackendBrokenError, match=r"would date"):
            ground.issue()
    ground.vault.ahead = 0.0
    with pytest.raises(BackendBrokenError, match=r"would date"):
        ground.issue()
    monkeypatch.setattr("bridge_vault.pki._LOOK_AGAIN_SECONDS", 0.0)
    if not is_shown:
        ground.vault.shown = 90.0
        with pytest.raises(BackendBrokenError, match=r"would date") as caught:
            ground.issue()
        assert not caught.value.certificate_may_exist, "the look showed it as before"
        ground.vault.shown = 0.0
    ground.issue()


def test_a_role_that_dates_back_otherwise_is_told_before_vault_signs(
    make: Callable[..., Ground],
) -> None:
    ground = make(role={**ROLE, "not_before_duration": 0})  # which is 30 s
    with pytest.raises(BackendBrokenError, match=r"would date") as caught:
        ground.issue()
    assert "notBefore would be +30 s" in caught.value.detail
    assert "issuance.backdate" in caught.value.detail
    assert not ground.vault.signed
    ground.issue(backdate=timedelta(seconds=30))


def add_organization(answer: Answer) -> None:
    answer.subject = x509.Name(
        [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Corp")]
    )


def add_policy(answer: Answer) -> None:
    policy = x509.PolicyInformation(x509.ObjectIdentifier("1.2.3"), None)
    answer.extensions.append((x509.CertificatePolicies([policy]), False))


def add_name(answer: Answer) -> None:
    answer.names.append(x509.DNSName("evil.example"))


def drop_names(answer: Answer) -> None:
    answer.names.clear()


def lengthen(answer: Answer) -> None:
    answer.not_after += timedelta(hours=1)


CHANGES = [
    (add_organization, "organization", ["Corp"]),
    (add_policy, "policy_identifiers", ["1.2.3"]),
    (add_name, "use_csr_sans", True),
    (drop_names, "use_csr_sans", True),
    (lengthen, "not_after", "2026-06-01T14:00:00Z"),
]


@pytest.mark.parametrize(("lie", "name", "value"), CHANGES)
def test_a_role_that_was_changed_since_the_last_look_explains_a_leaf(
    ground: Ground, lie: Any, name: str, value: object
) -> None:
    ground.issue()
    before = dict(ground.vault.role)
    ground.vault.role[name], ground.vault.lie = value, lie
    with pytest.raises(BackendBrokenError, match=r"other certificates") as caught:
        ground.issue()
    assert caught.value.certificate_may_exist
    leaf = x509.load_der_x509_certificate(caught.value.certificate)
    assert f"Vault signed {leaf.serial_number:x}" in caught.value.detail
    assert f"pki/roles/mesh: {name}: expected" in caught.value.detail
    with pytest.raises(BackendBrokenError, match=r"other certificates") as caught:
        ground.issue()
    assert not caught.value.certificate_may_exist
    assert len(ground.vault.signed) == 2
    ground.vault.role, ground.vault.lie = before, lambda _answer: None
    ground.ca.check(timeout=5)
    ground.issue()


@pytest.mark.parametrize("lie", [one for one, _, _ in CHANGES])
def test_a_leaf_that_nothing_explains_is_left_to_the_bridge(
    ground: Ground, lie: Any
) -> None:
    ground.issue()
    ground.vault.lie = lie
    for _ in range(2):
        with pytest.raises(MisissuedError, match=r"is refused"):
            ground.issue()


def test_a_leaf_is_kept_back_while_vault_cannot_explain_it(ground: Ground) -> None:
    ground.issue()
    ground.vault.lie = add_organization
    ground.vault.read_error = BackendUnavailableError("away")
    with pytest.raises(BackendUnavailableError, match=r"away") as caught:
        ground.issue()
    assert caught.value.certificate_may_exist


def test_a_lease_shows_that_the_role_was_changed(ground: Ground) -> None:
    ground.issue()
    ground.vault.more["lease_id"] = "pki/issuer/x/sign/mesh/y"
    ground.vault.role |= {"no_store": False, "generate_lease": True}
    with pytest.raises(BackendBrokenError, match=r"other certificates") as caught:
        ground.issue()
    assert "generate_lease: expected False (found True)" in caught.value.detail


def test_a_lease_that_the_role_does_not_explain_is_an_error(ground: Ground) -> None:
    ground.vault.more["lease_id"] = "pki/issuer/x/sign/mesh/y"
    with pytest.raises(BackendBrokenError, match=r"has a lease") as caught:
        ground.issue()
    assert caught.value.certificate_may_exist


def test_each_warning_of_vault_is_logged_once(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    ground.vault.more["warnings"] = ['TTL "2h" is longer than permitted maxTTL "1h"']
    with caplog.at_level(logging.WARNING):
        ground.issue()
        ground.issue()
    assert caplog.text.count("Vault warns: TTL") == 1


def test_a_first_issue_looks_at_the_role_as_a_check_does(
    make: Callable[..., Ground],
) -> None:
    ground = make(role={**ROLE, **OPENBAO, "client_flag": False})
    with pytest.raises(BackendBrokenError, match=r"other certificates"):
        ground.issue()
    assert not ground.vault.signed


def test_a_hot_call_reads_nothing(ground: Ground) -> None:
    ground.issue()
    reads = len(ground.vault.reads)
    for _ in range(3):
        ground.issue()
    assert len(ground.vault.reads) == reads


@pytest.mark.parametrize(
    ("told", "field"),
    [
        ("subject alternate name a.b not allowed by this role", "allowed_domains"),
        (
            "URI Subject Alternative Names are not allowed in this role",
            "allowed_uri_sans",
        ),
        ("role requires keys of type ec", "key_type"),
    ],
)
def test_a_refusal_says_which_field_of_the_role_decides(
    ground: Ground, told: str, field: str
) -> None:
    ground.vault.sign_error = BackendRefusedError("no", rule="r", detail=told)
    with pytest.raises(BackendRefusedError, match=r"^no$") as caught:
        ground.issue()
    assert caught.value.rule == "r"
    assert caught.value.detail.startswith(f"{told}: {field} ")
    assert "pki/roles/mesh" in caught.value.detail


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_nothing_is_asked_without_time(ground: Ground, timeout: float) -> None:
    with pytest.raises(BackendUnavailableError, match=r"no time"):
        ground.ca.check(timeout=timeout)
    assert not ground.vault.reads


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from([*ROLE, *OPENBAO, "signature_bits", "ext_key_usage", "ou"]), JSON
)
ISSUERS = st.dictionaries(
    st.sampled_from(["certificate", "usage", "issuing_certificates", "ocsp_servers"]),
    JSON,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(role=FIELDS, issuer=ISSUERS, urls=ISSUERS, rights=JSON)
def test_whatever_is_read_ends_with_a_leaf_or_a_backend_error(
    make: Callable[..., Ground], role: Any, issuer: Any, urls: Any, rights: Any
) -> None:
    path = f"pki/issuer/{ISSUER}"
    ground = make(urls=urls, rights={path: rights})
    ground.vault.role |= role
    ground.vault.issuer |= issuer
    try:
        ground.ca.issue(ground.ca.prepare(ground.request()), timeout=5)
    except BackendError:
        pass
    finally:
        ground.ca.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=st.fixed_dictionaries({}, optional={"data": JSON, "warnings": JSON}))
def test_whatever_is_answered_ends_with_a_leaf_or_a_backend_error(
    make: Callable[..., Ground], answer: Any
) -> None:
    ground = make()  # an answer may teach the CA another clock
    ground.vault.more = answer
    assert ground.is_leaf_or_open()


# As in a bridge (`bridge.system.logs`): pytest would raise what the library warns of,
# such as a negative serial number.
@pytest.mark.filterwarnings("ignore")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2000), octet=st.integers(0, 255))
@example(at=11, octet=0x80)
def test_a_damaged_certificate_ends_with_a_leaf_or_a_backend_error(
    make: Callable[..., Ground], at: int, octet: int
) -> None:
    ground = make()  # an answer may teach the CA another clock

    def damage(answer: Answer) -> None:
        answer.edit = lambda tbs: (
            tbs[: at % len(tbs)] + bytes([octet]) + tbs[at % len(tbs) + 1 :]
        )

    ground.vault.lie = damage
    assert ground.is_leaf_or_open()
