"""istiod's own code reads the exported folder of its CA, whatever its anchor is."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridge.hierarchy.export.shapes import SHAPES, ExportedCA, ShapeOptions
from bridge.system.files import write_new
from tests.support.clients.istio_go import read_cacerts
from tests.support.parts.pki import Authority, key_pem, new_key, new_root

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("interop-istio-client")]


@pytest.fixture(scope="module")
def issuing() -> Authority:
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)
    region = new_root("corp root", not_before=start).issue_ca("corp eu", path_length=2)
    tier = region.issue_ca("corp prod", path_length=1)
    return tier.issue_ca("corp prod 1", path_length=0)


def written(issuing: Authority, anchor: int, folder: Path) -> Path:
    """Write the folder, with the CA that is so many tiers above as the anchor."""
    path = [one.certificate for one in (issuing, *issuing.above)]
    ca = ExportedCA(
        name="prod-1", chain=tuple(path[:anchor]), anchor=path[anchor], key=issuing.key
    )
    write_new(folder, SHAPES["istio-cacerts"].files(ca, ShapeOptions()))
    return folder / "cacerts"


@pytest.mark.parametrize("anchor", [3, 2, 1], ids=["root", "region", "environment"])
def test_istiod_takes_the_folder(
    issuing: Authority, tmp_path: Path, anchor: int
) -> None:
    assert read_cacerts(written(issuing, anchor, tmp_path)) == ""


def test_istiod_refuses_another_key_or_anchor(
    issuing: Authority, tmp_path: Path
) -> None:
    folder = written(issuing, 3, tmp_path)
    right = (folder / "ca-key.pem").read_bytes()
    (folder / "ca-key.pem").write_bytes(key_pem(new_key()))
    assert "does not match the key" in read_cacerts(folder)
    (folder / "ca-key.pem").write_bytes(right)
    (folder / "root-cert.pem").write_bytes(new_root("another").pem)
    assert "cannot verify the cert" in read_cacerts(folder)
