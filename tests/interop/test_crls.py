"""The CRLs of a ceremony, as OpenSSL, Go and Envoy read them."""

import ssl
import subprocess
from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.hierarchy.ceremony import sign
from bridge.hierarchy.crl import REASONS, CRLRequest, make_crl
from bridge.hierarchy.keys import LocalKey
from bridge.system.clock import system_clock
from tests.interop.constraints.chains import run_go_verifier
from tests.support.parts import envoy
from tests.support.parts.ceremonies import HeldCeremony
from tests.support.parts.pki import Authority, key_pem, new_key, write_private

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("interop-envoy")]

PATH = ("prod", "eu", "root")
KEY_COMPROMISE = 1


class Published:
    """A chain with a leaf, and the CRLs of its CAs by name, with and without `eu`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        now = system_clock()
        self.held = HeldCeremony(folder, clock=lambda: now - timedelta(hours=1))
        for name in ("root", "eu", "prod"):
            sign(self.held.ceremony(), name)
        prod = self.held.signers["prod"]
        assert isinstance(prod, LocalKey)
        issuing = Authority(self.held.output.certificate("prod"), prod.private_key)
        identity = x509.UniformResourceIdentifier("spiffe://corp.example/ns/a/sa/b")
        key = new_key()
        leaf = issuing.issue_leaf(
            identity, key=key, not_before=now - timedelta(minutes=9)
        )
        self.leaf = leaf.public_bytes(Encoding.PEM)
        self.key = write_private(folder / "leaf.key", key_pem(key))
        self.good = {one: self._crl(one) for one in PATH}
        revoked = self._crl("root", names=["eu"], reason=REASONS["keyCompromise"])
        self.revoking = {**self.good, "root": revoked}

    def _crl(self, name: str, **given: object) -> bytes:
        done = make_crl(self.held.ceremony(), name, CRLRequest(**given))  # type: ignore[arg-type]
        return done.crl.public_bytes(Encoding.PEM)

    def certificate(self, name: str) -> bytes:
        return self.held.output.certificate(name).public_bytes(Encoding.PEM)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("published"))


def openssl(published: Published, crls: Mapping[str, bytes]) -> str:
    """Return why OpenSSL refuses the leaf, asking for a CRL of each; empty if not."""
    files = {
        "leaf": published.leaf,
        "between": published.certificate("prod") + published.certificate("eu"),
        "root": published.certificate("root"),
        "crls": b"".join(crls.values()),
    }
    for name, data in files.items():
        (published.folder / name).write_bytes(data)
    done = subprocess.run(
        [
            *("openssl", "verify", "-crl_check_all", "-CRLfile", "crls"),
            *("-CAfile", "root", "-untrusted", "between", "leaf"),
        ],
        cwd=published.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return "" if done.returncode == 0 else done.stderr


def go(published: Published, crls: Mapping[str, bytes]) -> str:
    """Return why Go refuses the leaf; see `openssl`."""
    case = {
        "name": "leaf",
        "root": published.certificate("root").decode(),
        "intermediates": [published.certificate(one).decode() for one in PATH[:2]],
        "leaf": published.leaf.decode(),
        "time": int(system_clock().timestamp()),
        "crls": [data.decode() for data in crls.values()],
    }
    return run_go_verifier([case])["leaf"].reason


def envoy_answers(published: Published, crls: Mapping[str, bytes], name: str) -> bool:
    """Return whether an Envoy with these lists lets a client with the leaf in."""
    folder = published.folder / name
    folder.mkdir()
    chain, roots, lists = (folder / one for one in ("chain", "roots", "crls"))
    between = published.certificate("prod") + published.certificate("eu")
    chain.write_bytes(published.leaf + between)
    roots.write_bytes(published.certificate("root"))
    lists.write_bytes(b"".join(crls.values()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(chain, published.key)
    shown = envoy.Identity(chain=chain, key=published.key)
    with envoy.server(folder / "envoy", shown, roots, crls=lists) as server:
        connection = HTTPSConnection("127.0.0.1", server.port, context=context)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


def test_envoy_wants_a_list_of_each_ca_and_takes_ours(published: Published) -> None:
    without = {one: data for one, data in published.good.items() if one != "prod"}
    assert envoy_answers(published, published.good, "good")
    assert not envoy_answers(published, published.revoking, "revoking")
    assert not envoy_answers(published, without, "without")


def test_with_a_list_of_each_ca_the_leaf_is_good(published: Published) -> None:
    assert openssl(published, published.good) == ""
    assert go(published, published.good) == ""


def test_a_leaf_under_a_revoked_ca_is_refused(published: Published) -> None:
    assert "certificate revoked" in openssl(published, published.revoking)
    told = go(published, published.revoking)
    assert told.startswith(f"revoked, reason {KEY_COMPROMISE}: ")
    assert "Corp EU CA" in told


@pytest.mark.parametrize("name", PATH)
def test_each_ca_of_the_path_needs_one(published: Published, name: str) -> None:
    crls = {one: data for one, data in published.good.items() if one != name}
    assert "unable to get certificate CRL" in openssl(published, crls)
    assert go(published, crls).startswith("no list of the CA of ")
