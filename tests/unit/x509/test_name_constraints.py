"""Name constraints: what is read, what is refused, and two laws about chains.

The verdicts on names, form by form, are the table of `tests/interop/constraints`,
which is evaluated here without the other verifiers as well.
"""

import ipaddress
from collections.abc import Callable
from datetime import timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from bridge.dataplanes.planes import data_plane_problems
from bridge.errors import ConfigError, DeniedError
from bridge.x509.name_constraints import (
    ChainConstraints,
    NameConstraints,
    subset_problems,
)
from bridge.x509.name_forms import SMTP_UTF8_MAILBOX, HostSet
from tests.interop.constraints.cases import CASES, Case
from tests.interop.constraints.chains import build, constraints, general_name, ours
from tests.support.parts.pki import NOW, new_root


@cache
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def unsigned() -> x509.CertificateBuilder:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key().public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )


def certificate(words: str = "") -> x509.Certificate:
    """Make a CA certificate with constraints in the words of the table."""
    builder = unsigned()
    found = constraints(words)
    if found is not None:
        builder = builder.add_extension(found.value, critical=found.critical)
    return builder.sign(key(), hashes.SHA256())


def with_extension(value: bytes) -> x509.Certificate:
    extension = x509.UnrecognizedExtension(x509.NameConstraints.oid, value)
    builder = unsigned().add_extension(extension, critical=True)
    return builder.sign(key(), hashes.SHA256())


def chain(*tiers: str) -> ChainConstraints:
    return ChainConstraints.of_chain([certificate(words) for words in tiers])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_leaf_of_the_table_is_judged_as_the_table_says(case: Case) -> None:
    assert ours(case, build(case)) == case.ours


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("+uri:spiffe://corp.example", "'spiffe://corp.example' is no host: write "),
        ("+uri:spiffe://corp.example", "write 'corp.example' for the host or '.corp.e"),
        ("-uri:corp.example:443", "'corp.example:443' is no host"),
        ("-uri:user@corp.example", "is no host"),
        ("+uri:corp.example/path", "is no host"),
        ("+uri:corp.example.", "is no host"),
        ("+uri:..corp.example", "is no host"),
        ("+uri:*.corp.example", "is no host"),
        ("+uri:10.0.0.1", "'10.0.0.1' is no host: an IP address cannot be one"),
        ("+uri:[::1]", "is no host: write"),
        ("+dns:corp.example.", "the DNS constraint 'corp.example.' is no host"),
        ("-dns:.", "is no host: write 'corp.example'"),
        ("+email:@corp.example", "'@corp.example' is no mailbox"),
        ("+email:a@b@corp.example", "is no mailbox"),
        ("-email:*@corp.example", "is no mailbox, .*; all mailboxes of a host are"),
        ("+email:corp.example.", "the e-mail constraint 'corp.example.' is no host"),
        ("-dnsraw:*.corp.example", "cannot be read"),
        ("+ipraw:0a000000ff00ff00", "cannot be read"),
        ("+ipraw:0a000001ff000000", "cannot be read"),
        ("+minraw:corp.example", "a minimum or a maximum"),
    ],
)  # fmt: skip
def test_a_constraint_that_cannot_be_meant_is_refused(
    words: str, complaint: str
) -> None:
    unfit = certificate(words)
    with pytest.raises(ConfigError, match=complaint) as caught:
        NameConstraints.of(unfit)
    assert caught.value.rule == "config.constraints"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        bytes.fromhex("3000"),
        bytes.fromhex("3002a000"),
        bytes.fromhex("3006a0043002a300"),
        bytes.fromhex("0500"),
    ],
    ids=lambda value: value.hex() or "nothing",
)
def test_an_extension_that_is_malformed_or_empty_is_refused(value: bytes) -> None:
    unfit = with_extension(value)
    with pytest.raises(ConfigError, match="cannot be read"):
        NameConstraints.of(unfit)


def test_a_certificate_without_the_extension_has_no_constraints() -> None:
    assert NameConstraints.of(certificate()) is None
    assert chain("", "").constrained == frozenset()


def test_a_chain_of_no_certificates_is_refused() -> None:
    with pytest.raises(ConfigError, match="without CA certificates"):
        ChainConstraints.of_chain([])


@pytest.mark.parametrize(
    ("tiers", "name", "rule", "message"),
    [
        (
            ("", "+dns:corp.example", ""),
            "dns:api.evil.example",
            "constraint.permitted",
            "the name is outside what the certificate of tier 2 of the chain permits",
        ),
        (
            ("", "", "-uri:evil.example"),
            "uri:spiffe://evil.example/x",
            "constraint.excluded",
            "the name is inside what the certificate of tier 3 of the chain excludes",
        ),
        (
            ("+dns:corp.example",),
            "dns:*.corp.example",
            "constraint.unsupported",
            "a name cannot be judged under the chain's name constraints",
        ),
        (
            ("+rid:1.2.3",),
            "rid:1.2.3.4",
            "constraint.unsupported",
            "constraints on the form 'registered ID' cannot be evaluated",
        ),
    ],
)
def test_a_refusal_names_rule_and_tier_and_keeps_values_for_the_log(
    tiers: tuple[str, ...], name: str, rule: str, message: str
) -> None:
    constrained = chain(*tiers)
    with pytest.raises(DeniedError, match=message) as caught:
        constrained.require_permitted([general_name(name)])
    assert caught.value.rule == rule
    assert name.partition(":")[2] in caught.value.detail
    assert "example" not in str(caught.value)


def test_every_name_of_a_leaf_is_judged() -> None:
    constrained = chain("+dns:corp.example")
    good, bad = x509.DNSName("a.corp.example"), x509.DNSName("a.evil.example")
    for names in ([good, bad], [bad, good]):
        with pytest.raises(DeniedError, match="outside"):
            constrained.require_permitted(names)


def test_internationalized_mail_is_under_the_constraints_of_mail() -> None:
    mailbox = x509.OtherName(SMTP_UTF8_MAILBOX, b"\x0c\x0aa@evil.exa")
    other = x509.OtherName(ObjectIdentifier("1.2.3"), b"\x05\x00")
    constrained = chain("+email:corp.example")
    constrained.require_permitted([other])
    chain("+dns:corp.example").require_permitted([mailbox])
    with pytest.raises(DeniedError, match="internationalized e-mail"):
        constrained.require_permitted([mailbox])


def test_a_name_of_an_unknown_form_is_refused_even_without_constraints() -> None:
    class Novel(x509.DNSName):
        """A form that nobody thought of."""

    unconstrained = chain("")
    with pytest.raises(DeniedError, match="its form is unknown"):
        unconstrained.require_permitted([Novel("corp.example")])


def test_a_network_is_no_address_of_a_leaf() -> None:
    constrained = chain("+ip:10.0.0.0/8")
    network = x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))
    with pytest.raises(DeniedError, match="one IPv4 or IPv6 address"):
        constrained.require_permitted([network])


UNCONSTRAINED = (
    "DNS names are not constrained; above it only these are permitted: corp.example, "
    ".corp.example"
)


@pytest.mark.parametrize(
    ("child", "parent", "complaints"),
    [
        ("", "", []),
        ("+dns:corp.example", "", []),
        ("+dns:eu.corp.example", "+dns:corp.example", []),
        ("+dns:.corp.example", "+dns:corp.example", []),
        ("+dns:corp.example", "+dns:.corp.example",
         ["DNS names that it permits are not permitted above: corp.example"]),
        ("", "+dns:corp.example",
         [UNCONSTRAINED]),
        ("+uri:corp.example", "+dns:corp.example",
         [UNCONSTRAINED]),
        ("+dns:corp.example +dns:evil.example", "+dns:corp.example",
         ["DNS names that it permits are not permitted above: evil.example",
          "DNS names that it permits are not permitted above: .evil.example"]),
        ("+uri:eu.corp.example", "+uri:corp.example",
         ["URI names that it permits are not permitted above: eu.corp.example"]),
        ("+uri:eu.corp.example", "+uri:corp.example +uri:.corp.example", []),
        ("", "-uri:evil.example",
         ["URI names that are excluded above are not excluded: evil.example",
          "URI names that are excluded above are not excluded: .evil.example"]),
        ("-uri:evil.example -dns:x.example", "-uri:evil.example", []),
        ("+uri:corp.example", "-uri:evil.example", []),
        ("+uri:.corp.example", "-uri:dev.corp.example",
         ["URI names that are excluded above are not excluded: dev.corp.example",
          "URI names that are excluded above are not excluded: .dev.corp.example"]),
        ("+ip:10.0.0.0/8", "+ip:10.0.0.0/9 +ip:10.128.0.0/9", []),
        ("+ip:10.0.0.0/8", "+ip:10.0.0.0/9",
         ["IP names that it permits are not permitted above: 10.0.0.0/8"]),
        ("+ip:2001:db8::/32", "+ip:0.0.0.0/0",
         ["IP names that it permits are not permitted above: 2001:db8::/32"]),
        ("+email:ops@corp.example", "+email:corp.example", []),
        ("+email:corp.example", "+email:ops@corp.example",
         ["e-mail names that it permits are not permitted above: corp.example"]),
        ("+dn:O=Corp/CN=web", "+dn:O=Corp", []),
        ("+dn:O=Corp", "+dn:O=Corp/CN=web",
         ["directory names that it permits are not permitted above: O=corp"]),
        ("-dn:O=Corp", "-dn:O=Evil",
         ["directory names that are excluded above are not excluded: O=evil"]),
        ("+dns:corp.example", "+rid:1.2.3",
         ["constraints on the form 'registered ID' are not repeated"]),
    ],
)  # fmt: skip
def test_a_child_beyond_its_parent_is_told_of(
    child: str, parent: str, complaints: list[str]
) -> None:
    assert subset_problems(certificate(child), certificate(parent)) == complaints


@pytest.mark.parametrize(
    ("words", "complaints"),
    [
        ("", []),
        ("+dns:corp.example", []),
        ("+uri:corp.example +uri:.corp.example", ["ztunnel"]),
        ("-uri:evil.example -uri:.evil.example", ["ztunnel"]),
        ("+uri:corp.example", ["ztunnel", r"permits the URI host 'corp.example' with"]),
        ("-uri:evil.example", ["ztunnel", "excludes the URI host 'evil.example' with"]),
        ("+uri:.corp.example", ["ztunnel"]),
        ("-uri:", ["ztunnel", "excludes the empty URI host"]),
        ("-ip:0.0.0.0/0", ["Envoy rejects leaves with an IP address"]),
        ("+dn:O=Corp", ["directory name constraint"]),
        ("+rid:1.2.3", ["form that no verifier evaluates (registered ID)"]),
        ("~ +dns:corp.example", ["mark the extension as critical"]),
    ],
)
def test_what_a_data_plane_cannot_live_with_is_told(
    words: str, complaints: list[str]
) -> None:
    problems = data_plane_problems([certificate(), certificate(words)])
    assert len(problems) == len(complaints)
    for problem, complaint in zip(problems, complaints, strict=True):
        assert complaint in problem
        assert problem.startswith("the certificate of tier 2 (CN=ca) ")


LABELS = st.sampled_from(["a", "b", "corp", "A"])
HOSTS = st.lists(LABELS, min_size=1, max_size=3).map(".".join)
HOST_WORDS = st.one_of(HOSTS, HOSTS.map(".{}".format), st.just(""))
NETWORKS = st.sampled_from(
    [
        "10.0.0.0/8",
        "10.0.0.0/9",
        "10.128.0.0/9",
        "10.1.0.0/16",
        "0.0.0.0/0",
        "::/0",
        "2001:db8::/32",
    ]
)
ADDRESSES = st.sampled_from(
    ["10.1.2.3", "10.200.1.1", "192.0.2.1", "2001:db8::1", "::1"]
)
DIRECTORIES = st.lists(
    st.sampled_from(["O=a", "O=A", "O=b", "CN=a"]), min_size=1, max_size=3
).map("/".join)


def worded(kind: str) -> Callable[[str], str]:
    return lambda text: f"{kind}:{text}"


CONSTRAINTS = st.one_of(
    HOST_WORDS.map(worded("uri")),
    HOST_WORDS.map(worded("dns")),
    st.one_of(HOSTS.map("x@{}".format), HOSTS, HOSTS.map(".{}".format)).map(
        worded("email")
    ),
    NETWORKS.map(worded("ip")),
    DIRECTORIES.map(worded("dn")),
    st.just("rid:1.2.3"),
)
SIGNED = st.tuples(st.sampled_from("+-"), CONSTRAINTS).map("".join)
TIERS = st.lists(SIGNED, max_size=4).map(" ".join)
NAMES = st.one_of(
    HOSTS.map("uri:spiffe://{}/x".format),
    HOSTS.map("uri:spiffe://{}:1/x".format),
    HOSTS.map(worded("dns")),
    HOSTS.map("dns:*.{}".format),
    HOSTS.map("email:x@{}".format),
    ADDRESSES.map(worded("ip")),
    DIRECTORIES.map(worded("dn")),
    st.just("rid:1.2.3.4"),
)


def permits(constrained: ChainConstraints, name: str | x509.GeneralName) -> bool:
    typed = general_name(name) if isinstance(name, str) else name
    try:
        constrained.require_permitted([typed])
    except DeniedError:
        return False
    return True


def narrowed(word: str) -> st.SearchStrategy[str]:
    """Return the word, or one that may be narrower."""
    sign, (kind, _, text) = word[0], word[1:].partition(":")
    if kind in {"uri", "dns", "email"} and "@" not in text:
        bare = text.strip(".")
        inner = st.sampled_from([text, f".{bare}", f"a.{bare}" if bare else "a"])
        return inner.map(lambda host: f"{sign}{kind}:{'' if host == '.' else host}")
    if kind == "dn":
        return st.sampled_from([word, f"{word}/CN=a"])
    return st.just(word)


@st.composite
def child_and_parent(draw: st.DrawFn) -> tuple[str, str]:
    """Return constraints, and those of a parent that are often wider."""
    parent = draw(st.lists(SIGNED, min_size=1, max_size=3))
    child = [draw(narrowed(word)) for word in parent if draw(st.integers(0, 4))]
    added = draw(st.lists(SIGNED, max_size=1))
    return " ".join([*child, *added]), " ".join(parent)


@settings(deadline=None, max_examples=250)
@given(both=child_and_parent(), names=st.lists(NAMES, min_size=1, max_size=8))
def test_what_a_subset_permits_its_parent_permits(
    both: tuple[str, str], names: list[str]
) -> None:
    child, parent = both
    lower, upper = certificate(child), certificate(parent)
    problems = subset_problems(lower, upper)
    event("no subset" if problems else "a subset")
    if problems:
        return
    own, above = chain(child), chain(parent)
    assert [one for one in names if permits(own, one) and not permits(above, one)] == []


@settings(deadline=None, max_examples=100)
@given(words=TIERS)
def test_every_certificate_is_a_subset_of_itself(words: str) -> None:
    assert subset_problems(certificate(words), certificate(words)) == []


@settings(deadline=None, max_examples=150)
@given(tiers=st.lists(TIERS, min_size=1, max_size=3), added=TIERS, name=NAMES)
def test_one_more_certificate_never_permits_more(
    tiers: list[str], added: str, name: str
) -> None:
    if permits(chain(*tiers, added), name):
        assert permits(chain(*tiers), name)
    if permits(chain(added, *tiers), name):
        assert permits(chain(*tiers), name)


@given(words=st.lists(HOST_WORDS, max_size=4), host=HOSTS.map(str.lower))
def test_the_strict_reading_lies_inside_the_loose_one(
    words: list[str], host: str
) -> None:
    strict, loose = HostSet.strict(words), HostSet.loose(words)
    assert loose.covers(strict)
    assert loose.holds(host) or not strict.holds(host)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return the DER of name constraints with some bytes changed."""
    found = constraints(" ".join(draw(st.lists(SIGNED, min_size=1, max_size=4))))
    assert found is not None
    der = bytearray(found.value.public_bytes())
    for _ in range(draw(st.integers(1, 3))):
        der[draw(st.integers(0, len(der) - 1))] = draw(st.integers(0, 255))
    return bytes(der)


# Of a country's name, which has two letters, one was lost.
SHORT_COUNTRY = bytes.fromhex(
    "3038a036300a87080a000000ff0000003028a4263024310a3008060355040a0c0161310a30080603"
    "55040a0c0161310a300806035504060c0161"
)


@settings(deadline=None, max_examples=200)
@given(value=st.one_of(damaged(), st.binary(max_size=30)))
@example(value=SHORT_COUNTRY)
def test_a_damaged_extension_is_refused_or_read_and_nothing_else(value: bytes) -> None:
    unfit = with_extension(value)
    try:
        found = NameConstraints.of(unfit)
    except ConfigError:
        return
    assert found is not None
    assert found.constrained


@given(text=st.text(max_size=40))
def test_no_text_makes_a_reader_fail_in_another_way(text: str) -> None:
    for kind in (x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name):
        name = kind._init_without_validation(text)
        assert not permits(chain_of_all(), name) or text.lower().endswith(
            "corp.example"
        )


@cache
def chain_of_all() -> ChainConstraints:
    return chain("+dns:corp.example +uri:corp.example +email:corp.example")


@pytest.mark.parametrize(
    ("permitted", "asked", "shown"),
    [
        ("O=corp", "CN=web,O=evil", "CN=web,O=evil is not in: O=corp"),
        ("OU=a,O=corp,C=KR", "O=corp,C=KR", "O=corp,C=KR is not in: OU=a,O=corp,C=kr"),
        ("DC=corp,DC=example", "DC=a", "DC=a is not in: DC=corp,DC=example"),
        ("1.2.3.4=q,O=corp", "O=corp", "O=corp is not in: 1.2.3.4=q,O=corp"),
    ],
)
def test_both_sides_of_a_directory_constraint_are_in_one_notation(
    permitted: str, asked: str, shown: str
) -> None:
    labels = {"1.2.3.4": x509.ObjectIdentifier("1.2.3.4")}
    names = [x509.Name.from_rfc4514_string(text, labels) for text in (permitted, asked)]
    chain = new_root().issue_ca(
        "issuing",
        constraints=x509.NameConstraints([x509.DirectoryName(names[0])], None),
    )
    constraints = ChainConstraints.of_chain([chain.certificate, *chain.chain])
    with pytest.raises(DeniedError, match="outside what") as caught:
        constraints.require_permitted([x509.DirectoryName(names[1])])
    assert caught.value.detail == shown
