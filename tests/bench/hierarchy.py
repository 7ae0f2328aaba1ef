"""How long a hierarchy of many CAs takes (`make bench-hierarchy`).

One root, regions, and issuing CAs of meshes and of control planes below them; the
command is run as a person runs it, with the start of its process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.parts.hierarchy_file import CONSTRAINTS, ca, changed

_BOUND_SECONDS = {"plan": 10.0}
"""An order of magnitude, and no target: what is above it has gone wrong."""
_REGIONS = 10
_CONTROL_PLANE: dict[str, Any] = {
    "permitted": {
        "dns": ["kubernetes", "kubernetes.default", "svc"],
        "uri": ["invalid", ".invalid"],
        "ip": ["10.0.0.0/8"],
        "email": ["invalid"],
    }
}


def tree_of(cas: int) -> dict[str, Any]:
    """Return a hierarchy file with so many CAs, half of them for control planes."""
    names = [f"r{number}" for number in range(_REGIONS)]
    tree = changed({"cas.eu": ..., "cas.prod": ..., "data_planes": ["sidecar"]})
    for number, name in enumerate(names):
        constraints = _CONTROL_PLANE if number % 2 else CONSTRAINTS
        tree["cas"][name] = ca(name, "root", 1, name_constraints=constraints)
    purposes = ("kubernetes", "etcd", "front-proxy")
    for number in range(cas - len(tree["cas"])):
        name, at = f"i{number}", number % _REGIONS
        purpose = purposes[number % 3] if at % 2 else "mesh"
        constraints = _CONTROL_PLANE if at % 2 else CONSTRAINTS
        tree["cas"][name] = ca(
            name, names[at], 0, purpose=purpose, name_constraints=constraints
        )
    return tree


def seconds_of(command: str, path: Path) -> float:
    """Run `meshca hierarchy COMMAND FILE` and return how long it took."""
    program = [sys.executable, "-m", "bridge.cli", "hierarchy", command, str(path)]
    begin = time.perf_counter()
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    """Measure, print, and exit with 1 above the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cas", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hierarchy.yaml"
        path.write_text(json.dumps(tree_of(options.cas)))
        for command, bound in _BOUND_SECONDS.items():
            taken = seconds_of(command, path)
            print(  # noqa: T201
                f"hierarchy {command} of {options.cas} CAs: {taken:.1f} s "
                f"(bound {bound:g} s)"
            )
            if taken > bound:
                sys.exit(1)


if __name__ == "__main__":
    main()
