"""A bridge under a chain that is revoked, by CRLs that `meshca hierarchy crl` makes."""

import json
import os
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from bridge.client.istio import IstioRequest, ask
from bridge.client.linkerd import LinkerdRequest, certify
from bridge.errors import BackendRefusedError
from bridge.hierarchy.ceremony import sign
from bridge.hierarchy.crl import CRLRequest, make_crl
from bridge.hierarchy.keys import LocalKey
from bridge.system.clock import system_clock
from tests.support.clients.linkerd_raw import AUDIENCE
from tests.support.harness.real_process import MESHCA, SERVER_NAME
from tests.support.harness.workers import Supervised, await_true
from tests.support.parts.ceremonies import HeldCeremony, tree
from tests.support.parts.pki import key_pem, write_private
from tests.vectors.generate_linkerd import IDENTITY

pytestmark = pytest.mark.xdist_group("reload")

CAS = ("root", "eu", "prod", "prod-2")


class RevokedBridge(Supervised):
    """A bridge with two issuing CAs of a ceremony, and the CRL of the CA above them.

    Callers get certificates of `prod`, and of `prod-2` if they ask for this signer.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 1, fronts=("istio", "linkerd"))
        self.ceremony = folder / "ceremony"
        (self.ceremony / "keys").mkdir(parents=True)
        content = tree()
        content["cas"]["prod-2"] = {
            **content["cas"]["prod"],
            "common_name": "Corp EU prod 2 CA",
            "key": {"backend": "file", "path": "keys/prod-2.key", "algorithm": "p256"},
        }
        (self.ceremony / "hierarchy.yaml").write_text(json.dumps(content))
        began = system_clock() - timedelta(days=3)
        held = HeldCeremony(self.ceremony, content, clock=lambda: began)
        # As `load` has it: the digest of the file is in the transcript.
        for name in CAS:
            sign(held.ceremony(), name)
            signer = held.signers[name]
            assert isinstance(signer, LocalKey)
            key = self.ceremony / f"keys/{name}.key"
            write_private(key, key_pem(signer.private_key))
        make_crl(held.ceremony(), "eu", CRLRequest(days=1))
        self.crl = folder / "eu.crl"
        self.put_crl(self.made(1))
        root = self.ceremony / "out/root/certificate.pem"
        self.roots.write_bytes(root.read_bytes())
        self.change(
            crls=["eu.crl"],
            issuing_cas={name: self._section(name) for name in ("prod", "prod-2")},
            issuance={"issuing_cas": ["prod"], "cert_signers": {"second": ["prod-2"]}},
        )

    def _section(self, name: str) -> dict[str, Any]:
        return {
            "plugin": "file",
            "chain": f"ceremony/out/{name}/chain.pem",
            "options": {"key": f"ceremony/keys/{name}.key"},
        }

    def made(self, number: int) -> bytes:
        """Return a CRL that was made, in PEM."""
        return (self.ceremony / f"out/eu.crl.{number}/crl.pem").read_bytes()

    def put_crl(self, data: bytes) -> None:
        """Put another file in the place of the CRL at once."""
        new = self.crl.with_suffix(".new")
        new.write_bytes(data)
        new.replace(self.crl)

    def make_crl(self, *more: str) -> None:
        """Make the next CRL as a person does."""
        now = system_clock().isoformat()
        subprocess.run(
            [
                *(MESHCA, "hierarchy", "crl", "hierarchy.yaml", "eu"),
                *("--out", "out", "--time", now, *more),
            ],
            cwd=self.ceremony,
            env=os.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=60,
        )

    def of_istio(self, signer: str = "") -> str:
        """Ask Istio's front; return the issuing CA's name, or the refusal."""
        wanted = IstioRequest(
            address=self.address,
            roots=self.roots.read_bytes(),
            token=self.token(),
            server_name=SERVER_NAME,
            cert_signer=signer,
        )
        try:
            leaf = ask(wanted).cert_chain[0]
        except BackendRefusedError as error:
            return str(error)
        return x509.load_pem_x509_certificate(leaf.encode()).issuer.rfc4514_string()

    def of_linkerd(self) -> str:
        """Ask Linkerd's front; see `of_istio`."""
        wanted = LinkerdRequest(
            address=self.linkerd_address,
            anchors=x509.load_pem_x509_certificates(self.roots.read_bytes()),
            identity=IDENTITY,
            token=self.token(audiences=(AUDIENCE,)).encode(),
        )
        try:
            return certify(wanted).leaf.issuer.rfc4514_string()
        except BackendRefusedError as error:
            return str(error)

    def told(self) -> str:
        """Return what readiness says of the CRLs."""
        (worker,) = json.loads(self.get("/readyz")[1])["workers"].values()
        return str(worker["warnings"].get("revocation", ""))

    def require_stopped(self) -> None:
        """Hold both fronts to issue nothing of `prod`, and Istio's all of `prod-2`."""
        assert "the issuing CA's chain is revoked" in self.of_istio()
        assert "the issuing CA's chain is revoked" in self.of_linkerd()
        assert "prod 2 CA" in self.of_istio("second")


def test_a_bridge_issues_nothing_under_a_revoked_chain(tmp_path: Path) -> None:
    bridge = RevokedBridge(tmp_path / "served")
    with bridge:
        # The next update of the first list was two days ago: it is told, and holds.
        assert "its next update is overdue" in bridge.told()
        assert "EU prod CA" in bridge.of_istio()
        assert "EU prod CA" in bridge.of_linkerd()
        bridge.make_crl("--revoke", "prod", "--reason", "keyCompromise")
        bridge.put_crl(bridge.made(2))
        await_true(lambda: "is revoked since" in bridge.told())
        bridge.require_stopped()
        assert "overdue" not in bridge.told()
        next_update = "meshca_crl_next_update_timestamp_seconds"
        assert bridge.metric(next_update, number="2") > system_clock().timestamp()
        assert bridge.metric(next_update, number="1") == 0
        status, page = bridge.get("/readyz")
        assert status == 503
        assert "front linkerd can issue nothing" in page
        assert "front istio" not in page
        assert "issues nothing any more" in bridge.log()
        checked = bridge.run("check")
        assert checked.returncode == 1
        assert "is revoked since" in checked.stdout + checked.stderr
        # What is no list, or an older one, takes nothing back.
        bridge.put_crl(bridge.made(2)[:-99])
        await_true(lambda: "found 0 of 1 blocks" in bridge.told())
        bridge.require_stopped()
        bridge.put_crl(bridge.made(1))
        await_true(lambda: "with the number 2 or above" in bridge.told())
        bridge.require_stopped()
        bridge.put_crl(b"no list")
        bridge.hang_up()
        bridge.await_reloads("refused")
        assert (
            "crls: "
            in json.loads(bridge.get("/readyz")[1])["warnings"]["configuration"]
        )
        bridge.require_stopped()
    bridge.require_sound_ledger()
