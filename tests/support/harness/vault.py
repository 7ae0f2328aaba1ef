"""A served bridge with its issuing keys in OpenBao or Vault: one CA of each backend."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.clients.callers import Callers
from tests.support.harness.journals import whole_lines
from tests.support.harness.real_process import PEER_SERVER_NAME, SERVER_NAME
from tests.support.harness.recorded import (
    Signed,
    require_all_on_record,
    require_signed_on_record,
)
from tests.support.harness.workers import Supervised
from tests.support.parts import vault_mounts
from tests.support.parts.vault import Server
from tests.support.parts.vault_mounts import PKI, Transit

ROLE: Mapping[str, object] = {
    "allowed_uri_sans": ["spiffe://corp.example/*"],
    "allowed_domains": [
        SERVER_NAME,
        PEER_SERVER_NAME,
        "identity.linkerd.corp.example",
    ],
    "allow_bare_domains": True,
    "not_before_duration": "120s",
}
"""What the role of these bridges has of its own: the names of probe and listener, and
the default of `issuance.backdate`."""
_ENGINES: Mapping[str, type[PKI | Transit]] = {"pki": PKI, "transit": Transit}
_SIGN = "/sign/"
Login = Callable[[str, Path], Mapping[str, object]]
"""Makes the option `login` of a policy and a folder."""


class VaultBridge(Supervised):
    """See `Supervised`. Istio's callers get leaves of PKI, and Linkerd's of Transit.

    Args:
        folder: New.
        server: Running. It gets an engine for each CA, a policy and an audit log.
        login: How the bridge logs in; by default with a token in a file.
        addresses: Of the server, as the bridge sees it; by default its own.
        engines: By the name of each CA; by default `pki` for Istio's callers, and
            `transit` for Linkerd's. Others are equal CAs, in this order, for both.
        options: More options of both CAs.
        more: See `Bridge`.
    """

    def __init__(
        self,
        folder: Path,
        server: Server,
        login: Login | None = None,
        *,
        addresses: Sequence[str] = (),
        engines: Mapping[str, type[PKI | Transit]] = _ENGINES,
        options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(folder, fronts=("istio", "linkerd"), **more)
        self.server = server
        self.engines = {
            name: kind.make(server, folder / "hierarchy", folder / f"{name}.pem")
            for name, kind in engines.items()
        }
        for engine in self.engines.values():
            if isinstance(engine, PKI):
                engine.write_role(**ROLE)
        self.rules = {
            path: rights
            for engine in self.engines.values()
            for path, rights in engine.rules.items()
        }
        self.policy = vault_mounts.write_policy(server, self.rules)
        self.audit_log = folder / "audit.jsonl"
        self.token_file = folder / "token"
        self.audit_device = ""
        self.audit()
        chosen = {
            "addresses": list(addresses or [server.url]),
            **(options or {}),
        }
        method = (login or self._token_login)(self.policy, folder)
        sections = {
            name: {
                "plugin": f"vault-{'pki' if isinstance(engine, PKI) else 'transit'}",
                "chain": f"{name}.pem",
                "options": engine.options(method, **chosen),
            }
            for name, engine in self.engines.items()
        }
        rules = [{"fronts": ["linkerd"], "issuing_cas": ["transit"]}]
        is_usual = engines is _ENGINES
        self.change(
            issuing_cas=sections,
            issuance__issuing_cas=["pki"] if is_usual else list(engines),
            issuance__rules=rules if is_usual else [],
        )

    @property
    def pki(self) -> PKI:
        """The engine of the CA `pki`."""
        found = self.engines["pki"]
        assert isinstance(found, PKI)
        return found

    @property
    def transit(self) -> Transit:
        """The engine of the CA `transit`."""
        found = self.engines["transit"]
        assert isinstance(found, Transit)
        return found

    def new_token(self, **fields: object) -> None:
        """Put another token into the file, as an agent does; `fields` of the token."""
        token = vault_mounts.new_token(self.server, self.policy, **fields)
        vault_mounts.token_login(token, self.token_file)

    def permit(self, rules: Mapping[str, Sequence[str]]) -> None:
        """Replace the policy of the bridge's token."""
        vault_mounts.write_policy(self.server, rules, self.policy)

    def audited(self, kind: str, path: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of the audit log about the bridge's engines and logins.

        Args:
            kind: `request` or `response`.
            path: A part of the path.
        """
        ours = {"auth", *(engine.mount for engine in self.engines.values())}
        for line in whole_lines(self.audit_log):
            if path not in line:
                continue  # most lines, and cheaper than to read them
            entry = json.loads(line)
            asked = entry.get("request", {}).get("path", "")
            is_ours = asked.partition("/")[0] in ours and path in asked
            if entry["type"] == kind and is_ours:
                yield entry

    def logins(self) -> int:
        """Return how many logins the server was asked for."""
        return sum(1 for _ in self.audited("request", "/login"))

    def tokens(self, logins: int) -> list[str]:
        """Return the accessors of the tokens that logins got; "" for a batch token.

        The last of them is in use, or was.

        Args:
            logins: So many must be over: the list is empty as long as they are not.
        """
        answers = list(self.audited("response", "/login"))
        got = [one["auth"].get("accessor", "") for one in answers if "error" not in one]
        are_over = len(answers) >= logins
        return got if are_over and self.tokens_used() >= len(got) else []

    def tokens_used(self) -> float:
        """Return how many tokens the bridge has used, of logins or of its file."""
        return self.metric("meshca_plugin_events_total", name="vault_logins")

    def unanswered(self) -> list[Signed]:
        """Return the attempts whose request has an entry, and whose answer has none."""
        answered = {one["request"]["id"] for one in self.audited("response", _SIGN)}
        return [
            Signed(_attempt_of(one))
            for one in self.audited("request", _SIGN)
            if one["request"]["id"] not in answered
        ]

    def signed(self) -> list[Signed]:
        """Return the signatures that the server made, by its audit log.

        A request without an entry for its answer may have been served.
        """
        made = [
            Signed(_attempt_of(one), _hex(one["response"]["data"]))
            for one in self.audited("response", _SIGN)
            if not one.get("error")
        ]
        return made + self.unanswered()

    def require_all_on_record(self, callers: Callers) -> None:
        """Hold the ledger against what clients hold, and what the server signed."""
        require_all_on_record(self, callers)
        signed = self.signed()
        assert signed
        require_signed_on_record(self, signed)

    def _token_login(self, _policy: str, _folder: Path) -> Mapping[str, object]:
        self.new_token()
        return {"token": {"file": str(self.token_file)}}

    def audit(self) -> None:
        """Have the server write its audit log, with the IDs of attempts.

        The log tells serial numbers in clear: they are no secret.
        """
        tuned = {"audit_non_hmac_response_keys": ["serial_number"]}
        for engine in self.engines.values():
            self.server.api.post(f"sys/mounts/{engine.mount}/tune", **tuned)
        self.audit_device = vault_mounts.audit_to(self.server, self.audit_log)


def _attempt_of(entry: Mapping[str, Any]) -> str:
    attempt: str = entry["request"]["headers"]["x-meshca-attempt"][0]
    return attempt


def _hex(data: Mapping[str, str]) -> str:
    number = data.get("serial_number", "")
    return f"{int(number.replace(':', ''), 16):x}" if number else ""
