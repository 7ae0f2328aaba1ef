"""The keys of the configuration, from the schema: path, type, default, description."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bridge.config import BridgeConfig
from bridge.config.diagnostics import sections_of
from bridge.config.types import written
from bridge_file.options import Options
from bridge_pkcs11.options import PKCS11Options
from bridge_vault.options import PKIOptions, TransitOptions, VaultOptions
from tests.support.documents.docstrings import annotations, of_attributes
from tests.support.documents.markdown import code, table

PLACES = (
    "top level",
    "fronts.istio",
    "fronts.linkerd",
    "clusters[]",
    "remote_secrets",
    "issuing_cas.*",
    "options of the plugin file",
    "options of the plugin pkcs11",
    "options of both plugins for Vault",
    "options of the plugin vault-pki",
    "options of the plugin vault-transit",
    "issuance",
    "issuance.rules[]",
    "limits",
    "ledger",
    "admin",
)
"""The tables of the document; a key is in the one with the longest fitting name."""

_LISTS: dict[object, str] = {tuple: "[]", dict: ".*"}
_TYPES = {
    "Address": "address",
    "ArchiveURL": "SQLAlchemy URL",
    "ClusterName": "name",
    "FilePath": "path",
    "HttpsURL": "URL",
    "Label": "DNS label",
    "Name": "name",
    "TrustDomainName": "trust domain",
    "UpToAMinute": "duration, to 1m",
    "WholeSeconds": "duration, whole seconds",
    "_Moment": "time",
    "_URLText": "URL",
    "_Name": "name",
    "_Path": "path in Vault",
    "_Text": "text",
    "_UUID": "UUID",
    "FileOption": "path",
}
"""What the aliases of `bridge.config.types` are called in the document."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the file."""

    path: str
    type: str
    default: str
    """`required`, `-` where it may be left out, or its default."""
    meaning: str

    @property
    def row(self) -> tuple[str, str, str, str]:
        """The columns of its row."""
        default = "required" if self.default == "required" else code(self.default)
        return code(self.path), self.type, default, self.meaning


def keys(model: type[BaseModel], above: str = "") -> Iterator[Key]:
    """Yield every key of a section and of the sections in it, in order."""
    texts, written_types = of_attributes(model), dict[str, str]()
    for base in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        written_types |= annotations(base)
    for name, field in model.model_fields.items():
        if sections := sections_of(field.annotation):
            many = _LISTS.get(get_origin(field.annotation), "")
            found: dict[str, dict[str, Key]] = {}
            for section in sections:
                for key in keys(section, f"{above}{name}{many}."):
                    found.setdefault(key.path, {})[_alternative(section)] = key
            yield from map(_joined, found.values())
            continue
        kind = _type(field, written_types.get(name, ""))
        yield Key(above + name, kind, default_of(field), texts.get(name, ""))


def _alternative(section: type[BaseModel]) -> str:
    # What chooses this one of several sections: `verify: jwks`.
    for name, field in section.model_fields.items():
        values = get_args(field.annotation)
        is_choice = get_origin(field.annotation) is Literal and len(values) == 1
        if is_choice:
            return f"`{name}: {values[0]}`"
    return ""


def _joined(alternatives: Mapping[str, Key]) -> Key:
    # A key of several sections. A meaning that is not that of all says whose it is.
    kinds = dict.fromkeys(key.type for key in alternatives.values())
    meanings: dict[str, list[str]] = {}
    for alternative, key in alternatives.items():
        if key.meaning:
            meanings.setdefault(key.meaning, []).append(alternative)
    meaning = " ".join(
        text
        if len(meanings) == 1
        else f"With {' or '.join(whose)}: {text[0].lower()}{text[1:]}"
        for text, whose in meanings.items()
    )
    first = next(iter(alternatives.values()))
    # The section that needs no word for it is the one without.
    defaults = (key.default for key in alternatives.values())
    default = next((one for one in defaults if one != "required"), "required")
    return replace(first, type=" or ".join(kinds), default=default, meaning=meaning)


def _options() -> dict[str, list[Key]]:
    # Options that two plugins share have one table.
    shared = VaultOptions.model_fields
    own: dict[str, type[VaultOptions]] = {
        "vault-pki": PKIOptions,
        "vault-transit": TransitOptions,
    }
    return {
        "options of the plugin file": [*keys(Options)],
        "options of the plugin pkcs11": [*keys(PKCS11Options)],
        "options of both plugins for Vault": [*keys(VaultOptions)],
    } | {
        f"options of the plugin {name}": [
            key for key in keys(model) if key.path.partition(".")[0] not in shared
        ]
        for name, model in own.items()
    }


def all_keys() -> Iterator[Key]:
    """Yield every key of the file, and every option of the plugins."""
    yield from keys(BridgeConfig)
    for own in _options().values():
        yield from own


def default_of(field: FieldInfo) -> str:
    """Return the default of a key as the document has it."""
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "-"
    if isinstance(value, timedelta):
        return written(value)
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def parts() -> dict[str, Iterator[str]]:
    """Return the tables of the document, by their names."""
    placed: dict[str, list[Key]] = {name: [] for name in PLACES}
    for key in keys(BridgeConfig):
        fitting = [name for name in PLACES if key.path.startswith(f"{name}.")]
        placed[max(fitting, key=len, default="top level")].append(key)
    placed |= _options()
    header = ("Key", "Type", "Default", "Meaning")
    return {name: table(header, (key.row for key in placed[name])) for name in PLACES}


def _type(field: FieldInfo, annotation: str) -> str:
    alias = re.sub(r" \| None$", "", annotation)
    alias = re.sub(r"^Annotated\[(\w+),.*", r"\1", alias)
    return _TYPES.get(alias) or _of_value(field, _choice(field.annotation))


def _choice(annotation: Any) -> Any:
    # `X | None` is X: a key that is left out is no value.
    choices = [each for each in get_args(annotation) if each is not type(None)]
    is_optional = type(None) in get_args(annotation)
    return choices[0] if is_optional and len(choices) == 1 else annotation


def _of_value(field: FieldInfo, annotation: Any) -> str:
    origin = get_origin(annotation) or annotation
    if origin is Literal:
        return " or ".join(code(str(each)) for each in get_args(annotation))
    if hasattr(annotation, "__metadata__"):
        return _of_value(field, get_args(annotation)[0])
    if origin is tuple:
        inner = _choice(get_args(annotation)[0])
        values = get_args(inner) if get_origin(inner) is Literal else ()
        return "list" + (" of " + ", ".join(map(code, values)) if values else "")
    named: dict[Any, str] = {
        bool: "true or false",
        str: "text",
        dict: "mapping",
        timedelta: "duration",
    }
    return named.get(origin) or _number(field, whole=origin is int)


def _number(field: FieldInfo, *, whole: bool) -> str:
    least = [item.ge for item in field.metadata if hasattr(item, "ge")]
    most = [item.le for item in field.metadata if hasattr(item, "le")]
    if least and most:
        return f"{least[0]} to {most[0]}"
    if least:
        return f"{least[0]} or more"
    kind = "whole number" if whole else "number above 0"
    return f"{kind}, to {most[0]}" if most else kind
