"""What the bridge's token may do, asked of Vault by path."""

import time
from collections.abc import Collection, Mapping

from bridge.spi import BackendBrokenError, PluginContext
from bridge_vault.session import SharedSession

_NONE = frozenset({"deny"})
_ALL = "root"


def pki_rights(mount: str, issuer: str, role: str) -> dict[str, str]:
    """Return what `vault-pki` needs: the capability by path, the signing one first."""
    own = f"{mount}/issuer/{issuer}"
    reads = (f"{mount}/roles/{role}", own, f"{mount}/config/urls")
    return {f"{own}/sign/{role}": "update", **dict.fromkeys(reads, "read")}


def transit_rights(mount: str, key: str) -> dict[str, str]:
    """Return what `vault-transit` needs: the capability by path."""
    return {f"{mount}/sign/{key}": "update", f"{mount}/keys/{key}": "read"}


class Rights:
    """The capabilities of the token that an issuing CA's calls are made with.

    Args:
        session: Whose token is asked about.
        context: Warns the operator.
        needless: Paths that nothing is asked of, and where a right would let whoever
            has the token make other certificates.
    """

    def __init__(
        self, session: SharedSession, context: PluginContext, needless: Collection[str]
    ) -> None:
        self._session = session
        self._context = context
        self._needless = tuple(needless)
        self._warned = ""

    def require(self, wanted: Mapping[str, str], deadline: float) -> None:
        """Require the capabilities that the calls of a CA need.

        What the token may do beyond that is told once, and no error.

        Args:
            wanted: The capability by path, such as `update` or `read`.
            deadline: A value of `time.monotonic()`.

        Raises:
            BackendBrokenError: One is missing. The detail names each with its path.
            BackendError: Vault cannot be asked.
        """
        paths = [*wanted, *self._needless]
        answer = self._session.call(
            lambda adapter: adapter.post(
                "/v1/sys/capabilities-self", json={"paths": paths}
            ),
            deadline - time.monotonic(),
        )
        data = answer.get("data")
        found = data if isinstance(data, dict) else {}
        missing = [
            f"{capability} on {path}"
            for path, capability in wanted.items()
            if not {capability, _ALL} & _capabilities(found.get(path))
        ]
        if missing:
            raise BackendBrokenError(
                "Vault's policies do not permit what the bridge needs",
                rule="vault.denied",
                detail=f"expected {', '.join(missing)}",
            )
        self._warn(found)

    def _warn(self, found: Mapping[str, object]) -> None:
        rights = {path: _capabilities(found.get(path)) for path in self._needless}
        if any(_ALL in own for own in rights.values()):
            text = "the token is a root token: give the bridge one with its own policy"
        else:
            more = [
                f"{', '.join(sorted(own))} on {path}"
                for path, own in rights.items()
                if own - _NONE
            ]
            text = f"the token may do more than it needs: {'; '.join(more)}"
            text = text if more else ""
        if text and text != self._warned:
            self._context.warn(f"issuing_cas.{self._context.name}: {text}")
        self._warned = text


def _capabilities(value: object) -> frozenset[str]:
    return frozenset(map(str, value if isinstance(value, list) else ()))
