"""One certificate: what is checked before the key is used, and after."""

from pathlib import Path

import pytest
from cryptography import x509

from bridge.errors import ConfigError
from bridge.hierarchy import ceremony, signing
from bridge.hierarchy.ceremony import sign
from tests.support.parts.ceremonies import (
    CONSTRAINTS,
    HOSTS,
    HeldCeremony,
    StubKey,
    tree,
)
from tests.support.parts.pki import new_key


@pytest.fixture
def held(tmp_path: Path) -> HeldCeremony:
    return HeldCeremony(tmp_path)


class AnyPlan:
    """A plan that passes, whatever the file says."""

    def require_passes(self) -> None:
        pass


def test_what_is_linted_has_the_bytes_of_what_is_signed(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    linted: list[x509.Certificate] = []
    monkeypatch.setattr(
        signing,
        "require_clean",
        lambda certificate, *_, **__: linted.append(certificate),
    )
    certificate = sign(held.ceremony(), "root").certificate
    before, after = linted
    assert before.tbs_certificate_bytes == certificate.tbs_certificate_bytes
    assert before.signature != certificate.signature
    assert after == certificate


def test_the_real_key_does_not_see_what_a_check_refuses(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("the linter refuses it")

    monkeypatch.setattr(signing, "require_clean", refuse)
    key = StubKey(new_key("p384"), lambda _: b"")
    held.signers["root"] = key
    with pytest.raises(ConfigError, match="the linter refuses it"):
        sign(held.ceremony(), "root")
    assert key.asked == 0


def test_a_child_beyond_its_parent_on_disk_is_refused(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan compares the file; here the parent's certificate is what counts."""
    for name in ("root", "eu"):
        sign(held.ceremony(), name)
    eu = held.output.certificate("eu")
    wider = {**CONSTRAINTS["permitted"], "uri": [*HOSTS[:2], "other.example"]}
    constraints = {**CONSTRAINTS, "permitted": wider}
    changes = {"validity": {"years": 9}, "name_constraints": constraints}
    monkeypatch.setattr(ceremony, "plan_of", lambda *_, **__: AnyPlan())
    (held.folder / "wide").mkdir()
    wide = HeldCeremony(held.folder / "wide", tree(eu=changes))
    for name in ("root", "eu"):
        sign(wide.ceremony(), name)
    problems = "\n".join(signing._beyond(wide.output.certificate("eu"), eu))
    assert "is valid to 2035-" in problems
    assert "has the path length 1, and the CA above 1: expected a smaller" in problems
    assert "that it permits are not permitted above: other.example" in problems
