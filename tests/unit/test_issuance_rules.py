"""The rules of `issuance` and the ceilings, on the whole way of a request."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from bridge.errors import (
    AuthenticationError,
    BackendUnavailableError,
    DeniedError,
    OverloadedError,
    TTLError,
)
from bridge.issuance import Issued
from bridge.resilience import Budget
from bridge.x509.pem import parse_certificates
from tests.support.pki import NOW, new_root
from tests.support.world import CALLER, World, two_authorities

REFUSED = {"namespaces": ["shop"], "refuse": True}


def world(folder: Path, *rules: Mapping[str, Any], **issuance: Any) -> World:
    return World(folder, overrides={"issuance": {**issuance, "rules": [*rules]}})


def ends(issued: Issued) -> datetime:
    (leaf,) = parse_certificates(issued.leaf_pem.encode(), "the answer")
    return leaf.not_valid_after_utc


def test_a_refusal_by_rule_is_on_record_and_signs_nothing(tmp_path: Path) -> None:
    with world(tmp_path, {"namespaces": ["pay"], "max_ttl": "1h"}, REFUSED) as made:
        with pytest.raises(DeniedError, match="refuses certificates to this caller"):
            made.issue()
        made.issue(token=made.token("bank"))
        rows = made.ended()
    assert len(made.cas["a"].called) == 1
    (row,) = [row for row in rows if row["kind"] == "refused"]
    assert (row["rule"], row["status"]) == ("rule.refuse", "PERMISSION_DENIED")
    assert row["caller"] == CALLER
    assert "issuance.rules[1]" in row["detail"]


def test_the_default_life_is_that_of_the_rule(tmp_path: Path) -> None:
    with world(tmp_path, {"namespaces": ["shop"], "default_ttl": "30m"}) as made:
        assert ends(made.issue(ttl_seconds=0)) == NOW + timedelta(minutes=30)
        other = made.issue(ttl_seconds=0, token=made.token("bank"))
        assert ends(other) == NOW + timedelta(hours=24)


@pytest.mark.parametrize("mode", ["refuse", "clamp"])
def test_the_longest_life_is_that_of_the_rule(tmp_path: Path, mode: str) -> None:
    rule = {"namespaces": ["shop"], "max_ttl": "30m", "on_excess_ttl": mode}
    with world(tmp_path, rule) as made:
        assert ends(made.issue(token=made.token("bank"))) == NOW + timedelta(hours=1)
        if mode == "clamp":
            assert ends(made.issue()) == NOW + timedelta(minutes=30)
            return
        with pytest.raises(TTLError, match="above the maximum of 1800 s"):
            made.issue()


def test_a_mesh_and_a_namespace_have_issuing_cas_of_their_own(tmp_path: Path) -> None:
    root = new_root()
    names = ("a", "b", "c")
    authorities = {name: root.issue_ca(f"issuing {name}") for name in names}
    rules = [
        {"namespaces": ["shop"], "issuing_cas": ["b"]},
        {"fronts": ["istio"], "issuing_cas": ["c"]},
    ]
    with World(
        tmp_path, authorities=authorities, overrides={"issuance": {"rules": rules}}
    ) as made:
        made.issue()
        made.issue(token=made.token("bank"))
        rows = [row for row in made.ended() if row["kind"] == "issued"]
    assert [row["issuing_ca"] for row in rows] == ["b", "c"]


def test_failover_stays_inside_the_list_of_the_rule(tmp_path: Path) -> None:
    with world(tmp_path, {"namespaces": ["shop"], "issuing_cas": ["b"]}) as made:
        made.cas["b"].error = BackendUnavailableError("down")
        with pytest.raises(BackendUnavailableError, match="down"):
            made.issue(budget=Budget.of_seconds(2))
        assert not made.cas["a"].called
    # The list is what decides that, not the place: the top level's has both.
    (tmp_path / "other").mkdir()
    with world(tmp_path / "other", issuing_cas=["b", "a"]) as made:
        made.cas["b"].error = BackendUnavailableError("down")
        made.issue()
        assert len(made.cas["a"].called) == 1


def test_a_signer_does_not_lead_out_of_the_list_of_the_rule(tmp_path: Path) -> None:
    signers = {"istio.io/a": ["a"], "istio.io/both": ["a", "b"]}
    rule = {"namespaces": ["shop"], "issuing_cas": ["b"]}
    with world(tmp_path, rule, cert_signers=signers) as made:
        with pytest.raises(DeniedError, match="certificates of this signer"):
            made.issue(cert_signer="istio.io/a")
        made.issue(cert_signer="istio.io/both")
        made.issue(cert_signer="istio.io/a", token=made.token("bank"))
        rows = made.ended()
    assert [row["issuing_ca"] for row in rows if row["kind"] == "issued"] == ["b", "a"]
    assert "signer.denied" in {row.get("rule") for row in rows}


def test_issuing_cas_of_a_rule_are_of_one_assurance(tmp_path: Path) -> None:
    with world(tmp_path, {"issuing_cas": ["b", "a"]}) as made:
        issuers = made.snapshot.issuers
        assert made.assembly._unequal(issuers) == []
        unlike = made.replace_issuer("b", _in_hardware).issuers
        told = [str(error) for error in made.assembly._unequal(unlike)]
    assert any(
        text.startswith("issuance.rules[0].issuing_cas: expected issuing CAs of one")
        for text in told
    )


def _in_hardware(issuer: Any) -> Any:
    return replace(issuer, description=replace(issuer.description, assurance="hsm"))


def test_the_listener_is_certified_where_its_mesh_is(tmp_path: Path) -> None:
    # The other issuing CA may not sign for the listener's name.
    elsewhere = x509.NameConstraints([x509.DNSName("linkerd.example")], None)
    narrow = two_authorities(elsewhere)["a"]
    wide = narrow.above[0].issue_ca("wide", path_length=0)
    rules = [{"fronts": ["istio"], "issuing_cas": ["b"]}]
    overrides = {"issuance": {"issuing_cas": ["a"], "rules": rules}}
    with World(
        tmp_path, authorities={"a": narrow, "b": wide}, overrides=overrides
    ) as made:
        made.own.issue_serving(["meshca.example"], timedelta(hours=1))
        assert [row["issuing_ca"] for row in made.ended()] == ["b", "b"]


# Ceilings: how often one identity may ask.


def ceilings(**limits: Any) -> dict[str, Any]:
    return {"limits": limits}


def test_a_burst_is_served_and_what_is_above_it_is_on_record(tmp_path: Path) -> None:
    limits = ceilings(per_identity={"rate": 0.001, "burst": 3})
    with World(tmp_path, overrides=limits) as made:
        for _ in range(3):
            made.issue()
        with pytest.raises(OverloadedError, match="this identity asks too often"):
            made.issue()
        made.issue(token=made.token("shop", "db"))
        rows = made.ended()
    (row,) = [row for row in rows if row["kind"] == "refused"]
    assert (row["rule"], row["status"]) == ("overload.identity", "RESOURCE_EXHAUSTED")
    assert row["caller"] == CALLER
    assert len([row for row in rows if row["kind"] == "issued"]) == 4


def test_a_loop_gets_a_summary_and_not_a_row_for_each_call(tmp_path: Path) -> None:
    overrides = ceilings(per_cluster={"rate": 0.001, "burst": 1})
    overrides["ledger"] = {"refusals_per_second": 2}
    with World(tmp_path, overrides=overrides) as made:
        made.issue()
        for _ in range(5):
            with pytest.raises(OverloadedError, match="this cluster asks too often"):
                made.issue()
        rows = made.ended()
    assert len([row for row in rows if row["kind"] == "refused"]) == 2
    (summary,) = [row for row in rows if row["kind"] == "summary"]
    assert summary["rules"] == {"overload.cluster": 3}


def test_whom_nobody_knows_does_not_use_up_the_rows_of_callers(tmp_path: Path) -> None:
    overrides = ceilings(per_identity={"rate": 0.001, "burst": 1})
    overrides["ledger"] = {"refusals_per_second": 1}
    with World(tmp_path, overrides=overrides) as made:
        for _ in range(2):
            with pytest.raises(AuthenticationError, match="token"):
                made.issue(audiences=frozenset({"other"}))
        made.issue()
        with pytest.raises(OverloadedError, match="identity"):
            made.issue()
        refused = [row["rule"] for row in made.ended() if row["kind"] == "refused"]
    assert refused == ["token.audience", "overload.identity"]


def test_one_account_has_a_ceiling_in_each_mesh(tmp_path: Path) -> None:
    limits = ceilings(per_identity={"rate": 0.001, "burst": 1})
    with World(tmp_path, overrides=limits) as made:
        made.issue()
        made.issue(front="linkerd")
        for front in ("istio", "linkerd"):
            with pytest.raises(OverloadedError, match="identity"):
                made.issue(front=front)
