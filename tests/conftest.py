"""What holds for every test, and the servers that tests share."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.parts.vault import OPENBAO, PRODUCTS, Product, Server

# A busy machine takes its time: no test is about that.
settings.register_profile("any machine", settings(), deadline=None)
settings.load_profile("any machine")

# A shell has the background ignore Ctrl-C, which programs under test would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_LONGEST_ID = 60


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long values by their argument: they may depend on chance.

    Workers of pytest-xdist have to find the same tests.
    """
    is_long = isinstance(val, (str, bytes)) and len(val) > _LONGEST_ID
    return argname if is_long else None


@pytest.fixture(scope="session", params=PRODUCTS, ids=str)
def vault_product(request: pytest.FixtureRequest) -> Product:
    """Each product in turn, for tests that start servers of their own."""
    product: Product = request.param
    return product


@pytest.fixture(scope="session")
def vault_server(
    vault_product: Product, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of each product in turn, for tests that do not harm it.

    Each test makes its own mounts, policies and tokens in it.
    """
    folder = tmp_path_factory.mktemp("vault") / "server"
    with Server(folder, vault_product, storage="inmem") as server:
        yield server


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An OpenBao, for tests that do not harm it and need no other product."""
    folder = tmp_path_factory.mktemp("openbao") / "server"
    with Server(folder, OPENBAO, storage="inmem") as server:
        yield server
