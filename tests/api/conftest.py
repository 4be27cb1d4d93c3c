"""A server that the tests of one module share, and an HTTP client of it."""

from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from tests.support.client import http
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess("--commands-per-second", "1000", data_dir=tmp_path_factory.mktemp("data")).start()
    yield server
    server.end()


@pytest.fixture
async def api(shared: ServerProcess) -> AsyncIterator[httpx2.AsyncClient]:
    async with http(shared.base_url) as client:
        yield client
