"""Draws a chain as a tree, from the trust anchor down to the leaf."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import repeat

from cryptography import x509

from bridge.cli.console import print_folded
from bridge.x509.certificate import readable, value_in
from bridge.x509.name_forms import FORMS

_STEP = " " * 4


def print_chain(certificates: Sequence[x509.Certificate]) -> None:
    """Print a chain to stdout: names, validity and constraints of every tier.

    Args:
        certificates: Leaf first, trust anchor last.
    """
    *below, anchor = map(readable, certificates)
    tiers = [*zip(_roles(below), below, strict=False)]
    for depth, (role, certificate) in enumerate(
        [("trust anchor", anchor), *tiers[::-1]]
    ):
        branch = (
            f"{_STEP * (depth - 1)}\N{BOX DRAWINGS LIGHT UP AND RIGHT}\u2500\u2500 "
        )
        indent = _STEP * depth
        first = f"{branch if depth else ''}[bold]{role}[/bold] "
        print_folded(_title(certificate), first, f"{indent}  ")
        for line in _described(certificate):
            print_folded(line, indent, f"{indent}  ")


def _roles(below: Sequence[x509.Certificate]) -> Iterator[str]:
    if below and not _is_ca(below[0]):
        yield "leaf"
    yield "issuing CA"
    yield from repeat("intermediate")


def _is_ca(certificate: x509.Certificate) -> bool:
    basic = value_in(certificate.extensions, x509.BasicConstraints)
    return basic is not None and basic.ca


def _described(certificate: x509.Certificate) -> Iterator[str]:
    yield (
        f"valid {_day(certificate.not_valid_before_utc)} to "
        f"{_day(certificate.not_valid_after_utc)}, {_key(certificate)}, "
        f"serial {certificate.serial_number:x}"
    )
    yield from _constraints(certificate)


def _title(certificate: x509.Certificate) -> str:
    subject = certificate.subject.rfc4514_string()
    names = value_in(certificate.extensions, x509.SubjectAlternativeName)
    if names is None:
        return subject
    return ", ".join([*([subject] if subject else []), *(str(n.value) for n in names)])


def _key(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    curve = getattr(key, "curve", None)
    if curve is not None:
        return f"EC {curve.name}"
    return f"RSA {getattr(key, 'key_size', '?')}"


def _constraints(certificate: x509.Certificate) -> list[str]:
    found = value_in(certificate.extensions, x509.NameConstraints)
    if found is None:
        return ["no name constraints"] if _is_ca(certificate) else []
    lines = []
    for word, subtrees in (
        ("permits", found.permitted_subtrees),
        ("excludes", found.excluded_subtrees),
    ):
        if subtrees:
            lines.append(f"{word} {', '.join(_constraint(item) for item in subtrees)}")
    return lines


def _constraint(name: x509.GeneralName) -> str:
    form = FORMS.get(type(name))
    return f"{form.label if form else 'other'}:{name.value}"


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}Z"
