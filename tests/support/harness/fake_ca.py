"""An issuing CA with a real key that lies on demand.

It implements `bridge.spi.IssuingCA` and answers as told: honestly, with a certificate
that differs from what was asked for in one thing, with an error, or not until it may.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bridge.hierarchy.keys import LocalKey
from bridge.issuance.signing import new_serial
from bridge.sdk import SigningCA
from bridge.spi import Description, IssuedChain, LeafRequest, Prepared
from bridge.x509.algorithm import SignatureAlgorithm, algorithm_of, signature_of
from bridge.x509.certificate import key_usage
from bridge.x509.der import SEQUENCE, content, elements, splice, tlv
from bridge.x509.leaf_profile import (
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    NOT_A_CA,
    authority_key_identifier,
)
from bridge.x509.tbs import recorder_of
from tests.support.parts.pki import Authority, Key, new_key


@dataclass
class Answer:
    """A certificate before it is signed; a lie changes it."""

    public_key: Any
    issuer: x509.Name
    subject: x509.Name
    serial: int
    not_before: datetime
    not_after: datetime
    names: list[x509.GeneralName]
    extensions: list[tuple[x509.ExtensionType, bool]]
    """All but the names: value, critical."""
    signing_key: Key
    algorithm: bytes
    """The outer AlgorithmIdentifier."""
    intermediates: list[bytes]
    names_are_critical: bool = True
    edit: Callable[[bytes], bytes] = lambda tbs: tbs
    """Changes the TBSCertificate before it is signed."""
    after: Callable[[bytes], bytes] = lambda leaf: leaf
    """Changes the certificate after that."""

    def signed(self) -> IssuedChain:
        tbs = self.edit(self._tbs())
        leaf = splice(tbs, self.algorithm, sign(self.signing_key, tbs))
        return IssuedChain(self.after(leaf), tuple(self.intermediates))

    def _tbs(self) -> bytes:
        extensions = [
            x509.Extension(value.oid, critical, value)
            for value, critical in self.extensions
        ]
        if self.names:
            san = x509.SubjectAlternativeName(self.names)
            extensions.append(x509.Extension(san.oid, self.names_are_critical, san))
        public_key = self.signing_key.public_key()
        return (
            # Not by `add_extension`, which refuses two of a kind.
            x509.CertificateBuilder(
                issuer_name=self.issuer,
                subject_name=self.subject,
                public_key=self.public_key,
                serial_number=self.serial,
                not_valid_before=self.not_before.replace(tzinfo=None),
                not_valid_after=self.not_after.replace(tzinfo=None),
                extensions=extensions,
            )
            .sign(recorder_of(public_key), algorithm_of(public_key).hash)
            .tbs_certificate_bytes
        )


Lie = Callable[[Answer], object]
"""Changes an honest answer."""


def honest(answer: Answer) -> None:
    """Change nothing."""


def sign(key: Key, tbs: bytes) -> bytes:
    """Sign as an issuing CA with this key does."""
    return signature_of(key, algorithm_of(key.public_key()), tbs)


@dataclass
class LyingCA:
    """See the module. `builds_tbs`: like Vault PKI, it makes the TBSCertificate."""

    authority: Authority
    builds_tbs: bool = False
    lie: Lie = honest
    error: BaseException | None = None
    """Raised by `issue`."""
    check_error: BaseException | None = None
    prepare_error: BaseException | None = None
    hook: Callable[[Prepared], None] = lambda _: None
    """Called by `issue` before it answers."""
    hold: threading.Event | None = None
    """`issue` waits for it."""
    called: list[Prepared] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    closed: int = 0

    def __post_init__(self) -> None:
        self._description = Description(
            certificate=self.authority.certificate,
            intermediates=self.authority.chain[1:],
            chooses_serial=self.builds_tbs,
        )
        self._honest = SigningCA(self._description, LocalKey(self.authority.key))

    def describe(self) -> Description:
        return self._description

    def prepare(self, request: LeafRequest) -> Prepared:
        if self.prepare_error is not None:
            raise self.prepare_error
        if self.builds_tbs:
            return Prepared(request=request)
        return self._honest.prepare(request)

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        self.called.append(prepared)
        self.timeouts.append(timeout)
        self.entered.set()
        self.hook(prepared)
        if self.hold is not None and not self.hold.wait(30):
            raise TimeoutError("nobody let the fake issuing CA go on")
        if self.error is not None:
            raise self.error
        return self.answer(prepared, self.lie)

    def answer(self, prepared: Prepared, lie: Lie) -> IssuedChain:
        """Sign what was prepared, as `lie` changes it."""
        request, issuing = prepared.request, self.authority.certificate
        identifier = authority_key_identifier(issuing)
        assert identifier is not None
        made = Answer(
            public_key=request.public_key,
            issuer=issuing.subject,
            subject=x509.Name([]),
            serial=new_serial() if self.builds_tbs else request.serial,
            not_before=request.not_before,
            not_after=request.not_after,
            names=[*request.names],
            extensions=[
                (KEY_USAGE, True),
                (EXTENDED_KEY_USAGE, False),
                (NOT_A_CA, True),
                (identifier, False),
            ],
            signing_key=self.authority.key,
            algorithm=algorithm_of(self.authority.key.public_key()).der,
            intermediates=[
                one.public_bytes(Encoding.DER) for one in self.authority.chain
            ],
        )
        lie(made)
        return made.signed()

    def check(self, *, timeout: float) -> None:
        if self.check_error is not None:
            raise self.check_error

    def close(self) -> None:
        self.closed += 1


def _set(**values: Any) -> Lie:
    def lie(answer: Answer) -> None:
        for name, value in values.items():
            setattr(answer, name, value)

    return lie


def _without(kind: type[x509.ExtensionType]) -> Lie:
    def lie(answer: Answer) -> None:
        answer.extensions = [
            (value, critical)
            for value, critical in answer.extensions
            if not isinstance(value, kind)
        ]

    return lie


def _with(value: x509.ExtensionType, *, critical: bool) -> Lie:
    def lie(answer: Answer) -> None:
        _without(type(value))(answer)
        answer.extensions.append((value, critical))

    return lie


def _twice(answer: Answer) -> None:
    answer.extensions.append((NOT_A_CA, True))


def _replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    def edit(tbs: bytes) -> bytes:
        before, after = bytes.fromhex(old), bytes.fromhex(new)
        assert tbs.count(before) >= 1
        return tbs.replace(before, after, 1)

    return edit


def _as_version_1(tbs: bytes) -> bytes:
    # Version 1 has neither the field that says so nor extensions.
    fields = [*elements(content(tbs))]
    return tlv(SEQUENCE, b"".join(fields[1:-1]))


def _names(*more: x509.GeneralName, keep: bool = True) -> Lie:
    def lie(answer: Answer) -> None:
        answer.names = [*(answer.names if keep else ()), *more]

    return lie


def _spelled_as_dns(answer: Answer) -> None:
    answer.names = [x509.DNSName(str(name.value)) for name in answer.names]


def _later(answer: Answer) -> None:
    # Beyond what the clock of a backend explains.
    answer.not_after += timedelta(seconds=6)


def _earlier(answer: Answer) -> None:
    answer.not_before -= timedelta(seconds=31)


def _mutate(what: str, change: Callable[[list[bytes]], object]) -> Lie:
    return lambda answer: change(getattr(answer, what))


_OTHER_URI = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/admin")
_COMMON_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])
_STRANGE = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
_ANY_CA = x509.BasicConstraints(True, None)
_SERVER_ONLY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
_SHA384 = SignatureAlgorithm(
    "ecdsa-sha384", hashes.SHA384(), bytes.fromhex("300a06082a8648ce3d040303")
)

# Name, the lie, and the rule that it breaks where the TBSCertificate was prepared, and
# where the backend builds it ("": there it is no lie).
LIES: tuple[tuple[str, Lie, str, str], ...] = (
    ("other key", _set(public_key=new_key().public_key()), "tbs", "key"),
    ("other name", _names(_OTHER_URI, keep=False), "tbs", "names"),
    ("extra name", _names(_OTHER_URI), "tbs", "names"),
    ("extra DNS name", _names(x509.DNSName("a.example")), "tbs", "names"),
    ("DNS name that spells the URI", _spelled_as_dns, "tbs", "names"),
    ("no name", _names(keep=False), "tbs", "names"),
    ("names not critical", _set(names_are_critical=False), "tbs", "names"),
    ("a subject", _set(subject=_COMMON_NAME), "tbs", "subject"),
    ("other issuer", _set(issuer=_COMMON_NAME), "tbs", "issuer"),
    ("other serial", _set(serial=1 << 100), "tbs", ""),
    ("short serial", _set(serial=(1 << 63) - 1), "tbs", "serial"),
    ("later notAfter", _later, "tbs", "validity"),
    ("earlier notBefore", _earlier, "tbs", "validity"),
    ("CA:TRUE", _with(_ANY_CA, critical=True), "tbs", "extensions"),
    ("no basicConstraints", _without(x509.BasicConstraints), "tbs", "extensions"),
    ("CA:FALSE not critical", _with(NOT_A_CA, critical=False), "tbs", "extensions"),
    ("extra extension", _with(_STRANGE, critical=False), "tbs", "extensions"),
    ("no EKU", _without(x509.ExtendedKeyUsage), "tbs", "extensions"),
    ("one EKU", _with(_SERVER_ONLY, critical=False), "tbs", "extensions"),
    ("no keyUsage", _without(x509.KeyUsage), "tbs", "extensions"),
    (
        "keyCertSign",
        _with(
            key_usage(
                digital_signature=True, key_encipherment=True, key_cert_sign=True
            ),
            critical=True,
        ),
        "tbs",
        "extensions",
    ),
    ("no AKI", _without(x509.AuthorityKeyIdentifier), "tbs", "extensions"),
    (
        "critical SKI",
        _with(x509.SubjectKeyIdentifier(b"\x01" * 20), critical=True),
        "tbs",
        "extensions",
    ),
    ("basicConstraints twice", _twice, "tbs", "unreadable"),
    (
        "version 1",
        _set(edit=_replaced("a003020102", "a003020100")),
        "unreadable",
        "unreadable",
    ),
    ("no extensions", _set(edit=_as_version_1), "tbs", "version"),
    (
        "version 4",
        _set(edit=_replaced("a003020102", "a003020103")),
        "unreadable",
        "unreadable",
    ),
    ("signature of another key", _set(signing_key=new_key()), "signature", "signature"),
    ("other outer algorithm", _set(algorithm=_SHA384.der), "encoding", "encoding"),
    ("a byte more", _set(after=lambda leaf: leaf + b"\0"), "unreadable", "unreadable"),
    ("a byte too few", _set(after=lambda leaf: leaf[:-1]), "unreadable", "unreadable"),
    ("no DER", _set(after=lambda _: b"certificate"), "unreadable", "unreadable"),
    ("nothing", _set(after=lambda _: b""), "unreadable", "unreadable"),
    ("no intermediates", _mutate("intermediates", list.clear), "chain", "chain"),
    ("reversed chain", _mutate("intermediates", list.reverse), "chain", "chain"),
    ("an intermediate too few", _mutate("intermediates", list.pop), "chain", "chain"),
    (
        "an intermediate too many",
        _mutate("intermediates", lambda ders: ders.append(ders[0])),
        "chain",
        "chain",
    ),
)


def lie_called(name: str) -> Lie:
    """Return the lie of the table above with this name."""
    (found,) = [row[1] for row in LIES if row[0] == name]
    return found
