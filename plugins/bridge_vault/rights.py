"""What the bridge's token may do, asked of Vault by path."""

import time
from collections.abc import Mapping

from bridge.spi import BackendBrokenError
from bridge_vault.session import SharedSession


def require_rights(
    session: SharedSession, wanted: Mapping[str, str], deadline: float
) -> None:
    """Require the capabilities that the calls of a CA need.

    Args:
        session: Whose token is asked about.
        wanted: The capability by path, such as `update` or `read`.
        deadline: A value of `time.monotonic()`.

    Raises:
        BackendBrokenError: One is missing. The detail names each with its path.
        BackendError: Vault cannot be asked.
    """
    answer = session.call(
        lambda adapter: adapter.post(
            "/v1/sys/capabilities-self", json={"paths": list(wanted)}
        ),
        deadline - time.monotonic(),
    )
    data = answer.get("data")
    found = data if isinstance(data, dict) else {}
    missing = [
        f"{capability} on {path}"
        for path, capability in wanted.items()
        if not {capability, "root"} & {*(found.get(path) or ())}
    ]
    if missing:
        raise BackendBrokenError(
            "Vault's policies do not permit what the bridge needs",
            rule="vault.denied",
            detail=f"expected {', '.join(missing)}",
        )
