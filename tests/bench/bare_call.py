"""C_Sign in a loop, with nothing around it: what a signature in a token costs.

`python -m tests.bench.bare_call` takes an order as JSON from its standard input and
writes what it measured as JSON. The module is loaded as the plugin does it, with OS
locking.
"""

import json
import statistics
import sys
import time
from typing import Any, cast

from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import ObjectClass, SignMixin

from bridge.sdk import CAPublicKey
from bridge_pkcs11.cryptoki import Module
from bridge_pkcs11.mechanism import mechanism_of

_TBS = b"t" * 600
"""As long as a leaf's TBSCertificate."""
_WARMUP_SECONDS = 0.5


def main() -> None:
    """Carry out the order, and write rate, CPU time and median of the calls."""
    order: dict[str, Any] = json.loads(sys.stdin.read())
    token = Module(order["module"]).get_token(token_serial=order["serial"].encode())
    session = token.open(user_pin=order["pin"])
    found_key = session.get_key(
        object_class=ObjectClass.PRIVATE_KEY, label=order["key"]
    )
    key = cast("SignMixin", found_key)
    public_key = cast("CAPublicKey", load_der_public_key(bytes.fromhex(order["spki"])))
    chosen = mechanism_of(public_key, token.slot.get_mechanisms())
    data = chosen.signed_data(_TBS)
    _signed(key, data, chosen.mechanism, _WARMUP_SECONDS)
    cpu, began = time.process_time(), time.perf_counter()
    calls = _signed(key, data, chosen.mechanism, order["seconds"])
    cpu, whole = time.process_time() - cpu, time.perf_counter() - began
    found = {
        "per_second": len(calls) / whole,
        "cpu_us": cpu / len(calls) * 1e6,
        "p50_ms": statistics.median(calls) * 1e3,
        "cpu_seconds": cpu,
    }
    sys.stdout.write(json.dumps(found))


def _signed(key: SignMixin, data: bytes, mechanism: Any, seconds: float) -> list[float]:
    """Sign for a time; return the seconds of each call."""
    calls = []
    moment = time.perf_counter()
    end = moment + seconds
    while moment < end:
        key.sign(data, mechanism=mechanism)
        now = time.perf_counter()
        calls.append(now - moment)
        moment = now
    return calls


if __name__ == "__main__":
    main()
