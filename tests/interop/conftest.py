"""The bridge that the interop tests of one module share."""

from collections.abc import Iterator

import pytest

from tests.support.harness.real_process import Bridge


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with Bridge(tmp_path_factory.mktemp("bridge") / "served") as served:
        yield served
