"""Vault as a script: a session whose answers a test decides, with a clock of its own.

It stands in for `SharedSession`, and for the adapter that calls are made with.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.spi import BackendError, LeafRequest, Prepared
from tests.support.harness.fake_ca import Lie, LyingCA, honest
from tests.support.parts.pki import Authority

ISSUER = "0d4e5cd0-6d15-4ee0-9c0a-1fe1c9b1a2b3"
OPENBAO = {"not_after_bound": "ttl-limited"}
ROLE: Mapping[str, Any] = {
    "allowed_uri_sans": ["spiffe://corp.example/*"],
    "server_flag": True,
    "client_flag": True,
    "basic_constraints_valid_for_non_ca": True,
    "key_usage": ["DigitalSignature", "KeyEncipherment"],
    "key_type": "any",
    "no_store": True,
    "not_before_duration": 60,
    "max_ttl": 86400,
    "ttl": 86400,
}
"""A role of Vault as it must be; OpenBao has `OPENBAO` besides."""
_SIGN = re.compile(r"/v1/pki/issuer/[^/]+/sign/mesh")


@dataclass
class ScriptedVault:
    """See the module."""

    authority: Authority
    """Signs."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    """The bridge's clock."""
    role: dict[str, Any] = field(default_factory=lambda: {**ROLE, **OPENBAO})
    issuer: dict[str, Any] = field(default_factory=dict)
    urls: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    """The data of the Transit key `k`."""
    transit: Callable[[Mapping[str, Any]], Any] = lambda _: {}
    """Answers a request to sign with it."""
    rights: dict[str, Any] = field(default_factory=dict)
    """By path; what is not here is permitted where it is needed."""
    ahead: float = 0.0
    """Seconds by which its clock is ahead."""
    shown: float | None = None
    """The same by the header Date; None: the truth."""
    late: float = 0.0
    """Seconds from a request to its signature."""
    lie: Lie = honest
    more: dict[str, Any] = field(default_factory=dict)
    """Further fields of an answer, or others."""
    sign_error: BackendError | None = None
    read_error: BackendError | None = None
    signed: list[Mapping[str, Any]] = field(default_factory=list)
    """The requests to sign."""
    attempts: list[tuple[str, bool]] = field(default_factory=list)
    """The attempt of each, and whether it was said to sign."""
    reads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        pem = self.authority.certificate.public_bytes(Encoding.PEM).decode()
        self.issuer = {
            "certificate": pem,
            "key_id": "k",
            "leaf_not_after_behavior": "err",
            "usage": "issuing-certificates,read-only",
            **self.issuer,
        }

    def __call__(self, *_: object) -> "ScriptedVault":
        """Stand in for the class `SharedSession`."""
        return self

    @property
    def skew_seconds(self) -> float:
        """See `SharedSession.skew_seconds`."""
        return self.ahead if self.shown is None else self.shown

    def call(
        self,
        ask: Callable[["ScriptedVault"], Any],
        timeout: float,
        *,
        attempt: str = "",
        signs: bool = False,
    ) -> Any:
        """See `SharedSession.call`."""
        assert timeout > 0
        if attempt:
            self.attempts.append((attempt, signs))
        return ask(self)

    def close(self) -> None:
        """See `SharedSession.close`."""

    def get(self, path: str) -> Any:
        """Read, as an adapter does."""
        self.reads.append(path)
        if self.read_error is not None:
            raise self.read_error
        parts = {"/roles/": self.role, "/issuer/": self.issuer, "/keys/": self.keys}
        found = (one for part, one in parts.items() if part in path)
        return {"data": next(found, self.urls)}

    def post(self, url: str, json: Mapping[str, Any]) -> Any:
        """Write, as an adapter does."""
        if url == "/v1/sys/capabilities-self":
            return {"data": {one: self._rights_on(one) for one in json["paths"]}}
        self.signed.append(json)
        if self.sign_error is not None:
            raise self.sign_error
        if url == "/v1/transit/sign/k":
            return self.transit(json)
        assert _SIGN.fullmatch(url), url
        # The leaf need not be one.
        pem = ssl.DER_cert_to_PEM_cert(self._leaf(json))
        return {"data": {"certificate": pem}, "lease_id": "", **self.more}

    def _rights_on(self, path: str) -> Any:
        needed = _SIGN.fullmatch(f"/v1/{path}") or "/transit/sign/" in f"/{path}"
        read = re.fullmatch(
            r"pki/(roles/mesh|issuer/[^/]+|config/urls)|.*/keys/k", path
        )
        usual = ["update"] if needed else ["read"] if read else ["deny"]
        return self.rights.get(path, usual)

    def _leaf(self, body: Mapping[str, Any]) -> bytes:
        csr = x509.load_pem_x509_csr(body["csr"].encode())
        dns = filter(None, body["alt_names"].split(","))
        clock = self.now() + timedelta(seconds=self.ahead + self.late)
        backdate = timedelta(seconds=self.role.get("not_before_duration") or 30)
        if "ttl" in body:
            ends = clock + timedelta(seconds=int(body["ttl"].removesuffix("s")))
        else:
            ends = datetime.fromisoformat(body["not_after"])
        request = LeafRequest(
            attempt="0" * 32,
            public_key=csr.public_key(),
            spki=csr.public_key().public_bytes(
                Encoding.DER, PublicFormat.SubjectPublicKeyInfo
            ),
            csr=b"",
            names=(
                *map(x509.DNSName, dns),
                *map(x509.UniformResourceIdentifier, body["uri_sans"]),
            ),
            serial=1,
            not_before=(clock - backdate).replace(microsecond=0),
            not_after=ends.replace(microsecond=0),
        )
        signer = LyingCA(self.authority, builds_tbs=True)
        return signer.answer(Prepared(request=request), self.lie).leaf
