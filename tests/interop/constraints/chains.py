"""Builds the chain of a case, and asks ours, OpenSSL and Go for their verdicts."""

import ipaddress
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from bridge.errors import ConfigError, DeniedError
from bridge.x509.certificate import key_usage
from bridge.x509.der import tlv
from bridge.x509.name_constraints import ChainConstraints
from tests.interop.constraints.cases import Case
from tests.support.parts import builds

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
VERIFIER = Path(__file__).parent / "verifier"

_ATTRIBUTES = {
    "C": NameOID.COUNTRY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "CN": NameOID.COMMON_NAME,
}
_SUBJECT_WORDS = {
    "cn": NameOID.COMMON_NAME,
    "mail": NameOID.EMAIL_ADDRESS,
    "o": NameOID.ORGANIZATION_NAME,
}


@dataclass(frozen=True, slots=True)
class Chain:
    """The certificates of one case."""

    leaf: x509.Certificate
    cas: tuple[x509.Certificate, ...]
    """Issuing CA, regional intermediate, root."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What somebody said, and their words."""

    accepted: bool
    reason: str


@cache
def key(_tier: str) -> ec.EllipticCurvePrivateKey:
    """Return the one key of a tier in this process."""
    return ec.generate_private_key(ec.SECP256R1())


def general_name(word: str) -> x509.GeneralName:
    """Read one word of the table, such as `uri:corp.example`."""
    kind, _, text = word.partition(":")
    return _READERS[kind](text)


def directory_name(text: str) -> x509.Name:
    """Read RDNs between slashes, `%20` for a space."""
    pairs = (part.replace("%20", " ").partition("=") for part in text.split("/"))
    return x509.Name(
        [x509.NameAttribute(_ATTRIBUTES[name], value) for name, _, value in pairs]
    )


def _address(text: str) -> x509.IPAddress:
    if "/" in text:
        return x509.IPAddress(ipaddress.ip_network(text))
    return x509.IPAddress(ipaddress.ip_address(text))


_READERS: dict[str, Callable[[str], x509.GeneralName]] = {
    "uri": x509.UniformResourceIdentifier,
    "dns": x509.DNSName,
    # The constructor refuses what a certificate may well hold.
    "email": x509.RFC822Name._init_without_validation,
    "ip": _address,
    "dn": lambda text: x509.DirectoryName(directory_name(text)),
    "rid": lambda text: x509.RegisteredID(ObjectIdentifier(text)),
}


def constraints(words: str) -> x509.Extension[x509.ExtensionType] | None:
    """Make the extension of a tier, or nothing."""
    given = [word for word in words.split() if word != "~"]
    if not given:
        return None
    value: x509.ExtensionType
    if any("raw:" in word for word in given):
        value = _raw_constraints(given)
    else:
        permitted = [general_name(word[1:]) for word in given if word[0] == "+"]
        excluded = [general_name(word[1:]) for word in given if word[0] == "-"]
        value = x509.NameConstraints(permitted or None, excluded or None)
    return x509.Extension(value.oid, "~" not in words.split(), value)


def _raw_constraints(words: Sequence[str]) -> x509.UnrecognizedExtension:
    """Encode constraints that `cryptography` would refuse to make."""
    trees = {"+": b"", "-": b""}
    for word in words:
        kind, _, text = word[1:].partition(":")
        match kind:
            case "ipraw":
                base = tlv(0x87, bytes.fromhex(text))
            case "dnsraw":
                base = tlv(0x82, text.encode())
            case "minraw":
                base = tlv(0x82, text.encode()) + tlv(0x80, b"\x01")
            case _:
                raise AssertionError(f"not a raw constraint: {word}")
        trees[word[0]] += tlv(0x30, base)
    encoded = [tlv(tag, trees[sign]) for sign, tag in (("+", 0xA0), ("-", 0xA1))]
    present = b"".join(one for one in encoded if len(one) > 2)
    return x509.UnrecognizedExtension(x509.NameConstraints.oid, tlv(0x30, present))


@cache
def _ca(tier: str, words: str, now: datetime) -> x509.Certificate:
    """Make the certificate of a tier; equal ones are made once."""
    order = ("root", "regional", "issuing")
    parent = order[max(order.index(tier) - 1, 0)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(_ca_name(tier))
        .issuer_name(_ca_name(parent))
        .public_key(key(tier).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_CA_USAGE, critical=True)
    )
    extension = constraints(words)
    if extension is not None:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(key(parent), hashes.SHA256())


_CA_USAGE = key_usage(key_cert_sign=True, crl_sign=True)


def _ca_name(tier: str) -> x509.Name:
    # Under O=Corp, so that directory constraints let the CAs themselves pass.
    return directory_name(f"O=Corp/CN={tier}")


def build(case: Case, now: datetime = NOW) -> Chain:
    """Make the certificates of a case, valid around `now`."""
    root = _ca("root", case.root, now)
    regional = _ca("regional", case.regional, now)
    issuing = _ca("issuing", case.issuing, now)
    words = [word.partition(":") for word in case.leaf.split()]
    subject = x509.Name(
        [
            x509.NameAttribute(_SUBJECT_WORDS[kind], text)
            for kind, _, text in words
            if kind in _SUBJECT_WORDS
        ]
    )
    names = [
        general_name("".join(word)) for word in words if word[0] not in _SUBJECT_WORDS
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuing.subject)
        .public_key(key("leaf").public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName(names), critical=not subject.rdns
        )
    return Chain(
        builder.sign(key("issuing"), hashes.SHA256()), (issuing, regional, root)
    )


def ours(case: Case, chain: Chain) -> str:
    """Return the verdict of this package, as the table writes it."""
    try:
        found = ChainConstraints.of_chain(chain.cas)
    except ConfigError:
        return "config"
    words = [word for word in case.leaf.split() if not is_subject(word)]
    try:
        found.require_permitted(
            [general_name(word) for word in words], chain.leaf.subject
        )
    except DeniedError as error:
        return error.rule.removeprefix("constraint.")
    return "ok"


def is_subject(word: str) -> bool:
    """Tell whether a word of a leaf goes into its subject."""
    return word.partition(":")[0] in _SUBJECT_WORDS


def ask_openssl(chain: Chain, folder: Path) -> Verdict:
    """Ask `openssl verify`."""
    issuing, regional, root = chain.cas
    files = {"leaf": [chain.leaf], "chain": [issuing, regional], "root": [root]}
    for name, certificates in files.items():
        pem = b"".join(one.public_bytes(Encoding.PEM) for one in certificates)
        (folder / name).write_bytes(pem)
    done = subprocess.run(
        [
            "openssl", "verify", "-attime", str(int(NOW.timestamp())),
            "-no-CAfile", "-no-CApath", "-no-CAstore", "-trusted", "root",
            "-untrusted", "chain", "leaf",
        ],
        cwd=folder, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    return Verdict(done.returncode == 0, done.stdout + done.stderr)


def ask_go(chains: dict[str, Chain]) -> dict[str, Verdict]:
    """Ask Go's crypto/x509 for all chains at once."""
    asked = [
        {
            "name": name,
            "root": _pem(chain.cas[2]),
            "intermediates": [_pem(chain.cas[0]), _pem(chain.cas[1])],
            "leaf": _pem(chain.leaf),
            "time": int(NOW.timestamp()),
        }
        for name, chain in chains.items()
    ]
    return run_go_verifier(asked)


def run_go_verifier(asked: Sequence[Mapping[str, object]]) -> dict[str, Verdict]:
    """Ask Go's crypto/x509, by the names of what is asked.

    Args:
        asked: The fields of `chain` in `verifier/main.go`.
    """
    done = subprocess.run(
        [builds.build(VERIFIER)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {
        answer["name"]: Verdict(answer["accepted"], answer["reason"])
        for answer in json.loads(done.stdout)
    }


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
