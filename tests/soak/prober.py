"""One caller that asks all the time, a few times a second, and notes how it went."""

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Self

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from tests.support.clients.asking import asking, new_csr
from tests.support.harness.workers import Supervised

_PERIOD_SECONDS = 0.1
_PATIENCE_SECONDS = 5.0
_NORMAL_SECONDS = 0.25
"""An answer within this time is what callers of an idle bridge get, and some more."""
_IN_A_ROW = 5


@dataclass(frozen=True, slots=True)
class Probe:
    """One call."""

    began: float
    code: str
    seconds: float

    @property
    def is_normal(self) -> bool:
        """Whether it went as on an idle bridge."""
        return self.code == "OK" and self.seconds <= _NORMAL_SECONDS


class Prober:
    """Asks inside the block."""

    def __init__(self, bridge: Supervised) -> None:
        self.probes: list[Probe] = []
        self._bridge = bridge
        self._message = IstioCertificateRequest(csr=new_csr())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def normal_after(self, moment: float) -> float | None:
        """Return how many seconds after `moment` callers were served as usual again.

        That is when the first of some calls in a row began that all went well.
        """
        later = [one for one in self.probes if one.began >= moment]
        for index, first in enumerate(later):
            row = later[index : index + _IN_A_ROW]
            if len(row) == _IN_A_ROW and all(one.is_normal for one in row):
                return first.began - moment
        return None

    def await_normal(self, moment: float, timeout: float) -> None:
        """Wait until `normal_after` has an answer; at most until `timeout` is over."""
        until = moment + timeout
        while time.monotonic() < until and self.normal_after(moment) is None:
            time.sleep(_PERIOD_SECONDS)

    def counts(self) -> Counter[str]:
        """Return how often calls ended with which status."""
        return Counter(one.code for one in self.probes)

    def _run(self) -> None:
        with asking(self._bridge, self._message, _PATIENCE_SECONDS) as ask:
            while not self._over.wait(_PERIOD_SECONDS):
                reply = ask()
                took = reply.came - reply.asked
                self.probes.append(Probe(reply.asked, reply.code, took))
