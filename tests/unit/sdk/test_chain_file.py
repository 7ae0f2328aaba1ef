"""Which certificate of the file `chain` is the issuing CA's, and its watch."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed448

from bridge.errors import BackendUnavailableError, ConfigError
from bridge.sdk import (
    Holds,
    read_chain,
    read_description,
    read_watched_description,
)
from bridge.spi import Description, PluginContext
from tests.support.parts.pki import Authority, Key, bundle, new_chain, new_root


def context(base: Path, chain: str | None) -> PluginContext:
    return PluginContext(name="hsm-1", base=base, chain=Path(chain) if chain else None)


CA = new_chain()
OTHER = new_chain()
"""Another hierarchy of the same names, with other keys."""


def test_a_chain_is_the_issuing_ca_and_its_intermediates(tmp_path: Path) -> None:
    (tmp_path / "chain.pem").write_bytes(bundle(*CA.chain))
    assert read_chain(context(tmp_path, "chain.pem")) == CA.chain


LOWER = CA.issue_ca("lower")
TWIN = OTHER.issue_ca("lower", key=LOWER.key)
"""The other half of a cross-signed pair: the name and key of `LOWER`."""


STRANGER = new_root("stranger").issue_ca("of a stranger")
SIBLING = CA.above[0].issue_ca("sibling")
LEAF = CA.issue_leaf(x509.DNSName("a.example"))
ODD = CA.above[0].issue_ca("odd", key=cast("Key", ed448.Ed448PrivateKey.generate()))


@pytest.mark.parametrize(
    "given",
    [
        (STRANGER, CA, CA.above[0]),
        (SIBLING, CA, CA.above[0]),
        (CA.above[0], SIBLING, CA),
        (STRANGER, SIBLING, CA, CA.above[0]),
        (CA, STRANGER, CA.above[0]),
    ],
    ids=["a stranger", "a sibling", "from above", "both", "the first one"],
)
def test_of_several_the_issuing_ca_is_the_one_whose_key_the_backend_holds(
    tmp_path: Path, given: tuple[Authority, ...]
) -> None:
    own = CA.key.public_key()
    (tmp_path / "chain.pem").write_bytes(bundle(*(one.certificate for one in given)))
    found = read_chain(context(tmp_path, "chain.pem"), holds=lambda key: key == own)
    assert found[0] == CA.certificate
    assert {*found} == {one.certificate for one in given}


def refused(_: object) -> bool:
    raise BackendUnavailableError("no answer")


def asked_in_vain(_: object) -> bool:
    raise AssertionError("the backend was asked")


@pytest.mark.parametrize(
    ("holds", "why"),
    [
        (refused, "the backend, which could tell, cannot be asked: no answer"),
        (lambda _: False, "the backend has the key of none of them"),
    ],
)
def test_a_backend_that_cannot_tell_leaves_the_first_one_and_a_warning(
    tmp_path: Path, holds: Holds, why: str
) -> None:
    (tmp_path / "chain.pem").write_bytes(bundle(STRANGER.certificate, *CA.chain))
    told: list[str] = []
    given = replace(context(tmp_path, "chain.pem"), warn=told.append)
    assert read_chain(given, holds=holds)[0] == STRANGER.certificate
    (line,) = told
    assert line.startswith("issuing_cas.hsm-1.chain: ")
    assert f"and {why}; put the issuing CA's certificate first" in line


@pytest.mark.parametrize(
    "given",
    [
        CA.chain,
        (STRANGER.root, *CA.chain),
        (*CA.chain, CA.root, LEAF),
        (ODD.certificate, *CA.chain),
    ],
    ids=["plain", "a root before", "a root and a leaf after", "an odd key before"],
)
def test_a_backend_is_not_asked_what_the_file_tells(
    tmp_path: Path, given: tuple[x509.Certificate, ...]
) -> None:
    (tmp_path / "chain.pem").write_bytes(bundle(*given))
    found = read_chain(context(tmp_path, "chain.pem"), holds=asked_in_vain)
    assert found[0] == CA.certificate


def test_a_chain_is_watched_with_the_files_beside_it(tmp_path: Path) -> None:
    path, beside = tmp_path / "chain.pem", tmp_path / "token"
    path.write_bytes(bundle(*CA.chain))
    beside.write_bytes(b"1")
    changed = threading.Event()
    given = context(tmp_path, "chain.pem")
    description, files = read_watched_description(
        given, assurance="hsm", beside=[beside]
    )
    assert description == read_description(given, assurance="hsm")
    try:
        files.watch(changed.set)
        beside.write_bytes(b"2")
        assert changed.wait(20)
    finally:
        files.close()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # an issuing CA may be a root; whether it may be used is the core's to say
        ((CA.root,), (CA.root,)),
        # the order does not matter, and a certificate that stands twice comes once
        (
            (CA.root, *reversed(CA.chain), CA.root),
            (CA.certificate, CA.root, CA.chain[1]),
        ),
        # the first one stays first, if it can be the issuing CA
        ((CA.certificate, *OTHER.chain), (CA.certificate, *OTHER.chain)),
        # of several at a lower end, it is the one below the first certificate
        (
            (CA.root, OTHER.certificate, CA.chain[1], CA.certificate),
            (CA.certificate, CA.root, OTHER.certificate, CA.chain[1]),
        ),
        # no root, and no certificate of a workload, is an issuing CA
        (
            (STRANGER.root, LEAF, *CA.chain),
            (CA.certificate, STRANGER.root, LEAF, CA.chain[1]),
        ),
        # a pair of one name and one key
        (
            (CA.certificate, LOWER.certificate, OTHER.certificate, TWIN.certificate),
            (LOWER.certificate, CA.certificate, OTHER.certificate, TWIN.certificate),
        ),
    ],
    ids=[
        "a root",
        "reversed",
        "strangers after",
        "strangers between",
        "a root and a leaf before",
        "a pair",
    ],
)
def test_the_issuing_ca_comes_first_and_each_certificate_once(
    tmp_path: Path,
    given: tuple[x509.Certificate, ...],
    expected: tuple[x509.Certificate, ...],
) -> None:
    (tmp_path / "chain.pem").write_bytes(bundle(*given))
    assert read_chain(context(tmp_path, "chain.pem")) == expected


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"^issuing_cas\.hsm-1\.chain: .*chain\.pem: expected one or more"),
        # two that the first one has issued
        (
            bundle(
                CA.root,
                CA.certificate,
                CA.chain[1],
                CA.above[0].issue_ca("b").certificate,
            ),
            (
                r"^issuing_cas\.hsm-1\.chain: .*chain\.pem: expected the issuing CA's "
                r"certificate first, .* \(CN=issuing .* and CN=b\)$"
            ),
        ),
    ],
)
def test_a_file_that_is_no_chain_is_refused(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    (tmp_path / "chain.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        read_chain(context(tmp_path, "chain.pem"))


@pytest.mark.parametrize(
    ("chain", "complaint"),
    [
        (None, r"^issuing_cas\.hsm-1\.chain: expected a file .* \(found nothing\)$"),
        ("no.pem", r"^issuing_cas\.hsm-1\.chain: .*no\.pem: cannot be read: No such"),
    ],
)
def test_a_chain_that_is_absent_is_refused(
    tmp_path: Path, chain: str | None, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_chain(context(tmp_path, chain))


def test_a_chain_is_described(tmp_path: Path) -> None:
    (tmp_path / "chain.pem").write_bytes(bundle(*CA.chain))
    issuing, *above = CA.chain
    assert read_description(
        context(tmp_path, "chain.pem"), assurance="hsm", labels={"token": "mesh"}
    ) == Description(
        certificate=issuing,
        intermediates=tuple(above),
        assurance="hsm",
        labels={"token": "mesh"},
    )


def test_an_issuing_ca_whose_key_signs_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chain.pem").write_bytes(bundle(*ODD.chain))
    refused = r"^issuing_cas\.hsm-1\.chain: .*chain\.pem: expected an issuing CA"
    with pytest.raises(ConfigError, match=refused):
        read_description(context(tmp_path, "chain.pem"), assurance="hsm")
