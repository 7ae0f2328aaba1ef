"""The file of trust anchors, as people change it beside a bridge that serves."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridge.client.istio import IstioRequest, ask
from bridge.dataplanes.planes import DataPlane
from bridge.hierarchy.export import write
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.spiffe import TrustDomain
from bridge.x509.pem import encode_certificate
from tests.interop.planes.certificates import build
from tests.interop.planes.oddities import change_of
from tests.support.harness.real_process import SERVER_NAME
from tests.support.harness.workers import Supervised
from tests.support.parts.pki import new_root

pytestmark = pytest.mark.xdist_group("reload")


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Supervised]:
    with Supervised(tmp_path / "served", 1) as served:
        yield served


def test_an_anchor_that_is_added_is_taken_over(bridge: Supervised) -> None:
    first = bridge.roots.read_bytes()
    another = new_root("another").pem
    bridge.roots.write_bytes(first + another)
    bridge.await_reloads("ok")
    assert bridge.ask().cert_chain[-1].encode() == first + another
    assert "trust anchors added: CN=another" in bridge.log()


def put_other_hierarchy(bridge: Supervised) -> bytes:
    """Put another issuing CA, chain and root in place of those in service."""
    domains = (TrustDomain(bridge.trust_domain),)
    planes = frozenset({DataPlane.SIDECAR})
    other = bridge.folder / "other"
    write(make(ThrowawaySpec(trust_domains=domains, data_planes=planes)), other)
    for file in ("issuing.key", "chain.pem", "roots.pem"):
        (other / file).replace(bridge.folder / "hierarchy" / file)
    return bridge.roots.read_bytes()


def test_a_hierarchy_with_other_anchors_is_refused_until_it_is_named(
    bridge: Supervised,
) -> None:
    old = bridge.roots.read_bytes()
    new = put_other_hierarchy(bridge)
    bridge.await_reloads("refused")
    told = json.loads(bridge.get("/readyz")[1])["warnings"]["configuration"]
    accept = f'accept_new_anchors: "{hashlib.sha256(new).hexdigest()}"'
    assert "trust anchors last in service" in told
    assert accept in told
    bridge.roots.write_bytes(old)  # for the client of the test
    assert bridge.ask().cert_chain[-1].encode() == old
    bridge.roots.write_bytes(new)
    # A check and a start refuse them as a reload does.
    checked = bridge.run("check", "-o", "json")
    assert checked.returncode == 1
    assert accept in json.dumps(json.loads(checked.stdout)).replace("\\", "")
    bridge.stop()
    served = bridge.run("serve")
    assert served.returncode == 1
    assert accept in served.stderr
    bridge.put(f"{bridge.configuration.read_text()}\n{accept}\n")
    with bridge:
        assert bridge.ask().cert_chain[-1].encode() == new


def test_a_bundle_of_old_and_odd_anchors_is_served_and_told(tmp_path: Path) -> None:
    bridge = Supervised(tmp_path / "served")
    good = bridge.roots.read_bytes()
    now = datetime.now(UTC)
    ended = new_root("ended", not_before=now - timedelta(days=2), not_after=now).pem
    odd = new_root("odd").pem.replace(b"MII", b"MIH", 1)
    chain = build(change_of("negative-serial", "anchor"), now)
    negative = encode_certificate(chain.anchor).encode()
    bridge.roots.write_bytes(ended + odd + negative + good + good)
    with bridge:
        request = IstioRequest(
            address=bridge.address,
            roots=good,
            token=bridge.token(),
            server_name=SERVER_NAME,
        )
        assert ask(request).cert_chain[-1].encode() == ended + negative + good
        (worker,) = json.loads(bridge.get("/readyz")[1])["workers"].values()
        told = worker["warnings"]["trust anchors"]
        checked = bridge.run("check", "-o", "json")
    for text in (told, bridge.log(), checked.stdout):
        assert "trust anchor (CN=ended) expired on" in text
        assert "block 2" in text
        assert "trust anchor (CN=anchor) has a negative serial number" in text
    # A library warns programmers of it, at each read.
    assert "Warning" not in checked.stderr + bridge.log()
