"""A hierarchy is written whole, readable by its owner, and over nothing."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import ConfigError
from bridge.hierarchy.export import Layout, write
from bridge.hierarchy.throwaway import Hierarchy, ThrowawaySpec, make
from bridge.spi import PluginContext
from bridge.spiffe import TrustDomain
from bridge.x509.pem import parse_certificates
from bridge_file import FileCA
from tests.support.parts.pki import NOW, shared_key

OFFLINE = ["root.pem", "root.key", "intermediate.pem", "intermediate.key", "roots.pem"]
ISSUING: dict[Layout, list[str]] = {
    "key": ["issuing.pem", "issuing.key", "chain.pem"],
    "tls": ["tls/tls.crt", "tls/tls.key", "tls/ca.crt"],
    "cacerts": [
        "cacerts/ca-cert.pem",
        "cacerts/ca-key.pem",
        "cacerts/cert-chain.pem",
        "cacerts/root-cert.pem",
    ],
}
OPTIONS: dict[Layout, dict[str, object]] = {
    "key": {"key": "issuing.key"},
    "tls": {"tls_folder": "tls"},
    "cacerts": {"cacerts_folder": "cacerts"},
}
LAYOUTS: tuple[Layout, ...] = ("key", "tls", "cacerts")


@pytest.fixture(scope="module")
def hierarchy() -> Hierarchy:
    spec = ThrowawaySpec(trust_domains=(TrustDomain("corp.example"),))
    return make(spec, clock=lambda: NOW)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_what_the_file_backend_reads(
    tmp_path: Path, hierarchy: Hierarchy, layout: Layout
) -> None:
    folder = tmp_path / "pki"
    written = write(hierarchy, folder, layout=layout)
    names = [str(path.relative_to(folder)) for path in written]
    assert names == OFFLINE + ISSUING[layout]
    chain = Path("chain.pem") if layout == "key" else None
    context = PluginContext(name="eu-1", base=folder, chain=chain)
    opened = FileCA(OPTIONS[layout], context)
    found = opened.describe()
    assert found.certificate == hierarchy.issuing.certificate
    assert found.intermediates == (hierarchy.intermediate.certificate,)
    opened.close()
    roots = parse_certificates((folder / "roots.pem").read_bytes(), "roots.pem")
    assert roots == (hierarchy.root.certificate,)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_are_their_owners_alone_whatever_the_umask(
    tmp_path: Path, hierarchy: Hierarchy, layout: Layout
) -> None:
    folder = tmp_path / "pki"
    before = os.umask(0)
    try:
        written = write(hierarchy, folder, layout=layout)
    finally:
        os.umask(before)
    assert {path.parent.stat().st_mode & 0o777 for path in written} == {0o700}
    for path in written:
        is_key = path.suffix == ".key" or path.name == "ca-key.pem"
        assert path.stat().st_mode & 0o777 == (0o600 if is_key else 0o644)


@pytest.fixture(scope="module")
def without_key() -> Hierarchy:
    spec = ThrowawaySpec(trust_domains=(TrustDomain("corp.example"),))
    in_token = shared_key("p384").public_key()
    return make(spec, clock=lambda: NOW, issuing_key=in_token)


def test_a_key_that_is_elsewhere_is_not_written(
    tmp_path: Path, without_key: Hierarchy
) -> None:
    written = write(without_key, tmp_path / "pki")
    assert [path.name for path in written] == [*OFFLINE, "issuing.pem", "chain.pem"]
    assert tree(tmp_path / "pki") == sorted([*OFFLINE, "issuing.pem", "chain.pem"])


@pytest.mark.parametrize("layout", ["tls", "cacerts"])
def test_a_layout_that_holds_the_key_is_refused_without_it(
    tmp_path: Path, without_key: Hierarchy, layout: Layout
) -> None:
    says = rf"layout: expected key \(found {layout}\): the other layouts hold"
    with pytest.raises(ConfigError, match=says):
        write(without_key, tmp_path / "pki", layout=layout)
    assert tree(tmp_path) == []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", [0, 4, 7])
def test_nothing_is_written_beside_a_file_that_is_there(
    tmp_path: Path, hierarchy: Hierarchy, layout: Layout, place: int
) -> None:
    name = (OFFLINE + ISSUING[layout])[place]
    taken = tmp_path / name
    taken.parent.mkdir(mode=0o700, exist_ok=True)
    taken.write_text("precious")
    before = tree(tmp_path)
    says = f"expected none of these files: {name}; choose a new folder$"
    with pytest.raises(ConfigError, match=says):
        write(hierarchy, tmp_path, layout=layout)
    assert tree(tmp_path) == before
    assert taken.read_text() == "precious"


def test_a_link_that_leads_nowhere_is_a_file_that_is_there(
    tmp_path: Path, hierarchy: Hierarchy
) -> None:
    (tmp_path / "root.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"expected none of these files: root\.key"):
        write(hierarchy, tmp_path)
    assert tree(tmp_path) == ["root.key"]


def test_a_folder_that_others_can_enter_is_refused(
    tmp_path: Path, hierarchy: Hierarchy
) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"mode 0700 \(found 0755\)"):
        write(hierarchy, tmp_path, layout="tls")
    assert tree(tmp_path) == []


def test_a_folder_that_cannot_be_looked_at_is_refused_in_words(
    tmp_path: Path, hierarchy: Hierarchy
) -> None:
    with pytest.raises(ConfigError, match="cannot be written: File name too long"):
        write(hierarchy, tmp_path / ("x" * 256), layout="tls")
    assert tree(tmp_path) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_disk_that_fills_up_leaves_nothing_behind(
    tmp_path: Path,
    hierarchy: Hierarchy,
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_open, opened = os.open, []

    def open_six(path: Path, flags: int, mode: int = 0o777) -> int:
        opened.append(path)
        if len(opened) > 6:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", open_six)
    with pytest.raises(ConfigError, match=r"cannot be written: No space left"):
        write(hierarchy, tmp_path / "pki", layout=layout)
    assert tree(tmp_path) == []


def test_a_folder_that_appears_meanwhile_is_not_used(
    tmp_path: Path, hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def late(path: Path, **given: Any) -> None:
        mkdir(path)
        mkdir(path, **given)

    monkeypatch.setattr(Path, "mkdir", late)
    with pytest.raises(ConfigError, match="pki: cannot be written: File exists"):
        write(hierarchy, tmp_path / "pki")
    assert tree(tmp_path) == ["pki"]


def test_a_file_that_appears_meanwhile_is_kept(
    tmp_path: Path, hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "issuing.key").write_text("precious")
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    with pytest.raises(ConfigError, match=r"issuing\.key: cannot be written: File ex"):
        write(hierarchy, tmp_path)
    assert tree(tmp_path) == ["issuing.key"]
    assert (tmp_path / "issuing.key").read_text() == "precious"
