"""Hierarchy files for tests, and ceremonies whose keys are in this process."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bridge.hierarchy.ceremony import Ceremony
from bridge.hierarchy.keys import LocalKey
from bridge.hierarchy.output import Output
from bridge.hierarchy.schema import Loaded, parse
from bridge.spi import Signer
from bridge.system.clock import Clock
from bridge.x509.algorithm import SignatureAlgorithm
from tests.support.parts.pki import NOW, Key, new_key

HOSTS = ("corp.example", ".corp.example", "svc", ".svc")
CONSTRAINTS: Mapping[str, Any] = {
    "permitted": {"dns": [*HOSTS], "uri": [*HOSTS[:2]], "email": ["invalid"]},
    "excluded": {"ip": ["0.0.0.0/0", "::/0"]},
}


def tree(**changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a hierarchy file of three CAs: `root`, `eu` and `prod`.

    Args:
        changes: Keys of a CA that are other ones, by its name.
    """
    cas: dict[str, dict[str, Any]] = {
        "root": {
            "common_name": "Corp Root CA",
            "key": in_file("root", "p384"),
            "validity": {"years": 20},
            "path_len": 2,
        },
        "eu": {
            "parent": "root",
            "common_name": "Corp EU CA",
            "key": in_file("eu"),
            "validity": {"years": 5},
            "path_len": 1,
            "name_constraints": CONSTRAINTS,
        },
        "prod": {
            "parent": "eu",
            "purpose": "mesh",
            "common_name": "Corp EU prod CA",
            "key": in_file("prod"),
            "validity": {"years": 1},
            "path_len": 0,
            "name_constraints": CONSTRAINTS,
            "crl_url": "http://crl.corp.example/eu.crl",
            "aia_url": "http://crl.corp.example/eu.cer",
            "policies": ["1.3.6.1.4.1.99999.1"],
        },
    }
    return {
        "version": 1,
        "name": "corp",
        "organisation": "Corp",
        "trust_domains": ["corp.example"],
        "data_planes": ["sidecar"],
        "cas": {
            name: {**entry, **changes.get(name, {})} for name, entry in cas.items()
        },
    }


def in_file(name: str, algorithm: str = "p256") -> dict[str, str]:
    """Return the place of a key in a file."""
    return {"backend": "file", "path": f"keys/{name}.key", "algorithm": algorithm}


def loaded(content: Mapping[str, Any], folder: Path) -> Loaded:
    """Return a hierarchy file as `load` does."""
    text = yaml.safe_dump(dict(content), sort_keys=False)
    return parse(text.encode(), folder / "hierarchy.yaml")


class StubKey(LocalKey):
    """A key whose device does something else when it is to sign.

    Args:
        key: The private key.
        act: Given what is to be signed, and returns the signature.
    """

    def __init__(self, key: Key, act: Callable[[bytes], bytes]) -> None:
        super().__init__(key)
        self.asked = 0
        """How often it was to sign."""
        self._act = act

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        """See `Signer.sign`."""
        self.asked += 1
        return self._act(tbs)


class HeldCeremony:
    """A ceremony in a folder, with keys that are made when they are first used.

    Args:
        folder: Of the test.
        content: The hierarchy file; by default `tree()`.
        clock: The time.
    """

    def __init__(
        self,
        folder: Path,
        content: Mapping[str, Any] | None = None,
        *,
        clock: Clock = lambda: NOW,
    ) -> None:
        self.folder = folder
        self.loaded = loaded(content or tree(), folder)
        self.output = Output(folder / "out")
        self.signers: dict[str, Signer] = {}
        """The keys by CA; a test puts its own here."""
        self.clock = clock

    @contextmanager
    def keys(self, name: str) -> Iterator[Signer]:
        """Open a key."""
        if name not in self.signers:
            algorithm = self.loaded.file.cas[name].key.algorithm
            self.signers[name] = LocalKey(new_key(algorithm))
        yield self.signers[name]

    def ceremony(self) -> Ceremony:
        """Return what `sign` is given."""
        return Ceremony(
            loaded=self.loaded,
            output=self.output,
            keys=self.keys,
            operator="ada",
            clock=self.clock,
        )
