"""The SDK: options, files and chains of a plugin, each mistake by its sentence."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed448

from bridge.errors import ConfigError
from bridge.sdk import (
    FileOption,
    PluginOptions,
    option_error,
    parse_options,
    placed,
    read_chain,
    read_description,
    secret_line,
)
from bridge.spi import Description, PluginContext
from tests.support.parts.pki import Key, bundle, new_chain


class TokenOptions(PluginOptions):
    token: str
    pin_file: FileOption
    sessions: int = 8


GOOD = {"token": "mesh", "pin_file": "pin"}


def context(base: Path, chain: str | None = None) -> PluginContext:
    return PluginContext(name="hsm-1", base=base, chain=Path(chain) if chain else None)


def test_options_are_read_and_a_file_is_found_beside_the_configuration() -> None:
    found = parse_options(TokenOptions, GOOD, context(Path("/etc/meshca")))
    assert found == TokenOptions(token="mesh", pin_file=Path("/etc/meshca/pin"))  # noqa: S106 - a label


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        # a misspelt name; its value may be a secret
        (
            {"pin": "hunter2"},
            (
                r"^issuing_cas\.hsm-1\.options\.pin: unknown option; expected one of "
                r"token, pin_file, sessions$"
            ),
        ),
        # a wrong type is not converted
        (
            {"sessions": "8"},
            r"^issuing_cas\.hsm-1\.options\.sessions: .*'8'\)$",
        ),
        # a long value is cut
        ({"sessions": "x" * 100}, r"\(found 'x{79}\.\.\.\)$"),
        # an option that has to be there
        (
            {"token": ...},
            r"^issuing_cas\.hsm-1\.options\.token: expected a value \(found nothing\)$",
        ),
    ],
)
def test_a_bad_option_is_named(change: Mapping[str, object], complaint: str) -> None:
    options = {k: v for k, v in {**GOOD, **change}.items() if v is not ...}
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_options(TokenOptions, options, context(Path()))
    assert "hunter2" not in str(caught.value)


def test_every_problem_has_its_line() -> None:
    with pytest.raises(ConfigError, match="token") as caught:
        parse_options(TokenOptions, {"sessions": "8", "pin": "1"}, context(Path()))
    assert len(str(caught.value).splitlines()) == 4


def test_the_error_of_an_option_names_it() -> None:
    told = str(option_error(context(Path()), "options.key", "expected one (found 2)"))
    assert told == "issuing_cas.hsm-1.options.key: expected one (found 2)"


def test_a_line_that_begins_with_a_file_gets_the_key_of_the_file() -> None:
    error = ConfigError("/a: is gone\n/d/x: is odd\n/other: is fine", rule="file.read")
    told = placed(error, {Path("/a"): "options.pin_file", Path("/d"): "options.folder"})
    assert str(told).splitlines() == [
        "options.pin_file: /a: is gone",
        "options.folder: /d/x: is odd",
        "/other: is fine",
    ]
    assert told.rule == "file.read"


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"1234", b"1234"),
        (b"1234\n", b"1234"),
        (b"1234\r\n", b"1234"),
        (b"1234\n\n", b"1234\n"),  # only one newline is the editor's
        (b" 1234 ", b" 1234 "),  # blanks may be part of a secret
    ],
)
def test_one_newline_is_no_part_of_a_secret(content: bytes, secret: bytes) -> None:
    assert secret_line(content, Path("pin"), "a PIN") == secret


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"])
def test_a_file_without_a_secret_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^pin: expected a PIN \(found an empty"):
        secret_line(content, Path("pin"), "a PIN")


CA = new_chain()
OTHER = new_chain()
"""Another hierarchy of the same names, with other keys."""


def test_a_chain_is_the_issuing_ca_and_its_intermediates(tmp_path: Path) -> None:
    (tmp_path / "chain.pem").write_bytes(bundle(*CA.chain))
    assert read_chain(context(tmp_path, "chain.pem")) == CA.chain


LOWER = CA.issue_ca("lower")
TWIN = OTHER.issue_ca("lower", key=LOWER.key)
"""The other half of a cross-signed pair: the name and key of `LOWER`."""


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
        # a pair of one name and one key
        (
            (CA.certificate, LOWER.certificate, OTHER.certificate, TWIN.certificate),
            (LOWER.certificate, CA.certificate, OTHER.certificate, TWIN.certificate),
        ),
    ],
    ids=["a root", "reversed", "strangers after", "strangers between", "a pair"],
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
    odd = CA.issue_ca("odd", key=cast("Key", ed448.Ed448PrivateKey.generate()))
    (tmp_path / "chain.pem").write_bytes(bundle(*odd.chain))
    refused = r"^issuing_cas\.hsm-1\.chain: .*chain\.pem: expected an issuing CA"
    with pytest.raises(ConfigError, match=refused):
        read_description(context(tmp_path, "chain.pem"), assurance="hsm")
