"""A CRL of a ceremony: its number only grows, and what was revoked stays revoked."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import BackendBrokenError, BridgeError, ConfigError
from bridge.hierarchy import crl as module
from bridge.hierarchy.ceremony import Ceremony, rehearse, sign
from bridge.hierarchy.crl import (
    REASONS,
    CRLRequest,
    SignedCRL,
    make_crl,
    make_first,
)
from bridge.hierarchy.keys import LocalKey
from bridge.hierarchy.transcript import file_problems, read
from bridge.snapshot.revocation import RevocationLists
from bridge.x509.algorithm import algorithm_of
from bridge.x509.crl.building import PlannedCRL, entries_of
from bridge.x509.crl.revocation_list import parse_lists
from tests.support.parts.ceremonies import HeldCeremony, StubKey, tree
from tests.support.parts.pki import (
    NOW,
    Authority,
    Key,
    new_key,
    new_root,
    revoking,
)

TWICE = tree()
TWICE["cas"]["prod-2"] = {
    **TWICE["cas"]["prod"],
    "common_name": "Corp EU prod 2 CA",
    "key": {"backend": "file", "path": "keys/prod-2.key", "algorithm": "p256"},
}


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> HeldCeremony:
    """A ceremony whose four CAs are signed; each test takes a copy of it."""
    held = HeldCeremony(tmp_path_factory.mktemp("ceremony"), TWICE)
    for name in ("root", "eu", "prod", "prod-2"):
        sign(held.ceremony(), name)
    return held


@pytest.fixture
def held(signed: HeldCeremony, tmp_path: Path) -> HeldCeremony:
    shutil.copytree(signed.folder / "out", tmp_path / "out")
    copy = HeldCeremony(tmp_path, TWICE)
    copy.signers.update(signed.signers)
    return copy


def make(held: HeldCeremony, name: str = "eu", **given: Any) -> SignedCRL:
    return make_crl(held.ceremony(), name, CRLRequest(**given))


def serial_of(held: HeldCeremony, name: str) -> int:
    return held.output.certificate(name).serial_number


def revoked(done: SignedCRL) -> dict[int, x509.ReasonFlags | None]:
    return {one.serial: one.reason for one in entries_of(done.crl)}


def path_of(held: HeldCeremony, done: SignedCRL, file: str = "crl.der") -> Path:
    return held.folder / f"out/{done.name}.crl.{done.number}/{file}"


def extension(done: SignedCRL, kind: type[x509.ExtensionType]) -> Any:
    return done.crl.extensions.get_extension_for_class(kind)


def test_a_list_says_whose_it_is_and_what_it_is_about(held: HeldCeremony) -> None:
    done = make(held, names=["prod"], reason=REASONS["keyCompromise"])
    eu = held.output.certificate("eu")
    assert done.crl.is_signature_valid(eu.public_key())  # type: ignore[arg-type]
    assert done.crl.issuer.public_bytes() == eu.subject.public_bytes()
    point = extension(done, x509.IssuingDistributionPoint)
    assert point.critical
    assert point.value.only_contains_ca_certs
    assert point.value.full_name is None
    identifier = extension(done, x509.AuthorityKeyIdentifier).value.key_identifier
    assert (
        identifier == x509.SubjectKeyIdentifier.from_public_key(eu.public_key()).digest
    )
    assert extension(done, x509.CRLNumber).value.crl_number == done.number == 1
    assert revoked(done) == {serial_of(held, "prod"): x509.ReasonFlags.key_compromise}
    assert done.crl.last_update_utc == NOW - timedelta(minutes=5)
    assert done.crl.next_update_utc == NOW + timedelta(days=365)


def test_the_bridge_takes_it(held: HeldCeremony) -> None:
    done = make(held, names=["prod"])
    files = [path_of(held, done, name) for name in FILES[:2]]
    chain = [held.output.certificate(one) for one in ("prod", "eu", "root")]
    other = [held.output.certificate("prod-2"), *chain[1:]]
    for file in files:
        lists = RevocationLists(parse_lists(file.read_bytes(), file.name))
        lists.require_signed(chain)
        assert "is revoked since" in lists.revoked(chain)
        assert lists.revoked(other) == ""


FILES = ("crl.pem", "crl.der", "crl.txt")


def test_it_is_in_the_transcript_and_the_manifest(held: HeldCeremony) -> None:
    done = make(held, names=["prod"])
    record = read(held.folder / "out/transcript.jsonl")
    before, after = record.entries[-2:]
    assert [before.command, after.command] == [
        "crl eu, before the signature",
        "crl eu",
    ]
    assert before.details["crl_number"] == after.details["crl_number"] == "1"
    assert {*after.files} == {f"eu.crl.1/{name}" for name in FILES} == {*done.files}
    assert [*file_problems(record)] == []
    manifest = json.loads((held.folder / "out/manifest.json").read_bytes())
    assert manifest["crls"]["eu.crl.1"]["revoked"] == [f"{serial_of(held, 'prod'):x}"]
    assert after.files.items() <= manifest["files"].items()
    assert "Revoked:     1" in path_of(held, done, "crl.txt").read_text()


def test_what_was_revoked_stays_so_and_the_number_grows(held: HeldCeremony) -> None:
    first = make(held, names=["prod"], reason=REASONS["superseded"])
    held.clock = lambda: NOW + timedelta(days=9)
    second = make(held, serials=[serial_of(held, "prod-2")])
    assert (first.number, second.number) == (1, 2)
    assert revoked(second) == {
        serial_of(held, "prod"): x509.ReasonFlags.superseded,
        serial_of(held, "prod-2"): None,
    }
    held.clock = lambda: NOW + timedelta(days=700)  # both have ended since
    third = make(held)
    assert [*entries_of(third.crl)] == [*entries_of(second.crl)]


def test_the_list_of_an_issuing_ca_is_about_leaves_too(held: HeldCeremony) -> None:
    lists = {name: make(held, name) for name in ("root", "eu", "prod")}
    critical = {
        name: [one.oid for one in done.crl.extensions if one.critical]
        for name, done in lists.items()
    }
    limited = [x509.IssuingDistributionPoint.oid]
    assert critical == {"root": limited, "eu": limited, "prod": []}
    assert all(revoked(done) == {} for done in lists.values())


def test_the_next_update_is_within_a_year_and_within_the_ca(
    held: HeldCeremony,
) -> None:
    assert make(held, "eu", days=30).crl.next_update_utc == NOW + timedelta(days=30)
    end = held.output.certificate("prod").not_valid_after_utc
    assert make(held, "prod").crl.next_update_utc == end


LATER = {"validity": {"not_before": "2028-01-01", "years": 4}}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["root", "eu"]),
        ({"eu": LATER}, ["root"]),
    ],
    ids=["all", "one that begins later"],
)
def test_a_rehearsal_makes_the_first_lists(
    tmp_path: Path, changes: dict[str, Any], names: list[str]
) -> None:
    held = HeldCeremony(tmp_path, tree(**changes))
    made: list[SignedCRL] = []
    rehearse(
        held.loaded,
        clock=held.clock,
        then=lambda ceremony: made.extend(make_first(ceremony)),
    )
    assert [(one.name, one.number, len(one.crl)) for one in made] == [
        (name, 1, 0) for name in names
    ]


def test_a_rehearsal_finds_a_list_that_no_linter_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "crl_findings", lambda _: ["has a fault"])
    held = HeldCeremony(tmp_path)
    with pytest.raises(ConfigError, match="root: the CRL has a fault"):
        rehearse(held.loaded, clock=held.clock, then=make_first)


def test_two_runs_at_once_sign_two_numbers(held: HeldCeremony) -> None:
    key = held.signers["eu"]
    assert isinstance(key, LocalKey)
    signing, done = threading.Event(), threading.Event()

    def act(tbs: bytes) -> bytes:
        signing.set()
        # The other run has all this time to come to the same number.
        done.wait(0.3)
        return key.sign(tbs, algorithm_of(key.public_key()), timeout=1)

    held.signers["eu"] = StubKey(key.private_key, act)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(make, held, names=["prod"])
        assert signing.wait(30)
        second = pool.submit(make, held, names=["prod-2"])
        second.add_done_callback(lambda _: done.set())
        assert [first.result().number, second.result().number] == [1, 2]
    both = {serial_of(held, one) for one in ("prod", "prod-2")}
    assert revoked(second.result()).keys() == both


def test_a_lost_signature_costs_a_number(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "verified_signature", cut_off)
        with pytest.raises(KeyboardInterrupt):
            make(held, names=["prod"])
    assert held.output.crls("eu") == {}
    done = make(held, names=["prod"])
    assert (done.number, len(done.crl)) == (2, 1)


def test_a_run_that_was_cut_off_before_the_record_is_completed(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ceremony, "finish", cut_off)
        with pytest.raises(KeyboardInterrupt):
            make(held, names=["prod"])
    done = make(held, names=["prod"])
    assert done.was_resumed
    assert revoked(done) == {serial_of(held, "prod"): None}
    record = read(held.folder / "out/transcript.jsonl")
    assert [*file_problems(record)] == []
    assert make(held).number == 2


def taken_away(held: HeldCeremony) -> Path:
    """Make two lists, and move the second out of the folder."""
    make(held, names=["prod"])
    second = path_of(held, make(held, names=["prod-2"]))
    away = held.folder / "away.der"
    second.rename(away)
    shutil.rmtree(second.parent)
    return away


def test_a_list_that_was_moved_away_is_asked_for(held: HeldCeremony) -> None:
    away = taken_away(held)
    with pytest.raises(ConfigError, match=r"its CRL number 2, which is not in .*put"):
        make(held)
    done = make(held, previous=away)
    assert (done.number, len(done.crl)) == (3, 2)
    entries = read(held.folder / "out/transcript.jsonl").entries
    assert "away.der" in entries[-1].files


def test_a_list_of_another_tool_is_continued(held: HeldCeremony) -> None:
    path = held.folder / "openssl.crl"
    path.write_bytes(
        revoking(authority(held, "eu"), authority(held, "prod"), number=70)
    )
    done = make(held, previous=path, names=["prod-2"])
    assert (done.number, len(done.crl)) == (71, 2)
    assert make(held).number == 72


def authority(held: HeldCeremony, name: str) -> Authority:
    signer = held.signers[name]
    assert isinstance(signer, LocalKey)
    key: Key = signer.private_key
    return Authority(held.output.certificate(name), key)


def changed_at_the_end(der: bytes) -> bytes:
    return der[:-1] + bytes([der[-1] ^ 1])


def put(held: HeldCeremony, data: bytes) -> dict[str, Any]:
    path = held.folder / "given"
    path.write_bytes(data)
    return {"previous": path}


def listed(held: HeldCeremony, **more: Any) -> dict[str, Any]:
    return put(held, revoking(authority(held, "eu"), **more))


def limited(**given: Any) -> x509.IssuingDistributionPoint:
    values: dict[str, Any] = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**{**values, **given})


def certificate(held: HeldCeremony, one: x509.Certificate) -> dict[str, Any]:
    path = held.folder / "given"
    path.write_bytes(one.public_bytes(Encoding.PEM))
    return {"certificates": [path]}


def older(held: HeldCeremony) -> dict[str, Any]:
    first = path_of(held, make(held)).read_bytes()
    make(held, names=["prod"])
    return put(held, first)


def twin(held: HeldCeremony) -> Authority:
    """Return a CA with the name of `eu` and another key."""
    eu = authority(held, "eu").certificate
    key = new_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(eu.subject)
        .issuer_name(eu.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(eu.not_valid_before_utc)
        .not_valid_after(eu.not_valid_after_utc)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def at(moment: datetime) -> Callable[[HeldCeremony], dict[str, Any]]:
    def prepare(held: HeldCeremony) -> dict[str, Any]:
        held.clock = lambda: moment
        return {}

    return prepare


def with_key(
    key: LocalKey, given: dict[str, Any] | None = None
) -> Callable[[HeldCeremony], dict[str, Any]]:
    def prepare(held: HeldCeremony) -> dict[str, Any]:
        held.signers["eu"] = key
        return given or {}

    return prepare


def made_tomorrow(held: HeldCeremony) -> dict[str, Any]:
    held.clock = lambda: NOW + timedelta(days=1)
    make(held)
    held.clock = lambda: NOW
    return {}


def unbegun(held: HeldCeremony, number: int) -> dict[str, Any]:
    data = revoking(authority(held, "eu"), number=number)
    held.output.write_files("eu.crl.5", {"crl.der": data})
    return {}


def revoked_before(held: HeldCeremony) -> dict[str, Any]:
    make(held, names=["prod"])
    return {"names": ["prod"]}


def changed_transcript(held: HeldCeremony) -> dict[str, Any]:
    path = held.folder / "out/transcript.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"ada"', b'"bob"'))
    return {}


class BrokenKey(LocalKey):
    """A key whose device signs something else."""

    def sign(self, *_: object, **__: object) -> bytes:
        return bytes.fromhex("3006020101020101")


@dataclass(frozen=True)
class Refusal:
    """What is asked for, and why nothing comes of it."""

    prepare: Callable[[HeldCeremony], dict[str, Any]]
    says: str
    error: type[BridgeError] = ConfigError


OTHER = new_root("another")
REFUSALS = {
    "an older list": Refusal(
        older, r"expected the last CRL of eu, with the number 2 or above \(found numb"
    ),
    "a list without a number": Refusal(
        lambda held: listed(held, number=None), r"the last CRL of eu.*found no number"
    ),
    "the highest number there is": Refusal(
        lambda held: listed(held, number=2**159 - 1), "eu: there is no number above"
    ),
    "a list of another CA": Refusal(
        lambda held: put(held, revoking(OTHER)), "expected a CRL that .*EU CA.* has si"
    ),
    "a list of another CA with the same name": Refusal(
        lambda held: put(held, revoking(twin(held))), "it is of another CA or another"
    ),
    "a list with a byte changed": Refusal(
        lambda held: put(held, changed_at_the_end(revoking(authority(held, "eu")))),
        "another key, or was changed|damaged",
    ),
    "a delta CRL": Refusal(
        lambda held: listed(held, extra=x509.DeltaCRLIndicator(1)),
        r"found the critical extension 2\.5\.29\.27",
    ),
    "an indirect CRL": Refusal(
        lambda held: listed(held, extra=limited(indirect_crl=True)), "an indirect one"
    ),
    "a list of user certificates": Refusal(
        lambda held: listed(held, extra=limited(only_contains_user_certs=True)),
        "onlyContainsUserCerts",
    ),
    "an unknown critical extension": Refusal(
        lambda held: listed(
            held,
            extra=x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b""),
        ),
        r"found the critical extension 1\.2\.3\.4",
    ),
    "a list of 50 MB": Refusal(
        lambda held: put(held, b"0" * 50_000_000), "given: .*larger than"
    ),
    "two lists in one file": Refusal(
        lambda held: put(
            held, revoking(authority(held, "eu"), encoding=Encoding.PEM) * 2
        ),
        r"expected one CRL \(found 2\)",
    ),
    "no list": Refusal(lambda held: put(held, b"x"), "expected revocation lists"),
    "a list that nobody has begun": Refusal(
        lambda held: unbegun(held, 5),
        r"eu\.crl\.5: no entry of the transcript has this list: move it out",
    ),
    "a list in the folder of another number": Refusal(
        lambda held: unbegun(held, 6),
        r"crl\.der .*: expected the number 5|crl\.der: expected the number 5",
    ),
    "a CA that another one has issued": Refusal(
        lambda _: {"names": ["eu"]}, r"out/eu: expected a certificate that eu has issu"
    ),
    "the CA itself": Refusal(
        lambda _: {"name": "root", "names": ["root"]},
        "out/root: expected a CA below root: no CA revokes itself",
    ),
    "the CA itself, by its number": Refusal(
        lambda held: {
            "name": "root",
            "serials": [serial_of(held, "root")],
            "takes_unknown": True,
        },
        "--serial [0-9a-f]+: expected a CA below root: no CA revokes itself",
    ),
    "a CA that is not signed": Refusal(
        lambda _: {"names": ["us"]}, r"out/us/certificate.pem: cannot be read"
    ),
    "a certificate of another CA": Refusal(
        lambda held: certificate(held, OTHER.issue_ca("x").certificate),
        r"expected a certificate that eu has issued \(found one of CN=another\)",
    ),
    "a certificate of the same name and another key": Refusal(
        lambda held: certificate(held, twin(held).issue_ca("x").certificate),
        "expected a certificate that eu has issued",
    ),
    "a leaf": Refusal(
        lambda held: certificate(
            held, authority(held, "eu").issue_leaf(x509.DNSName("x"))
        ),
        r"expected the certificate of a CA \(found a leaf\)",
    ),
    "a serial number of no certificate": Refusal(
        lambda _: {"serials": [0xABC]},
        r"--serial abc: .* has no certificate of eu .*\(prod\).*--confirm-unknown-se",
    ),
    "a CA that is revoked already": Refusal(
        revoked_before,
        "is revoked already, since 2026-06-01T11:55:00",
    ),
    "a next update after the end of the CA": Refusal(
        lambda held: at(NOW + timedelta(days=5 * 365))(held) | {"days": 300},
        r"eu: the next update would be .*after the end of this CA .*--days \d+ at most",
    ),
    "a next update in more than a year": Refusal(
        lambda _: {"days": 366}, r"--days: expected 1 to 365"
    ),
    "a next update now": Refusal(lambda _: {"days": 0}, r"--days: expected 1 to 365"),
    "a CA that has ended": Refusal(
        at(NOW + timedelta(days=6 * 365)), "eu: its certificate is valid from .*not now"
    ),
    "a clock before the last list": Refusal(
        made_tomorrow,
        "eu: its last CRL is of .*set the machine's clock",
    ),
    "another key": Refusal(
        with_key(LocalKey(new_key())), "eu: the key is not that of its certificate"
    ),
    "an unknown CA": Refusal(lambda _: {"name": "us"}, "us: expected the name of a CA"),
    "a transcript that was changed": Refusal(
        changed_transcript, "it does not follow the line before"
    ),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_what_is_refused_writes_nothing(held: HeldCeremony, case: Refusal) -> None:
    given = case.prepare(held)
    name = given.pop("name", "eu")
    before = set((held.folder / "out").rglob("*"))
    with pytest.raises(case.error, match=case.says):
        make(held, name, **given)
    assert set((held.folder / "out").rglob("*")) == before


def test_a_device_that_signs_something_else_is_found(held: HeldCeremony) -> None:
    held.signers["eu"] = BrokenKey(authority(held, "eu").key)
    with pytest.raises(BackendBrokenError, match="eu: the signature is not one of the"):
        make(held)
    assert held.output.crls("eu") == {}


def test_a_list_that_is_not_the_linted_one_is_not_written(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = PlannedCRL.joined, list[bytes]()

    def joined(
        planned: PlannedCRL, tbs: bytes, signature: bytes
    ) -> x509.CertificateRevocationList:
        given = tbs.replace(b"Corp EU CA", b"Corp EW CA") if seen else tbs
        seen.append(tbs)
        return real(planned, given, signature)

    monkeypatch.setattr(PlannedCRL, "joined", joined)
    with pytest.raises(BackendBrokenError, match="eu: what was signed is not what was"):
        make(held)
    assert not held.output.crls("eu")


def test_an_unknown_serial_number_that_is_confirmed_is_revoked(
    held: HeldCeremony,
) -> None:
    done = make(held, serials=[0xABC], takes_unknown=True)
    assert revoked(done) == {0xABC: None}


def test_a_ca_that_may_sign_no_crl_is_told(tmp_path: Path) -> None:
    content = tree(root={"key_usage": ["cert_sign"]})
    content["accepted"] = [
        {"rule": "key_usage.no-crl-sign", "ca": "root", "reason": "a test"}
    ]
    held = HeldCeremony(tmp_path, content)
    sign(held.ceremony(), "root")
    with pytest.raises(ConfigError, match="root: its certificate has no cRLSign"):
        make(held, "root")


def test_the_real_key_does_not_see_what_a_linter_refuses(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "crl_findings", lambda _: ["has a finding of pkilint"])
    held.signers["eu"] = BrokenKey(authority(held, "eu").key)
    with pytest.raises(ConfigError, match="eu: the CRL has a finding of pkilint"):
        make(held)


def test_what_is_linted_has_the_bytes_of_what_is_signed(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    linted: list[x509.CertificateRevocationList] = []

    def note(crl: x509.CertificateRevocationList) -> Sequence[str]:
        linted.append(crl)
        return ()

    monkeypatch.setattr(module, "crl_findings", note)
    done = make(held, names=["prod"])
    before, after = linted
    assert before.tbs_certlist_bytes == done.crl.tbs_certlist_bytes
    assert before.signature != done.crl.signature
    assert after == done.crl


def test_an_overdue_list_is_not_handed_out(held: HeldCeremony) -> None:
    assert held.output.crl("eu", NOW) is None
    make(held, days=30)
    last = path_of(held, make(held, days=60), "crl.pem").read_bytes()
    assert held.output.crl("eu", NOW + timedelta(days=59)) == last
    assert held.output.crl("eu", NOW + timedelta(days=61)) is None


def test_openssl_reads_it(held: HeldCeremony) -> None:
    done = make(held, names=["prod"], reason=REASONS["keyCompromise"])
    eu = held.folder / "out/eu/certificate.pem"
    shown = subprocess.run(
        [
            *("openssl", "crl", "-noout", "-text", "-nameopt", "utf8"),
            *("-in", path_of(held, done, "crl.pem"), "-CAfile", eu),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "verify OK" in shown.stderr
    for text in ("Only CA Certificates", "Key Compromise", "X509v3 CRL Number"):
        assert text in shown.stdout
