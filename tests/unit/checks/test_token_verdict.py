"""Which cluster would take a token, as which workload, by which rule, or why not."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bridge.checks.findings import Finding
from bridge.checks.token_verdict import check_token
from bridge.cli.command_line import app
from bridge.errors import ConfigError
from bridge.system.clock import system_clock
from tests.support.harness.configuration import text
from tests.support.parts.tokens import ISSUER, TokenIssuer

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
PROD, DEV = ("istio, cluster prod", "istio, cluster dev")
LINKERD = "linkerd, cluster prod"
TERMS = "issuing CA seoul-1; 24h by default, 5m to 24h, beyond that refused"
RULES = [
    {"namespaces": ["bank"], "refuse": True},
    {"namespaces": ["lab"], "max_ttl": "1h", "on_excess_ttl": "clamp"},
]


@cache
def signers() -> dict[str, TokenIssuer]:
    return {name: TokenIssuer(algorithm="ES256", kid=name) for name in ("prod", "dev")}


def signer(name: str = "prod") -> TokenIssuer:
    return signers()[name]


def configured(folder: Path, **changes: Any) -> Path:
    clusters = []
    for name in ("prod", "dev"):
        signer(name).write_jwks(folder / f"{name}.json")
        tokens = {"verify": "jwks", "file": f"{name}.json", "issuer": ISSUER}
        clusters.append({"name": name, "tokens": tokens})
    tree = {"clusters": clusters, "fronts": {"linkerd": {"listen": "127.0.0.1:1"}}}
    path = folder / "bridge.yaml"
    path.write_text(text(**(tree | changes)))
    return path


def verdicts(
    folder: Path, token: str, *, now: datetime = NOW, **changes: Any
) -> dict[str, tuple[str, str]]:
    file = folder / "token"
    file.write_text(f"{token}\n")
    found = check_token(configured(folder, **changes), file, lambda: now)
    assert {one.part for one in found} == {"token"}
    return {one.what: (one.result, one.detail) for one in found}


def results(found: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    return {what: result for what, (result, _) in found.items()}


def test_a_token_is_of_one_cluster_and_one_front(tmp_path: Path) -> None:
    found = verdicts(tmp_path, signer().token(now=NOW, pod=("web-0", "u1")))
    assert found == {
        "it says": (
            "note",
            (
                f"iss '{ISSUER}', sub 'system:serviceaccount:shop:web', "
                "aud ['istio-ca'], kid 'prod', alg 'ES256', "
                "exp 2030-01-02T04:04:05Z (not verified)"
            ),
        ),
        PROD: (
            "ok",
            (
                "spiffe://corp.example/ns/shop/sa/web, pod shop/web-0/u1, "
                f"by issuance, no rule: {TERMS}"
            ),
        ),
        DEV: (
            "note",
            (
                "token.key: the token's key is not one of its cluster (kid 'prod'; "
                "clusterid means dev, the key is prod's)"
            ),
        ),
        LINKERD: (
            "note",
            (
                "token.audience: the token is for another audience (aud ['istio-ca'], "
                "expected one of identity.l5d.io)"
            ),
        ),
    }


def test_the_name_at_linkerds_front_is_its_identity(tmp_path: Path) -> None:
    token = signer().token(audiences=["identity.l5d.io"], now=NOW, pod=None)
    found = verdicts(tmp_path, token)
    identity = "web.shop.serviceaccount.identity.linkerd.corp.example"
    assert found[LINKERD] == ("ok", f"{identity}, by issuance, no rule: {TERMS}")
    assert results(found)[PROD] == "note"


# Of a token: whose key signed it, its namespace, and the account. What is told of it at
# its own cluster.
OTHERS = [
    (
        "prod",
        "lab",
        "web",
        "ok",
        "by issuance.rules[1]: issuing CA seoul-1; 1h by defau",
    ),
    ("prod", "bank", "web", "FAILED", "rule.refuse: the configuration refuses certifi"),
    ("prod", "bank", "web", "FAILED", "(issuance.rules[0])"),
    ("dev", "shop", "web", "FAILED", "cluster.namespace: the caller's cluster may not"),
    ("prod", "shop", "a.b", "ok", "spiffe://corp.example/ns/shop/sa/a.b"),
]


@pytest.mark.parametrize(("of", "namespace", "account", "result", "says"), OTHERS)
def test_the_rule_that_decides_is_named(
    tmp_path: Path, of: str, namespace: str, account: str, result: str, says: str
) -> None:
    token = signer(of).token(namespace, account, now=NOW)
    issuance = {"issuing_cas": ["seoul-1"], "rules": RULES}
    found = verdicts(tmp_path, token, issuance=issuance)
    told, detail = found[f"istio, cluster {of}"]
    assert told == result
    assert says in detail
    assert ("ok" in results(found).values()) == (result == "ok")


def test_an_account_that_linkerd_has_no_identity_for_is_told(tmp_path: Path) -> None:
    token = signer().token("shop", "a.b", audiences=["identity.l5d.io"], now=NOW)
    assert verdicts(tmp_path, token)[LINKERD] == (
        "FAILED",
        "linkerd.label: Not a label: a.b",
    )


def test_an_identity_that_is_too_long_for_linkerd_is_told(tmp_path: Path) -> None:
    long = 63 * "a"
    token = signer().token(long, long, audiences=["identity.l5d.io"], now=NOW)
    found = verdicts(tmp_path, token, trust_domain=f"{long}.{long}.example")
    assert found[LINKERD] == (
        "FAILED",
        "identity.length: the identity has more than 253 characters",
    )


def test_a_token_that_nobody_takes_fails_everywhere(tmp_path: Path) -> None:
    token = signer().token(now=NOW)
    found = verdicts(tmp_path, token, now=NOW + timedelta(hours=1))
    assert results(found) == {
        "it says": "note",
        PROD: "FAILED",
        DEV: "FAILED",
        LINKERD: "FAILED",
    }
    why = "token.expired: the token has expired (exp 2030-01-02T04:04:05Z)"
    assert found[PROD][1] == why


@pytest.mark.parametrize(
    "token", ["junk", "a.b.c", "e30.e30", "\N{LATIN SMALL LETTER E}."]
)
def test_a_text_that_is_no_token_is_refused_by_its_form(
    tmp_path: Path, token: str
) -> None:
    found = verdicts(tmp_path, token)
    assert "it says" not in found
    assert all(detail.startswith("token.") for _, detail in found.values())


def test_a_cluster_whose_keys_cannot_be_fetched_is_told(tmp_path: Path) -> None:
    url = "https://127.0.0.1:1/jwks"
    tokens = {"verify": "jwks", "url": url, "issuer": ISSUER}
    found = verdicts(
        tmp_path,
        signer().token(now=NOW),
        clusters=[{"name": "prod", "tokens": tokens}],
    )
    assert found[PROD][1].startswith(
        f"cluster.keys: the keys of this cluster could not be fetched ({url}: "
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "token: cannot be read: No such file"), (" \n", "expected a token, found")],
)
def test_a_file_without_a_token_is_refused(
    tmp_path: Path, content: str | None, says: str
) -> None:
    file, path = tmp_path / "token", configured(tmp_path)
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=says):
        check_token(path, file, lambda: NOW)


def test_a_key_file_that_cannot_be_read_is_an_error_of_the_configuration(
    tmp_path: Path,
) -> None:
    file, path = tmp_path / "token", configured(tmp_path)
    file.write_text("x")
    (tmp_path / "dev.json").unlink()
    with pytest.raises(
        ConfigError, match=r"yaml: clusters\[1\].tokens.file: .*dev.json"
    ):
        check_token(path, file, lambda: NOW)


@pytest.mark.parametrize(("lifetime", "status"), [(3600, 0), (-3600, 1)])
def test_the_command_says_so_by_its_status(
    tmp_path: Path, lifetime: int, status: int
) -> None:
    token, file = signer().token(now=system_clock(), lifetime=lifetime), tmp_path / "t"
    file.write_text(token)
    command = ["check", "-c", str(configured(tmp_path)), "--token-file", str(file)]
    found = CliRunner().invoke(app, [*command, "-o", "json"])
    assert found.exit_code == status
    assert {Finding(**one).part for one in json.loads(found.stdout)["findings"]} == {
        "token"
    }
    assert not any(part in found.stdout for part in token.split("."))
