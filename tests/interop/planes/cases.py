"""What each plane makes of each oddity, at each tier of a chain.

`o` is OpenSSL, `g` Go, `b` BoringSSL (Envoy), `a` rustls as ztunnel has it (Istio
ambient), `l` rustls as linkerd2-proxy has it. A letter means that the plane takes the
chain, a hyphen that it does not. `beside` is an odd anchor in front of a good one in
one bundle: a hyphen there means that the plane loses the good one too.

A new oddity gets its definition in `oddities.py` and its row here.
"""

from dataclasses import dataclass

from tests.interop.planes.certificates import TIERS

TABLE = """
                                issuing intermediate anchor beside
plain                           ogbal   ogbal        ogbal  ogbal
p384-key                        ogbal   ogbal        ogbal  ogbal
p521-key                        ogbal   ogbal        ogbal  ogbal
ed25519-key                     ogbal   ogbal        ogbal  ogbal
rsa-3072-key                    ogbal   ogbal        ogbal  ogbal
rsa-4096-key                    ogbal   ogbal        ogbal  ogbal
rsa-8192-key                    ogbal   ogbal        ogbal  ogbal
rsa-1024-key                    -gb--   -gb--        -gb--  ogbal
rsa-2047-key                    ogb--   ogb--        ogb--  ogbal
rsa-2056-key                    ogbal   ogbal        ogbal  ogbal
rsa-exponent-3-key              ogbal   ogbal        ogbal  ogbal
rsa-pss-key                     -----   -----        -----  ogbal
rsa-pss-key-with-parameters     -----   -----        -----  ogbal
rsa-key-without-null            o----   o----        o----  ogbal
p224-key                        ogb--   ogb--        ogb--  ogbal
secp256k1-key                   o----   o----        o----  ogbal
brainpool-key                   o----   o----        o----  ogbal
explicit-parameters-key         -----   -----        -----  ogbal
compressed-point-key            o-bal   o-bal        o-bal  ogbal
hybrid-point-key                o----   o----        o----  ogbal
ed25519-key-with-null           -----   -----        -----  ogbal
ed448-key                       o----   o----        o----  ogbal
rsa-sha384-signature            ogbal   ogbal        ogbal  ogbal
rsa-sha512-signature            ogbal   ogbal        ogbal  ogbal
rsa-sha224-signature            o-b--   o-b--        ogbal  ogbal
rsa-sha1-signature              --b--   --b--        ogbal  ogbal
rsa-md5-signature               -----   -----        ogbal  ogbal
rsa-signature-without-null      ogba-   ogba-        ogbal  ogbal
pss-sha256-signature            ogba-   ogba-        ogbal  ogbal
pss-sha384-signature            ogba-   ogba-        ogbal  ogbal
pss-sha512-signature            ogba-   ogba-        ogbal  ogbal
pss-signature-with-a-short-salt o----   o----        ogbal  ogbal
ecdsa-sha384-signature-of-p256  ogbal   ogbal        ogbal  ogbal
ecdsa-sha512-signature-of-p256  ogbal   ogbal        ogbal  ogbal
ecdsa-sha256-signature-of-p384  ogbal   ogbal        ogbal  ogbal
ecdsa-sha256-signature-of-p521  ogbal   ogbal        ogbal  ogbal
ecdsa-sha224-signature          o-b--   o-b--        ogbal  ogbal
ecdsa-sha1-signature            --b--   --b--        ogbal  ogbal
ecdsa-signature-with-null       ogb--   ogb--        ogbal  ogbal
ed25519-signature-with-null     o----   o----        ogbal  ogbal
other-algorithm-inside          -----   -----        o-b--  ogbal
negative-serial                 o-bal   o-bal        o-bal  ogbal
long-negative-serial            o-bal   o-bal        o-bal  ogbal
zero-serial                     ogbal   ogbal        ogbal  ogbal
serial-of-20-octets             ogbal   ogbal        ogbal  ogbal
serial-of-21-octets             ogbal   ogbal        ogbal  ogbal
serial-of-40-octets             ogbal   ogbal        ogbal  ogbal
serial-with-padding             ---al   ---al        ---al  -g-al
version-1                       -----   -----        ogbal  ogbal
version-1-with-extensions       o----   o----        og---  og-al
version-2                       -----   -----        -gb--  ogbal
version-3-without-extensions    -----   -----        --bal  ogbal
no-key-usage                    ogbal   ogbal        ogbal  ogbal
key-usage-not-critical          ogbal   ogbal        ogbal  ogbal
key-usage-without-certsign      ---al   ---al        ---al  ogbal
no-basic-constraints            -----   -----        o-bal  ogbal
basic-constraints-not-critical  ogbal   ogbal        ogbal  ogbal
basic-constraints-of-no-ca      -----   -----        --bal  ogbal
empty-subject                   -gbal   ogbal        ogbal  ogbal
latin-1-in-teletex-subject      ogbal   ogbal        ogbal  ogbal
latin-1-in-printable-subject    o-bal   o-bal        o-bal  ogbal
latin-1-in-utf8-subject         ---al   ---al        ---al  -g-al
latin-1-in-ia5-subject          o-bal   o-bal        o-bal  ogbal
letters-in-numeric-subject      o-bal   o-bal        o-bal  ogbal
universal-subject               o-bal   o-bal        o-bal  ogbal
asterisk-in-printable-subject   o-bal   o-bal        o-bal  ogbal
bmp-subject                     ogbal   ogbal        ogbal  ogbal
empty-common-name               ogbal   ogbal        ogbal  ogbal
policies                        ogbal   ogbal        ogbal  ogbal
critical-policies               ogb--   ogb--        ogbal  ogbal
latin-1-in-policy-notice        ogbal   ogbal        ogbal  ogbal
latin-1-in-ia5-policy-notice    ogbal   ogbal        ogbal  ogbal
latin-1-in-t61-policy-notice    og-al   og-al        ogbal  ogbal
critical-latin-1-policy-notice  ogb--   ogb--        ogbal  ogbal
latin-1-in-utf8-policy-notice   og-al   og-al        ogbal  ogbal
critical-policy-constraints     ogb--   ogb--        ogbal  ogbal
critical-inhibit-any-policy     ogb--   ogb--        ogbal  ogbal
critical-key-identifier         -----   -----        --bal  ogbal
critical-unknown-extension      -----   -----        --bal  ogbal
unknown-extension               ogbal   ogbal        ogbal  ogbal
extension-twice                 -----   -----        -----  ogbal
netscape-type                   ogbal   ogbal        ogbal  ogbal
unique-id                       ogb--   ogb--        ogb--  ogbal
both-purposes                   ogbal   ogbal        ogbal  ogbal
server-purpose-only             --b--   --b--        --bal  ogbal
client-purpose-only             -----   -----        --bal  ogbal
any-purpose                     -g---   -g---        -gbal  ogbal
foreign-purpose                 -----   -----        --bal  ogbal
expired                         -----   -----        ---al  ogbal
"""
PLANES = "ogbal"
COLUMNS = ("issuing", "intermediate", "anchor", "beside")


def rows() -> dict[str, dict[str, str]]:
    """Return the table: by oddity and column, the planes that take it."""
    lines = [line.split() for line in TABLE.splitlines() if line][1:]
    return {name: dict(zip(COLUMNS, cells, strict=True)) for name, *cells in lines}


@dataclass(frozen=True, slots=True)
class Stricter:
    """Where the bridge takes less than the data planes do, and why."""

    reason: str
    tiers: tuple[str, ...] = TIERS


_BELOW = ("issuing", "intermediate")
_ISSUING = ("issuing",)
_NO_LEAF_KEY = Stricter("no backend signs leaves with such a key", _ISSUING)
_UNREADABLE = Stricter("the library of the bridge cannot read it")
_NO_NAME = Stricter("OpenSSL and Envoy cannot read it, nor what stands beside it")
_WEAK_SIGNATURE = Stricter("a hash that is too weak for a CA", _BELOW)
_PURPOSE = Stricter("a leaf is a server's and a client's certificate")

STRICTER: dict[str, Stricter] = {
    "rsa-1024-key": Stricter("too short"),
    "rsa-2047-key": Stricter("too short"),
    "rsa-8192-key": _NO_LEAF_KEY,
    "rsa-2056-key": _NO_LEAF_KEY,
    "rsa-exponent-3-key": _NO_LEAF_KEY,
    "p224-key": Stricter("too short"),
    "rsa-sha224-signature": _WEAK_SIGNATURE,
    "ecdsa-sha224-signature": _WEAK_SIGNATURE,
    "rsa-sha1-signature": _WEAK_SIGNATURE,
    "ecdsa-sha1-signature": _WEAK_SIGNATURE,
    "pss-signature-with-a-short-salt": _UNREADABLE,
    "ecdsa-signature-with-null": _UNREADABLE,
    "ed25519-signature-with-null": _UNREADABLE,
    "serial-with-padding": _UNREADABLE,
    "version-2": _UNREADABLE,
    "latin-1-in-printable-subject": _UNREADABLE,
    "asterisk-in-printable-subject": _UNREADABLE,
    "latin-1-in-utf8-subject": _NO_NAME,
    "empty-subject": Stricter("OpenSSL wants a leaf to name its issuer", _ISSUING),
    "key-usage-without-certsign": Stricter("it says that it signs no certificates"),
    "basic-constraints-of-no-ca": Stricter("it says that it is no CA"),
    "no-basic-constraints": Stricter("OpenSSL takes it, Go does not", ("anchor",)),
    "version-3-without-extensions": Stricter("neither OpenSSL nor Go takes it"),
    "critical-policy-constraints": Stricter("the bridge does not evaluate them"),
    "critical-inhibit-any-policy": Stricter("the bridge does not evaluate it"),
    "critical-key-identifier": Stricter("neither OpenSSL nor Go takes it"),
    "critical-unknown-extension": Stricter("neither OpenSSL nor Go takes it"),
    "server-purpose-only": _PURPOSE,
    "client-purpose-only": _PURPOSE,
    "foreign-purpose": _PURPOSE,
    "any-purpose": _PURPOSE,
    "expired": Stricter("only rustls does not look at it", ("anchor",)),
}
