"""The hierarchy file, version 1, and the reader of it."""

from bridge.hierarchy.schema.certificates import (
    ClusterCA,
    ClusterPKIEntry,
    NodeEntry,
)
from bridge.hierarchy.schema.constraints import ConstraintsEntry, Subtrees
from bridge.hierarchy.schema.file import (
    AcceptedWarning,
    CAEntry,
    HierarchyFile,
    Loaded,
    Officer,
    Purpose,
    ValidityEntry,
    load,
    parse,
)
from bridge.hierarchy.schema.key_location import (
    KeyBehindCSR,
    KeyInFile,
    KeyInToken,
    KeyInTransit,
    KeyLocation,
)

__all__ = [
    "AcceptedWarning",
    "CAEntry",
    "ClusterCA",
    "ClusterPKIEntry",
    "ConstraintsEntry",
    "HierarchyFile",
    "KeyBehindCSR",
    "KeyInFile",
    "KeyInToken",
    "KeyInTransit",
    "KeyLocation",
    "Loaded",
    "NodeEntry",
    "Officer",
    "Purpose",
    "Subtrees",
    "ValidityEntry",
    "load",
    "parse",
]
