"""What `meshca vault setup` takes from the configuration."""

from datetime import timedelta
from pathlib import Path

import yaml

from bridge.sdk import configured_cas


def test_the_names_of_leaves_come_from_the_configuration(tmp_path: Path) -> None:
    tokens = {"verify": "jwks", "file": "k", "issuer": "https://k.example"}
    content = {
        "trust_domain": "corp.example",
        "fronts": {
            "istio": {
                "listen": "127.0.0.1:1",
                "tls": {"dns_names": ["ca.example"], "ttl": "48h"},
            },
            "linkerd": {"listen": "127.0.0.1:2"},
        },
        "clusters": [
            {"name": "a", "tokens": tokens},
            {
                "name": "b",
                "trust_domain": "b.example",
                "tokens": {**tokens, "issuer": "https://b.example"},
            },
        ],
        "issuing_cas": {
            "eu": {"plugin": "vault-pki", "options": {"x": 1}},
            "disk": {"plugin": "file"},
        },
        "trust_anchors": "roots.pem",
        "issuance": {"issuing_cas": ["eu"]},
        "ledger": {
            "journal": "journal",
            "archive": "sqlite:///a.db",
            "heads": {"sink": "h"},
        },
    }
    path = tmp_path / "bridge.yaml"
    path.write_text(yaml.safe_dump(content))
    (found,) = configured_cas(path, ["vault-pki"])
    assert (found.context.name, found.options) == ("eu", {"x": 1})
    assert found.uri_names == (
        "spiffe://corp.example/ns/*/sa/*",
        "spiffe://b.example/ns/*/sa/*",
        "spiffe://corp.example/meshca/probe",
    )
    assert found.dns_names == (
        "ca.example",
        "*.serviceaccount.identity.linkerd.corp.example",
    )
    assert (found.backdate, found.max_ttl) == (
        timedelta(minutes=2),
        timedelta(hours=48),
    )
