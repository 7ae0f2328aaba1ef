"""A configuration without what is wrong with it, so that the rest can be judged too.

Rules that hold keys together run only on sections that could be read. Were a misspelt
key to hide them, an operator would mend the file once for each layer of errors. So what
is wrong is taken out or replaced, and the file is read again; what shows only then is
told as well, unless it is about a value that stands in for another.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from bridge.config.diagnostics import Problem, path_of

STAND_IN = "stand-in"
"""Part of every value that is not the operator's own."""

_ROUNDS = 6
_RULES = ("issuance", "rules")
_WORD = re.compile(r"[a-z_]+")
_TOKENS = {"verify": "jwks", "issuer": f"https://{STAND_IN}", "file": STAND_IN}
_ISTIO = {"listen": "127.0.0.1:0", "tls": {"dns_names": [STAND_IN]}}
_HEADS = {"sink": STAND_IN}
_LEDGER = {"journal": STAND_IN, "archive": f"sqlite:///{STAND_IN}", "heads": _HEADS}
_STAND_INS: Mapping[str, object] = {
    "trust_domain": STAND_IN,
    "trust_anchors": STAND_IN,
    "fronts": {"istio": _ISTIO},
    "fronts.istio.listen": "127.0.0.1:0",
    "fronts.istio.tls": _ISTIO["tls"],
    "fronts.linkerd.listen": "127.0.0.1:0",
    "clusters": [{"name": STAND_IN, "tokens": _TOKENS}],
    "clusters[].tokens": _TOKENS,
    **{f"clusters[].tokens.{key}": value for key, value in _TOKENS.items()},
    "issuing_cas": {STAND_IN: {"plugin": STAND_IN}},
    "issuing_cas.*": {"plugin": STAND_IN},
    "issuing_cas.*.plugin": STAND_IN,
    "issuance": {"issuing_cas": [STAND_IN]},
    "issuance.issuing_cas": [STAND_IN],
    "limits.per_identity.rate": 1,
    "limits.per_identity.burst": 1,
    "limits.per_cluster.rate": 1,
    "limits.per_cluster.burst": 1,
    "ledger": _LEDGER,
    "ledger.journal": _LEDGER["journal"],
    "ledger.archive": _LEDGER["archive"],
    "ledger.heads": _HEADS,
    "ledger.heads.sink": STAND_IN,
}
"""What is put where a key has no default and is absent or wrong."""

Location = tuple[int | str, ...]
Config = TypeVar("Config")


class Mended(Generic[Config]):
    """What a tree is without its errors.

    Args:
        tree: The file's content; left as it is.
        error: What is wrong with it.
        validate: Reads a tree, or raises `ValidationError`.
    """

    def __init__(
        self,
        tree: object,
        error: ValidationError,
        validate: Callable[[object], Config],
    ) -> None:
        self.found: list[Any] = [*error.errors()]
        """Items of `ValidationError.errors()`; those that were hidden come last."""
        self.config: Config | None = None
        """What can be read now; None if it still cannot."""
        self._places: list[Location] = []
        mended = tree
        for _ in range(_ROUNDS):
            # A copy each time: errors show what they were about.
            mended = _copy(mended)
            for item in error.errors():
                self._mend(mended, item)
            try:
                self.config = validate(mended)
            except ValidationError as more:
                new = [item for item in more.errors() if self._is_new(item)]
                self.found += [{**item, "input": _at(tree, item)} for item in new]
                error = more
            else:
                return

    def own(self, problems: Sequence[Problem]) -> Iterator[Problem]:
        """Yield those of `problems` that are about the operator's own values."""
        paths = [path_of(place) for place in self._places]
        for key, value, expected in problems:
            is_foreign = STAND_IN in f"{value!r} {expected}" or any(
                path in expected or f"{key}.".startswith((f"{path}.", f"{path}["))
                for path in paths
            )
            if not is_foreign:
                yield key, value, expected

    def _is_new(self, item: Any) -> bool:
        place = item["loc"]
        told = {(found["loc"], found["msg"]) for found in self.found}
        named = _named(item)
        return (place, item["msg"]) not in told and not any(
            other[:-1] == place and other[-1] in named for other in self._places
        )

    def _mend(self, tree: object, item: Any) -> None:
        place: Location = item["loc"]
        if place[:2] == _RULES and len(place) > len(_RULES):
            # What is left of a rule would be another one: all of it goes, and it keeps
            # its place.
            rule = place[: len(_RULES) + 1]
            _put(tree, rule, {"refuse": True, "namespaces": [f"{STAND_IN}-{rule[-1]}"]})
            self._places.append(rule)
            return
        if keys := _keys(item):
            # A rule of a section: the keys that it names go, if they have defaults.
            for key in keys:
                _put(tree, (*place, key), ...)
            self._places += [(*place, word) for word in _named(item)]
            return
        if item["type"] == "extra_forbidden":
            _put(tree, place, ...)
        elif place[-1:] == ("[key]",):
            place = place[:-1]
            _put(tree, place, ...)
        else:
            _put(tree, place, _stand_in(place))
        self._places.append(place)


def _named(item: Any) -> set[str]:
    found = getattr(item.get("ctx", {}).get("error"), "found", "")
    return set(_WORD.findall(f"{item['msg']} {found}"))


def _keys(item: Any) -> list[str]:
    section = item["input"]
    if item["type"] != "value_error" or not isinstance(section, dict):
        return []
    named = _named(item)
    return [key for key in section if key in named]


def _stand_in(place: Location) -> object:
    parts = ["[]" if isinstance(part, int) else f".{part}" for part in place]
    if place[:1] == ("issuing_cas",) and len(parts) > 1:
        parts[1] = ".*"
    pattern = "".join(parts).lstrip(".")
    if pattern in _STAND_INS:
        return _copy(_STAND_INS[pattern])
    if not isinstance(place[-1], int):
        return STAND_IN if pattern == "clusters[].name" else ...
    name = f"{STAND_IN}-{place[-1]}"
    return {"name": name, "tokens": _TOKENS} if pattern == "clusters[]" else name


def _at(tree: Any, item: Any) -> object:
    # As the operator wrote it.
    try:
        for part in item["loc"]:
            tree = tree[part]
    except (KeyError, IndexError, TypeError):
        return item["input"]
    return tree


def _put(tree: Any, place: Location, value: object) -> None:
    try:
        for part in place[:-1]:
            tree = tree[part]
        if isinstance(place[-1], int) and isinstance(tree, dict):
            return  # a key that is no text: it has not been copied
        if value is ...:
            del tree[place[-1]]
        else:
            tree[place[-1]] = value
    except (KeyError, IndexError, TypeError):
        # What it stood in has been replaced, or the key is absent.
        return


def _copy(node: Any) -> Any:
    # Not deepcopy: what an alias shares would stay shared. A key that is no text is
    # wrong wherever it stands, and has been told.
    if isinstance(node, dict):
        return {k: _copy(value) for k, value in node.items() if isinstance(k, str)}
    return [_copy(value) for value in node] if isinstance(node, list) else node
