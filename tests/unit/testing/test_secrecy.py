"""The tests of secrecy find a secret wherever a plugin leaves one."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.spi import Description, IssuedChain, PluginContext, Prepared
from bridge.testing import Backend
from tests.support.harness.conforming import (
    PIN,
    HonestCA,
    Kind,
    Part,
    backend_of,
    run,
)
from tests.support.parts.pki import new_chain

FAILED = pytest.fail.Exception
SHOWN = "test_no_secret_is_logged_or_shown"
MEMORY = "test_no_secret_is_in_the_memory_of_the_serving_process"
LOG = logging.getLogger(__name__)


class Logging(HonestCA):
    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        LOG.debug("logging in with %s", PIN.decode())
        return super().issue(prepared, timeout=timeout)


class Printing(HonestCA):
    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        sys.stderr.write(f"logging in with {PIN.decode()}\n")
        return super().issue(prepared, timeout=timeout)


class Warned(HonestCA):
    def __init__(self, part: Part, context: PluginContext) -> None:
        super().__init__(part, context)
        context.warn(f"the PIN {PIN.decode()} is short")


class Labelled(HonestCA):
    def describe(self) -> Description:
        return replace(super().describe(), labels={"pin": PIN.decode()})


class Holding(HonestCA):
    def __init__(self, part: Part, context: PluginContext) -> None:
        super().__init__(part, context)
        self.pin = PIN.decode()


class HoldingBelow(HonestCA):
    def __init__(self, part: Part, context: PluginContext) -> None:
        super().__init__(part, context)
        self.signer.pin = PIN.decode()


class HoldingInSlots(HonestCA):
    class Login:
        __slots__ = ("pin",)

        def __init__(self) -> None:
            self.pin = PIN.decode()

    def __init__(self, part: Part, context: PluginContext) -> None:
        super().__init__(part, context)
        self.login = self.Login()


@pytest.mark.parametrize(
    ("liar", "complaint"),
    [
        (Logging, "a log tells the secret 'pin'"),
        (Printing, "a log tells the secret 'pin'"),
        (Warned, "a warning tells the secret 'pin'"),
        (Labelled, "repr tells the secret 'pin'"),
        (Holding, "repr tells the secret 'pin'"),
        (HoldingBelow, "repr tells the secret 'pin'"),
        (HoldingInSlots, "repr tells the secret 'pin'"),
    ],
)
def test_a_secret_that_is_shown_is_found(
    liar: Kind, complaint: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(FAILED, match=complaint):
        run(SHOWN, backend_of(liar, Part(new_chain())), request)


def test_a_ca_that_shows_nothing_passes(request: pytest.FixtureRequest) -> None:
    run(SHOWN, backend_of(HonestCA, Part(new_chain())), request)


class Plugin(HonestCA):
    """Imported by the process that is searched; its part is made there."""

    api_version = 2

    def __init__(
        self, options: Mapping[str, object], context: PluginContext, /
    ) -> None:
        super().__init__(Part(new_chain()), context)
        pin = Path(str(options["pin_file"])).read_bytes()
        if options["remembers"]:
            self.signer.pin = pin.decode()
        if options["logs"]:
            LOG.info("the PIN is %s", pin.decode())


def kept(folder: Path, secret: bytes, **options: bool) -> Backend:
    pin_file = folder / "pin"
    pin_file.write_bytes(secret)
    return Backend(
        factory=Plugin,
        options={"pin_file": pin_file, "remembers": False, "logs": False, **options},
        context=PluginContext(name="fake", base=folder),
        secrets={"pin": secret},
    )


# Not the one above: a process that is searched has this module's constants.
SECRETS = Path("/proc/sys/kernel/random/uuid")


@pytest.mark.parametrize(
    ("option", "failure", "complaint"),
    [
        ("remembers", AssertionError, "the serving process holds .'pin'."),
        ("logs", FAILED, "the log of a process tells the secret 'pin'"),
    ],
)
def test_a_secret_in_a_serving_process_is_found(
    tmp_path: Path,
    option: str,
    failure: type[BaseException],
    complaint: str,
    request: pytest.FixtureRequest,
) -> None:
    with pytest.raises(failure, match=complaint):
        run(MEMORY, kept(tmp_path, SECRETS.read_bytes(), **{option: True}), request)


def test_a_secret_that_is_forgotten_is_not_found(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    secret = SECRETS.read_bytes()
    file = tmp_path / "elsewhere"
    file.write_bytes(secret)
    backend = kept(tmp_path, b"another one")
    run(MEMORY, replace(backend, secrets={"pin": secret}), request)


def test_a_short_secret_is_not_searched_for(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(FAILED, match="'pin' is too short to be searched for"):
        run(MEMORY, kept(tmp_path, b"1234567"), request)


def test_a_process_that_fails_shows_why(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    backend = kept(tmp_path, SECRETS.read_bytes())
    with pytest.raises(AssertionError, match=r"the process failed:\n(.|\n)*KeyError"):
        run(MEMORY, replace(backend, options={}), request)
