"""What tests of a backend's files share: a CA, and no pause between two readings."""

import pytest

from bridge_file import material
from tests.support.parts.pki import Authority, new_chain


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "_PAUSE_SECONDS", 0.0)


@pytest.fixture(scope="module")
def ca() -> Authority:
    return new_chain()
