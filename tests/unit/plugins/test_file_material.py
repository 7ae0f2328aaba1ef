"""What the files may hold: each bad file by its sentence, each habit taken."""

from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import ConfigError
from bridge_file import material
from bridge_file.options import FileSet
from bridge_file.private_key import parse_key
from tests.support.harness.file_shapes import KEY_FILES, SHAPES, open_shape, write_shape
from tests.support.parts.pki import (
    Authority,
    bundle,
    key_pem,
    new_chain,
    new_key,
    new_root,
    shared_key,
    write_private,
)

SECRET = b"correct horse battery"
WITH_PASSPHRASE = {"passphrase_file": "passphrase"}
PEMS = [
    key_pem(shared_key(kind), pkcs8=pkcs8)
    for kind in ("p256", "rsa2048")
    for pkcs8 in (True, False)
]
Spoil = Callable[[Path, Authority], object]
pytestmark = pytest.mark.usefixtures("no_pause")


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_gives_the_same_issuing_ca(
    tmp_path: Path, shape: str, ca: Authority
) -> None:
    write_shape(tmp_path, shape, ca)
    warnings: list[str] = []
    opened = open_shape(tmp_path, shape, warn=warnings.append)
    found = opened.describe()
    assert (found.certificate, *found.intermediates) == ca.chain
    assert found.assurance == "file"
    assert found.labels == {"path": str(tmp_path / KEY_FILES[shape])}
    assert len(warnings) == 1
    assert "for development" in warnings[0]
    opened.close()


def write_key(data: bytes, mode: int = 0o600) -> Spoil:
    return lambda folder, _: write_private(folder / "key.pem", data, mode)


def other_pem(kind: str) -> bytes:
    key: ed448.Ed448PrivateKey | ec.EllipticCurvePrivateKey
    key = ed448.Ed448PrivateKey.generate()
    if kind == "secp256k1":
        key = ec.generate_private_key(ec.SECP256K1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def rsa_pem(exponent: int, bits: int) -> bytes:
    return key_pem(rsa.generate_private_key(exponent, bits))


CUT_KEY = b"-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (
            lambda folder, _: write_private(
                folder / "key.pem", (folder / "chain.pem").read_bytes()
            ),
            r"key\.pem: this is a certificate: expected the private key",
        ),
        (write_key(b""), r"key\.pem: expected one private key in PEM .*, found 0"),
        (
            lambda folder, ca: (folder / "key.pem").write_bytes(ca.key_pem() * 2),
            r"key\.pem: expected one private key .*, found 2",
        ),
        (write_key(CUT_KEY), r"key\.pem: the private key is damaged: expected RSA"),
        (
            lambda folder, ca: write_private(folder / "key.pem", ca.key_pem(SECRET)),
            r"key\.pem: the key is encrypted: expected passphrase_file",
        ),
        (write_key(other_pem("secp256k1")), r"expected .* \(found EC on secp256k1\)"),
        (write_key(other_pem("ed448")), r"expected .* \(found Ed448\)"),
        (
            write_key(rsa_pem(65537, 1024)),
            r"expected .* \(found RSA with 1024 bits and exponent 65537\)",
        ),
        (
            write_key(rsa_pem(3, 2048)),
            r"expected .* \(found RSA with 2048 bits and exponent 3\)",
        ),
        (
            write_key(key_pem(new_key())),
            r"key\.pem: expected the key of a certificate in .*chain\.pem \(the first",
        ),
        (
            lambda folder, _: (folder / "key.pem").unlink(),
            r"key\.pem: cannot be read: No such file",
        ),
        (
            lambda folder, _: (
                (folder / "key.pem").unlink(),
                (folder / "key.pem").mkdir(mode=0o700),
            ),
            r"key\.pem: cannot be read: not a regular file",
        ),
        (
            write_key(b"#" * ((1 << 20) + 1)),
            r"key\.pem: cannot be read: larger than 1048576 bytes",
        ),
        (
            lambda folder, _: (folder / "chain.pem").write_bytes(b"hello"),
            r"chain\.pem: ",
        ),
    ],
)
def test_a_bad_key_or_chain_is_refused(
    tmp_path: Path, ca: Authority, spoil: Spoil, complaint: str
) -> None:
    write_shape(tmp_path, "key", ca)
    spoil(tmp_path, ca)
    with pytest.raises(ConfigError, match=complaint):
        open_shape(tmp_path, "key")


@pytest.mark.parametrize("name", ["key.pem", "passphrase"])
@pytest.mark.parametrize(
    ("mode", "options", "complaint"),
    [
        (0o644, {}, r"only its owner can read.*\(found 0644\); run chmod 600 \S+$"),
        (0o604, {}, r"\(found 0604\); run chmod 600 \S+$"),
        (0o620, {}, r"\(found 0620\); run chmod 600 \S+$"),
        (0o640, {}, r"\(found 0640\); run chmod 600 .*allow_group_read: true if"),
        (0o644, {"allow_group_read": True}, r"\(found 0644\); run chmod 600 \S+$"),
        (0o660, {"allow_group_read": True}, r"\(found 0660\); run chmod 600 \S+$"),
    ],
)
def test_a_secret_that_others_can_read_is_refused(
    tmp_path: Path,
    ca: Authority,
    name: str,
    mode: int,
    options: dict[str, object],
    complaint: str,
) -> None:
    write_shape(tmp_path, "key", ca, SECRET)
    write_private(tmp_path / "passphrase", SECRET)
    (tmp_path / name).chmod(mode)
    with pytest.raises(ConfigError, match=rf"{name}: expected a file.*{complaint}"):
        open_shape(tmp_path, "key", {**WITH_PASSPHRASE, **options})


def test_all_files_that_cannot_be_read_are_told_at_once(
    tmp_path: Path, ca: Authority
) -> None:
    write_shape(tmp_path, "cacerts", ca)
    (tmp_path / "ca-key.pem").chmod(0o644)
    (tmp_path / "ca-cert.pem").unlink()
    (tmp_path / "root-cert.pem").unlink()
    with pytest.raises(ConfigError, match="found 0644") as refusal:
        open_shape(tmp_path, "cacerts")
    told = [line.partition(" /")[2] for line in str(refusal.value).splitlines()]
    assert [Path(line.partition(":")[0]).name for line in told] == [
        "ca-key.pem",
        "ca-cert.pem",
        "root-cert.pem",
    ]


def test_a_secret_behind_a_link_is_judged_by_its_own_mode(
    tmp_path: Path, ca: Authority
) -> None:
    write_shape(tmp_path, "key", ca)
    (tmp_path / "key.pem").rename(tmp_path / "real.pem")
    (tmp_path / "key.pem").symlink_to("real.pem")
    open_shape(tmp_path, "key").close()
    (tmp_path / "real.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"\(found 0644\)"):
        open_shape(tmp_path, "key")


def test_a_group_may_read_where_the_operator_says_so(
    tmp_path: Path, ca: Authority
) -> None:
    write_shape(tmp_path, "key", ca)
    (tmp_path / "key.pem").chmod(0o440)
    open_shape(tmp_path, "key", {"allow_group_read": True}).close()


@pytest.mark.parametrize(
    ("kind", "pkcs8"),
    [
        *(("p256", pkcs8) for pkcs8 in (True, False)),
        *(("p384", pkcs8) for pkcs8 in (True, False)),
        *(("p521", pkcs8) for pkcs8 in (True, False)),
        *(("rsa2048", pkcs8) for pkcs8 in (True, False)),
        ("ed25519", True),  # there is no other form of it
    ],
)
@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_an_encrypted_key_opens(
    tmp_path: Path, kind: str, ending: bytes, *, pkcs8: bool
) -> None:
    ca = new_chain(kind)
    write_shape(tmp_path, "key", ca)
    write_private(tmp_path / "key.pem", ca.key_pem(SECRET, pkcs8=pkcs8))
    write_private(tmp_path / "passphrase", SECRET + ending)
    open_shape(tmp_path, "key", WITH_PASSPHRASE).close()


@pytest.mark.parametrize("pkcs8", [True, False])
@pytest.mark.parametrize(
    ("passphrase", "encrypted", "complaint"),
    [
        (b"wrong horse", True, r"key\.pem: cannot be decrypted: .*passphrase is an"),
        (SECRET + b"\n\n", True, r"key\.pem: cannot be decrypted"),
        (b" " + SECRET, True, r"key\.pem: cannot be decrypted"),
        (b"\n", True, r"passphrase: expected a passphrase \(found an empty file\)"),
        (SECRET, False, r"key\.pem: the key is not encrypted: expected no passphrase"),
    ],
)
def test_a_passphrase_that_does_not_fit_is_refused_and_never_shown(
    tmp_path: Path,
    ca: Authority,
    passphrase: bytes,
    complaint: str,
    *,
    encrypted: bool,
    pkcs8: bool,
) -> None:
    write_shape(tmp_path, "key", ca)
    secret = SECRET if encrypted else None
    write_private(tmp_path / "key.pem", ca.key_pem(secret, pkcs8=pkcs8))
    write_private(tmp_path / "passphrase", passphrase)
    with pytest.raises(ConfigError, match=complaint) as caught:
        open_shape(tmp_path, "key", WITH_PASSPHRASE)
    assert "horse" not in f"{caught.value!r} {caught.value.detail}"


def test_a_key_may_follow_its_ec_parameters(tmp_path: Path, ca: Authority) -> None:
    write_shape(tmp_path, "key", ca)
    lines = (
        b"-----BEGIN EC PARAMETERS-----",
        b"BggqhkjOPQMBBw==",
        b"-----END EC PARAMETERS-----",
        ca.key_pem(pkcs8=False),
    )
    write_private(tmp_path / "key.pem", b"\n".join(lines))
    open_shape(tmp_path, "key").close()


def test_a_swap_that_is_half_done_is_read_again(tmp_path: Path) -> None:
    old, new = new_chain(), new_root().issue_ca("new")
    write_shape(tmp_path, "tls", old)
    (tmp_path / "tls.crt").write_bytes(bundle(*new.chain))
    pauses: list[float] = []

    def finish_the_swap(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            write_shape(tmp_path, "tls", new)

    files = FileSet(key=tmp_path / "tls.key", certificates=tmp_path / "tls.crt")
    found = material.load(files, pause=finish_the_swap)
    assert found.certificate == new.certificate
    assert len(pauses) == 2


def test_files_that_never_belong_together_are_given_up(tmp_path: Path) -> None:
    write_shape(tmp_path, "tls", new_chain())
    write_private(tmp_path / "tls.key", key_pem(new_key()))
    pauses: list[float] = []
    files = FileSet(key=tmp_path / "tls.key", certificates=tmp_path / "tls.crt")
    with pytest.raises(ConfigError, match=r"found another key"):
        material.load(files, pause=pauses.append)
    assert len(pauses) == 4


def test_files_that_change_while_they_are_read_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shape(tmp_path, "tls", new_chain())
    stamps = iter(range(100))
    monkeypatch.setattr(material, "stamp_of", lambda _: next(stamps))
    with pytest.raises(ConfigError, match=r"the files keep changing"):
        open_shape(tmp_path, "tls")


@st.composite
def damaged_keys(draw: st.DrawFn) -> bytes:
    first, *body, last = draw(st.sampled_from(PEMS)).splitlines()
    der = bytearray(b64decode(b"".join(body)))
    for at in draw(st.lists(st.integers(0, len(der) - 1), max_size=3)):
        der[at] = draw(st.integers(0, 255))
    pem = b"\n".join((first, b64encode(der), last))
    cut = draw(st.integers(0, len(pem)))
    return draw(st.sampled_from((pem, pem, pem[:cut], pem[cut:])))


# No deadline: whether an RSA modulus is a product of primes takes its time.
@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=200) | damaged_keys())
def test_any_bytes_are_a_key_or_a_configuration_error(data: bytes) -> None:
    with suppress(ConfigError):
        parse_key(data, Path("key.pem"), None, None)
