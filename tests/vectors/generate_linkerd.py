"""Write `linkerd/*.der`: CSRs for one identity, as a proxy's, and hostile ones.

Deterministic like `generate_csrs`, whose parts these are made of. All are for IDENTITY,
which is also what the request and the token of a test say, and every signature is
genuine unless the vector's name says otherwise.

Run: `python -m tests.vectors.generate_linkerd`
"""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from tests.vectors.generate_csrs import (
    CHALLENGE,
    KEY_USAGE,
    NOBODY,
    TRUE,
    asks,
    attribute,
    csr,
    dns,
    oid,
    pem,
    san,
    seq,
    tlv,
    uri,
    with_ec,
    with_ed25519,
    with_rsa,
)

FOLDER = Path(__file__).parent / "linkerd"
IDENTITY = "web.shop.serviceaccount.identity.linkerd.corp.example"
OTHER = "api.payments.serviceaccount.identity.linkerd.corp.example"
P256 = with_ec(ec.SECP256R1())
CA_TRUE = seq(oid("2.5.29.19"), TRUE, tlv(4, seq(TRUE)))
COMMON_NAME = attribute("3", IDENTITY, 19)
TOO_LONG = f"{'a.' * 99}aa.{IDENTITY}"
"""Longer by one than a DNS name can be: 254 characters."""
OWN = dns(IDENTITY)


def shaped(*names: bytes, subject: bytes | None = None) -> bytes:
    """A CSR with these names, and a proxy's subject if no other is said."""
    wanted = seq(COMMON_NAME) if subject is None else subject
    return csr(P256, asks(san(*names)), subject=wanted)


def issued() -> dict[str, bytes]:
    """CSRs that get a certificate for IDENTITY, without anything else they ask for."""
    name = seq(COMMON_NAME)
    plain = asks(san(OWN))
    directory = tlv(0xA4, seq(attribute("3", OTHER)))
    other_name = tlv(0xA0, oid("1.3.6.1.4.1.311.20.2.3"), tlv(0xA0, tlv(12, b"root")))
    return {
        "proxy-identity": shaped(OWN),
        "p384": csr(with_ec(ec.SECP384R1(), "sha384"), plain, subject=name),
        "no-subject": shaped(OWN, subject=NOBODY),
        "empty-common-name": shaped(OWN, subject=seq(attribute("3", ""))),
        "system-masters": shaped(OWN, subject=seq(attribute("10", "system:masters"))),
        "system-masters-too": shaped(
            OWN,
            subject=seq(
                COMMON_NAME, attribute("10", "system:masters"), attribute("11", "x")
            ),
        ),
        "ca-true": csr(P256, asks(san(OWN), CA_TRUE), subject=name),
        "key-usage-of-a-ca": csr(P256, asks(san(OWN), KEY_USAGE), subject=name),
        "challenge-password": csr(P256, plain, CHALLENGE, subject=name),
        "directory-name": shaped(OWN, directory),
        "other-name": shaped(OWN, other_name),
    }


def unreadable() -> dict[str, bytes]:
    """What is no CSR, does not prove possession, or has a key that no proxy makes."""
    good = shaped(OWN)
    return {
        "pem": pem(good),
        "base64": pem(good).split(b"-----")[2].replace(b"\n", b""),
        "truncated": good[:-20],
        "trailing-byte": good + b"\0",
        "two": good * 2,
        "empty-sequence": seq(),
        "renamed": good.replace(b"web.shop", b"wec.shop"),
        "broken-signature": good[:-1] + bytes((good[-1] ^ 1,)),
        "p521": csr(with_ec(ec.SECP521R1()), asks(san(OWN))),
        "secp256k1": csr(with_ec(ec.SECP256K1()), asks(san(OWN))),
        "ed25519": csr(with_ed25519(), asks(san(OWN))),
        "rsa": csr(with_rsa("2048"), asks(san(OWN))),
        "sha1": csr(with_ec(ec.SECP256R1(), "sha1"), asks(san(OWN))),
        "unicode-name": shaped(dns(IDENTITY.replace("web", "wéb"))),
        "unreadable-name": shaped(tlv(0x9F, b"x")),
        "two-extension-requests": csr(P256, asks(san(OWN)), asks(san(dns(OTHER)))),
        "two-sans": csr(P256, asks(san(OWN), san(dns(OTHER)))),
    }


def mismatched() -> dict[str, bytes]:
    """Sound CSRs that do not agree with a request for IDENTITY."""
    ip = tlv(0x87, bytes((10, 0, 0, 1)))
    return {
        "no-san": csr(P256, asks(), subject=seq(COMMON_NAME)),
        "no-extension-request": csr(P256, CHALLENGE, subject=seq(COMMON_NAME)),
        "only-a-uri": shaped(uri("spiffe://corp.example/ns/shop/sa/web")),
        "two-dns-names": shaped(OWN, dns(OTHER)),
        "the-same-name-twice": shaped(OWN, OWN),
        "other-name-only": shaped(dns(OTHER)),
        "upper-case": shaped(dns(IDENTITY.upper())),
        "trailing-dot": shaped(dns(f"{IDENTITY}.")),
        "punycode": shaped(dns(IDENTITY.replace("web", "xn--wb-bja"))),
        "wildcard": shaped(dns(IDENTITY.replace("web", "*"))),
        "nul": shaped(dns(f"{IDENTITY}\0")),
        "254-characters": shaped(dns(TOO_LONG)),
        "label-of-64": shaped(dns(f"{'a' * 64}.{IDENTITY}")),
        "other-common-name": shaped(OWN, subject=seq(attribute("3", OTHER))),
        "second-common-name": shaped(
            OWN, subject=seq(COMMON_NAME, attribute("3", OTHER))
        ),
        "bmp-common-name": shaped(OWN, subject=seq(attribute("3", "\0a\0b", 0x1E))),
        "email": shaped(OWN, tlv(0x81, b"root@corp.example")),
        "ip": shaped(OWN, ip),
        "uri": shaped(OWN, uri("spiffe://corp.example/ns/shop/sa/web")),
    }


def build() -> dict[str, bytes]:
    """Every file of the folder by name."""
    groups = {"good": issued(), "bad": unreadable(), "odd": mismatched()}
    return {
        f"{group}-{name}.der": der
        for group, found in groups.items()
        for name, der in found.items()
    }


if __name__ == "__main__":
    files = build()
    FOLDER.mkdir(exist_ok=True)
    for stale in {path.name for path in FOLDER.glob("*.der")} - set(files):
        (FOLDER / stale).unlink()
    for file_name, file_content in files.items():
        (FOLDER / file_name).write_bytes(file_content)
