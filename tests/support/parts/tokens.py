"""Service-account tokens in the API server's format, and the keys to verify them.

`python -m tests.support.parts.tokens` writes many distinct tokens for a load test.

Source:
    k8s.io/kubernetes pkg/serviceaccount/claims.go and jwt.go (claims, key IDs).
"""

import argparse
import base64
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

Algorithm = Literal["RS256", "ES256", "ES384", "ES512"]
ISSUER = "https://kubernetes.default.svc.cluster.local"
OMIT: Final = object()
"""As the value of a claim or header: leave it out."""
_CURVES: dict[str, tuple[ec.EllipticCurve, hashes.HashAlgorithm]] = {
    "ES256": (ec.SECP256R1(), hashes.SHA256()),
    "ES384": (ec.SECP384R1(), hashes.SHA384()),
    "ES512": (ec.SECP521R1(), hashes.SHA512()),
}


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def public_jwk(
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, **fields: object
) -> dict[str, object]:
    """Describe a public key as a JWK; `fields` are added or replace what is there."""
    numbers = key.public_numbers()
    if isinstance(numbers, rsa.RSAPublicNumbers):
        jwk = {"kty": "RSA", "n": _integer(numbers.n), "e": _integer(numbers.e)}
    else:
        size = (key.key_size + 7) // 8
        curve = {256: "P-256", 384: "P-384", 521: "P-521"}[key.key_size]
        jwk = {
            "kty": "EC",
            "crv": curve,
            "x": _integer(numbers.x, size),
            "y": _integer(numbers.y, size),
        }
    found = {"use": "sig", **jwk, **fields}
    return {name: value for name, value in found.items() if value is not OMIT}


def new_key(algorithm: str) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    if algorithm == "RS256":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(_CURVES[algorithm][0])


class TokenIssuer:
    """The part of an API server that signs tokens.

    Args:
        issuer: The `iss` claim.
        algorithm: An `Algorithm`.
        kid: The key's ID; by default the API server's, a hash of the public key.
        key: By default a new one.
    """

    def __init__(
        self,
        issuer: str = ISSUER,
        algorithm: str = "RS256",
        kid: str | None = None,
        key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | None = None,
    ) -> None:
        self.issuer = issuer
        self.algorithm = algorithm
        self.key = key or new_key(algorithm)
        spki = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.kid = base64url(hashlib.sha256(spki).digest()) if kid is None else kid

    def jwk(self, **fields: object) -> dict[str, object]:
        """Return the public key as the API server shows it."""
        return public_jwk(
            self.key.public_key(),
            **({"kid": self.kid, "alg": self.algorithm} | fields),
        )

    def jwks(self) -> dict[str, Any]:
        """Return the document at `/openid/v1/jwks`."""
        return {"keys": [self.jwk()]}

    def write_jwks(self, path: Path) -> None:
        path.write_text(json.dumps(self.jwks()))

    def token(  # noqa: PLR0913 - a token has many parts, and a test changes each alone
        self,
        namespace: str = "shop",
        service_account: str = "web",
        *,
        audiences: Sequence[str] = ("istio-ca",),
        now: datetime,
        lifetime: float = 3600,
        pod: tuple[str, str] | None = ("web-0", "7d3a1c9e-0000-4000-8000-000000000001"),
        headers: Mapping[str, object] | None = None,
        claims: Mapping[str, object] | None = None,
        **more_claims: object,
    ) -> str:
        """Sign a token.

        Args:
            namespace: Of the service account.
            service_account: Its name.
            audiences: The `aud` claim.
            now: The time of issue.
            lifetime: In seconds.
            pod: Name and UID of the pod that the token is bound to.
            headers: Added to the header, or in place of what is there; `OMIT` leaves
                one out.
            claims: The same for the payload.
            more_claims: The same, where the name is one of Python's too.
        """
        issued = int(now.timestamp())
        bound: dict[str, object] = {"namespace": namespace}
        if pod is not None:
            bound["node"] = {"name": "node-1", "uid": _uid("node-1")}
            bound["pod"] = {"name": pod[0], "uid": pod[1]}
        bound["serviceaccount"] = {
            "name": service_account,
            "uid": _uid(f"{namespace}/{service_account}"),
        }
        payload = {
            "aud": list(audiences),
            "exp": int(issued + lifetime),
            "iat": issued,
            "iss": self.issuer,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": bound,
            "nbf": issued,
            "sub": f"system:serviceaccount:{namespace}:{service_account}",
        }
        header = {"alg": self.algorithm, "kid": self.kid}
        return self.signed(
            _json(header | dict(headers or {})),
            _json(payload | dict(claims or {}) | more_claims),
        )

    def signed(self, header: bytes, payload: bytes) -> str:
        """Sign what is given, whether or not it is JSON."""
        text = f"{base64url(header)}.{base64url(payload)}"
        return f"{text}.{base64url(self.signature(text.encode()))}"

    def signature(self, data: bytes) -> bytes:
        """Sign `data` as the algorithm says."""
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        digest = ec.ECDSA(_CURVES[self.algorithm][1])
        r, s = decode_dss_signature(self.key.sign(data, digest))
        size = (self.key.key_size + 7) // 8
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    def many(
        self,
        count: int,
        namespace: str = "shop",
        service_account: str = "web",
        *,
        now: datetime,
        audiences: Sequence[str] = ("istio-ca",),
        lifetime: float = 86_400,
    ) -> Iterator[str]:
        """Yield distinct tokens, each of a pod of its own."""
        for number in range(count):
            pod = (f"{service_account}-{number}", _uid(f"pod-{number}"))
            yield self.token(
                namespace,
                service_account,
                audiences=audiences,
                now=now,
                lifetime=lifetime,
                pod=pod,
            )

    def write_many(
        self,
        path: Path,
        count: int,
        namespace: str = "shop",
        service_account: str = "web",
        *,
        audiences: Sequence[str] = ("istio-ca",),
    ) -> None:
        """Write `count` distinct tokens, one a line, good from now for a day."""
        now = datetime.now(UTC)
        tokens = self.many(
            count, namespace, service_account, now=now, audiences=audiences
        )
        with path.open("w") as file:
            file.writelines(f"{token}\n" for token in tokens)


def _integer(number: int, size: int | None = None) -> str:
    return base64url(number.to_bytes(size or (number.bit_length() + 7) // 8, "big"))


def _json(value: Mapping[str, object]) -> bytes:
    kept = {name: item for name, item in value.items() if item is not OMIT}
    return json.dumps(kept, separators=(",", ":")).encode()


def _uid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def main() -> None:
    """Write tokens and the keys to verify them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="one token a line")
    parser.add_argument("--jwks", type=Path, required=True)
    parser.add_argument("--issuer", default=ISSUER)
    parser.add_argument("--algorithm", choices=("RS256", "ES256"), default="RS256")
    parser.add_argument("--namespace", default="shop")
    parser.add_argument("--service-account", default="web")
    options = parser.parse_args()
    issuer = TokenIssuer(issuer=options.issuer, algorithm=options.algorithm)
    issuer.write_jwks(options.jwks)
    issuer.write_many(
        options.out, options.count, options.namespace, options.service_account
    )


if __name__ == "__main__":
    main()
