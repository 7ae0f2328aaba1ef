"""Fuzz target: tokens, as whole credentials through the registry of clusters.

The first line says what the rest is:

* `raw CLUSTER...`: each further line is an `authorization` header;
* `signed CLUSTER...`: two lines, header and payload of a token, which is then signed
  with the key of the first cluster. So the fuzzer reaches what is behind the signature.

Any credential is one of the callers that it may be, or an `AuthenticationError`.
"""

import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from bridge.config import parse
from bridge.errors import AuthenticationError
from bridge.identity.caller import Caller, TokenCredential
from bridge.identity.clusters import ClusterRegistry
from bridge.resilience.budget import Budget
from tests.fuzz.engine import main
from tests.support.parts.tokens import TokenIssuer

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
_BY_CHANCE = 40
"""Characters that a message may hold by chance."""
AUDIENCES = frozenset({"istio-ca"})
# Keys of no use but this: seeds have to stay good.
ISSUERS = {
    "prod": TokenIssuer(
        "https://prod.example",
        "ES256",
        "prod-1",
        ec.derive_private_key(0x1001, ec.SECP256R1()),
    ),
    "dev": TokenIssuer(
        "https://dev.example",
        "ES256",
        "dev-1",
        ec.derive_private_key(0x1002, ec.SECP256R1()),
    ),
}
_DOMAINS = {"prod": "corp.example", "dev": "dev.corp.example"}
_NAMES = {"": "prod", "prod": "prod", "production": "prod", "dev": "dev"}


def run(data: bytes) -> None:
    """Identify the caller whose credential `data` describes."""
    first, _, rest = data.decode("utf-8", "replace").partition("\n")
    kind, *clusters = first.split(" ")
    lines = rest.split("\n")
    if kind == "signed":
        header, payload = f"{rest}\n".split("\n")[:2]
        lines = [f"Bearer {ISSUERS['prod'].signed(header.encode(), payload.encode())}"]
    credential = TokenCredential(tuple(lines), tuple(clusters))
    try:
        caller = registry().identify(
            credential,
            audiences=AUDIENCES,
            now=NOW,
            budget=Budget.of_seconds(5),
        )
    except AuthenticationError as error:
        # The signature makes it a secret. A cluster's name is shown, whatever it is.
        mark = lines[0].rpartition(".")[2]
        shown = "".join((str(error), error.detail))
        if len(mark) > _BY_CHANCE and mark in shown and mark not in first:
            raise AssertionError("the token's signature is repeated") from error
        return
    _require_plausible(caller, clusters)


def _require_plausible(caller: Caller, clusters: list[str]) -> None:
    if caller.cluster != _NAMES.get((clusters or [""])[0]) or len(clusters) > 1:
        raise AssertionError("let in by another cluster than was named")
    namespace, name = caller.namespace, caller.service_account
    expected = f"spiffe://{_DOMAINS[caller.cluster]}/ns/{namespace}/sa/{name}"
    if str(caller.spiffe_id) != expected:
        raise AssertionError("named other than its service account")
    if not set(namespace + name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-."):
        raise AssertionError("a name that Kubernetes cannot give")


@cache
def registry() -> ClusterRegistry:
    """Return the two clusters."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for cluster, issuer in ISSUERS.items():
            issuer.write_jwks(folder / f"{cluster}.json")
        config = parse(_CONFIGURATION, folder / "bridge.yaml")
        return ClusterRegistry(config, clock=lambda: NOW)


_CONFIGURATION = """
trust_domain: corp.example
fronts: {istio: {listen: "127.0.0.1:1", tls: {dns_names: [a]}}}
clusters:
  - name: prod
    aliases: [production]
    tokens: {verify: jwks, file: prod.json, issuer: "https://prod.example"}
  - name: dev
    trust_domain: dev.corp.example
    tokens: {verify: jwks, file: dev.json, issuer: "https://dev.example"}
issuing_cas: {a: {plugin: file, chain: chain.pem}}
trust_anchors: roots.pem
issuance: {issuing_cas: [a]}
ledger: {journal: journal, archive: "sqlite:///a.db", heads: {sink: heads.jsonl}}
"""

if __name__ == "__main__":
    main(run)
