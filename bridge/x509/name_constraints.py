"""Check names against the name constraints of every CA certificate of a chain.

Each certificate is evaluated for itself and all must permit: a lower CA cannot widen
what a higher one allows. Everything is parsed once, when the chain is loaded;
`ChainConstraints.require_permitted` is on the path of every request.

A constraint on one form says nothing about names of another: under a DNS constraint
alone every URI passes, here as in every verifier. The trust domain is therefore held
to the configuration elsewhere, whatever a chain says.

Source:
    RFC 5280, 4.2.1.10 and 6.1.4 (g); `docs/constraints.md` for how the answers differ
    from those of OpenSSL and Go.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from cryptography import x509
from cryptography.x509.oid import NameOID

from bridge.errors import ConfigError, DeniedError
from bridge.x509.certificate import UNREADABLE, extensions_of, raw_extensions
from bridge.x509.der import content, elements, tlv
from bridge.x509.name_forms import (
    FORMS,
    OTHER_FORMS,
    SMTP_UTF8_MAILBOX,
    NameSet,
    UnreadableNameError,
)

Kind = type[x509.GeneralName]
"""A name form, as the class that `cryptography` has for it."""

# What OpenSSL takes for a host name in a common name, if no dNSName is there.
_HOST_IN_COMMON_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+")


_Rule = tuple[int, NameSet | None, NameSet | None]
"""Tier, what is permitted (`None` is all) and what is excluded (`None` is nothing)."""
_OID = 0x06
_NAME_CONSTRAINTS = bytes.fromhex("551d1e")  # 2.5.29.30


@dataclass(frozen=True, slots=True)
class NameConstraints:
    """What one certificate says, by name form."""

    permitted: Mapping[Kind, NameSet]
    excluded: Mapping[Kind, NameSet]
    unsupported: frozenset[Kind] = frozenset()
    """Forms that are constrained and cannot be evaluated: their names are refused."""
    critical: bool = True

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self | None:
        """Read the extension of a CA certificate; `None` where there is none.

        Raises:
            ConfigError: The extension is malformed or empty, has a `minimum` or a
                `maximum`, or holds a constraint that cannot mean what its author
                wanted, such as a URI with a scheme, or a mask with holes.
        """
        try:
            found = extensions_of(certificate).get_extension_for_class(
                x509.NameConstraints
            )
        except x509.ExtensionNotFound:
            return None
        except UNREADABLE as error:
            raise _bad(f"the name constraints cannot be read: {error}") from error
        _require_whole_subtrees(certificate)
        return cls.of_value(found.value, critical=found.critical)

    @classmethod
    def of_value(cls, value: x509.NameConstraints, *, critical: bool = True) -> Self:
        """Read the value of an extension that is in no certificate yet.

        Raises:
            ConfigError: It holds a constraint that cannot mean what its author wanted.
        """
        permitted = list(value.permitted_subtrees or ())
        excluded = list(value.excluded_subtrees or ())
        kinds = {type(name) for name in (*permitted, *excluded)}
        return cls(
            {kind: _set_of(kind, permitted, strict=True) for kind in _in(permitted)},
            {kind: _set_of(kind, excluded, strict=False) for kind in _in(excluded)},
            frozenset(kinds - FORMS.keys()),
            critical,
        )

    @property
    def constrained(self) -> frozenset[Kind]:
        """The name forms that this certificate constrains."""
        return frozenset({*self.permitted, *self.excluded, *self.unsupported})


def _require_whole_subtrees(certificate: x509.Certificate) -> None:
    """Refuse `minimum` and `maximum`: `cryptography` reads past them in silence.

    Source:
        RFC 5280, 4.2.1.10: within its profile both are absent.
    """
    for subtrees in elements(content(_raw_extension(certificate))):
        for subtree in elements(content(subtrees)):
            if len([*elements(content(subtree))]) != 1:
                raise _bad(
                    "a name constraint has a minimum or a maximum distance, which no "
                    "verifier evaluates: leave them out"
                )


def _raw_extension(certificate: x509.Certificate) -> bytes:
    """Return the DER of the extension's value, which `cryptography` has parsed."""
    wanted = tlv(_OID, _NAME_CONSTRAINTS)
    for extension in raw_extensions(certificate):
        identifier, *_, value = elements(content(extension))
        if identifier == wanted:
            return content(value)
    raise _bad("the name constraints cannot be found")


def _in(names: Sequence[x509.GeneralName]) -> frozenset[Kind]:
    return frozenset(type(name) for name in names) & FORMS.keys()


def _set_of(kind: Kind, names: Sequence[x509.GeneralName], *, strict: bool) -> NameSet:
    form = FORMS[kind]
    values = [name.value for name in names if type(name) is kind]
    try:
        return form.permitted(values) if strict else form.excluded(values)
    except ValueError as error:
        raise _bad(str(error)) from error


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="config.constraints")


@dataclass(frozen=True, slots=True)
class ChainConstraints:
    """The constraints of all CA certificates of one chain, parsed once."""

    rules: Mapping[Kind, tuple[_Rule, ...]]
    unsupported: frozenset[Kind] = frozenset()

    @classmethod
    def of_chain(cls, certificates: Sequence[x509.Certificate]) -> Self:
        """Read the constraints of a chain.

        Args:
            certificates: All CA certificates, the issuing CA first and the trust
                anchor last: constraints of an anchor count too.

        Raises:
            ConfigError: There is no certificate, or see `NameConstraints.of`.
        """
        if not certificates:
            raise ConfigError(
                "a chain without CA certificates cannot be evaluated",
                rule="config.constraints",
            )
        return cls.of_tiers(map(NameConstraints.of, certificates))

    @classmethod
    def of_tiers(cls, given: Iterable[NameConstraints | None]) -> Self:
        """Join the constraints of a chain: issuing CA first, trust anchor last.

        Args:
            given: Of each CA; `None` where it has none.
        """
        tiers = [(tier, one) for tier, one in enumerate(given, 1) if one is not None]
        return cls(
            {
                kind: tuple(
                    (tier, found.permitted.get(kind), found.excluded.get(kind))
                    for tier, found in tiers
                    if kind in found.permitted or kind in found.excluded
                )
                for kind in FORMS
            },
            frozenset().union(*(found.unsupported for _, found in tiers)),
        )

    @property
    def constrained(self) -> frozenset[Kind]:
        """The name forms that some certificate of the chain constrains."""
        return self.unsupported.union(kind for kind in self.rules if self.rules[kind])

    def require_permitted(
        self, names: Sequence[x509.GeneralName], subject: x509.Name | None = None
    ) -> None:
        """Refuse names that any CA certificate of the chain does not allow.

        Args:
            names: The subject alternative names of a certificate, in any order.
            subject: Its subject. An empty one passes; e-mail addresses in it count as
                names, and so do host names in it where `names` has no DNS name.

        Raises:
            DeniedError: A name is outside what a certificate permits
                (`constraint.permitted`), inside what one excludes
                (`constraint.excluded`), or of a form or spelling that cannot be
                evaluated (`constraint.unsupported`).
        """
        for name in names:
            kind = type(name)
            rules = self.rules.get(kind)
            if rules is None:
                self._require_unconstrained(name)
            elif rules:
                self._require(rules, kind, name.value)
        if subject is not None and subject.rdns:
            for kind, value in _names_in(subject, names):
                if rules := self.rules[kind]:
                    self._require(rules, kind, value)

    def _require(self, rules: tuple[_Rule, ...], kind: Kind, value: Any) -> None:
        try:
            found = FORMS[kind].read(value)
        except UnreadableNameError as error:
            raise _unsupported(str(error), value) from error
        for tier, permitted, excluded in rules:
            if excluded is not None and excluded.holds(found):
                raise DeniedError(
                    f"the name is inside what the certificate of tier {tier} of the "
                    "chain excludes",
                    rule="constraint.excluded",
                    detail=f"{_shown(value)} is excluded by: {excluded}",
                )
            if permitted is not None and not permitted.holds(found):
                raise DeniedError(
                    f"the name is outside what the certificate of tier {tier} of the "
                    "chain permits",
                    rule="constraint.permitted",
                    detail=f"{_shown(value)} is not in: {permitted}",
                )

    def _require_unconstrained(self, name: x509.GeneralName) -> None:
        """Let a name of a form without evaluation pass if nothing constrains it."""
        kind = type(name)
        if kind not in OTHER_FORMS:
            raise _unsupported("its form is unknown", name)
        if kind in self.unsupported:
            raise _unsupported(
                f"constraints on the form '{OTHER_FORMS[kind]}' cannot be evaluated",
                name,
            )
        is_mail = isinstance(name, x509.OtherName) and name.type_id == SMTP_UTF8_MAILBOX
        if is_mail and self.rules[x509.RFC822Name]:
            raise _unsupported("internationalized e-mail is not evaluated", name)


def subset_problems(child: x509.Certificate, parent: x509.Certificate) -> list[str]:
    """Tell people where a certificate allows names that its issuer does not.

    An empty list means: every name that the child permits, the parent permits too.
    The reverse does not hold: what a verifier accepts is the intersection anyhow.

    Args:
        child: A CA certificate.
        parent: The CA certificate above it.

    Returns:
        One sentence for each constraint of the parent that the child leaves out or
        goes beyond.

    Raises:
        ConfigError: See `NameConstraints.of`.
    """
    return wider_problems(NameConstraints.of(child), NameConstraints.of(parent))


def wider_problems(
    child: NameConstraints | None, parent: NameConstraints | None
) -> list[str]:
    """Tell people where constraints allow names that those above do not.

    See `subset_problems`; `None` is a certificate without constraints.
    """
    if parent is None:
        return []
    upper, lower = parent, child or NameConstraints({}, {})
    problems = [
        f"constraints on the form '{OTHER_FORMS[kind]}' are not repeated"
        for kind in sorted(upper.unsupported - lower.unsupported, key=str)
    ]
    for kind, form in FORMS.items():
        permitted, excluded = lower.permitted.get(kind), lower.excluded.get(kind)
        allowed = upper.permitted.get(kind)
        if allowed is not None and permitted is None:
            problems.append(
                f"{form.label} names are not constrained; above it only these are "
                f"permitted: {allowed}"
            )
        elif allowed is not None and permitted is not None:
            problems.extend(
                f"{form.label} names that it permits are not permitted above: {part}"
                for part in permitted.parts()
                if not allowed.covers(part)
            )
        problems.extend(
            f"{form.label} names that are excluded above are not excluded: {part}"
            for part in _parts(upper.excluded.get(kind))
            if not (excluded is not None and excluded.covers(part))
            and (permitted is None or permitted.overlaps(part))
        )
    return problems


def _parts(names: NameSet | None) -> tuple[NameSet, ...]:
    return () if names is None else names.parts()


def _names_in(
    subject: x509.Name, names: Sequence[x509.GeneralName]
) -> Iterator[tuple[Kind, Any]]:
    """Yield what verifiers hold against constraints in a subject.

    Source:
        RFC 5280, 4.2.1.10; OpenSSL's NAME_CONSTRAINTS_check and ..._check_CN.
    """
    yield x509.DirectoryName, subject
    for item in subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS):
        yield x509.RFC822Name, str(item.value)
    if any(isinstance(name, x509.DNSName) for name in names):
        return
    for item in subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        if isinstance(item.value, str) and _HOST_IN_COMMON_NAME.fullmatch(item.value):
            yield x509.DNSName, item.value


def _shown(value: Any) -> str:
    # A directory name as its constraints are shown.
    return value.rfc4514_string() if isinstance(value, x509.Name) else repr(value)


def _unsupported(reason: str, value: object) -> DeniedError:
    return DeniedError(
        f"a name cannot be judged under the chain's name constraints: {reason}",
        rule="constraint.unsupported",
        detail=repr(value),
    )
