"""Programs that send uploads in pieces, over real connections."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.http.upload_body import UploadLimits
from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.clients.resumable_upload_client import (
    UPLOAD_MAX,
    ResumableUploadClient,
    UploadClientFactory,
)
from tests.support.clients.upload_client import make_upload_app, make_upload_client
from tests.support.servers.http_server import served


@pytest.fixture
def small(world: Environment) -> Environment:
    """A world in which uploads have at most 6 MiB."""
    return replace(world, options=replace(world.options, upload_max=UPLOAD_MAX))


@pytest.fixture
async def connect(small: Environment, tmp_path: Path) -> AsyncIterator[UploadClientFactory]:
    """Makes senders, each by a server of its own.

    All of them share the store, and the folder of arriving bytes unless `machine` names one.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def sender(
            client: Client | str,
            limits: UploadLimits | None = None,
            machine: str = "spool",
            world: Environment | None = None,
            **more: Any,
        ) -> ResumableUploadClient:
            app = make_upload_app(world or small, tmp_path / machine, limits)
            port = await stack.enter_async_context(served(app))
            url = f"http://127.0.0.1:{port}"
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30))
            if isinstance(client, str):
                return ResumableUploadClient(
                    await make_upload_client(small, http, client, **more), port
                )
            return ResumableUploadClient(replace(client, http=http), port)

        yield sender


@pytest.fixture
async def carol(connect: UploadClientFactory) -> ResumableUploadClient:
    made: ResumableUploadClient = await connect("carol")
    return made
