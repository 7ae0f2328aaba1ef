"""`meshca hierarchy export`: from the files of a ceremony to those of a cluster."""

import json
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import CliRunner, Result

from bridge.cli.command_line import app
from bridge.errors import ConfigError
from bridge.hierarchy.transcript import file_problems, read
from tests.support.parts.hierarchy_file import changed
from tests.unit.hierarchy.plan.test_cluster_rules import with_cas

CLUSTER_CAS = ("prod-kubernetes", "prod-etcd", "prod-front-proxy")
NAMES = ("root", "eu", "prod", *CLUSTER_CAS)


def meshca(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["hierarchy", *map(str, arguments)])


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}"


class Held:
    """A ceremony that was held, with its hierarchy file and its keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "hierarchy.yaml"
        self.out = folder / "out"
        self.write()
        (folder / "keys").mkdir(mode=0o700)
        for name in NAMES:
            options = ("--out", self.out, "--make-key", "--time", now())
            found = meshca("sign", self.file, name, *options)
            assert found.exit_code == 0, found.output

    def write(self, **changes: Any) -> None:
        given = {key.replace("__", "."): value for key, value in changes.items()}
        self.file.write_text(json.dumps(changed(with_cas() | given)))

    def export(self, name: str, *options: object) -> Result:
        clock = () if "--as" in options else ("--time", now())
        return meshca("export", self.file, name, "--out", self.out, *clock, *options)


@pytest.fixture(scope="module")
def ceremony(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return Held(tmp_path_factory.mktemp("ceremony"))


@pytest.fixture
def held(ceremony: Held) -> Iterator[Held]:
    yield ceremony
    ceremony.write()


def test_a_ca_is_written_in_a_shape(held: Held, tmp_path: Path) -> None:
    to = tmp_path / "istio"
    found = held.export("prod", "--as", "istio-cacerts", "--to", to)
    assert found.exit_code == 0, found.output
    assert {str(path.relative_to(to)) for path in to.rglob("*.*")} == {
        "cacerts/ca-cert.pem",
        "cacerts/ca-key.pem",
        "cacerts/cert-chain.pem",
        "cacerts/root-cert.pem",
        "secret.yaml",
    }
    own = (held.out / "prod/certificate.pem").read_bytes()
    assert (to / "cacerts/ca-cert.pem").read_bytes() == own
    assert all(
        stat.S_IMODE(path.stat().st_mode) == 0o600
        for path in to.rglob("*")
        if path.is_file()
    )


@pytest.mark.parametrize(
    ("option", "anchor"),
    [("--kubeadm", "pki/ca.crt"), ("--files", "kube-apiserver/client-ca.crt")],
)
def test_a_cluster_is_issued_for_and_recorded(
    held: Held, tmp_path: Path, option: str, anchor: str
) -> None:
    to = tmp_path / "cluster"
    found = held.export("prod", option, to)
    assert found.exit_code == 0, found.output
    written = (to / "cp-1" / anchor).read_bytes()
    assert x509.load_pem_x509_certificate(written) == x509.load_pem_x509_certificate(
        (held.out / "prod-kubernetes/certificate.pem").read_bytes()
    )
    entry = read(held.out / "transcript.jsonl").entries[-1]
    assert entry.command == "export prod"
    paths = (path for path in to.rglob("*") if path.is_file())
    assert entry.files.keys() == {str(path) for path in paths}


def test_a_new_node_of_a_running_cluster_gets_its_key_of_accounts(
    held: Held, tmp_path: Path
) -> None:
    assert held.export("prod", "--kubeadm", tmp_path / "old").exit_code == 0
    key = tmp_path / "old/cp-1/pki/sa.key"
    options = ("--node", "cp-1", "--account-key", key)
    found = held.export("prod", "--kubeadm", tmp_path / "new", *options)
    assert found.exit_code == 0, found.output
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cp-1"]
    assert (tmp_path / "new/cp-1/pki/sa.key").read_bytes() == key.read_bytes()


def test_an_issuer_of_kind_vault_has_its_options(held: Held, tmp_path: Path) -> None:
    options = {
        "server": "https://vault.example:8200",
        "path": "pki/sign/web",
        "role": "web",
        "service-account": "issuer",
    }
    given = [part for key, one in options.items() for part in (f"--vault-{key}", one)]
    shape = ("--as", "vault-issuer", "--to", tmp_path / "a")
    found = held.export("prod", *shape, *given)
    assert found.exit_code == 0, found.output
    text = (tmp_path / "a/issuer.yaml").read_text("utf-8")
    assert all(one in text for one in options.values())


def test_nothing_is_issued_under_a_ca_that_is_revoked(
    ceremony: Held, tmp_path: Path
) -> None:
    out, clock = tmp_path / "out", ("--time", now())
    shutil.copytree(ceremony.out, out)
    for name, revoked in (("root", "prod-etcd"), ("eu", "prod"), ("prod", None)):
        revoke = ("--revoke", revoked) if revoked else ()
        found = meshca("crl", ceremony.file, name, "--out", out, *clock, *revoke)
        assert found.exit_code == 0, found.output

    def export(*options: object) -> Result:
        return meshca("export", ceremony.file, "prod", "--out", out, *clock, *options)

    for options, told in (
        (("--kubeadm", tmp_path / "a"), "prod-etcd: prod-etcd is revoked by "),
        (("--as", "tls", "--to", tmp_path / "a"), "prod: prod is revoked by "),
    ):
        found = export(*options)
        assert isinstance(found.exception, ConfigError), found.output
        assert str(found.exception).startswith(told)
        assert not (tmp_path / "a").exists()
    # The lists themselves are what tells the proxies of it.
    found = export("--as", "istio-crl", "--to", tmp_path / "crls")
    assert found.exit_code == 0, found.output


USAGE = {
    "nothing": ((), "expected what to export of prod"),
    "two kinds": (("--kubeadm", "a", "--files", "b"), "one of them"),
    "a shape without folder": (("--as", "pem"), "--as and --to are given together"),
    "a folder without shape": (("--to", "a"), "--as and --to are given together"),
    "an unknown shape": (("--as", "p12", "--to", "a"), "expected one of pem, der"),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_call_is_told(held: Held, case: str) -> None:
    options, message = USAGE[case]
    found = held.export("prod", *options)
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())


def refused(held: Held, *options: object) -> str:
    """Return why an export is refused; it leaves nothing behind and signs nothing."""
    before = (held.out / "transcript.jsonl").read_bytes()
    found = held.export("prod", *options)
    assert isinstance(found.exception, ConfigError), found.output
    assert (held.out / "transcript.jsonl").read_bytes() == before
    return str(found.exception)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (("--time", "2020-01-31T12:00Z"), "the clock of this machine says"),
        ((), "--time: expected the time that you read elsewhere"),
    ],
)
def test_certificates_are_not_issued_by_a_clock_that_nobody_looked_at(
    held: Held, tmp_path: Path, told: tuple[str, ...], says: str
) -> None:
    options = ("--out", held.out, "--kubeadm", tmp_path / "a", *told)
    found = meshca("export", held.file, "prod", *options)
    assert isinstance(found.exception, ConfigError), found.output
    assert str(found.exception).startswith(says)
    assert not (tmp_path / "a").exists()


def test_the_common_root_as_an_anchor_of_clients_is_refused(
    held: Held, tmp_path: Path
) -> None:
    held.write(**{"cas.prod-kubernetes.anchor": "root"})
    message = refused(held, "--kubeadm", tmp_path / "a")
    assert "O=system:masters" in message
    assert "[client-ca.anchor]" in message
    assert not (tmp_path / "a").exists()


def test_files_of_an_earlier_export_are_not_mixed_with_new_ones(
    held: Held, tmp_path: Path
) -> None:
    (tmp_path / "old.crt").touch()
    message = refused(held, "--kubeadm", tmp_path)
    assert "expected a new or an empty folder" in message


def test_no_key_is_written_among_what_is_carried(held: Held) -> None:
    message = refused(held, "--kubeadm", held.out / "kubernetes")
    assert f"expected a folder outside {held.out}" in message


def test_a_folder_with_the_name_of_a_ca_is_not_taken_for_the_ceremony_s(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = held.export("prod", "--as", "pem", "--to", "prod")
    assert found.exit_code == 0, found.output
    assert [*file_problems(read(held.out / "transcript.jsonl"))] == []


def test_a_certificate_that_is_not_of_the_file_is_refused(
    held: Held, tmp_path: Path
) -> None:
    held.write(**{"cas.prod-etcd.common_name": "Another etcd CA"})
    message = refused(held, "--kubeadm", tmp_path / "a")
    assert message.startswith("prod-etcd: the certificate ")
    assert not (tmp_path / "a").exists()
