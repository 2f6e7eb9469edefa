"""Clients of resumable uploads over real connections."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.http.upload_body import UploadLimits
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.clients.resumable_upload_client import (
    UPLOAD_MAX,
    ResumableUploadClient,
    UploadClientFactory,
)
from tests.support.clients.upload_client import make_upload_app, make_upload_client
from tests.support.servers.http_server import run_http_server
from tests.support.time_limits import HANG_SECONDS


@pytest.fixture
def limited_environment(environment: Environment) -> Environment:
    """The environment with uploads of at most 6 MiB."""
    return replace(environment, options=replace(environment.options, upload_max_size=UPLOAD_MAX))


@pytest.fixture
async def connect(
    limited_environment: Environment, tmp_path: Path
) -> AsyncIterator[UploadClientFactory]:
    """Return a factory of clients, each with its own server.

    All servers share the database, and also the spool folder unless `machine` names another one.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def connect_client(
            client: GraphQLClient | str,
            limits: UploadLimits | None = None,
            machine: str = "spool",
            environment: Environment | None = None,
            **options: Any,
        ) -> ResumableUploadClient:
            app = make_upload_app(environment or limited_environment, tmp_path / machine, limits)
            port = await stack.enter_async_context(run_http_server(app))
            url = f"http://127.0.0.1:{port}"
            http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, timeout=HANG_SECONDS)
            )
            if isinstance(client, str):
                return ResumableUploadClient(
                    await make_upload_client(limited_environment, http, client, **options), port
                )
            return ResumableUploadClient(replace(client, http=http), port)

        yield connect_client


@pytest.fixture
async def carol(connect: UploadClientFactory) -> ResumableUploadClient:
    client: ResumableUploadClient = await connect("carol")
    return client
