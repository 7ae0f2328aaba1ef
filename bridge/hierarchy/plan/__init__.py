"""A plan of a hierarchy: what will be made, and all that can be told without a key.

`plan_of` holds a file to every rule of `findings.RULES`. A plan that fails is signed by
no command.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from bridge.errors import ConfigError
from bridge.hierarchy.plan.cluster_rules import cluster_findings
from bridge.hierarchy.plan.constraint_rules import constraint_findings
from bridge.hierarchy.plan.containment import (
    Containment,
    PlaneMatrix,
    containment_of,
    matrices_of,
)
from bridge.hierarchy.plan.findings import RULES, PlanFinding, Tree
from bridge.hierarchy.plan.tree_rules import tree_findings
from bridge.hierarchy.schema import HierarchyFile, Loaded

__all__ = ["RULES", "Containment", "Plan", "PlanFinding", "PlaneMatrix", "plan_of"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A hierarchy file, and what it would come to."""

    loaded: Loaded
    order: tuple[str, ...]
    """All CAs, parents before children: the order of their ceremonies."""
    windows: dict[str, tuple[datetime, datetime]]
    """notBefore and notAfter of each CA, if it were signed now."""
    findings: tuple[PlanFinding, ...]
    """What fails first, then the rest; each in the order of the tree."""
    matrices: tuple[PlaneMatrix, ...]
    containment: tuple[Containment, ...]

    @property
    def passes(self) -> bool:
        """Whether no error stands, and no warning that the file does not accept."""
        return not any(one.fails for one in self.findings)

    def require_passes(self) -> None:
        """Refuse a plan with a finding that fails.

        Raises:
            ConfigError: The message has a line for each, with its rule and way out.
        """
        if not self.passes:
            lines = [line_of(self.loaded, one) for one in self.findings if one.fails]
            raise ConfigError("\n".join(lines), rule="hierarchy.plan")


def line_of(loaded: Loaded, finding: PlanFinding) -> str:
    """Return a finding as one line: file, path of the key, text and rule."""
    return f"{loaded.path}: {finding.path}: {finding.text} [{finding.rule}]"


def plan_of(loaded: Loaded, *, now: datetime) -> Plan:
    """Hold a hierarchy file to every rule. Touches no key, and no file but this one.

    Args:
        loaded: The file.
        now: Aware UTC: the time that certificates would be signed at.
    """
    tree = Tree(loaded.file, now)
    found = [
        *tree_findings(tree),
        *constraint_findings(tree),
        *cluster_findings(tree),
    ]
    judged = [*_judged(loaded.file, found)]
    return Plan(
        loaded,
        tree.order,
        dict(tree.windows),
        tuple(sorted(judged, key=_rank)),
        matrices_of(tree),
        containment_of(tree),
    )


def _rank(finding: PlanFinding) -> tuple[bool, int]:
    severities = ("error", "warning", "info")
    return not finding.fails, severities.index(finding.severity)


def _judged(
    file: HierarchyFile, findings: Iterable[PlanFinding]
) -> Iterator[PlanFinding]:
    """Yield the findings, with the file's reasons, and what its reasons are not for."""
    reasons = {(one.rule, one.ca): one.reason for one in file.accepted}
    used = set()
    for one in findings:
        key = (one.rule, one.ca)
        if one.severity == "warning" and key in reasons:
            used.add(key)
            yield replace(one, accepted=reasons[key])
        else:
            yield one
    for index, entry in enumerate(file.accepted):
        at = f"accepted[{index}] names the rule {entry.rule!r}"
        if entry.rule not in RULES:
            text = f"{at}, which there is none of; write the rule that the plan shows"
            yield PlanFinding("accepted.unknown-rule", entry.ca, text)
        elif RULES[entry.rule] != "warning":
            text = f"{at}, which is no warning: an error cannot be accepted; mend it"
            yield PlanFinding("accepted.no-warning", entry.ca, text)
        elif (entry.rule, entry.ca) not in used:
            text = f"{at}, and nothing is found against it; take it out"
            yield PlanFinding("accepted.unused", entry.ca, text)
