"""The smallest complete configuration, for tests that change one thing of it."""

from collections.abc import Mapping
from typing import Any

import yaml


def smallest(**changed: Any) -> dict[str, Any]:
    """Return a tree with Istio's front, one cluster and one issuing CA.

    Args:
        changed: Merged into it.
    """
    tree: dict[str, Any] = {
        "trust_domain": "corp.example",
        "fronts": {"istio": {"listen": "127.0.0.1:0", "tls": {"dns_names": ["a"]}}},
        "clusters": [
            {
                "name": "Kubernetes",
                "tokens": {
                    "verify": "jwks",
                    "file": "jwks.json",
                    "issuer": "https://issuer.example",
                },
            }
        ],
        "issuing_cas": {"seoul-1": {"plugin": "file", "chain": "chain.pem"}},
        "trust_anchors": "roots.pem",
        "issuance": {"issuing_cas": ["seoul-1"]},
        "ledger": {
            "journal": "journal",
            "archive": "sqlite:///archive.db",
            "heads": {"sink": "heads.jsonl"},
        },
    }
    return merge(tree, changed)


def text(**changed: Any) -> str:
    """Return `smallest` as the text of a file."""
    return yaml.safe_dump(smallest(**changed))


def merge(tree: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Put `more` into `tree`, mapping by mapping."""
    for name, value in more.items():
        below = tree.get(name)
        if isinstance(below, dict) and isinstance(value, Mapping):
            merge(below, value)
        else:
            tree[name] = value
    return tree
