"""The backend under test: a plugin with its options, and control of its part."""

import functools
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ParamSpec

import pytest
from cryptography import x509

from bridge.spi import (
    BackendError,
    IssuedChain,
    IssuingCA,
    IssuingCAFactory,
    PluginContext,
    Prepared,
)
from bridge.testing.leaves import BACKDATE, leaf_request

Harm = Callable[[], AbstractContextManager[object]]
"""Does something to the part behind the plugin, for the length of a block."""

ABILITIES: Mapping[str, str] = {
    "stall": "the part accepts requests and never answers",
    "away": "the part cannot be reached",
    "restart": "the part restarts, and forgets its sessions and logins",
    "other_key": "the part signs with another key than that of the certificate",
    "other_version": "the part signs with another version of the key",
    "memory": "the serving process is searched for `secrets`",
}
"""What `Backend` can be given, or declare in `cannot`, and what each is."""

_P = ParamSpec("_P")
_FEWEST_WORDS = 4


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What the tests know of a plugin, and what they can do to the part behind it.

    Each ability is a function that returns a context manager: the harm lasts as long as
    the block, and the part is well again when the block has ended.
    """

    factory: IssuingCAFactory
    """What the entry point refers to. The memory of the serving process is searched in
    a process of its own, which imports it from its module."""
    options: Mapping[str, object]
    """`issuing_cas.<name>.options`, as they would stand in the configuration."""
    context: PluginContext
    names: tuple[x509.GeneralName, ...] = (
        x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/cart"),
    )
    """Subject alternative names that the CA under test may issue."""
    backdate: timedelta = BACKDATE
    """How long before the request a leaf is valid. A backend that dates its leaves by
    itself has a setting of its own for this."""
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """PIN, token, password, key: what must appear nowhere, by a name for messages. Each
    has 8 bytes or more, so that it is nowhere by chance."""
    stall: Harm | None = None
    away: Harm | None = None
    restart: Callable[[], object] | None = None
    """Returns when the part is back."""
    other_key: Harm | None = None
    other_version: Harm | None = None
    cannot: Mapping[str, str] = field(default_factory=dict)
    """Abilities that the part does not have, each with the reason."""

    def build(self) -> IssuingCA:
        """Build a CA. Whoever builds it closes it."""
        return self.factory(self.options, self.context)

    def prepare(self, ca: IssuingCA) -> Prepared:
        """Prepare a new request, which must be the one that is prepared."""
        request = leaf_request(self.names, backdate=self.backdate)
        prepared = ca.prepare(request)
        if prepared.request != request:
            pytest.fail("another request was prepared")
        return prepared

    def attempt(
        self, ca: IssuingCA, prepared: Prepared, timeout: float
    ) -> IssuedChain | BackendError:
        """Issue; return the leaf, or the `BackendError` that was raised.

        Anything else that is raised fails the test, and so does an error that tells a
        secret.
        """
        try:
            return ca.issue(prepared, timeout=timeout)
        except BackendError as error:
            self.require_silent("an error", *_texts(error))
            return error

    def require_silent(self, where: str, *texts: str) -> None:
        """Fail the test if a secret stands in one of `texts`, which may be shown."""
        for name, secret in self.secrets.items():
            for text in texts:
                if secret in text.encode(errors="surrogateescape"):
                    pytest.fail(f"{where} tells the secret {name!r}")

    def has(self, ability: str) -> bool:
        """Return whether the backend was given an ability."""
        if ability == "memory":
            return bool(self.secrets) and ability not in self.cannot
        return getattr(self, ability) is not None

    def require_declared(self) -> None:
        """Fail the test if `cannot` is no list of abilities that are not given."""
        for ability, reason in self.cannot.items():
            if ability not in ABILITIES:
                pytest.fail(f"{ability!r} is none of {', '.join(ABILITIES)}")
            if self.has(ability):
                pytest.fail(f"{ability!r} is given, and declared as impossible")
            if len(reason.split()) < _FEWEST_WORDS:
                pytest.fail(f"say why the part cannot do {ability!r}, in a sentence")


def _texts(error: BaseException) -> list[str]:
    found = [str(error), repr(error), getattr(error, "detail", "")]
    for cause in (error.__cause__, error.__context__):
        found += _texts(cause) if cause else []
    return found


def needs(ability: str) -> Callable[[Callable[_P, None]], Callable[_P, None]]:
    """Mark a test that needs an ability of the fixture `backend`."""

    def decorate(test: Callable[_P, None]) -> Callable[_P, None]:
        @functools.wraps(test)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
            backend = kwargs["backend"]
            if not isinstance(backend, Backend):
                pytest.fail("the fixture `backend` returns a bridge.testing.Backend")
            if reason := backend.cannot.get(ability):
                sys.stdout.write(f"not possible here: {ability}: {reason}\n")
            elif not backend.has(ability):
                given = "secrets" if ability == "memory" else ability
                pytest.skip(
                    f"not shown, since Backend.{given} is not given: "
                    f"{ABILITIES[ability]}"
                )
            else:
                test(*args, **kwargs)

        return run

    return decorate
