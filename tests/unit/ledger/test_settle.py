import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge.config import HeadsConfig, LedgerConfig
from bridge.ledger.events import Intent
from bridge.ledger.ledger import Ledger
from bridge.ledger.reader import verify
from bridge.ledger.settle import settle
from tests.unit.ledger import support

NOW = datetime(2026, 3, 1, tzinfo=UTC)
