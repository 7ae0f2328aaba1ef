"""What the CAs of a tree may be to each other: names, keys, dates and path lengths."""

from collections.abc import Callable, Iterator
from datetime import timedelta

from bridge.config.types import written
from bridge.errors import ConfigError
from bridge.hierarchy.plan.findings import PlanFinding, Tree
from bridge.hierarchy.schema.key_location import identity_of
from bridge.hierarchy.transcript import officer_key, spki_of
from bridge.x509.algorithm import KeyAlgorithm
from bridge.x509.ca_certificate import least_life
from bridge.x509.path import MOST_CAS_BELOW_ANCHOR

_YEAR = timedelta(days=366)
_LONGEST_ROOT = 25 * _YEAR
_LONGEST_OTHER = 8 * _YEAR
_STRENGTH: dict[KeyAlgorithm, int] = {
    "rsa2048": 112,
    "rsa3072": 128,
    "ed25519": 128,
    "p256": 128,
    "rsa4096": 140,
    "p384": 192,
    "p521": 256,
}
"""Bits of security; NIST SP 800-57 part 1, table 2."""


def tree_findings(tree: Tree) -> Iterator[PlanFinding]:
    """Yield what is wrong with the tree, apart from name constraints."""
    for name in tree.order:
        rules = (_shape, _scope, _depth, _key, _validity, _renewal, _path_len, _usage)
        for rule in rules:
            yield from rule(tree, name)
    yield from _shared(tree)
    yield from _urls(tree)
    yield from _officers(tree)


def _shape(tree: Tree, name: str) -> Iterator[PlanFinding]:
    entry, below = tree.file.cas[name], tree.children[name]
    if entry.purpose is not None and below:
        yield PlanFinding(
            "tree.issuing-has-children",
            name,
            f"issues leaves (purpose: {entry.purpose}) and has CAs below it "
            f"({', '.join(below)}): whatever trusts it for its leaves would trust "
            "theirs too; give it a sibling for the one or the other",
        )
    if entry.purpose is None and not below:
        yield PlanFinding(
            "tree.signs-nothing",
            name,
            "has no purpose and no CA below it; give it a purpose, such as mesh, or "
            "take it out",
        )


def _scope(tree: Tree, name: str) -> Iterator[PlanFinding]:
    file, entry = tree.file, tree.file.cas[name]
    if entry.purpose == "mesh":
        for rule, found, key in (
            ("tree.no-trust-domain", file.trust_domains_of(name), "trust_domains"),
            ("tree.no-data-plane", file.data_planes_of(name), "data_planes"),
        ):
            if not found:
                text = f"issues for a mesh, and has no {key}; write {key} at the top"
                yield PlanFinding(rule, name, f"{text} of the file, or here")
    parent = entry.parent
    above = (
        (file.trust_domains, file.data_planes)
        if parent is None
        else (file.trust_domains_of(parent), file.data_planes_of(parent))
    )
    for rule, key, own, wider in (
        ("tree.trust-domain-wider", "trust_domains", entry.trust_domains, above[0]),
        ("tree.data-plane-wider", "data_planes", entry.data_planes, above[1]),
    ):
        if extra := [str(one) for one in own or () if one not in wider]:
            yield PlanFinding(
                rule,
                name,
                f"has {', '.join(extra)} in {key}, which what is above it has not; "
                "add it there, or take it out here",
            )


def _depth(tree: Tree, name: str) -> Iterator[PlanFinding]:
    file = tree.file
    if file.cas[name].purpose is None:
        return
    anchor = file.anchor_of(name)
    if file.cas[name].purpose == "mesh" and anchor == name:
        yield PlanFinding(
            "tree.anchor-issues",
            name,
            "is the anchor of its own mesh: its key, which is online, could not be "
            "replaced without every peer, and no bridge loads it; leave anchor out, or "
            "name a CA above it",
        )
    depth = file.chain(name).index(anchor)
    if depth > MOST_CAS_BELOW_ANCHOR:
        planes = ", ".join(file.data_planes_of(name)) or "its verifiers"
        yield PlanFinding(
            "tree.depth",
            name,
            f"is {depth} CAs below its anchor ({anchor}): rustls, and so ztunnel and "
            f"linkerd2-proxy, verifies {MOST_CAS_BELOW_ANCHOR} at most, and the bridge "
            f"loads no longer chain (here for {planes}); take tiers out, or write a "
            "lower CA as its anchor",
        )


def _key(tree: Tree, name: str) -> Iterator[PlanFinding]:
    entry, below = tree.file.cas[name], tree.children[name]
    if entry.key.backend == "csr" and (below or entry.parent is None):
        yield PlanFinding(
            "key.csr-signs",
            name,
            "has a key behind a CSR, which signs nothing in a ceremony, and has to sign"
            f" {', '.join(below) or 'itself'}; name a key that can be used: backend "
            "file, pkcs11 or vault-transit",
        )
    if entry.key.backend == "vault-transit" and entry.parent is None:
        yield PlanFinding(
            "key.root-online",
            name,
            "is the root, and whoever reaches Vault reaches its key; keep it offline, "
            "with backend pkcs11 or file",
        )
    strength = _STRENGTH[entry.key.algorithm]
    stronger = [
        f"{one} ({key})"
        for one in below
        if _STRENGTH[key := tree.file.cas[one].key.algorithm] > strength
    ]
    if stronger:
        yield PlanFinding(
            "key.weaker-than-child",
            name,
            f"has a weaker key ({entry.key.algorithm}) than {', '.join(stronger)} "
            "below it, whose certificates are only as strong as this key; make it as "
            "strong as they are",
        )


def _validity(tree: Tree, name: str) -> Iterator[PlanFinding]:
    entry, (start, end) = tree.file.cas[name], tree.windows[name]
    if end <= tree.now:
        yield PlanFinding(
            "validity.expired",
            name,
            f"has ended on {end:%Y-%m-%d %H:%M}Z; write a later not_after, or years",
        )
    longest = _LONGEST_ROOT if entry.parent is None else _LONGEST_OTHER
    if end - start > longest:
        years = longest // _YEAR
        yield PlanFinding(
            "validity.long",
            name,
            f"is valid for more than {years} years, longer than its key should be "
            "trusted; shorten it, and renew it in another ceremony",
        )
    if entry.parent is None:
        return
    above_start, above_end = tree.windows[entry.parent]
    if entry.validity.not_before is not None and start < above_start:
        yield PlanFinding(
            "validity.before-parent",
            name,
            f"begins on {start:%Y-%m-%d %H:%M}Z, before its parent {entry.parent} "
            f"({above_start:%Y-%m-%d %H:%M}Z); write a later not_before",
        )
    if end <= start and entry.validity.not_before is None:
        yield PlanFinding(
            "validity.before-parent",
            name,
            f"ends on {end:%Y-%m-%d %H:%M}Z, before its parent {entry.parent} begins "
            f"({above_start:%Y-%m-%d %H:%M}Z); write a later not_after",
        )
    # Without dates of its own it is signed after its parent, and so ends after it.
    is_later = entry.validity.not_after is None
    if end > above_end or (is_later and end == above_end):
        yield PlanFinding(
            "validity.outlives-parent",
            name,
            f"ends on {end:%Y-%m-%d %H:%M}Z, and its parent {entry.parent} on "
            f"{above_end:%Y-%m-%d %H:%M}Z: after that no verifier takes it; shorten "
            f"it, or make {entry.parent} last longer",
        )


def _renewal(tree: Tree, name: str) -> Iterator[PlanFinding]:
    """Yield whether a CA ends too soon for the leaves that it issues."""
    entry, (start, end) = tree.file.cas[name], tree.windows[name]
    needed, leaves = timedelta(), timedelta()
    if entry.purpose == "mesh":
        leaves = entry.leaf_lifetime
        needed = least_life(leaves)
    for cluster in tree.file.certificates.values():
        # Made by hand for a time that is told: one of them has to fit, whole.
        if name in {ca for _, _, ca in cluster.cas()}:
            needed = leaves = timedelta(days=cluster.days)
    if end > tree.now and end - start <= needed:
        yield PlanFinding(
            "validity.renewal-budget",
            name,
            f"lives {written(end - start)}, and its leaves up to {written(leaves)}: "
            f"expected more than {written(needed)}, or they end with it before their "
            "time; make it last longer, or shorten leaf_lifetime, or days of its "
            "cluster's certificates",
        )


def _path_len(tree: Tree, name: str) -> Iterator[PlanFinding]:
    entry, height = tree.file.cas[name], tree.height[name]
    parent = tree.file.cas.get(entry.parent or "")
    if parent is not None and entry.path_len >= parent.path_len:
        yield PlanFinding(
            "path_len.not-below-parent",
            name,
            f"has path_len {entry.path_len}, and its parent {entry.parent} "
            f"{parent.path_len}: a child's is lower; write {height} here, the tiers "
            "below it, and more above",
        )
    if height > entry.path_len:
        yield PlanFinding(
            "path_len.too-short",
            name,
            f"has path_len {entry.path_len}, and CAs {height} tiers below it, whose "
            f"leaves every verifier rejects; write path_len: {height}",
        )
    if height < entry.path_len:
        yield PlanFinding(
            "path_len.too-long",
            name,
            f"has path_len {entry.path_len} and {height} tiers below it: who has its "
            f"key could make CAs that the file does not have; write path_len: {height}",
        )


def _usage(tree: Tree, name: str) -> Iterator[PlanFinding]:
    entry = tree.file.cas[name]
    if "cert_sign" not in entry.key_usage:
        yield PlanFinding(
            "key_usage.no-cert-sign",
            name,
            "may sign no certificate; add cert_sign to key_usage",
        )
    if "crl_sign" not in entry.key_usage:
        yield PlanFinding(
            "key_usage.no-crl-sign",
            name,
            "may sign no CRL, so nothing below it can be revoked; add crl_sign to "
            "key_usage",
        )
    if not entry.ext_key_usage:
        return
    needed = tree.file.usages_of(name)
    if missing := sorted(needed - {*entry.ext_key_usage}):
        yield PlanFinding(
            "ext_key_usage.missing",
            name,
            f"has an ext_key_usage without {', '.join(missing)}, and verifiers hold "
            "leaves below it to it; add it, or leave ext_key_usage out",
        )


def _shared(tree: Tree) -> Iterator[PlanFinding]:
    for rule, what_of, text in (
        (
            "key.shared",
            lambda name: identity_of(tree.file.cas[name].key),
            "has the key of {}: one stolen key would be both; give it one of its own",
        ),
        (
            "key.shared",
            lambda name: tree.file.cas[name].key.spki_sha256 or name,
            "has the spki_sha256 of {}: one key in two places; give it one of its own",
        ),
        (
            "names.shared-subject",
            lambda name: tree.file.cas[name].common_name,
            (
                "has the subject of {}: verifiers look issuers up by name, and some "
                "try only the first; give it another common_name"
            ),
        ),
    ):
        yield from _repeats(tree, rule, what_of, text)


def _repeats(
    tree: Tree, rule: str, what_of: Callable[[str], object], text: str
) -> Iterator[PlanFinding]:
    first: dict[object, str] = {}
    for name in tree.order:
        found = first.setdefault(what_of(name), name)
        if found != name:
            yield PlanFinding(rule, name, text.format(found))


def _urls(tree: Tree) -> Iterator[PlanFinding]:
    issuer_of: dict[tuple[str, str], str | None] = {}
    for name, entry in ((one, tree.file.cas[one]) for one in tree.order):
        for key in ("crl_url", "aia_url"):
            url: str | None = getattr(entry, key)
            if url is None:
                continue
            if entry.parent is None:
                yield PlanFinding(
                    "urls.root",
                    name,
                    f"has a {key}, and is signed by no other CA: nobody looks there; "
                    "leave it out",
                )
            issuer = issuer_of.setdefault((key, url), entry.parent)
            if issuer != entry.parent:
                yield PlanFinding(
                    "urls.shared",
                    name,
                    f"has the {key} of what {issuer} signs, and is signed by "
                    f"{entry.parent}; write the URL of {entry.parent}",
                )


def _officers(tree: Tree) -> Iterator[PlanFinding]:
    officers = tree.file.officers
    if not officers:
        yield PlanFinding(
            "officers.none",
            None,
            "there are no officers: nobody has to sign the transcript; list them, with "
            "a quorum, before a ceremony that counts",
        )
    known: dict[object, int] = {}
    for index, one in enumerate(officers):
        key: object = one.public_key
        # Before the officers have made their keys, there is no file.
        if one.public_key.exists():
            try:
                key = spki_of(officer_key(one.public_key))
            except ConfigError as error:
                yield PlanFinding("officers.public-key", None, str(error))
        for same in (one.name, key):
            other = known.setdefault(same, index)
            if other != index:
                yield PlanFinding(
                    "officers.shared-key",
                    None,
                    f"{one.name} ({one.public_key}) has the name or the key of "
                    f"another officer, {officers[other].name}: one person would "
                    "count twice for the quorum; give each one of their own",
                )
