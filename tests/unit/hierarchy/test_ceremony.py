"""A ceremony: what is checked around each signature, and what a failure leaves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import (
    BackendBrokenError,
    BackendCredentialError,
    BackendUnavailableError,
    BridgeError,
    ConfigError,
)
from bridge.hierarchy import ceremony as module
from bridge.hierarchy.ceremony import rehearse, require_clock, sign, verified
from bridge.hierarchy.keys import LocalKey
from bridge.hierarchy.transcript import Transcript, read
from bridge.x509.algorithm import SignatureAlgorithm
from bridge.x509.path import validate_chain
from tests.support.parts.ceremonies import (
    CONSTRAINTS,
    HOSTS,
    HeldCeremony,
    loaded,
    tree,
)
from tests.support.parts.pki import NOW, Key, new_key

YEAR = timedelta(days=365)


class StubKey(LocalKey):
    """A key whose device does something else when it is to sign."""

    def __init__(self, key: Key, act: Callable[[bytes], bytes]) -> None:
        super().__init__(key)
        self.asked = 0
        self._act = act

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        self.asked += 1
        return self._act(tbs)


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


def test_what_is_linted_has_the_bytes_of_what_is_signed(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    linted: list[x509.Certificate] = []
    monkeypatch.setattr(
        module,
        "require_clean",
        lambda certificate, *_, **__: linted.append(certificate),
    )
    certificate = sign(held.ceremony(), "root").certificate
    before, after = linted
    assert before.tbs_certificate_bytes == certificate.tbs_certificate_bytes
    assert before.signature != certificate.signature
    assert after == certificate


def test_the_real_key_does_not_see_what_a_check_refuses(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("the linter refuses it")

    monkeypatch.setattr(module, "require_clean", refuse)
    key = StubKey(new_key("p384"), lambda _: b"")
    held.signers["root"] = key
    with pytest.raises(ConfigError, match="the linter refuses it"):
        sign(held.ceremony(), "root")
    assert key.asked == 0


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


def test_a_run_that_was_cut_off_before_the_record_is_completed(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_to(held, "root")

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_record", cut_off)
        with pytest.raises(KeyboardInterrupt):
            sign(held.ceremony(), "eu")
    certificate = held.output.certificate("eu")
    done = sign(held.ceremony(), "eu")
    assert done.was_resumed
    assert done.certificate == certificate
    assert "eu" in held.output.recorded()
    entries = read(held.folder / "out/transcript.jsonl").entries
    assert entries[-1].files == held.output.digests("eu")
    with pytest.raises(ConfigError, match="exists, and nothing is overwritten"):
        sign(held.ceremony(), "eu")


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


class AnyPlan:
    """A plan that passes, whatever the file says."""

    def require_passes(self) -> None:
        pass


def test_a_child_beyond_its_parent_on_disk_is_refused(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan compares the file; here the parent's certificate is what counts."""
    signed_to(held, "root", "eu")
    eu = held.output.certificate("eu")
    wider = {**CONSTRAINTS["permitted"], "uri": [*HOSTS[:2], "other.example"]}
    constraints = {**CONSTRAINTS, "permitted": wider}
    changes = {"validity": {"years": 9}, "name_constraints": constraints}
    monkeypatch.setattr(module, "plan_of", lambda *_, **__: AnyPlan())
    (held.folder / "wide").mkdir()
    wide = HeldCeremony(held.folder / "wide", tree(eu=changes))
    signed_to(wide, "root", "eu")
    problems = "\n".join(module._beyond(wide.output.certificate("eu"), eu))
    assert "is valid to 2035-" in problems
    assert "has the path length 1, and the CA above 1: expected a smaller" in problems
    assert "that it permits are not permitted above: other.example" in problems


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
