"""Tells which rights the bridge lacks at the API servers of its clusters.

The parent asks in a thread of its own, so once for all workers: after the start, and
after a reload with other clusters. It asks again only while something is missing or an
API server does not answer. Nothing waits for an answer.
"""

import logging
from collections.abc import Mapping
from contextlib import closing

from bridge.config import BridgeConfig, ConfigText
from bridge.errors import BridgeError
from bridge.kubernetes.clients import remote_secrets_of
from bridge.kubernetes.remote_secrets import RemoteSecrets
from bridge.kubernetes.rights import NeededServer, missing_rights, needed_servers
from bridge.resilience.budget import Budget
from bridge.system.background import BackgroundLoop

PART = "rights"
"""The warning in readiness that has what is missing."""
_AGAIN_SECONDS = 60.0
_ASK_SECONDS = 5.0
_log = logging.getLogger(__name__)


class OwnRights:
    """The rights of the bridge in the configuration in service. See `Replaceable`.

    Args:
        again_seconds: Between two questions, while something is missing.
    """

    def __init__(self, again_seconds: float = _AGAIN_SECONDS) -> None:
        self._again_seconds = again_seconds
        self._next: BridgeConfig | None = None
        self._current: BridgeConfig | None = None
        self._questions: _Questions | None = None
        self._loop: BackgroundLoop | None = None

    def prepare(self, source: ConfigText) -> None:
        """See `Replaceable.prepare`: nothing is asked yet."""
        self._next = source.config

    def discard(self) -> None:
        """See `Replaceable.discard`."""
        self._next = None

    def commit(self) -> None:
        """See `Replaceable.commit`: ask, where the configuration needs other rights."""
        before, config, self._next = self._current, self._next, None
        if config is None:
            return
        self._current = config
        if before is None or _needs(before) != _needs(config):
            self.stop()
            self._questions = None
            if any(needed_servers(config, None)):
                self._begin(_Questions(config))

    def stop(self) -> None:
        """Ask no more. A question under way is not waited for."""
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def warnings(self) -> dict[str, str]:
        """Return the warning of readiness; empty if nothing is missing. For threads."""
        questions = self._questions
        found = {} if questions is None else questions.found
        told = "; ".join(text for texts in found.values() for text in texts)
        return {PART: told} if told else {}

    def _begin(self, questions: "_Questions") -> None:
        def step() -> None:
            if questions.ask():
                loop.stop()

        loop = BackgroundLoop(
            "rights",
            step,
            self._again_seconds,
            is_immediate=True,
            at_end=questions.close,
        )
        try:
            loop.start()
        except RuntimeError as error:  # the bridge serves without this thread
            _log.warning("the rights of the bridge are not looked at: %s", error)
            return
        self._questions, self._loop = questions, loop


def _needs(config: BridgeConfig) -> object:
    return config.clusters, config.remote_secrets, config.fronts


class _Questions:
    # What one configuration needs, and what came of asking for it. For one thread.
    def __init__(self, config: BridgeConfig) -> None:
        self._config = config
        self._secrets: RemoteSecrets | None = None
        self._held: set[str] = set()
        self.found: Mapping[str, tuple[str, ...]] = {}
        """What is missing, or why it is not known, by the name of the API server."""

    def ask(self) -> bool:
        """Ask each API server that has not said yet that nothing is missing.

        Returns:
            Whether all have.
        """
        if self._secrets is None:
            try:
                self._secrets = remote_secrets_of(self._config)
            except BridgeError as error:
                _log.debug("%s", error)  # the question about the secrets tells it
        if self._secrets is not None:
            self._secrets.look()
        for one in needed_servers(self._config, self._secrets):
            if one.name not in self._held:
                self._tell(one.name, _missing_at(one))
        return not self.found

    def close(self) -> None:
        """Let the connection to the remote secrets go."""
        if self._secrets is not None:
            self._secrets.close()

    def _tell(self, name: str, texts: tuple[str, ...]) -> None:
        before = self.found.get(name, ())
        for text in texts:
            if text not in before:
                _log.warning("%s", text)
        if texts:
            self.found = {**self.found, name: texts}
            return
        self._held.add(name)
        self.found = {key: each for key, each in self.found.items() if key != name}
        if before:
            _log.info("%s: the bridge has every right that it needs there", name)


def _missing_at(one: NeededServer) -> tuple[str, ...]:
    whose = one.name if one.namespace else f"cluster {one.name}"
    try:
        with closing(one.open()) as server:
            budget = Budget.of_seconds(_ASK_SECONDS)
            found = missing_rights(server, one.needs, budget, namespace=one.namespace)
    except BridgeError as error:
        why = f": {error.detail}" if error.detail else ""
        return (f"{whose}: the bridge's rights there are not known: {error}{why}",)
    return tuple(f"{whose}: {text}" for text in found)
