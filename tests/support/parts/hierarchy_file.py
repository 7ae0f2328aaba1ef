"""Hierarchy files for tests: a good one, and what is changed in it."""

import json
from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bridge.hierarchy.schema import Loaded, parse

NOW = datetime(2027, 1, 31, 12, 0, 0, tzinfo=UTC)
_NOTHING: Mapping[str, Any] = {}


def _ca(name: str, parent: str | None, path_len: int, **more: Any) -> dict[str, Any]:
    above = {} if parent is None else {"parent": parent}
    return above | {
        "common_name": f"Corp {name} CA",
        "key": {"backend": "file", "path": f"keys/{name}.key", "algorithm": "p256"},
        "validity": {"years": {None: 20, "root": 5}.get(parent, 1)},
        "path_len": path_len,
        **more,
    }


CONSTRAINTS: Mapping[str, Any] = {
    "permitted": {
        "dns": ["corp.example", "svc"],
        "uri": ["corp.example", ".corp.example"],
        "email": ["invalid"],
    },
    "excluded": {"ip": ["0.0.0.0/0", "::/0"]},
}
GOOD: Mapping[str, Any] = {
    "version": 1,
    "name": "corp",
    "organisation": "Corp",
    "trust_domains": ["corp.example"],
    "data_planes": ["sidecar"],
    "cas": {
        "root": _ca("root", None, 2),
        "eu": _ca("eu", "root", 1, name_constraints=CONSTRAINTS),
        "prod": _ca("prod", "eu", 0, name_constraints=CONSTRAINTS, purpose="mesh"),
    },
}
"""Three tiers for sidecars, about which there is nothing to say."""


def changed(changes: Mapping[str, Any] = _NOTHING) -> dict[str, Any]:
    """Return a good file as a tree, with changes.

    Args:
        changes: Values by path, such as `cas.eu.path_len`. `...` takes a key out.
    """
    # Through text: equal constraints of two CAs are two, to be changed apart.
    tree: dict[str, Any] = json.loads(json.dumps(GOOD))
    for path, value in changes.items():
        *place, last = path.split(".")
        at: Any = tree
        for part in place:
            at = at.setdefault(part, {})
        if value is ...:
            del at[last]
        else:
            at[last] = deepcopy(value)
    return tree


def loaded(
    changes: Mapping[str, Any] = _NOTHING, path: Path = Path("hierarchy.yaml")
) -> Loaded:
    """Return a good file as it is loaded, with changes. JSON is YAML too."""
    return parse(json.dumps(changed(changes)).encode(), path)


def ca(name: str, parent: str, path_len: int = 0, **more: Any) -> dict[str, Any]:
    """Return the entry of one more CA below `parent`, for `changes`."""
    return _ca(name, parent, path_len, **more)
