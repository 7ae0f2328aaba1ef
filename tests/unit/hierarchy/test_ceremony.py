"""A ceremony: what is checked around each signature, and what a failure leaves."""

import json
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bridge.errors import (
    BackendBrokenError,
    BackendCredentialError,
    BackendUnavailableError,
    BridgeError,
    ConfigError,
)
from bridge.hierarchy import ceremony as module
from bridge.hierarchy.ceremony import (
    SignedCA,
    cross_sign,
    rehearse,
    require_clock,
    sign,
    verified,
)
from bridge.hierarchy.crl import CRLRequest, make_crl
from bridge.hierarchy.keys import LocalKey, spki_sha256
from bridge.hierarchy.output import Output
from bridge.hierarchy.transcript import Transcript, read
from bridge.x509.algorithm import algorithm_of
from bridge.x509.certificate import key_usage
from bridge.x509.path import validate_chain
from tests.support.parts.ceremonies import (
    CONSTRAINTS,
    HeldCeremony,
    StubKey,
    in_file,
    loaded,
    tree,
)
from tests.support.parts.pki import NOW, Key, new_key

YEAR = timedelta(days=365)


@pytest.fixture
def held(tmp_path: Path) -> HeldCeremony:
    return HeldCeremony(tmp_path)


def signed_to(held: HeldCeremony, *names: str) -> None:
    for name in names:
        sign(held.ceremony(), name)


def csr_of(key: Key) -> bytes:
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_a_chain_is_signed_that_the_bridge_accepts(held: HeldCeremony) -> None:
    signed_to(held, "root", "eu", "prod")
    prod, eu, root = (held.output.certificate(one) for one in ("prod", "eu", "root"))
    validate_chain(prod, [eu], [root], now=NOW, source="test")
    chain = (held.folder / "out/prod/chain.pem").read_bytes()
    assert x509.load_pem_x509_certificates(chain) == [prod, eu]
    results = [*verified(held.loaded.file, held.output, NOW)]
    assert [(one.name, one.problems) for one in results] == [
        ("root", ()),
        ("eu", ()),
        ("prod", ()),
    ]


def test_each_signature_is_recorded_before_and_after_the_key_is_used(
    held: HeldCeremony,
) -> None:
    signed_to(held, "root")
    entries = read(held.folder / "out/transcript.jsonl").entries
    assert [one.command for one in entries] == [
        "sign root, before the signature",
        "sign root",
    ]
    assert {one.details["hierarchy"] for one in entries} == {held.loaded.digest}
    assert entries[1].files == held.output.digests("root")
    manifest = json.loads((held.folder / "out/manifest.json").read_bytes())
    assert manifest["files"] == entries[1].files
    assert manifest["cas"]["root"]["path_len"] == 2


@dataclass(frozen=True)
class Refusal:
    """What is done to a ceremony whose root is signed, and what signing `eu` says."""

    prepare: Callable[[HeldCeremony], object]
    says: str
    error: type[BridgeError] = ConfigError
    csr: bool = False


def device(error: BridgeError) -> Callable[[bytes], bytes]:
    def act(_: bytes) -> bytes:
        raise error

    return act


def with_root(held: HeldCeremony, act: Callable[[bytes], bytes]) -> None:
    root = held.signers["root"]
    assert isinstance(root, LocalKey)
    held.signers["root"] = StubKey(root.private_key, act)


def later(held: HeldCeremony, by: timedelta) -> None:
    held.clock = lambda: NOW + by


def other_file(held: HeldCeremony, **changes: Mapping[str, Any]) -> None:
    held.loaded = loaded(tree(**changes), held.folder)


def write_csr(held: HeldCeremony, data: bytes) -> None:
    (held.folder / "eu.csr").write_bytes(data)


def proven_by_another(held: HeldCeremony) -> None:
    csr = x509.load_pem_x509_csr(csr_of(new_key()))
    der = bytearray(csr.public_bytes(Encoding.DER))
    der[-1] ^= 1
    write_csr(held, bytes(der))


PINNED = {"spki_sha256": 64 * "0"}


def with_pinned_csr(held: HeldCeremony) -> None:
    other_file(held, eu={"key": in_file("eu") | PINNED})
    write_csr(held, csr_of(new_key()))


REFUSALS = {
    "the outputs exist": Refusal(
        lambda held: sign(held.ceremony(), "eu"),
        "out/eu: exists, and nothing is overwritten: keep it, or move it away",
    ),
    "a file stands where the outputs would": Refusal(
        lambda held: (held.folder / "out/eu").write_text("precious"),
        "out/eu: exists|out/eu/certificate.pem: cannot be read",
    ),
    "the parent is not signed": Refusal(
        lambda held: (held.folder / "out/root").rename(held.folder / "away"),
        "out/root/certificate.pem: cannot be read: .*; sign root first",
    ),
    "the parent has expired": Refusal(
        lambda held: later(held, 21 * YEAR),
        "eu: the chain above it cannot sign now: the root expired on .*; sign the CA "
        "above again first",
    ),
    "the clock is before the parent": Refusal(
        lambda held: later(held, -timedelta(hours=1)),
        "eu: the chain above it cannot sign now: the root is not valid before",
    ),
    "the clock is before the transcript": Refusal(
        lambda held: Transcript(held.folder / "out/transcript.jsonl").append(
            "sign other", "ada", NOW + timedelta(hours=1)
        ),
        "its last line is of .*, and the clock says .*: set the machine's clock",
    ),
    "the parent is not as the file says": Refusal(
        lambda held: other_file(held, root={"validity": {"years": 19}}),
        "out/root: the certificate has the not_valid_after .*; the file says .*; sign "
        "with the file that it was made by",
    ),
    "the plan fails": Refusal(
        lambda held: other_file(held, eu={"path_len": 2}),
        r"cas\.eu\.path_len: .*\[path_len\.not-below-parent\]",
    ),
    "the CSR has another kind of key": Refusal(
        lambda held: write_csr(held, csr_of(new_key("p384"))),
        "eu: the key is not the planned one: expected p256 .*found p384",
        csr=True,
    ),
    "the CSR is signed by another key": Refusal(
        proven_by_another,
        "eu.csr: (the CSR's signature is not that of|its key or its signature is of)",
        csr=True,
    ),
    "the CSR is none": Refusal(
        lambda held: write_csr(held, b"-----BEGIN CERTIFICATE-----"),
        "eu.csr: expected one CSR",
        csr=True,
    ),
    "the key is not the planned one": Refusal(
        lambda held: held.signers.update(eu=LocalKey(new_key("p384"))),
        "eu: the key is not the planned one: expected p256 as in cas.eu.key.algorithm",
    ),
    "the key is another one than the file pins": Refusal(
        lambda held: other_file(held, eu={"key": in_file("eu") | PINNED}),
        "eu: the key is not the planned one: expected the SHA-256 0{64} of its public "
        r"key, as in cas\.eu\.key\.spki_sha256 \(found [0-9a-f]{64}\)",
    ),
    "the CSR has another key than the file pins": Refusal(
        with_pinned_csr,
        "eu: the key is not the planned one: expected the SHA-256 0{64}",
        csr=True,
    ),
    "the key is weak": Refusal(
        lambda held: held.signers.update(eu=LocalKey(new_key("rsa1024"))),
        "eu: its key is not fit for a CA: .*2048, 3072 or 4096 bits",
    ),
    "the signing key is not the parent's": Refusal(
        lambda held: held.signers.update(root=LocalKey(new_key("p384"))),
        r"eu: the key that is to sign is not that of the certificate \(CN=Corp Root CA",
    ),
    "the PIN is refused": Refusal(
        lambda held: with_root(
            held, device(BackendCredentialError("the token refused the PIN"))
        ),
        "the token refused the PIN",
        BackendCredentialError,
    ),
    "the HSM is unplugged": Refusal(
        lambda held: with_root(held, device(BackendUnavailableError("no device"))),
        "no device",
        BackendUnavailableError,
    ),
    "the HSM signs something else": Refusal(
        lambda held: with_root(held, lambda _: bytes.fromhex("3006020101020101")),
        "eu: the signature is not one of the key that was to sign",
        BackendBrokenError,
    ),
    "the transcript was changed": Refusal(
        lambda held: (held.folder / "out/transcript.jsonl").write_bytes(
            (held.folder / "out/transcript.jsonl")
            .read_bytes()
            .replace(b'"ada"', b'"bob"')
        ),
        "it does not follow the line before: one of the two was changed",
    ),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_a_refused_signature_leaves_nothing_half_written(
    held: HeldCeremony, case: Refusal
) -> None:
    signed_to(held, "root")
    case.prepare(held)
    before = {
        path: path.read_bytes()
        for path in (held.folder / "out").rglob("*")
        if path.is_file() and path.name != "transcript.jsonl"
    }
    csr = held.folder / "eu.csr" if case.csr else None
    with pytest.raises(case.error, match=case.says):
        sign(held.ceremony(), "eu", csr=csr)
    after = {
        path: path.read_bytes()
        for path in (held.folder / "out").rglob("*")
        if path.is_file() and path.name != "transcript.jsonl"
    }
    assert after == before


def test_the_key_that_the_file_pins_is_taken(tmp_path: Path) -> None:
    key = new_key()
    pinned = in_file("root") | {"spki_sha256": spki_sha256(key.public_key())}
    held = HeldCeremony(tmp_path, tree(root={"key": pinned}))
    held.signers["root"] = LocalKey(key)
    assert sign(held.ceremony(), "root").certificate.public_key() == key.public_key()
    rehearse(held.loaded, clock=held.clock)  # its keys are throwaway ones


def test_verify_tells_another_key_than_the_file_pins(held: HeldCeremony) -> None:
    signed_to(held, "root", "eu")
    other_file(held, eu={"key": in_file("eu") | PINNED})
    _, eu, _ = verified(held.loaded.file, held.output, NOW)
    assert "eu: the key is not the planned one: expected the SHA-256 00" in str(
        eu.problems
    )


def test_another_csr_than_the_file_names_is_refused(held: HeldCeremony) -> None:
    signed_to(held, "root", "eu")
    place = {"backend": "csr", "path": "eu.csr", "algorithm": "p256"}
    other_file(held, prod={"key": place})
    write_csr(held, csr_of(new_key()))
    other = held.folder / "other.csr"
    other.write_bytes(csr_of(new_key()))
    with pytest.raises(ConfigError, match=r"other.csr: its key is not the planned one"):
        sign(held.ceremony(), "prod", csr=other)
    assert "prod" not in held.output.names()
    # The same key on another path is the planned one.
    other.write_bytes((held.folder / "eu.csr").read_bytes())
    assert sign(held.ceremony(), "prod", csr=other).name == "prod"


def test_a_key_of_another_tier_is_refused(tmp_path: Path) -> None:
    held = HeldCeremony(
        tmp_path,
        tree(root={"key": {**tree()["cas"]["eu"]["key"], "path": "keys/root.key"}}),
    )
    signed_to(held, "root")
    held.signers["eu"] = held.signers["root"]
    with pytest.raises(
        ConfigError, match="eu: its key is that of root: expected a key"
    ):
        sign(held.ceremony(), "eu")


def test_a_ca_that_signs_clients_alone_is_one_of_the_front_proxy(
    tmp_path: Path,
) -> None:
    """rustls holds a path of a mesh to both usages, and no mesh meets this one."""
    clients = {"ext_key_usage": ["client_auth"], "purpose": "front-proxy"}
    held = HeldCeremony(tmp_path, tree(prod=clients))
    signed_to(held, "root", "eu", "prod")
    rehearse(held.loaded, clock=held.clock)
    *_, prod = verified(held.loaded.file, held.output, NOW)
    assert prod.problems == ()
    get = held.output.certificate("prod").extensions.get_extension_for_class
    assert [*get(x509.ExtendedKeyUsage).value] == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_failed_signature_is_made_by_the_next_run(held: HeldCeremony) -> None:
    signed_to(held, "root")
    with_root(held, device(BackendUnavailableError("no device")))
    with pytest.raises(BackendUnavailableError, match="no device"):
        sign(held.ceremony(), "eu")
    root = held.signers["root"]
    assert isinstance(root, LocalKey)
    held.signers["root"] = LocalKey(root.private_key)
    done = sign(held.ceremony(), "eu")
    assert not done.was_resumed
    commands = [
        one.command for one in read(held.folder / "out/transcript.jsonl").entries
    ]
    assert commands[-3:] == [*["sign eu, before the signature"] * 2, "sign eu"]


def test_what_a_run_that_was_cut_off_left_is_not_taken_for_another_ca(
    held: HeldCeremony,
) -> None:
    signed_to(held, "root")
    other = HeldCeremony(held.folder / "other")
    (held.folder / "other").mkdir()
    signed_to(other, "root", "eu")
    (held.folder / "other/out/eu").rename(held.folder / "out/eu")
    with pytest.raises(ConfigError, match="exists, and nothing is overwritten"):
        sign(held.ceremony(), "eu")


@pytest.mark.parametrize("off", [timedelta(hours=1), -timedelta(hours=1)], ids=str)
def test_a_clock_an_hour_off_is_refused(off: timedelta) -> None:
    with pytest.raises(
        ConfigError, match=r"the clock of this machine says .*within 5 minutes; set the"
    ):
        require_clock(NOW + off, NOW)


def test_a_clock_some_minutes_off_is_not() -> None:
    require_clock(NOW + timedelta(minutes=5), NOW)


def test_a_rehearsal_signs_every_ca_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    told: list[str] = []
    content = tree(
        prod={"key": {"backend": "csr", "path": "no.csr", "algorithm": "p256"}}
    )
    found = rehearse(
        loaded(content, tmp_path),
        clock=lambda: NOW,
        done=lambda one: told.append(one.name),
    )
    assert [one.name for one in found] == told == ["root", "eu", "prod"]
    assert [*tmp_path.iterdir()] == []


def test_a_child_begins_no_sooner_than_a_parent_with_a_date(tmp_path: Path) -> None:
    validity = {"not_before": NOW.isoformat(), "years": 20}
    held = HeldCeremony(tmp_path, tree(root={"validity": validity}))
    signed_to(held, "root", "eu")
    root, eu = (held.output.certificate(one) for one in ("root", "eu"))
    assert eu.not_valid_before_utc == root.not_valid_before_utc == NOW
    # Verify finds the same dates again.
    results = {one.name: one for one in verified(held.loaded.file, held.output, NOW)}
    assert results["eu"].problems == ()


def test_what_begins_later_is_rehearsed_as_on_its_day(tmp_path: Path) -> None:
    validity = {"not_before": (NOW + YEAR).isoformat(), "years": 4}
    content = tree(eu={"validity": validity})
    found = rehearse(loaded(content, tmp_path), clock=lambda: NOW)
    starts = [one.certificate.not_valid_before_utc for one in found]
    assert starts[1:] == [NOW + YEAR, NOW + YEAR]
    held = HeldCeremony(tmp_path, content)
    signed_to(held, "root", "eu")
    with pytest.raises(
        ConfigError, match=r"chain above it cannot sign now: .* not val"
    ):
        sign(held.ceremony(), "prod")


def test_a_chain_that_no_bridge_loads_is_refused_in_the_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the plan says: the issuing CA is its own anchor."""
    passing = SimpleNamespace(require_passes=lambda: None)
    monkeypatch.setattr(module, "plan_of", lambda *_, **__: passing)
    content = tree(prod={"anchor": "prod"})
    with pytest.raises(ConfigError, match=r"prod: .* is itself a trust anchor"):
        rehearse(loaded(content, tmp_path), clock=lambda: NOW)


def test_a_rehearsal_of_a_plan_that_fails_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="path_len"):
        rehearse(loaded(tree(eu={"path_len": 2}), tmp_path), clock=lambda: NOW)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda held: later(held, 2 * YEAR), "prod: .*expired on"),
        (
            lambda held: other_file(held, prod={"crl_url": "http://other.example/c"}),
            r"prod: the certificate differs .* extension cRLDistributionPoints",
        ),
        (
            lambda held: other_file(held, prod={"common_name": "Another"}),
            "prod: the certificate has the subject CN=Corp EU prod CA,O=Corp; the file",
        ),
    ],
    ids=["expired", "extension", "subject"],
)
def test_verify_tells_what_is_not_as_the_file_says(
    held: HeldCeremony, act: Callable[[HeldCeremony], None], says: str
) -> None:
    signed_to(held, "root", "eu", "prod")
    act(held)
    results = {
        one.name: "\n".join(one.problems)
        for one in verified(held.loaded.file, held.output, held.clock())
    }
    assert not results["eu"]
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(results["prod"])


def test_verify_of_an_empty_folder_is_refused(held: HeldCeremony) -> None:
    with pytest.raises(ConfigError, match=r"expected the certificate of a CA .*none"):
        [*verified(held.loaded.file, held.output, NOW)]


def test_a_name_that_is_not_in_the_file_tells_those_that_are(
    held: HeldCeremony,
) -> None:
    with pytest.raises(ConfigError, match=r"us: expected the name .*: root, eu, prod"):
        sign(held.ceremony(), "us")


def another_root(folder: Path, **changes: Any) -> tuple[HeldCeremony, Path]:
    """Return another hierarchy whose root is signed, and the root's certificate."""
    folder.mkdir()
    content = tree(root={"common_name": "New Root CA", **changes})
    other = HeldCeremony(folder, content)
    signed_to(other, "root")
    return other, folder / "out/root/certificate.pem"


def with_room(folder: Path, **changes: Any) -> HeldCeremony:
    """Return a ceremony whose root has room for a root below it."""
    rules = [{"rule": "path_len.too-long", "ca": "root", "reason": "cross-signing"}]
    content = tree(root={"path_len": 3}, **changes) | {"accepted": rules}
    held = HeldCeremony(folder, content)
    signed_to(held, "root")
    return held


def test_a_root_that_is_cross_signed_is_trusted_below_the_other(tmp_path: Path) -> None:
    held = with_room(tmp_path, eu={"crl_url": "http://crl.corp.example/root.crl"})
    other, path = another_root(tmp_path / "other")
    signed_to(other, "eu", "prod")
    done = cross_sign(held.ceremony(), "new", path, by="root")
    prod, eu, new = (other.output.certificate(one) for one in ("prod", "eu", "root"))
    cross, old = done.certificate, held.output.certificate("root")
    validate_chain(prod, [eu, cross], [old], now=NOW, source="test")
    assert cross.subject.public_bytes() == new.subject.public_bytes()
    assert cross.public_key() == new.public_key()
    urls = {x509.CRLDistributionPoints.oid, x509.AuthorityKeyIdentifier.oid}
    given, copied = (
        {one.oid: one for one in root.extensions if one.oid not in urls}
        for root in (new, cross)
    )
    assert copied == given
    point = cross.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert "http://crl.corp.example/root.crl" in str(point)
    assert done.files == held.output.digests("new.by.root")
    record = read(held.folder / "out/transcript.jsonl")
    assert record.files.keys() >= {*done.files, "certificate.pem"}
    assert "new.by.root" in held.output.recorded()
    results = {one.name: one for one in verified(held.loaded.file, held.output, NOW)}
    assert results["new.by.root"].summary.startswith("a cross-certificate; 1 allowed")


def test_what_a_root_says_of_itself_is_in_its_cross_certificate(tmp_path: Path) -> None:
    usages = ["server_auth", "client_auth"]
    names = {**CONSTRAINTS, "permitted": {"dns": ["svc"]}}
    held = with_room(tmp_path)
    path = lone_root(
        tmp_path / "other",
        ext_key_usage=usages,
        policies=["1.3.6.1.4.1.99999.1"],
        name_constraints=names,
    )
    found = cross_sign(held.ceremony(), "new", path, by="root").certificate.extensions
    for kind in (
        x509.SubjectKeyIdentifier,
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.CertificatePolicies,
        x509.NameConstraints,
    ):
        new = x509.load_pem_x509_certificate(path.read_bytes()).extensions
        assert found.get_extension_for_class(kind) == new.get_extension_for_class(kind)


def lone_root(folder: Path, **changes: Any) -> Path:
    """Sign the root of another hierarchy, and return its certificate."""
    folder.mkdir()
    content = tree(root={"common_name": "New Root CA", "path_len": 1, **changes})
    content["cas"] = {"root": content["cas"]["root"]}
    content["organisation"] = changes.get("organisation", "Corp")
    content["cas"]["root"].pop("organisation", None)
    forms = ("uri", "dns", "ip", "email")
    content["accepted"] = [
        {"rule": rule, "ca": "root", "reason": "alone"}
        for rule in (
            *("tree.signs-nothing", "path_len.too-long"),
            *(f"constraints.{form}-unconstrained" for form in forms),
        )
    ]
    signed_to(HeldCeremony(folder, content), "root")
    return folder / "out/root/certificate.pem"


def foreign_root(folder: Path, *more: x509.ExtensionType) -> Path:
    """Write a root that another program made, with a key identifier of its own."""
    names = {NameOID.ORGANIZATION_NAME: "Corp", NameOID.COMMON_NAME: "Foreign Root"}
    subject = x509.Name([x509.NameAttribute(*one) for one in names.items()])
    key = new_key("p384")
    basic = x509.BasicConstraints(ca=True, path_length=1)
    builder = (
        x509.CertificateBuilder(issuer_name=subject, subject_name=subject)
        .public_key(key.public_key())
        .serial_number(1 << 100)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + 2 * YEAR)
        .add_extension(basic, critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(b"by SHA-256"), critical=False)
    )
    for one in more:
        builder = builder.add_extension(one, critical=False)
    path = folder / "foreign.pem"
    path.write_bytes(builder.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM))
    return path


def test_the_key_identifier_of_another_program_is_kept(tmp_path: Path) -> None:
    held = with_room(tmp_path)
    done = cross_sign(held.ceremony(), "new", foreign_root(tmp_path), by="root")
    found = done.certificate.extensions.get_extension_for_class(
        x509.SubjectKeyIdentifier
    )
    assert found.value.digest == b"by SHA-256"


@dataclass(frozen=True)
class CrossRefusal:
    """What is cross-signed, and what the command says."""

    says: str
    name: str = "new"
    by: str = "root"
    root: Callable[[HeldCeremony], Path] = lambda held: lone_root(held.folder / "other")
    prepare: Callable[[HeldCeremony], object] = lambda _: None


def root_of(**changes: Any) -> Callable[[HeldCeremony], Path]:
    return lambda held: lone_root(held.folder / "other", **changes)


def below_another_root(held: HeldCeremony) -> Path:
    other, _ = another_root(held.folder / "other")
    signed_to(other, "eu")
    return other.folder / "out/eu/certificate.pem"


def with_the_key_of(held: HeldCeremony, name: str) -> Path:
    (held.folder / "other").mkdir()
    key = {"key": in_file("root", held.loaded.file.cas[name].key.algorithm)}
    other = HeldCeremony(
        held.folder / "other", tree(root={"common_name": "New Root CA", **key})
    )
    other.signers["root"] = held.signers[name]
    signed_to(other, "root")
    return other.folder / "out/root/certificate.pem"


def of_another_hierarchy(held: HeldCeremony) -> None:
    """Put a root of the same name, validity and extensions in place of the own one."""
    (held.folder / "theirs").mkdir()
    theirs = with_room(held.folder / "theirs")
    (held.folder / "out").rename(held.folder / "away")
    (theirs.folder / "out").rename(held.folder / "out")


def swapped(held: HeldCeremony, name: str = "root") -> None:
    """Put another certificate with the same subject and key in place of a CA's."""
    again = HeldCeremony(held.folder, clock=held.clock)
    again.loaded, again.signers = held.loaded, held.signers
    again.output = Output(held.folder / "again")
    for one in reversed(held.loaded.file.chain(name)):
        sign(again.ceremony(), one)
    (held.folder / "out" / name).rename(held.folder / "away")
    (held.folder / "again" / name).rename(held.folder / "out" / name)


CROSS_REFUSALS = {
    "paths as long": CrossRefusal(
        "new.by.root: has the path length 3, and the CA above 3: expected a smaller",
        root=root_of(path_len=3),
    ),
    "no root": CrossRefusal(
        "expected a root that signed itself, as proof that its owner has the key",
        root=below_another_root,
    ),
    "the own root": CrossRefusal(
        "has the subject of a CA of this chain: expected the root of another",
        root=lambda held: held.folder / "out/root/certificate.pem",
    ),
    "another organisation": CrossRefusal(
        "expected a root of the organisation 'Corp', .*found Evil",
        root=root_of(organisation="Evil"),
    ),
    "one subject in two tiers": CrossRefusal(
        "has the subject of a CA of this chain: expected the root of another",
        root=root_of(common_name="Corp Root CA"),
    ),
    "the key of a CA of the tree": CrossRefusal(
        "new.by.root: its key is that of eu: expected a key of its own",
        root=lambda held: with_the_key_of(held, "eu"),
        prepare=lambda held: signed_to(held, "eu"),
    ),
    "a root that has ended": CrossRefusal(
        "expected a root that signed itself, .*: the root expired on",
        root=root_of(validity={"days": 1}),
        prepare=lambda held: later(held, timedelta(days=2)),
    ),
    "a root with an extension that no CA needs": CrossRefusal(
        "the root has the extension subjectAltName .*, which is not copied",
        root=lambda held: foreign_root(
            held.folder, x509.SubjectAlternativeName([x509.DNSName("a.example")])
        ),
    ),
    "a CA that issues leaves": CrossRefusal(
        "prod: issues leaves: expected a CA that signs CAs", by="prod"
    ),
    "a CA that is not in the file": CrossRefusal("us: expected the name of", by="us"),
    "a name that leads elsewhere": CrossRefusal(
        r"\.\./new: expected a name of the characters a-z 0-9 -", name="../new"
    ),
    "the name of a CA of the file": CrossRefusal(
        "eu: expected a name .* that no CA of the file has", name="eu"
    ),
    "names that the CA above does not have": CrossRefusal(
        "new.by.eu: DNS names are not constrained; above it only these are permitted",
        by="eu",
        root=root_of(path_len=0, key=in_file("root")),
        prepare=lambda held: signed_to(held, "eu"),
    ),
    "a root of another hierarchy above": CrossRefusal(
        "new.by.root: the key that is to sign is not that of the certificate",
        prepare=of_another_hierarchy,
    ),
    "another certificate of the CA that signs": CrossRefusal(
        "root/certificate.*: was changed since it was signed: .*restore it from",
        prepare=swapped,
    ),
    "the CA that signs has ended": CrossRefusal(
        "new.by.root: the chain above it cannot sign now: the root expired on",
        root=root_of(validity={"years": 24}),
        prepare=lambda held: later(held, 21 * YEAR),
    ),
}


@pytest.mark.parametrize("case", CROSS_REFUSALS.values(), ids=CROSS_REFUSALS)
def test_a_root_that_may_not_be_cross_signed_is_refused(
    tmp_path: Path, case: CrossRefusal
) -> None:
    held = with_room(tmp_path)
    case.prepare(held)
    path = case.root(held)
    before = held.output.names()
    with pytest.raises(ConfigError, match=case.says):
        cross_sign(held.ceremony(), case.name, path, by=case.by)
    assert held.output.names() == before


def stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


CUTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "after the folder": lambda patched: patched.setattr(
        module.Ceremony, "finish", stopped
    ),
    "after the transcript": lambda patched: patched.setattr(
        Output, "write_manifest", stopped
    ),
}
"""Where a run is cut off that has written its certificate."""


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("is_cross", [False, True], ids=["sign", "cross-sign"])
def test_a_run_that_was_cut_off_before_its_end_is_completed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut: Callable[[pytest.MonkeyPatch], None],
    *,
    is_cross: bool,
) -> None:
    held = with_room(tmp_path)
    path = lone_root(tmp_path / "other")
    name = "new.by.root" if is_cross else "eu"

    def run() -> SignedCA:
        if is_cross:
            return cross_sign(held.ceremony(), "new", path, by="root")
        return sign(held.ceremony(), "eu")

    with monkeypatch.context() as patched:
        cut(patched)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert name not in held.output.recorded()
    certificate = held.output.certificate(name)
    done = run()
    assert (done.was_resumed, done.certificate) == (True, certificate)
    assert name in held.output.recorded()
    entries = read(held.folder / "out/transcript.jsonl").entries
    assert entries[-1].files == held.output.digests(name)
    with pytest.raises(ConfigError, match="exists, and nothing is overwritten"):
        run()


@pytest.mark.parametrize("at", ["the signature", "the folder"])
def test_a_run_that_was_cut_off_before_its_certificate_signs_again(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    signed_to(held, "root")
    with monkeypatch.context() as patched:
        if at == "the folder":
            patched.setattr(Output, "write_files", stopped)
        else:
            patched.setattr(LocalKey, "sign", stopped)
        with pytest.raises(KeyboardInterrupt):
            sign(held.ceremony(), "eu")
    assert held.output.names() == ("root",)
    assert not sign(held.ceremony(), "eu").was_resumed


def chain_changed(held: HeldCeremony) -> None:
    path = held.folder / "out/eu/chain.pem"
    root = held.folder / "out/root/certificate.pem"
    path.write_bytes(path.read_bytes() + root.read_bytes())


def signed_elsewhere(held: HeldCeremony) -> None:
    """By the same keys, after the same file: only the transcript does not know it."""
    swapped(held, "eu")


UNKNOWN: dict[str, Callable[[HeldCeremony], object]] = {
    "a file of it was changed": chain_changed,
    "it was signed in another folder": signed_elsewhere,
    "a file was put beside it": lambda held: (
        held.folder / "out/eu/more.pem"
    ).write_text("more"),
    "a file is gone": lambda held: (held.folder / "out/eu/certificate.txt").unlink(),
}


@pytest.mark.parametrize("act", UNKNOWN.values(), ids=UNKNOWN)
def test_only_what_a_run_left_that_was_cut_off_is_taken_for_its_work(
    held: HeldCeremony,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[HeldCeremony], object],
) -> None:
    signed_to(held, "root")
    with monkeypatch.context() as patched:
        patched.setattr(module.Ceremony, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            sign(held.ceremony(), "eu")
    act(held)
    with pytest.raises(ConfigError, match="exists, and nothing is overwritten"):
        sign(held.ceremony(), "eu")
    assert "eu" not in held.output.recorded()


def test_a_run_is_not_completed_for_another_key(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_to(held, "root")
    write_csr(held, csr_of(new_key()))
    csr = held.folder / "eu.csr"
    with monkeypatch.context() as patched:
        patched.setattr(module.Ceremony, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            sign(held.ceremony(), "eu", csr=csr)
    write_csr(held, csr_of(new_key()))
    with pytest.raises(ConfigError, match="exists, and nothing is overwritten"):
        sign(held.ceremony(), "eu", csr=csr)


def test_of_two_runs_at_once_one_signs(held: HeldCeremony) -> None:
    signed_to(held, "root")
    root = held.signers["root"]
    assert isinstance(root, LocalKey)
    both = threading.Barrier(2)

    def act(tbs: bytes) -> bytes:
        return root.sign(tbs, algorithm_of(root.public_key()), timeout=1)

    held.signers["root"] = signer = StubKey(root.private_key, act)

    def run() -> str:
        both.wait()
        try:
            sign(held.ceremony(), "eu")
        except ConfigError as error:
            return str(error)
        return "signed"

    with ThreadPoolExecutor(2) as pool:
        told = sorted(
            future.result() for future in [pool.submit(run), pool.submit(run)]
        )
    assert "exists, and nothing is overwritten" in told[0]
    assert told[1] == "signed"
    assert signer.asked == 1


def test_nothing_is_signed_below_another_certificate_of_a_parent(
    held: HeldCeremony,
) -> None:
    signed_to(held, "root", "eu")
    swapped(held, "eu")
    with pytest.raises(ConfigError, match=r"out/eu/certificate\S+: was changed since"):
        sign(held.ceremony(), "prod")


def with_a_revoked_eu(held: HeldCeremony) -> None:
    signed_to(held, "root", "eu")
    for request in (CRLRequest(), CRLRequest(names=["eu"]), CRLRequest()):
        make_crl(held.ceremony(), "root", request)


def edited(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def moved_away(out: Path) -> None:
    for number in (2, 3):
        shutil.rmtree(out / f"root.crl.{number}")


REVOCATIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "by a list, and the later ones": (
        lambda _: None,
        r"prod: eu is revoked by \S+root.crl.2/crl.der: nothing is issued under it",
    ),
    "by lists that were moved away": (
        moved_away,
        "the CRL number 3 of root, which may revoke eu and is not in .*: put it back",
    ),
    "by a list that was edited": (
        lambda out: edited(out / "root.crl.3/crl.der"),
        r"root.crl.3/crl.der: was changed since it was signed",
    ),
}


@pytest.mark.parametrize(("act", "says"), REVOCATIONS.values(), ids=REVOCATIONS)
def test_nothing_is_signed_below_a_ca_that_is_revoked(
    held: HeldCeremony, act: Callable[[Path], object], says: str
) -> None:
    with_a_revoked_eu(held)
    act(held.folder / "out")
    with pytest.raises(ConfigError, match=says):
        sign(held.ceremony(), "prod")
    assert held.output.names() == ("eu", "root")


def test_verify_tells_what_is_revoked(held: HeldCeremony) -> None:
    signed_to(held, "root", "eu", "prod")
    make_crl(held.ceremony(), "root", CRLRequest(names=["eu"]))
    root, eu, prod = verified(held.loaded.file, held.output, NOW)
    assert root.revoked == ""
    told = "eu is revoked by .*root.crl.1/crl.der: nothing is issued under it"
    assert re.match(f"eu: {told}", eu.revoked)
    assert re.match(f"prod: {told}", prod.revoked)
    shutil.rmtree(held.folder / "out/root.crl.1")
    *_, prod = verified(held.loaded.file, held.output, NOW)
    assert "the CRL number 1 of root, which may revoke eu and is not" in prod.revoked
