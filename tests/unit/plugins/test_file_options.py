"""The options of the plugin `file`: each mistake by its sentence."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.spi import PluginContext
from bridge_file.options import parse_options

BASE = Path("/etc/meshca")
CHAIN = Path("chain.pem")


def context(chain: Path | None) -> PluginContext:
    return PluginContext(name="seoul-1", base=BASE, chain=chain)


@pytest.mark.parametrize(
    ("options", "chain", "complaint"),
    [
        (
            {},
            CHAIN,
            (
                r"^issuing_cas\.seoul-1\.options: expected one of key, tls_folder, "
                r"cacerts_folder \(found none\)$"
            ),
        ),
        (
            {"key": "a", "tls_folder": "b"},
            CHAIN,
            r"expected one of .* \(found key and tls_folder\)",
        ),
        (
            {"key": "k", "passphrase": "hunter2"},
            CHAIN,
            (
                r"^issuing_cas\.seoul-1\.options\.passphrase: unknown option; expected "
                r"one of key, .*passphrase_file.*$"
            ),
        ),
        (
            {"key": 7},
            CHAIN,
            r"issuing_cas\.seoul-1\.options\.key: .*path.* \(found 7\)",
        ),
        (
            {"key": "k", "allow_group_read": "yes"},
            CHAIN,
            r"options\.allow_group_read: .*boolean \(found 'yes'\)",
        ),
        (
            {"key": "k", "passphrase_file": ["x" * 100]},
            CHAIN,
            r"options\.passphrase_file: .*path.* \(found \['x{78}\.\.\.\)",
        ),
        (
            {"key": "k"},
            None,
            r"^issuing_cas\.seoul-1\.chain: .*expected a file .*\(found nothing\)$",
        ),
        (
            {"tls_folder": "d"},
            CHAIN,
            r"^issuing_cas\.seoul-1\.chain: expected nothing: .*'chain\.pem'",
        ),
        ({"cacerts_folder": "d"}, CHAIN, r"seoul-1\.chain: expected nothing"),
    ],
)
def test_a_bad_option_is_named(
    options: Mapping[str, object], chain: Path | None, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_options(options, context(chain))


def test_all_problems_come_at_once_and_no_unknown_value_is_shown() -> None:
    options = {"key": 7, "allow_group_read": 1, "pin": "hunter2"}
    with pytest.raises(ConfigError, match=r"\.key: ") as caught:
        parse_options(options, context(CHAIN))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "chain", "names"),
    [
        ({"key": "k.pem"}, CHAIN, ["k.pem", "chain.pem"]),
        ({"tls_folder": "d"}, None, ["d/tls.key", "d/tls.crt", "d/ca.crt"]),
        (
            {"cacerts_folder": "d", "passphrase_file": "p"},
            None,
            [
                "d/ca-key.pem",
                "d/ca-cert.pem",
                "d/cert-chain.pem",
                "d/root-cert.pem",
                "p",
            ],
        ),
    ],
)
def test_paths_are_relative_to_the_configuration(
    options: Mapping[str, object], chain: Path | None, names: list[str]
) -> None:
    files = parse_options(options, context(chain))
    assert list(files.paths) == [BASE / name for name in names]


def test_an_absolute_path_stays() -> None:
    files = parse_options({"tls_folder": "/run/secrets/ca"}, context(None))
    assert files.key == Path("/run/secrets/ca/tls.key")
