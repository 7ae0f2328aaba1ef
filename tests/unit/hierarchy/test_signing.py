"""One certificate: what is checked before the key is used, and after."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from bridge.errors import BackendBrokenError, ConfigError
from bridge.hierarchy import ceremony, signing
from bridge.hierarchy.ceremony import sign
from bridge.hierarchy.certificate import joined
from bridge.hierarchy.verify import TrialResult, tried
from bridge.x509.algorithm import CAPublicKey
from tests.support.parts.ceremonies import (
    CONSTRAINTS,
    HOSTS,
    HeldCeremony,
    StubKey,
    tree,
)
from tests.support.parts.pki import NOW, new_key


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
    monkeypatch.setattr(signing, "require_clean", lambda *_, **__: None)
    monkeypatch.setattr(signing, "findings", lambda one, *_, **__: linted.append(one))
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


def test_the_real_key_does_not_see_a_chain_below_which_a_leaf_is_judged_wrongly(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    def let_in(*given: Any, **more: Any) -> tuple[TrialResult, ...]:
        outcomes = tried(*given, **more)
        return tuple(replace(one, openssl=True) for one in outcomes)

    monkeypatch.setattr(signing, "tried", let_in)
    key = StubKey(new_key("p384"), lambda _: b"")
    held.signers["root"] = key
    told = r"root: an expired leaf .*: expected it to be rejected, .*verify accepted"
    with pytest.raises(ConfigError, match=told):
        sign(held.ceremony(), "root")
    assert key.asked == 0


def test_a_certificate_that_is_not_the_linted_one_is_not_written(
    held: HeldCeremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(tbs: bytes, issuer: CAPublicKey, signature: bytes) -> x509.Certificate:
        return joined(tbs.replace(b"Corp Root CA", b"Corp Ruth CA"), issuer, signature)

    monkeypatch.setattr(signing, "joined", other)
    with pytest.raises(
        BackendBrokenError, match="root: what was signed is not what was linted"
    ):
        sign(held.ceremony(), "root")
    assert held.output.names() == ()


def test_a_child_that_would_end_after_its_parent_is_refused(
    held: HeldCeremony,
) -> None:
    """Both last a number of years, so the plan has nothing to say."""
    sign(held.ceremony(), "root")
    held.clock = lambda: NOW + timedelta(days=16 * 365)
    with pytest.raises(
        ConfigError, match=r"eu: is valid to 2047-\S+, and the CA above to 2046-"
    ):
        sign(held.ceremony(), "eu")
    assert held.output.names() == ("root",)
