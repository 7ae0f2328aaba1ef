"""Write `csr/*.pem`: CSRs as the meshes send them, and hostile ones.

Everything is deterministic: keys come from their names (RSA keys from
`rsa_keys.json`), ECDSA signatures from RFC 6979, PSS salts are empty. Running this
again changes no file, and a test says so. Every signature is genuine unless the
vector's name says otherwise, so that only the check in question can refuse.

Run: `python -m tests.vectors.generate_csrs`
"""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.vectors import csr_keys
from tests.vectors.csr_keys import RSAKey

FOLDER = Path(__file__).parent / "csr"
AGENT = "spiffe://cluster.local/ns/shop/sa/web"
LINKERD = (
    "a-rather-long-service-account.a-namespace.serviceaccount.identity.linkerd"
    ".cluster.local"
)

Sign = Callable[[bytes], bytes]  # from CertificationRequestInfo to signature
Named = tuple[bytes, bytes, Sign]  # SubjectPublicKeyInfo, AlgorithmIdentifier, Sign


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def seq(*parts: bytes) -> bytes:
    return tlv(0x30, *parts)


def integer(value: int) -> bytes:
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def bits(content: bytes) -> bytes:
    return tlv(3, b"\0", content)


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    content = bytearray((first * 40 + second,))
    for arc in rest:
        groups = [arc >> shift & 0x7F for shift in range(28, -1, -7)]
        while len(groups) > 1 and not groups[0]:
            del groups[0]
        content += bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])
    return tlv(6, bytes(content))


NULL = b"\x05\0"
TRUE = b"\x01\x01\xff"
RSA_ENCRYPTION = oid("1.2.840.113549.1.1.1")
EC_PUBLIC_KEY = oid("1.2.840.10045.2.1")
DIGEST_INFO = {
    "md5": "3020300c06082a864886f70d020505000410",
    "sha1": "3021300906052b0e03021a05000414",
    "sha256": "3031300d060960864801650304020105000420",
    "sha384": "3041300d060960864801650304020205000430",
    "sha512": "3051300d060960864801650304020305000440",
}
PKCS1_OID = {"md5": 4, "sha1": 5, "sha256": 11, "sha384": 12, "sha512": 13}
HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),  # noqa: S303 - a vector that has to be refused
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
ECDSA_OID = {"sha1": "1", "sha256": "3.2", "sha384": "3.3", "sha512": "3.4"}


def rsa_spki(key: RSAKey, algorithm: bytes = b"") -> bytes:
    numbers = seq(integer(key.n), integer(key.e))
    return seq(algorithm or seq(RSA_ENCRYPTION, NULL), bits(numbers))


def with_rsa(name: str, digest: str = "sha256", spki: bytes = b"") -> Named:
    key = csr_keys.load()[name]

    def sign(info: bytes) -> bytes:
        prefix = bytes.fromhex(DIGEST_INFO[digest])
        return key.sign(prefix + hashlib.new(digest, info).digest())

    algorithm = seq(oid(f"1.2.840.113549.1.1.{PKCS1_OID[digest]}"), NULL)
    return spki or rsa_spki(key), algorithm, sign


def with_pss() -> Named:
    key = csr_keys.load()["2048"]
    public = rsa.RSAPublicNumbers(key.e, key.n)
    d = pow(key.e, -1, (key.p - 1) * (key.q - 1))
    crt = (d % (key.p - 1), d % (key.q - 1), pow(key.q, -1, key.p))
    private = rsa.RSAPrivateNumbers(key.p, key.q, d, *crt, public).private_key()
    sha256 = seq(oid("2.16.840.1.101.3.4.2.1"), NULL)
    mgf = seq(oid("1.2.840.113549.1.1.8"), sha256)
    salt = tlv(0xA2, integer(0))
    parameters = seq(tlv(0xA0, sha256), tlv(0xA1, mgf), salt)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 0)
    algorithm = seq(oid("1.2.840.113549.1.1.10"), parameters)
    return (
        rsa_spki(key),
        algorithm,
        lambda info: private.sign(info, pss, hashes.SHA256()),
    )


def ec_key(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    seed = hashlib.sha256(f"csr vector {curve.name}".encode()).digest()
    return ec.derive_private_key(int.from_bytes(seed[:24], "big"), curve)


def with_ec(
    curve: ec.EllipticCurve, digest: str = "sha256", spki: bytes = b""
) -> Named:
    key = ec_key(curve)
    ecdsa = ec.ECDSA(HASHES[digest], deterministic_signing=True)
    algorithm = seq(oid(f"1.2.840.10045.4.{ECDSA_OID[digest]}"))
    public = key.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    return spki or public, algorithm, lambda info: key.sign(info, ecdsa)


def p256_point(form: PublicFormat = PublicFormat.UncompressedPoint) -> bytes:
    return ec_key(ec.SECP256R1()).public_key().public_bytes(Encoding.X962, form)


def p256_spki(*parameters: bytes, point: bytes = b"") -> bytes:
    return seq(seq(EC_PUBLIC_KEY, *parameters), bits(point or p256_point()))


def explicit_p256() -> bytes:
    """ECParameters of P-256, written out."""
    p = 2**256 - 2**224 + 2**192 + 2**96 - 1
    b = "5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b"
    g = (
        "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    )
    n = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    field = seq(oid("1.2.840.10045.1.1"), integer(p))
    curve = seq(tlv(4, (p - 3).to_bytes(32, "big")), tlv(4, bytes.fromhex(b)))
    base = tlv(4, bytes.fromhex(g))
    return seq(integer(1), field, curve, base, integer(n), integer(1))


def with_ed25519() -> Named:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    algorithm = seq(oid("1.3.101.112"))
    return seq(algorithm, bits(raw)), algorithm, key.sign


def with_dsa() -> Named:
    """A key of the right shape; its signature says nothing, since none is looked at."""
    numbers = [integer(csr_keys.load()["2048"].n), integer((1 << 255) + 95), integer(4)]
    spki = seq(seq(oid("1.2.840.10040.4.1"), seq(*numbers)), bits(integer(16)))
    algorithm = seq(oid("2.16.840.1.101.3.4.3.2"))
    return spki, algorithm, lambda info: seq(integer(1), integer(len(info)))


def attribute(kind: str, utf8: str, tag: int = 12) -> bytes:
    return tlv(0x31, seq(oid(f"2.5.4.{kind}"), tlv(tag, utf8.encode("latin-1"))))


def uri(text: str) -> bytes:
    return tlv(0x86, text.encode())


def dns(text: str) -> bytes:
    return tlv(0x82, text.encode())


def san(*names: bytes) -> bytes:
    return seq(oid("2.5.29.17"), TRUE, tlv(4, seq(*names)))


def asks(*extensions: bytes) -> bytes:
    """The attribute extensionRequest."""
    return seq(oid("1.2.840.113549.1.9.14"), tlv(0x31, seq(*extensions)))


KEY_USAGE = seq(oid("2.5.29.15"), TRUE, tlv(4, bytes.fromhex("03020106")))  # CA's
CHALLENGE = seq(oid("1.2.840.113549.1.9.7"), tlv(0x31, tlv(12, b"secret")))
EMPTY_O = seq(attribute("10", "", 19))
NOBODY = seq()


def csr(
    key: Named, *attributes: bytes, subject: bytes = EMPTY_O, version: int = 0
) -> bytes:
    """A CSR in DER; in istio-agent's shape if nothing else is said."""
    spki, algorithm, sign = key
    inside = sorted(attributes) or [asks(san(uri(AGENT)))]
    info = seq(integer(version), subject, spki, tlv(0xA0, *inside))
    return seq(info, algorithm, bits(sign(info)))


def pem(
    der: bytes, label: str = "CERTIFICATE REQUEST", end: str = "\n", width: int = 64
) -> bytes:
    text = base64.b64encode(der).decode()
    lines = [text[at : at + width] for at in range(0, len(text), width)]
    block = [f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]
    return end.join(block).encode()


def good() -> dict[str, bytes]:
    """CSRs that must be accepted."""
    p256, p384 = ec.SECP256R1(), ec.SECP384R1()
    agent = csr(with_ec(p256))
    long_name = seq(attribute("3", LINKERD))
    der = {
        "p256-istio-agent": agent,
        "p256-ztunnel": csr(with_ec(p256), subject=NOBODY),
        "p256-sha512": csr(with_ec(p256, "sha512")),
        "p384-istio-agent": csr(with_ec(p384, "sha384")),
        "p384-sha256": csr(with_ec(p384)),
        "rsa-2048-istio-agent": csr(with_rsa("2048")),
        "rsa-3072-sha384": csr(with_rsa("3072", "sha384")),
        "rsa-4096-sha512": csr(with_rsa("4096", "sha512")),
        "p256-linkerd": csr(with_ec(p256), asks(san(dns(LINKERD))), subject=long_name),
    }
    text = {
        "pem-crlf": pem(agent, end="\r\n"),
        "pem-one-line": pem(agent, width=4096),
        "pem-blank-lines-around": b"\n\r\n" + pem(agent) + b"\n\n",
        "pem-no-final-newline": pem(agent).rstrip(),
    }
    return {name: pem(value) for name, value in der.items()} | text


def bad_text() -> dict[str, bytes]:
    """CSRs whose PEM or DER is not one clean document."""
    agent = csr(with_ec(ec.SECP256R1()))
    block = pem(agent)
    lines = block.splitlines(keepends=True)
    return {
        "pem-text-before": b"subject=O =\n" + block,
        "pem-text-after": block + b"# end\n",
        "pem-two-blocks": block + pem(csr(with_rsa("2048"))),
        "pem-headers": lines[0] + b"Proc-Type: 4,ENCRYPTED\n\n" + b"".join(lines[1:]),
        "pem-other-label": pem(agent, "CERTIFICATE"),
        "pem-old-label": pem(agent, "NEW CERTIFICATE REQUEST"),
        "pem-no-end": b"".join(lines[:-1]),
        "pem-nul": block.replace(b"MII", b"M\0II", 1),
        "pem-foreign-character": block.replace(b"MII", b"M*II", 1),
        "pem-no-body": lines[0] + lines[-1],
        "pem-cut-base64": block.replace(b"\n-----END", b"A\n-----END", 1),
        "der-empty-sequence": pem(seq()),
        "der-trailing-byte": pem(agent + b"\0"),
        "der-two-requests": pem(agent + agent),
        "der-cut": pem(agent[:-1]),
        "der-long-length": pem(b"\x30\x83\0" + agent[2:]),
        "der-version-1": pem(csr(with_ec(ec.SECP256R1()), version=1)),
        "der-unsorted-attributes": pem(
            csr(with_ec(ec.SECP256R1()), asks(san(uri(AGENT))) + CHALLENGE)
        ),
        "der-other-structure": pem(explicit_p256()),
    }


def bad_key() -> dict[str, bytes]:
    """CSRs whose key must not be certified."""
    p256 = ec.SECP256R1()
    k2048 = csr_keys.load()["2048"]
    wide = RSAKey(k2048.p**4, k2048.q**4)
    named = oid("1.2.840.10045.3.1.7")
    compressed = p256_point(PublicFormat.CompressedPoint)
    hybrid = bytes((6 + p256_point()[-1] % 2,)) + p256_point()[1:]
    off_curve = p256_point()[:-1] + bytes((p256_point()[-1] ^ 1,))
    pss_key = rsa_spki(k2048, seq(oid("1.2.840.113549.1.1.10")))
    keys = {
        f"rsa-{name}": with_rsa(name)
        for name in csr_keys.SEARCHES
        if name not in {"2048", "3072", "4096"}
    } | {
        "rsa-8192": with_rsa("2048", spki=rsa_spki(wide)),
        "rsa-no-null": with_rsa("2048", spki=rsa_spki(k2048, seq(RSA_ENCRYPTION))),
        "rsa-pss-key": with_rsa("2048", spki=pss_key),
        "rsa-long-modulus": with_rsa(
            "2048",
            spki=seq(
                seq(RSA_ENCRYPTION, NULL),
                bits(seq(tlv(2, b"\0", integer(k2048.n)[4:]), integer(65537))),
            ),
        ),
        "rsa-trailing-bytes": with_rsa(
            "2048",
            spki=seq(
                seq(RSA_ENCRYPTION, NULL),
                bits(seq(integer(k2048.n), integer(65537)) + NULL),
            ),
        ),
        "rsa-negative-modulus": with_rsa(
            "2048",
            spki=seq(
                seq(RSA_ENCRYPTION, NULL),
                bits(seq(tlv(2, integer(k2048.n)[5:]), integer(65537))),
            ),
        ),
        "p521": with_ec(ec.SECP521R1()),
        "p224": with_ec(ec.SECP224R1()),
        "secp256k1": with_ec(ec.SECP256K1()),
        "brainpool-p256r1": with_ec(ec.BrainpoolP256R1()),
        "p256-explicit": with_ec(p256, spki=p256_spki(explicit_p256())),
        "p256-no-curve": with_ec(p256, spki=p256_spki()),
        "p256-null-curve": with_ec(p256, spki=p256_spki(NULL)),
        "p256-compressed": with_ec(p256, spki=p256_spki(named, point=compressed)),
        "p256-hybrid": with_ec(p256, spki=p256_spki(named, point=hybrid)),
        "p256-off-curve": with_ec(p256, spki=p256_spki(named, point=off_curve)),
        "p256-infinity": with_ec(p256, spki=p256_spki(named, point=b"\0")),
        "ed25519": with_ed25519(),
        "dsa": with_dsa(),
    }
    return {f"key-{name}": pem(csr(key)) for name, key in keys.items()}


def with_unused_bit() -> bytes:
    """A CSR whose signature is a BIT STRING that ends one bit early, on a 0."""
    for digest in PKCS1_OID:
        spki, algorithm, sign = with_rsa("2048", digest)
        info = seq(integer(0), EMPTY_O, spki, tlv(0xA0, asks(san(uri(AGENT)))))
        signature = sign(info)
        if digest.startswith("sha") and digest != "sha1" and signature[-1] % 2 == 0:
            return seq(info, algorithm, tlv(3, b"\1", signature))
    raise ValueError("every signature is odd")


def bad_signature() -> dict[str, bytes]:
    """CSRs that do not prove possession in an accepted way."""
    p256, other = with_ec(ec.SECP256R1()), with_ec(ec.SECP256R1(), "sha384")
    agent = csr(p256)
    renamed = agent.replace(b"/sa/web", b"/sa/wec")
    stranger = with_ec(ec.SECP384R1())
    rsa_key = with_rsa("2048")
    no_null = seq(oid("1.2.840.113549.1.1.11"))
    der = {
        "sha1-rsa": csr(with_rsa("2048", "sha1")),
        "md5-rsa": csr(with_rsa("2048", "md5")),
        "pss": csr(with_pss()),
        "sha1-ecdsa": csr(with_ec(ec.SECP256R1(), "sha1")),
        "rsa-algorithm-without-null": csr((rsa_key[0], no_null, rsa_key[2])),
        "rsa-algorithm-on-ec-key": csr((p256[0], rsa_key[1], p256[2])),
        "ecdsa-algorithm-on-rsa-key": csr((rsa_key[0], p256[1], rsa_key[2])),
        "renamed": renamed,
        "other-key": csr((p256[0], *stranger[1:])),
        "other-hash": csr((p256[0], other[1], p256[2])),
        "rsa-changed": csr((rsa_key[0], rsa_key[1], lambda _: b"\1" * 256)),
        "rsa-short": csr((rsa_key[0], rsa_key[1], lambda info: rsa_key[2](info)[1:])),
        "unused-bit": with_unused_bit(),
        "empty": csr((p256[0], p256[1], lambda _: b"")),
        "zero": csr((p256[0], p256[1], lambda _: seq(integer(0), integer(0)))),
    }
    return {f"signature-{name}": pem(value) for name, value in der.items()}


def bad_names() -> dict[str, bytes]:
    """Sound CSRs that strict mode refuses to a caller who is AGENT."""
    key = with_ec(ec.SECP256R1())
    own, other = uri(AGENT), uri("spiffe://cluster.local/ns/shop/sa/admin")
    plain = asks(san(own))
    der = {
        "cn": csr(key, subject=seq(attribute("3", "web"))),
        "organization": csr(key, subject=seq(attribute("10", "Corp"))),
        "two-organizations": csr(key, subject=EMPTY_O[:1] + b"\x16" + EMPTY_O[2:] * 2),
        "teletex-cn": csr(key, subject=seq(attribute("3", "B\xe4r", 20))),
        "other-uri": csr(key, asks(san(other))),
        "second-uri": csr(key, asks(san(own, other))),
        "twice": csr(key, asks(san(own, own))),
        "dns-that-spells-the-uri": csr(key, asks(san(dns(AGENT)))),
        "own-and-dns": csr(key, asks(san(own, dns("istiod.istio-system.svc")))),
        "own-and-ip": csr(key, asks(san(own, tlv(0x87, bytes((10, 0, 0, 1)))))),
        "no-name": csr(key, asks(san())),
        "no-san": csr(key, asks()),
        "no-extension-request": csr(key, CHALLENGE),
        "key-usage": csr(key, asks(san(own), KEY_USAGE)),
        "key-usage-only": csr(key, asks(KEY_USAGE)),
        "two-sans": csr(key, asks(san(own), san(other))),
        "two-extension-requests": csr(key, plain, asks(san(other))),
        "challenge-password": csr(key, plain, CHALLENGE),
        "unreadable-san": csr(key, asks(san(tlv(0x9F, b"x")))),
        "x400-san": csr(key, asks(san(tlv(0xA3, NULL)))),
    }
    return {f"names-{name}": pem(value) for name, value in der.items()}


def build() -> dict[str, bytes]:
    """Every file of the folder by name, keys excepted."""
    refused = bad_text() | bad_key() | bad_signature() | bad_names()
    named = {f"good-{name}.pem": value for name, value in good().items()}
    return named | {f"bad-{name}.pem": value for name, value in refused.items()}


if __name__ == "__main__":
    files = build()
    for stale in {path.name for path in FOLDER.glob("*.pem")} - set(files):
        (FOLDER / stale).unlink()
    for file_name, file_content in files.items():
        (FOLDER / file_name).write_bytes(file_content)
