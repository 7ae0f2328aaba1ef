"""Verify a Kubernetes service-account token offline.

A token is checked in this order, and each step sees only what the one before accepted:
size, form, header, key, signature, and then the claims. PyJWT verifies the signature,
with the one algorithm that the key allows.

Source:
    RFC 7515, section 5.2; RFC 7519, section 4.1; RFC 8725 (best current practices);
    k8s.io/kubernetes, pkg/serviceaccount/claims.go.
"""

import re
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from jwt.utils import base64url_decode

from bridge.dns_names import LABEL, LONGEST, SUBDOMAIN, is_subdomain
from bridge.errors import AuthenticationError, SubjectError
from bridge.identity import jose
from bridge.identity.caller import Pod, ServiceAccount
from bridge.identity.jwks import ALGORITHMS, VerificationKey

LONGEST_TOKEN: Final = 16 * 1024
_LONGEST_HEADER = 2 * 1024
_LONGEST_SHOWN = 120
LEEWAY_SECONDS: Final = 60
"""How far `nbf` and `iat` may lie in the future. `exp` has no leeway."""
_END_OF_TIME = 253_402_300_800  # the year 10000

# A token that brings its own key, or asks for processing that is not done here.
_REFUSED_HEADERS = frozenset({"b64", "crit", "jku", "jwk", "x5u", "x5c"})

_SUBJECT = re.compile(rf"system:serviceaccount:({LABEL}):({SUBDOMAIN})")
_LONGEST_SUBJECT = len("system:serviceaccount::") + 63 + LONGEST
UID = re.compile(r"[A-Za-z0-9-]{1,64}")
"""Of an object, as Kubernetes and its like make them."""

KeyLookup = Callable[[str | None, datetime], Sequence[VerificationKey]]
"""From key ID and time to the keys that may have signed; raises AuthenticationError if
there is none."""


def shown(value: object) -> str:
    """Return a header's value for the log: escaped, and shortened."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def verify(
    token: str,
    *,
    issuers: Collection[str],
    audiences: frozenset[str],
    keys_of: KeyLookup,
    now: datetime,
) -> ServiceAccount:
    """Verify a token and return its service account.

    Args:
        token: In JWS compact serialization, without a scheme.
        issuers: `iss` must be one of them, compared byte for byte.
        audiences: `aud` must contain at least one of them.
        keys_of: Returns the issuer's keys.
        now: The time that `exp`, `nbf` and `iat` are compared with.

    Raises:
        AuthenticationError: The token is refused. Message and detail repeat nothing of
            it but the algorithm, the key ID, the issuer, the audiences and the expiry.
        ReviewError: `keys_of` has no keys now.
    """
    parts = _parts(token)
    algorithm, kid = _header(parts[0])
    found = (key.by_algorithm.get(algorithm) for key in keys_of(kid, now))
    keys = [key for key in found if key is not None]
    if not keys:
        raise _refused(
            "the token's algorithm is not that of the key",
            "token.algorithm",
            f"alg {algorithm}, kid {shown(kid)}",
        )
    # By the key's own algorithm. `PyJWS.decode` would read the header once more, and
    # a forged token of 16 KiB would cost 1 ms.
    signed = token[: len(parts[0]) + 1 + len(parts[1])].encode("ascii")
    signature = _decoded(parts[2])
    if not any(key.Algorithm.verify(signed, key.key, signature) for key in keys):
        raise _refused(
            "the token's signature is wrong", "token.signature", f"kid {shown(kid)}"
        )
    claims = _object(parts[1])
    _require_issuer(claims, issuers)
    _require_audience(claims, audiences)
    _require_in_time(claims, now.timestamp())
    return _service_account(claims)


def unverified_account(
    token: str, *, audiences: frozenset[str], now: datetime
) -> ServiceAccount:
    """Return the service account that a token claims to be of. It may be forged.

    Only to refuse what nobody has to review: size, form, audience, times and subject
    are checked as `verify` checks them.

    Args:
        token: As for `verify`.
        audiences: As for `verify`.
        now: As for `verify`.

    Raises:
        AuthenticationError: The token is refused.
    """
    parts = _parts(token)
    _header(parts[0])
    _decoded(parts[2])
    claims = _object(parts[1])
    _require_audience(claims, audiences)
    _require_in_time(claims, now.timestamp())
    return _service_account(claims)


def account_of(subject: object) -> ServiceAccount:
    """Return the service account that a username of Kubernetes stands for.

    Raises:
        SubjectError: It is that of another user.
    """
    match = (
        _SUBJECT.fullmatch(subject)
        if isinstance(subject, str) and len(subject) <= _LONGEST_SUBJECT
        else None
    )
    if match is None or len(match[2]) > LONGEST:
        raise SubjectError(
            "the token's subject is no service account",
            subject=subject if isinstance(subject, str) else "",
        )
    return ServiceAccount(match[1], match[2])


def unverified(token: str) -> dict[str, Any]:
    """Return the header and the claims of a token in one, for an operator to read.

    Nothing is verified: nobody may be identified by it.

    Raises:
        AuthenticationError: It has no header and claims, see `verify`.
    """
    if len(token) > LONGEST_TOKEN or len(parts := token.split(".")) != 3:  # noqa: PLR2004 - JWS compact form
        raise _refused("a token has three parts, in ASCII", "token.format")
    return {**_object(parts[1]), **_object(parts[0])}


def _parts(token: str) -> list[str]:
    if len(token) > LONGEST_TOKEN:
        raise _refused(f"a token has at most {LONGEST_TOKEN} bytes", "token.size")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():  # noqa: PLR2004 - JWS compact form
        raise _refused("a token has three parts, in ASCII", "token.format")
    return parts


def _refused(message: str, rule: str, detail: str = "") -> AuthenticationError:
    return AuthenticationError(message, rule=rule, detail=detail)


def _decoded(part: str) -> bytes:
    try:
        jose.require_base64url(part)
    except ValueError:
        raise _refused(
            "a token's parts are base64url without padding", "token.format"
        ) from None
    return base64url_decode(part)


def _object(part: str) -> dict[str, Any]:
    data = _decoded(part)
    try:
        return jose.json_object(data)
    except ValueError:
        # Not chained: the parser's error quotes the text.
        raise _refused(
            "a token's header and payload are JSON objects without repeated names",
            "token.json",
        ) from None


# All tokens of a key have the same header. Refusals are not cached.
@lru_cache(maxsize=256)
def _header(part: str) -> tuple[str, str | None]:
    if len(part) > _LONGEST_HEADER:
        raise _refused("the token's header is too long", "token.size")
    header = _object(part)
    if not _REFUSED_HEADERS.isdisjoint(header):
        raise _refused(
            f"a token must not have the headers {', '.join(sorted(_REFUSED_HEADERS))}",
            "token.header",
        )
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise _refused(
            f"a token is signed with one of {', '.join(sorted(ALGORITHMS))}",
            "token.algorithm",
            f"alg {shown(algorithm)}",
        )
    if "kid" in header and not isinstance(kid, str):
        raise _refused("a token's key ID is text", "token.key")
    return algorithm, kid or None


def _require_issuer(claims: dict[str, Any], issuers: Collection[str]) -> None:
    found = claims.get("iss")
    if not isinstance(found, str) or found not in issuers:
        raise _refused(
            "the token is of another issuer",
            "token.issuer",
            f"iss {shown(found)}, expected {' or '.join(map(shown, issuers))}",
        )


def _require_audience(claims: dict[str, Any], audiences: frozenset[str]) -> None:
    found = claims.get("aud")
    named = [found] if isinstance(found, str) else found
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise _refused("a token names its audiences", "token.audience")
    if audiences.isdisjoint(named):
        wanted = ", ".join(sorted(audiences))
        raise _refused(
            "the token is for another audience",
            "token.audience",
            f"aud {shown(named)}, expected one of {wanted[:_LONGEST_SHOWN]}",
        )


def _require_in_time(claims: dict[str, Any], now: float) -> None:
    expires = _time(claims, "exp")
    if expires is None:
        raise _refused("a token says when it expires", "token.expiry")
    if expires <= now:
        when = datetime.fromtimestamp(int(expires), UTC)
        raise _refused(
            "the token has expired", "token.expired", f"exp {when:%Y-%m-%dT%H:%M:%SZ}"
        )
    for name in ("nbf", "iat"):
        starts = _time(claims, name)
        if starts is not None and starts > now + LEEWAY_SECONDS:
            when = datetime.fromtimestamp(int(starts), UTC)
            raise _refused(
                "the token is not valid yet",
                "token.not-yet-valid",
                f"{name} {when:%Y-%m-%dT%H:%M:%SZ} is ahead of the bridge's clock",
            )


def _time(claims: dict[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    # In Python a bool is an int, and 1e999 is a float (infinity): neither is a time.
    if type(value) not in (int, float) or not 0 <= value < _END_OF_TIME:
        raise _refused("the token's times are not seconds since 1970", "token.time")
    return float(value)


def _service_account(claims: dict[str, Any]) -> ServiceAccount:
    account = account_of(claims.get("sub"))
    if "kubernetes.io" not in claims:
        return account
    return _bound_account(claims["kubernetes.io"], account.namespace, account.name)


def _bound_account(bound: object, namespace: str, name: str) -> ServiceAccount:
    # The API server writes subject and claim from one object. If they differ, the
    # token is not one of its own.
    account = bound.get("serviceaccount") if isinstance(bound, dict) else None
    if (
        not isinstance(bound, dict)
        or not isinstance(account, dict)
        or bound.get("namespace") != namespace
        or account.get("name") != name
    ):
        raise _refused(
            "the token's claims do not agree with its subject", "token.claims"
        )
    node = ""
    if "node" in bound:
        # Where the Node object is absent, the API server knows its name alone.
        node, _ = _named(bound["node"], may_lack_uid=True)
    pod = Pod(node=node)
    if "pod" in bound:
        pod = Pod(namespace, *_named(bound["pod"]), node)
    uid = account.get("uid")
    return ServiceAccount(namespace, name, pod, uid if isinstance(uid, str) else "")


def _named(value: object, *, may_lack_uid: bool = False) -> tuple[str, str]:
    if isinstance(value, dict):
        name, uid = value.get("name"), value.get("uid", "-" if may_lack_uid else None)
        if (
            isinstance(name, str)
            and is_subdomain(name)
            and isinstance(uid, str)
            and UID.fullmatch(uid)
        ):
            return name, uid
    raise _refused("the token is bound to something without a name", "token.claims")
