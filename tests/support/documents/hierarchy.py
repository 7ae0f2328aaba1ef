"""The keys of the hierarchy file, from its schema, and the rules of a plan."""

from collections.abc import Iterator

from bridge.hierarchy.plan import RULES
from bridge.hierarchy.schema import HierarchyFile
from tests.support.documents.configuration import Key, keys
from tests.support.documents.markdown import code, table

PLACES = (
    "top level",
    "cas",
    "cas.*.key",
    "cas.*.validity",
    "cas.*.name_constraints",
    "certificates",
    "officers",
    "accepted",
)
"""The tables of the document; a key is in the one with the longest fitting name."""


def all_keys() -> Iterator[Key]:
    """Yield every key of the file."""
    yield from keys(HierarchyFile)


def parts() -> dict[str, Iterator[str]]:
    """Return the tables of the document, by their names."""
    placed: dict[str, list[Key]] = {name: [] for name in PLACES}
    for key in all_keys():
        fitting = [
            name for name in PLACES if key.path.startswith((f"{name}.", f"{name}["))
        ]
        placed[max(fitting, key=len, default="top level")].append(key)
    header = ("Key", "Type", "Default", "Meaning")
    rules = ((code(rule), severity) for rule, severity in RULES.items())
    return {
        name: table(header, (key.row for key in found))
        for name, found in placed.items()
    } | {"rules": table(("Rule", "Severity"), rules)}
