"""What the name-constraints extension of one certificate says, by name form.

Source:
    RFC 5280, 4.2.1.10.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from cryptography import x509

from bridge.errors import ConfigError
from bridge.x509.der import content, elements, tlv
from bridge.x509.forms import FORMS
from bridge.x509.name_forms import NameSet

Kind = type[x509.GeneralName]
"""A name form, as the class that `cryptography` has for it."""

_OID = 0x06
_NAME_CONSTRAINTS = bytes.fromhex("551d1e")  # 2.5.29.30
_EXTENSIONS = 0xA3  # [3] EXPLICIT, RFC 5280, 4.1


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
            found = certificate.extensions.get_extension_for_class(x509.NameConstraints)
        except x509.ExtensionNotFound:
            return None
        except (
            ValueError,
            TypeError,
            KeyError,
            x509.DuplicateExtension,
            x509.UnsupportedGeneralNameType,
        ) as error:
            raise _bad(f"the name constraints cannot be read: {error}") from error
        _require_whole_subtrees(certificate)
        permitted = list(found.value.permitted_subtrees or ())
        excluded = list(found.value.excluded_subtrees or ())
        kinds = {type(name) for name in (*permitted, *excluded)}
        return cls(
            {kind: _set_of(kind, permitted, strict=True) for kind in _in(permitted)},
            {kind: _set_of(kind, excluded, strict=False) for kind in _in(excluded)},
            frozenset(kinds - FORMS.keys()),
            found.critical,
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
    fields = elements(content(certificate.tbs_certificate_bytes))
    extensions = next(field for field in fields if field[0] == _EXTENSIONS)
    for extension in elements(content(content(extensions))):
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
