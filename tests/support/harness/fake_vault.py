"""Vault's answers about tokens and logins, in memory: counted, scripted, and slow."""

import threading
from collections.abc import Mapping
from typing import Any, cast

from bridge_vault.adapter import VaultAdapter
from bridge_vault.connection import VaultError

ANSWER_SECONDS = 10.0


def answer(status: int, text: str = "permission denied") -> VaultError:
    """Return what a call raises for an answer that is no success."""
    return VaultError(f"status {status}: {text}", status=status, errors=[text])


class FakeVault:
    """Each login makes a token, `token-1` and so on, of the life that is set."""

    def __init__(self) -> None:
        self.life: dict[str, Any] = {"lease_duration": 3600, "renewable": True}
        """Of the tokens of the next logins."""
        self.renewal: int | VaultError = 3600
        """What renewals grant, or raise."""
        self.refusal: VaultError | None = None
        """What logins raise."""
        self.tokens: dict[str, dict[str, Any]] = {}
        """Those that live, with what they say of themselves."""
        self.wrapping: set[str] = set()
        """Tokens that wrap another one."""
        self.denied: set[str] = set()
        """Ends of paths that no policy permits."""
        self.calls: list[tuple[str, str]] = []
        """The ends of paths, each with its token."""
        self.served = threading.Event()
        """Logins are answered while it is set."""
        self.served.set()
        self.began = threading.Event()
        """A login has been asked for."""
        self._lock = threading.Lock()

    def adapt(self, _deadline: float, token: str) -> VaultAdapter:
        """Return an adapter."""
        return cast("VaultAdapter", _Adapter(self, token))

    def count(self, end: str) -> int:
        """Return how many calls there were whose path ends so."""
        return sum(path == end for path, _ in self.calls)

    @property
    def logins(self) -> int:
        """How many logins there were."""
        return self.count("login")

    def serve(self, url: str, token: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a call."""
        end = url.rpartition("/")[2]
        with self._lock:
            self.calls.append((end, token))
        if "/wrapping/" in url:
            if body["token"] in self.wrapping:
                return {"data": {}}
            raise answer(400, "wrapping token is not valid or does not exist")
        if end == "login":
            return self._log_in()
        return self._serve(end, token)

    def _serve(self, end: str, token: str) -> dict[str, Any]:
        with self._lock:
            life = self.tokens.get(token)
            if life is None or end in self.denied:
                raise answer(403)
            if life.get("num_uses"):
                life["num_uses"] -= 1
                if not life["num_uses"]:
                    del self.tokens[token]
                    life["num_uses"] = -1
        if end == "renew-self":
            if isinstance(self.renewal, VaultError):
                raise self.renewal
            return {"auth": {"lease_duration": self.renewal}}
        return {"data": dict(life)}

    def _log_in(self) -> dict[str, Any]:
        self.began.set()
        assert self.served.wait(ANSWER_SECONDS)
        if self.refusal is not None:
            raise self.refusal
        with self._lock:
            token = f"token-{sum(path == 'login' for path, _ in self.calls)}"
            self.tokens[token] = dict(self.life)
        return {"auth": {"client_token": token, **self.life}}


class _Adapter:
    def __init__(self, vault: FakeVault, token: str) -> None:
        self._vault = vault
        self._token = token

    def get(self, url: str, **_: object) -> dict[str, Any]:
        return self._vault.serve(url, self._token, {})

    def post(self, url: str, **kwargs: Any) -> dict[str, Any]:
        return self._vault.serve(url, self._token, kwargs.get("json") or {})
