"""A transcript tells of any edit, cut or reorder, and whether a quorum signed it."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.hierarchy.keys import LocalKey
from bridge.hierarchy.schema import parse
from bridge.hierarchy.transcript import (
    FILE_NAME,
    HSM,
    Record,
    Transcript,
    digest_of_file,
    officers_of,
    problems,
    read,
    require_officer,
)
from bridge.ledger.chain import canonical
from bridge.x509.algorithm import CAPublicKey
from tests.support.parts.pki import NOW, Key, new_key, public_pem

HIERARCHY = sha256(b"the hierarchy file").hexdigest()
OTHER = sha256(b"something else").hexdigest()
KEYS = {name: new_key("ed25519") for name in ("Ada", "Grace", "Hedy")}


def officers() -> dict[str, CAPublicKey]:
    return {name: key.public_key() for name, key in KEYS.items()}


def step(transcript: Transcript, name: str, minute: int = 0) -> None:
    """Write a certificate and its entry, as `sign` does."""
    file = transcript.path.parent / name / "certificate.pem"
    file.parent.mkdir()
    file.write_text(name)
    transcript.append(
        f"sign {name}",
        "ada",
        NOW + timedelta(minutes=minute),
        files={f"{name}/certificate.pem": digest_of_file(file)},
        details={"ca": name, "hierarchy": HIERARCHY},
        hsm=HSM(serial="DENK0100001", firmware="2.1", model="Offline HSM"),
    )


def approve(transcript: Transcript, *names: str, minute: int = 0) -> None:
    for name in names:
        at = NOW + timedelta(minutes=minute)
        transcript.sign(name, LocalKey(KEYS[name]), at, timeout=1)


@pytest.fixture
def signed(tmp_path: Path) -> Transcript:
    """Two ceremonies: root, then eu, each signed by two officers."""
    transcript = Transcript(tmp_path / FILE_NAME)
    step(transcript, "root")
    approve(transcript, "Ada", "Grace", minute=1)
    step(transcript, "eu", minute=2)
    approve(transcript, "Ada", "Hedy", minute=3)
    return transcript


def found(path: Path, *, head: str | None = None, quorum: int = 2) -> list[str]:
    """Return all that is wrong with a transcript."""
    try:
        record = read(path)
    except ConfigError as error:
        return [str(error)]
    return [*problems(record, officers(), quorum, hierarchy=HIERARCHY, head=head)]


def test_a_transcript_that_is_signed_by_the_quorum_is_whole(signed: Transcript) -> None:
    record = read(signed.path)
    assert found(signed.path, head=record.head) == []
    assert [one.command for one in record.entries] == ["sign root", "sign eu"]
    assert [one.officer for one in record.signatures] == ["Ada", "Hedy"]
    last = record.entries[-1]
    assert last.hsm == HSM(serial="DENK0100001", firmware="2.1", model="Offline HSM")
    assert {"meshca-bridge", "cryptography", "openssl", "python"} == {*last.versions}
    assert last.time == NOW + timedelta(minutes=2)


def test_a_changed_byte_is_found_wherever_it_is(signed: Transcript) -> None:
    # Every ninth byte, as each costs a read; and all of the end of the last signature.
    data = signed.path.read_bytes()
    for place in {*range(0, len(data), 9), *range(len(data) - 30, len(data))}:
        changed = bytearray(data)
        changed[place] ^= 1
        signed.path.write_bytes(changed)
        assert found(signed.path), f"byte {place} of {data[place - 20 : place + 20]!r}"


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def rechained(lines: list[bytes]) -> list[bytes]:
    """Number and hash the lines anew, as someone without an officer's key can."""
    done: list[bytes] = []
    previous = "0" * 64
    for number, line in enumerate(lines, 1):
        values = json.loads(line) | {"number": number, "previous": previous}
        done.append(canonical(values) + b"\n")
        previous = sha256(done[-1][:-1]).hexdigest()
    return done


def edited(line: bytes) -> bytes:
    return line.replace(b'"operator":"ada"', b'"operator":"eve"')


CHANGES: list[tuple[str, Callable[[list[bytes]], list[bytes]], str]] = [
    ("a line gone", lambda all_: all_[:1] + all_[2:], r":2: it does not follow"),
    ("first gone", lambda all_: all_[1:], r":1: it does not follow"),
    ("reordered", lambda all_: [all_[0], all_[2], all_[1], *all_[3:]], r":2: it does"),
    (
        "two signatures swapped",
        lambda all_: [*all_[:4], all_[5], all_[4]],
        r":5: it does not follow",
    ),
    (
        "two signatures swapped and hashed",
        lambda all_: rechained([*all_[:4], all_[5], all_[4]]),
        r":5: the signature of Hedy is not over these lines",
    ),
    ("twice", lambda all_: [*all_[:2], *all_[1:]], r":3: it does not follow"),
    ("edited", lambda all_: [edited(all_[0]), *all_[1:]], r":2: it does not follow"),
    (
        "edited and hashed",
        lambda all_: rechained([edited(all_[0]), *all_[1:]]),
        r":2: the signature of Ada is not over these lines",
    ),
    (
        "reordered and hashed",
        lambda all_: rechained([*all_[3:], *all_[:3]]),
        r":2: the signature of Ada is not over these lines",
    ),
    ("cut in a line", lambda all_: [*all_[:-1], all_[-1][:-9]], r":6: .* cut off here"),
    ("newline gone", lambda all_: [*all_[:-1], all_[-1][:-1]], r":6: .* cut off here"),
    ("a signature cut", lambda all_: all_[:-1], r"of 2 officers .*found 1: Ada"),
    ("signatures cut", lambda all_: all_[:-2], r"of 2 officers .*found 0: nobody"),
    ("a ceremony cut", lambda all_: all_[:3], r"eu/certificate.pem: no entry names"),
    ("all cut", lambda all_: all_[:0], r"it has no entry"),
    ("blank line", lambda all_: [*all_, b"\n"], r":7: no line of a transcript"),
    ("added", lambda all_: rechained([*all_, all_[0]]), r"line|signature|officers"),
    (
        "a blank in a line",
        lambda all_: [all_[0].replace(b":", b": ", 1), *all_[1:]],
        r":1: the line was changed: expected JSON as meshca writes it",
    ),
    (
        "a key twice",
        lambda all_: [all_[0].replace(b"{", b'{"format":1,', 1), *all_[1:]],
        r":1: the line was changed",
    ),
    (
        "an unknown key",
        lambda all_: [all_[0].replace(b"{", b'{"also":1,', 1), *all_[1:]],
        r":1: no line of a transcript, or changed: entry.also: ",
    ),
    (
        "a newer format",
        lambda all_: [all_[0].replace(b'"format":1', b'"format":2'), *all_[1:]],
        r":1: its format is 2, and this release reads 1: use the release of meshca",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES]
)
def test_each_change_is_found(
    signed: Transcript,
    change: Callable[[list[bytes]], list[bytes]],
    message: str,
) -> None:
    signed.path.write_bytes(b"".join(change(lines_of(signed.path))))
    assert re.search(message, "\n".join(found(signed.path)))


def test_a_cut_with_its_files_gone_too_is_found_by_the_noted_head(
    signed: Transcript,
) -> None:
    noted = read(signed.path).head
    signed.path.write_bytes(b"".join(lines_of(signed.path)[:3]))
    (signed.path.parent / "eu/certificate.pem").unlink()
    assert found(signed.path) == []
    assert re.search(
        "lines at the end were cut off", "\n".join(found(signed.path, head=noted))
    )


def test_a_file_that_was_changed_since_is_found(signed: Transcript) -> None:
    (signed.path.parent / "root/certificate.pem").write_text("another")
    assert re.search(
        r"root/certificate\.pem: it was changed since the ceremony",
        "\n".join(found(signed.path)),
    )


def test_of_a_file_that_was_written_twice_the_last_digest_counts(
    signed: Transcript,
) -> None:
    manifest = signed.path.parent / "manifest.json"
    for content in ("first", "second"):
        manifest.write_text(content)
        digests = {"manifest.json": digest_of_file(manifest)}
        at = NOW + timedelta(minutes=4)
        signed.append("sign", "ada", at, files=digests)
    approve(signed, "Ada", "Grace", minute=5)
    assert found(signed.path) == []


def test_the_hierarchy_file_is_the_one_of_the_ceremony(signed: Transcript) -> None:
    record = read(signed.path)
    assert re.search(
        "verify with the file as it was in the ceremony",
        "\n".join(problems(record, officers(), 2, hierarchy=OTHER)),
    )


def with_keys(record: Record, **keys: Key) -> list[str]:
    public = {name: key.public_key() for name, key in keys.items()}
    return [*problems(record, public, 2, hierarchy=HIERARCHY)]


def test_a_signature_counts_only_with_a_key_of_the_hierarchy_file(
    signed: Transcript,
) -> None:
    record = read(signed.path)
    told = "\n".join(with_keys(record, Ada=KEYS["Ada"], Hedy=new_key()))
    assert "is signed as Hedy, with a key that is not this officer's" in told
    assert "found 1: Ada" in told
    swapped = with_keys(record, Hedy=KEYS["Ada"], Ada=KEYS["Hedy"])
    assert len(swapped) == 2


def test_an_officer_signs_once(signed: Transcript) -> None:
    with pytest.raises(ConfigError, match="Hedy has signed this already: expected the"):
        approve(signed, "Hedy", minute=4)


def test_an_entry_after_the_signatures_is_to_be_signed_again(
    signed: Transcript,
) -> None:
    step(signed, "us", minute=4)
    assert re.search("found 0: nobody", "\n".join(found(signed.path)))
    approve(signed, "Grace", "Ada", minute=5)
    assert found(signed.path) == []


def test_nothing_is_signed_before_the_first_entry(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / FILE_NAME)
    transcript.path.write_bytes(b"")
    with pytest.raises(ConfigError, match="no entry that could be signed"):
        approve(transcript, "Ada")


def test_nothing_is_added_to_a_transcript_that_was_changed(signed: Transcript) -> None:
    data = signed.path.read_bytes().replace(b'"ada"', b'"eve"')
    signed.path.write_bytes(data)
    with pytest.raises(ConfigError, match=":2: it does not follow the line before"):
        signed.append("sign us", "ada", NOW)
    assert signed.path.read_bytes() == data


def test_nothing_is_added_with_a_clock_that_went_back(signed: Transcript) -> None:
    data = signed.path.read_bytes()
    with pytest.raises(ConfigError, match="set the machine's clock"):
        signed.append("sign us", "ada", NOW - timedelta(hours=1))
    assert signed.path.read_bytes() == data


def test_a_transcript_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        Transcript(tmp_path / "absent" / FILE_NAME).append("sign", "ada", NOW)


def test_an_absent_transcript_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read(tmp_path / FILE_NAME)


FILE = """
version: 1
name: corp
organisation: Corp
officers:
- {name: Ada, role: security officer, public_key: ada.pem}
- {name: Grace, role: witness, public_key: grace.pem}
quorum: 2
cas:
  root:
    common_name: Corp Root CA
    key: {backend: file, path: root.key, algorithm: p256}
    validity: {years: 20}
    path_len: 2
"""


def test_the_officers_keys_come_from_the_hierarchy_file(tmp_path: Path) -> None:
    for name in ("Ada", "Grace"):
        (tmp_path / f"{name.lower()}.pem").write_bytes(public_pem(KEYS[name]))
    read_keys = officers_of(parse(FILE.encode(), tmp_path / "hierarchy.yaml"))
    assert read_keys == {name: officers()[name] for name in ("Ada", "Grace")}
    require_officer("Ada", KEYS["Ada"].public_key(), read_keys)
    with pytest.raises(ConfigError, match=r"no officer is called 'Eve': .* Ada, Grace"):
        require_officer("Eve", KEYS["Ada"].public_key(), read_keys)
    with pytest.raises(ConfigError, match=r"not the one that .* has for Ada"):
        require_officer("Ada", KEYS["Grace"].public_key(), read_keys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (public_pem(KEYS["Ada"]), r"grace\.pem: two officers have this name or this"),
        (b"no key", r"grace\.pem: expected a public key in PEM: RSA .*found none"),
        (public_pem(new_key("rsa1024")), r"grace\.pem: .*RSA key"),
    ],
    ids=["key of another officer", "no key", "weak key"],
)
def test_an_officers_key_that_is_none_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "ada.pem").write_bytes(public_pem(KEYS["Ada"]))
    (tmp_path / "grace.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        officers_of(parse(FILE.encode(), tmp_path / "hierarchy.yaml"))
