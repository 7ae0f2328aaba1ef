"""Draws a chain as a tree, from the trust anchor down to the leaf."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import repeat

from cryptography import x509
from rich.markup import escape
from rich.tree import Tree

from bridge.cli.console import results

_SAN = x509.SubjectAlternativeName


def print_chain(certificates: Sequence[x509.Certificate]) -> None:
    """Print a chain to stdout.

    Args:
        certificates: Leaf first, trust anchor last.
    """
    results().print(chain_tree(certificates))


def chain_tree(certificates: Sequence[x509.Certificate]) -> Tree:
    """Draw a chain: names, validity and constraints of every tier.

    Args:
        certificates: Leaf first, trust anchor last.
    """
    *below, anchor = certificates
    tree = node = Tree(_described("trust anchor", anchor))
    for role, certificate in reversed([*zip(_roles(below), below, strict=False)]):
        node = node.add(_described(role, certificate))
    return tree


def _roles(below: Sequence[x509.Certificate]) -> Iterator[str]:
    if below and not _is_ca(below[0]):
        yield "leaf"
    yield "issuing CA"
    yield from repeat("intermediate")


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(
            x509.BasicConstraints
        ).value.ca
    except x509.ExtensionNotFound:
        return False


def _described(role: str, certificate: x509.Certificate) -> str:
    lines = [f"[bold]{role}[/bold] {escape(_title(certificate))}"]
    lines.append(
        f"valid {_day(certificate.not_valid_before_utc)} to "
        f"{_day(certificate.not_valid_after_utc)}, {_key(certificate)}, "
        f"serial {certificate.serial_number:x}"
    )
    lines.extend(escape(line) for line in _constraints(certificate))
    return "\n".join(lines)


def _title(certificate: x509.Certificate) -> str:
    subject = certificate.subject.rfc4514_string()
    try:
        names = certificate.extensions.get_extension_for_class(_SAN).value
    except x509.ExtensionNotFound:
        return subject
    return ", ".join([*([subject] if subject else []), *(str(n.value) for n in names)])


def _key(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    curve = getattr(key, "curve", None)
    if curve is not None:
        return f"EC {curve.name}"
    return f"RSA {getattr(key, 'key_size', '?')}"


def _constraints(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound:
        return ["no name constraints"] if _is_ca(certificate) else []
    lines = []
    for word, subtrees in (
        ("permits", found.value.permitted_subtrees),
        ("excludes", found.value.excluded_subtrees),
    ):
        if subtrees:
            lines.append(f"{word} {', '.join(_constraint(item) for item in subtrees)}")
    return lines


def _constraint(name: x509.GeneralName) -> str:
    kinds = {
        x509.DNSName: "DNS",
        x509.UniformResourceIdentifier: "URI",
        x509.IPAddress: "IP",
        x509.RFC822Name: "e-mail",
        x509.DirectoryName: "directory",
    }
    return f"{kinds.get(type(name), 'other')}:{name.value}"


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}Z"
