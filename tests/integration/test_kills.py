"""`kill -9` at random moments under load: 50 times here, 1,000 in `make soak`."""

import random
import secrets
from pathlib import Path

import pytest

from tests.support.clients.load import Holders
from tests.support.harness.kills import ALL, PARENT, WORKER, Kills
from tests.support.harness.workers import Supervised

_MAY_SEE = {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}
"""All of them are what Istio's client asks again after."""


# Two halves, so that two cores can share them.
@pytest.mark.parametrize("count", [24, 26])
def test_whoever_is_killed_every_certificate_is_on_record(
    tmp_path: Path, count: int
) -> None:
    seed = secrets.randbits(32)
    bridge = Supervised(tmp_path / "served", 2)
    try:
        with bridge, Holders(bridge) as holders:
            kills = Kills(bridge, holders, random.Random(seed))
            what = [kill.what for kill in kills.run(count)]
        kills.require_sound()
        assert {WORKER} < set(what) <= {WORKER, PARENT, ALL}
        assert set(holders.saw()) <= _MAY_SEE
        # Whoever starts next gives every open intent its outcome.
        with bridge:
            bridge.ask()
        bridge.require_sound_ledger("--archive")
    except BaseException as error:
        error.add_note(f"seed {seed}")
        error.add_note(bridge.log())
        raise
