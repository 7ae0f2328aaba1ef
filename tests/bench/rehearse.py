"""How long a rehearsal of 30 CAs takes: `python -m tests.bench.rehearse`.

A bound on the order of magnitude, under a minute on two cores, and no target to tune
for. It is printed, and no test: a busy machine takes its time.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bridge.hierarchy.ceremony import rehearse
from tests.support.parts.ceremonies import in_file, loaded, tree

REGIONS = 4
CLUSTERS = 25
BOUND_SECONDS = 60.0


def hierarchy() -> dict[str, Any]:
    """Return a hierarchy file of a root, 4 regional and 25 issuing CAs."""
    content = tree()
    root, region, issuing = (content["cas"][name] for name in ("root", "eu", "prod"))
    cas = {"root": root}
    for number in range(REGIONS):
        name = f"region-{number}"
        cas[name] = {
            **region,
            "common_name": f"Corp region {number} CA",
            "key": in_file(name),
        }
    for number in range(CLUSTERS):
        name = f"cluster-{number}"
        cas[name] = {
            **{key: issuing[key] for key in issuing if not key.endswith("_url")},
            "parent": f"region-{number % REGIONS}",
            "common_name": f"Corp cluster {number} CA",
            "key": in_file(name),
        }
    return {**content, "cas": cas}


def main() -> int:
    """Rehearse once; return 1 if it took longer than the bound."""
    with tempfile.TemporaryDirectory() as folder:
        file = loaded(hierarchy(), Path(folder))
        began = time.monotonic()
        found = rehearse(file)
        seconds = time.monotonic() - began
    sys.stdout.write(
        f"{len(found)} CAs in {seconds:.1f} s (bound: {BOUND_SECONDS:.0f})\n"
    )
    return int(seconds > BOUND_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
