"""The caller that a credential identifies, and the names that its cluster may have."""

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import config
from bridge.errors import (
    AuthenticationError,
    BridgeError,
    ConfigError,
    DeniedError,
    ReviewError,
)
from bridge.identity import clusters
from bridge.identity.caller import (
    Caller,
    CertificateCredential,
    Pod,
    TokenCredential,
)
from bridge.identity.clusters import ClusterRegistry
from bridge.identity.offline_verifier import OfflineVerifier
from bridge.resilience.budget import Budget
from bridge.spiffe import SpiffeID, TrustDomain
from tests.support.harness.configuration import text
from tests.support.parts.keyserver import KeyServer
from tests.support.parts.pki import bundle, new_root
from tests.support.parts.tokens import TokenIssuer, public_jwk

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
AUDIENCES = frozenset({"istio-ca"})
BUDGET = Budget.of_seconds(3600)


@cache
def issuers() -> dict[str, TokenIssuer]:
    # One issuer for both: many API servers have the same.
    return {name: TokenIssuer(algorithm="ES256") for name in ("prod", "dev")}


def configured(folder: Path, *clusters: Mapping[str, Any]) -> config.BridgeConfig:
    return config.parse(text(clusters=[*clusters]), folder / "bridge.yaml")


def cluster(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    issuers()[name].write_jwks(folder / f"{name}.json")
    keys = {"verify": "jwks", "file": f"{name}.json", "issuer": issuers()[name].issuer}
    return {"name": name, "tokens": keys} | changes


def built(configuration: config.BridgeConfig) -> ClusterRegistry:
    return ClusterRegistry(configuration, clock=lambda: NOW)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ClusterRegistry:
    folder = tmp_path_factory.mktemp("clusters")
    dev = cluster(
        folder,
        "dev",
        aliases=["dev-old"],
        trust_domain="dev.example",
        namespaces=["shop", "lab"],
    )
    return built(configured(folder, cluster(folder, "prod", aliases=["main"]), dev))


def shown(
    token: str | None = None, *cluster_ids: str, scheme: str = "Bearer "
) -> TokenCredential:
    return TokenCredential(
        () if token is None else (f"{scheme}{token}",), tuple(cluster_ids)
    )


def identify(registry: ClusterRegistry, credential: TokenCredential) -> Caller:
    return registry.identify(credential, audiences=AUDIENCES, now=NOW, budget=BUDGET)


def token(of: str = "prod", namespace: str = "shop") -> str:
    return issuers()[of].token(namespace, now=NOW, pod=("web-0", "u1"))


@pytest.mark.parametrize(
    ("of", "cluster_ids"),
    [
        ("prod", ()),
        ("prod", ("",)),
        ("prod", ("prod",)),
        ("prod", ("main",)),
        ("dev", ("dev",)),
        ("dev", ("dev-old",)),
    ],
)
def test_a_caller_is_of_the_cluster_that_it_names(
    registry: ClusterRegistry, of: str, cluster_ids: tuple[str, ...]
) -> None:
    domain = {"prod": "corp.example", "dev": "dev.example"}[of]
    assert identify(registry, shown(token(of), *cluster_ids)) == Caller(
        spiffe_id=SpiffeID.parse(f"spiffe://{domain}/ns/shop/sa/web"),
        cluster=of,
        credential="token",
        verified_by="jwks",
        namespace="shop",
        service_account="web",
        pod=Pod("shop", "web-0", "u1", "node-1"),
        proven_at=int(NOW.timestamp()),
    )


@pytest.mark.parametrize(
    ("rule", "credential"),
    [
        ("token.missing", shown()),
        ("token.missing", shown(None, "prod")),
        ("token.scheme", shown(token(), scheme="bearer ")),
        ("token.scheme", shown(token(), scheme="BEARER ")),
        ("token.scheme", shown(token(), scheme="Bearer")),
        ("token.scheme", shown(token(), scheme="Bearer\t")),
        ("token.scheme", shown(token(), scheme=" Bearer ")),
        ("token.scheme", shown(token(), scheme="")),
        ("token.scheme", shown("dXNlcjpwdw==", scheme="Basic ")),
        ("token.format", shown(token(), scheme="Bearer  ")),
        ("token.format", shown("")),
        ("token.repeated", TokenCredential((f"Bearer {token()}",) * 2, ())),
        ("token.repeated", TokenCredential((f"Bearer {token()}", ""), ())),
        ("token.format", shown(f"{token()}, Bearer {token()}")),
        ("cluster.header", shown(token(), "prod", "prod")),
        ("cluster.header", shown(token(), "prod", "dev")),
        ("cluster.header", shown(token(), "", "")),
        ("cluster.unknown", shown(token(), "stage")),
        ("cluster.unknown", shown(token(), "Prod")),
        ("cluster.unknown", shown(token(), "prod ")),
        ("cluster.unknown", shown(token(), "prod,dev")),
        ("token.key", shown(token("dev"), "prod")),
        ("token.key", shown(token("dev"))),
        ("token.key", shown(token("prod"), "dev")),
    ],
)
def test_any_other_credential_is_refused(
    registry: ClusterRegistry, rule: str, credential: TokenCredential
) -> None:
    with pytest.raises(AuthenticationError, match=r"\w") as caught:
        identify(registry, credential)
    assert caught.value.rule == rule
    assert token().split(".")[1][:40] not in caught.value.detail


def test_the_key_id_of_another_cluster_does_not_help(registry: ClusterRegistry) -> None:
    prod, dev = issuers()["prod"], issuers()["dev"]
    forged = dev.token(now=NOW, headers={"kid": prod.kid})
    with pytest.raises(AuthenticationError, match="signature"):
        identify(registry, shown(forged, "prod"))


def test_a_wrong_cluster_id_is_explained_to_the_operator(
    registry: ClusterRegistry,
) -> None:
    with pytest.raises(AuthenticationError, match="key") as caught:
        identify(registry, shown(token("dev"), "prod"))
    assert "clusterid means prod, the key is dev's" in caught.value.detail


def test_tokens_of_two_issuers_are_of_one_cluster_while_its_issuer_is_changed(
    tmp_path: Path,
) -> None:
    entry = cluster(tmp_path, "prod")
    old = entry["tokens"].pop("issuer")
    entry["tokens"]["issuers"] = ["https://new.example", old]
    registry = built(configured(tmp_path, entry))
    for iss in ("https://new.example", old):
        made = issuers()["prod"].token(now=NOW, claims={"iss": iss})
        assert identify(registry, shown(made)).cluster == "prod"
    made = issuers()["prod"].token(now=NOW, claims={"iss": "https://third.example"})
    with pytest.raises(AuthenticationError, match="another issuer"):
        identify(registry, shown(made))


def test_a_token_for_another_front_is_refused(registry: ClusterRegistry) -> None:
    audiences = frozenset({"identity.l5d.io"})
    with pytest.raises(AuthenticationError, match="another audience"):
        registry.identify(shown(token()), audiences=audiences, now=NOW, budget=BUDGET)


@pytest.mark.parametrize(
    ("name", "namespaces", "namespace", "allowed"),
    [
        ("prod", None, "bank", True),
        ("prod", ["shop"], "bank", False),
        ("prod", ["shop"], "shop", True),
        ("prod", [], "shop", False),
        ("dev", None, "shop", False),
        ("dev", ["*"], "bank", True),
        ("dev", ["shop"], "shop", True),
        ("dev", ["shop"], "sho", False),
        ("dev", ["shop"], "shop2", False),
        ("dev", ["shop"], "", False),
    ],
)
def test_a_cluster_has_only_its_namespaces(
    tmp_path: Path,
    name: str,
    namespaces: list[str] | None,
    namespace: str,
    allowed: bool,  # noqa: FBT001 - a column
) -> None:
    entries = {one: cluster(tmp_path, one) for one in ("prod", "dev")}
    entries[name] |= {"namespaces": namespaces}
    registry = built(configured(tmp_path, entries["prod"], entries["dev"]))
    caller = Caller(
        spiffe_id=SpiffeID.parse("spiffe://corp.example/ns/x/sa/web"),
        cluster=name,
        credential="token",
        verified_by="jwks",
        namespace=namespace,
    )
    if allowed:
        registry.require_allowed(caller)
        return
    with pytest.raises(DeniedError, match="names of this namespace") as caught:
        registry.require_allowed(caller)
    assert caught.value.rule == "cluster.namespace"


@pytest.mark.parametrize("name", ["", "main", "stage"])
def test_only_a_clusters_own_name_is_its_name(
    registry: ClusterRegistry, name: str
) -> None:
    with pytest.raises(DeniedError, match="cluster is unknown"):
        registry.trust_domain_of(name)


def test_each_cluster_has_its_trust_domain(registry: ClusterRegistry) -> None:
    assert registry.trust_domain_of("prod") == TrustDomain("corp.example")
    assert registry.trust_domain_of("dev") == TrustDomain("dev.example")


def leaf(uri: str) -> CertificateCredential:
    certificate = new_root().issue_leaf(
        x509.UniformResourceIdentifier(uri), not_before=NOW
    )
    return CertificateCredential(bundle(certificate))


@pytest.mark.parametrize(
    ("domain", "name"), [("corp.example", "prod"), ("dev.example", "dev")]
)
def test_a_certificate_is_of_the_cluster_of_its_trust_domain(
    registry: ClusterRegistry, domain: str, name: str
) -> None:
    uri = f"spiffe://{domain}/ns/shop/sa/web"
    caller = registry.identify(leaf(uri), audiences=AUDIENCES, now=NOW, budget=BUDGET)
    assert caller == Caller(
        spiffe_id=SpiffeID.parse(uri),
        cluster=name,
        credential="certificate",
        verified_by="certificate",
        namespace="shop",
        service_account="web",
    )


@pytest.mark.parametrize(
    ("namespace", "name"), [("shop", "prod"), ("lab", "dev"), ("foreign", "prod")]
)
def test_clusters_of_one_trust_domain_share_the_callers_with_certificates(
    tmp_path: Path, namespace: str, name: str
) -> None:
    # A machine that got its certificate from one of them gets the next one, too.
    prod = cluster(tmp_path, "prod", namespaces=["shop"])
    dev = cluster(tmp_path, "dev", namespaces=["shop", "lab"])
    shared = built(configured(tmp_path, prod, dev))
    credential = leaf(f"spiffe://corp.example/ns/{namespace}/sa/web")
    caller = shared.identify(credential, audiences=AUDIENCES, now=NOW, budget=BUDGET)
    assert caller.cluster == name
    if namespace == "foreign":
        with pytest.raises(DeniedError, match="may not have names of this namespace"):
            shared.require_allowed(caller)
    else:
        shared.require_allowed(caller)


def test_a_certificate_of_a_foreign_trust_domain_is_refused(
    registry: ClusterRegistry,
) -> None:
    credential = leaf("spiffe://evil.example/ns/shop/sa/web")
    with pytest.raises(AuthenticationError, match="foreign trust domain"):
        registry.identify(credential, audiences=AUDIENCES, now=NOW, budget=BUDGET)


def test_every_problem_of_a_configuration_is_reported_at_once(tmp_path: Path) -> None:
    entries = [
        cluster(tmp_path, "prod", namespaces=["Shop", "*"]),
        cluster(tmp_path, "dev"),
    ]
    (tmp_path / "prod.json").unlink()
    (tmp_path / "dev.json").write_text('{"keys": []}')
    configuration = configured(tmp_path, *entries)
    with pytest.raises(ConfigError, match="namespaces") as caught:
        built(configuration)
    assert str(caught.value) == (
        'clusters[0].namespaces: expected names of namespaces, or "*" '
        "(found 'Shop')\n"
        f"clusters[0].tokens.file: {tmp_path}/prod.json: cannot be read: No such file "
        "or directory\n"
        f"clusters[1].tokens.file: {tmp_path}/dev.json: expected a JWK Set with at "
        'least one key under "keys"'
    )


def test_two_clusters_with_one_key_are_refused(tmp_path: Path) -> None:
    entries = [cluster(tmp_path, "prod"), cluster(tmp_path, "dev")]
    same = public_jwk(issuers()["prod"].key.public_key(), kid="another-id")
    keys = {"keys": [issuers()["dev"].jwk(), same]}
    (tmp_path / "dev.json").write_text(json.dumps(keys))
    configuration = configured(tmp_path, *entries)
    with pytest.raises(ConfigError, match="the cluster prod has the same one"):
        built(configuration)


def test_missing_trust_anchors_of_a_key_server_are_reported(
    tmp_path: Path,
) -> None:
    keys = {"verify": "jwks", "url": "https://127.0.0.1:1/", "issuer": "https://x"}
    entry = {"name": "prod", "tokens": keys | {"ca_file": "missing.pem"}}
    configuration = configured(tmp_path, entry)
    with pytest.raises(ConfigError, match=r"clusters\[0\].tokens.ca_file"):
        built(configuration)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with KeyServer(tmp_path) as running:
        yield running


def by_url(server: KeyServer, issuer: str) -> dict[str, Any]:
    keys = {"verify": "jwks", "url": server.jwks_url, "issuer": issuer}
    return {"name": "prod", "tokens": keys | {"ca_file": str(server.ca_file)}}


def test_the_keys_of_an_api_server_that_asks_for_a_token(
    tmp_path: Path, server: KeyServer
) -> None:
    prod = issuers()["prod"]
    server.bearer = "e30.e30.a"
    server.show(prod.jwks())
    entry = by_url(server, prod.issuer)
    (problem,) = built(configured(tmp_path, entry)).problems()
    assert "HTTP status 403: it asks for a token: see tokens.token_file" in problem
    entry["tokens"] |= {"token_file": "token"}
    configuration = configured(tmp_path, entry)
    where = rf"clusters\[0\].tokens.url: {server.jwks_url}: .*/token: cannot be read"
    with pytest.raises(ConfigError, match=where):
        built(configuration)
    (tmp_path / "token").write_text(f"{server.bearer}\n")
    registry = built(configuration)
    assert identify(registry, shown(token())).cluster == "prod"


def test_a_wrong_signature_has_the_keys_fetched_again(
    tmp_path: Path, server: KeyServer
) -> None:
    prod = issuers()["prod"]
    server.show(prod.jwks())
    entry = by_url(server, prod.issuer)
    entry["tokens"]["refresh_floor"] = "0s"
    registry = built(configured(tmp_path, entry))
    renewed = TokenIssuer(prod.issuer, "ES256", kid=prod.kid)
    server.show(renewed.jwks())
    with pytest.raises(AuthenticationError, match="signature"):
        identify(registry, shown(renewed.token(now=NOW)))
    for _ in range(2):
        assert server.asked.acquire(timeout=20)
    registry.close()


def test_a_key_server_that_is_down_is_a_problem_and_no_error(
    tmp_path: Path, server: KeyServer
) -> None:
    prod = issuers()["prod"]
    configuration = configured(tmp_path, by_url(server, prod.issuer))
    registry = built(configuration)
    (problem,) = registry.problems()
    assert problem.startswith("cluster prod: has no keys yet: https://127.0.0.1:")
    assert registry.without_keys() == ["prod"]
    with pytest.raises(ReviewError, match="could not be fetched") as caught:
        identify(registry, shown(token()))
    assert "HTTP status 404" in caught.value.detail
    server.show(prod.jwks())
    recovered = built(configuration)
    assert recovered.problems() == []
    assert recovered.without_keys() == []
    assert identify(recovered, shown(token())).cluster == "prod"
    for one in (registry, recovered):
        one.close()


def test_a_look_up_that_hangs_holds_up_no_start(
    tmp_path: Path, server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = threading.Event(), threading.Event()
    plain = socket.getaddrinfo

    def look_up(host: str, *more: Any, **options: Any) -> Any:
        if host == "keys.example":
            asked.set()
            go_on.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return plain(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(clusters, "_START_SECONDS", 0.5)
    far = by_url(server, issuers()["dev"].issuer) | {"name": "far"}
    far["tokens"]["url"] = "https://keys.example/jwks"
    registry = built(configured(tmp_path, cluster(tmp_path, "prod"), far))
    assert asked.wait(20)
    assert registry.problems() == ["cluster far: has no keys yet: no answer so far"]
    assert identify(registry, shown(token())).cluster == "prod"
    go_on.set()
    registry.close()


def test_who_shows_the_key_of_an_earlier_cluster_refuses_no_start(
    tmp_path: Path, server: KeyServer
) -> None:
    home, other = issuers()["prod"], issuers()["dev"]
    server.show({"keys": [home.jwk(), other.jwk()]})
    far = by_url(server, other.issuer) | {"name": "far", "namespaces": ["*"]}
    registry = built(configured(tmp_path, cluster(tmp_path, "prod"), far))
    assert identify(registry, shown(token())).cluster == "prod"
    assert identify(registry, shown(token("dev"), "far")).cluster == "far"
    with pytest.raises(AuthenticationError, match="key"):
        identify(registry, shown(token(), "far"))
    (told,) = registry.problems()
    assert told.endswith("is not used: it is also prod's")
    assert registry.refused_keys() == {"prod": 0, "far": 1}
    registry.close()


# Clusters by front; the fronts that are told of, and the cluster each time. Only `prod`
# has no keys.
UNSERVED: list[tuple[dict[str, tuple[str, ...]], list[str]]] = [
    ({"istio": ("prod", "dev")}, []),
    ({"istio": ("prod",)}, ["istio"]),
    ({"istio": ("dev",), "linkerd": ("dev",)}, []),
    ({"istio": ("prod", "dev"), "linkerd": ("prod",)}, ["linkerd"]),
    ({"istio": ("prod",), "linkerd": ("prod",)}, ["istio", "linkerd"]),
]


@pytest.mark.parametrize(("callers", "fronts"), UNSERVED)
def test_a_front_is_unserved_if_none_of_its_clusters_has_keys(
    tmp_path: Path,
    server: KeyServer,
    callers: dict[str, tuple[str, ...]],
    fronts: list[str],
) -> None:
    prod = by_url(server, issuers()["prod"].issuer)
    registry = built(configured(tmp_path, prod, cluster(tmp_path, "dev")))
    told = registry.unserved(callers)
    assert [one.split(" can verify no token: ")[0] for one in told] == [
        f"front {front}" for front in fronts
    ]
    why = "cluster prod: has no keys yet: https://127.0.0.1:"
    assert all(f"no token: {why}" in one for one in told)
    assert [one.startswith(why) for one in registry.problems()] == [True]
    server.show(issuers()["prod"].jwks())
    verifier = registry.clusters[0].verifier
    assert isinstance(verifier, OfflineVerifier)
    verifier.keyring.refresh(always=True)
    assert registry.unserved(callers) == []


def test_a_front_whose_keys_are_too_old_is_unserved(tmp_path: Path) -> None:
    now = NOW
    configuration = configured(tmp_path, cluster(tmp_path, "prod"))
    registry = ClusterRegistry(configuration, clock=lambda: now)
    now += timedelta(hours=24)
    assert registry.unserved({"istio": ("prod",)}) == []
    now += timedelta(seconds=1)
    (told,) = registry.unserved({"istio": ("prod",)})
    assert "its keys were last confirmed 24.0 hours ago: no refresh since" in told


def test_what_a_key_server_answers_must_be_keys(
    tmp_path: Path, server: KeyServer
) -> None:
    server.show({"keys": [{"kty": "oct", "k": "AAAA"}]})
    configuration = configured(tmp_path, by_url(server, "https://x"))
    with pytest.raises(ConfigError, match="symmetric"):
        built(configuration)


def test_a_started_registry_ends(tmp_path: Path) -> None:
    registry = built(configured(tmp_path, cluster(tmp_path, "prod")))
    registry.start()
    registry.close()
    assert identify(registry, shown(token())).cluster == "prod"


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_credential_is_the_same_caller_or_none(
    registry: ClusterRegistry, data: st.DataObject
) -> None:
    good = _good()
    at = data.draw(st.integers(0, len(good)))
    gone = data.draw(st.integers(0, 3))
    new = data.draw(st.text(max_size=3) | st.text("AZaz09-_. =", max_size=3))
    names = data.draw(st.lists(st.sampled_from(["", "prod", "dev", "x"]), max_size=2))
    credential = TokenCredential((good[:at] + new + good[at + gone :],), tuple(names))
    try:
        caller = identify(registry, credential)
    except BridgeError:
        return
    assert caller == identify(registry, TokenCredential((good,), ()))


@cache
def _good() -> str:
    return f"Bearer {token()}"
