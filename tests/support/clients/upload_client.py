"""Clients that upload files, and what an upload leaves behind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from sqlmodel import select
from starlette.applications import Starlette

from graph.http import rest_routes
from graph.http.upload_body import UploadLimits
from models.files.blobs import Upload
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import Role, Scope
from resolvers.auth import authentication
from resolvers.context import Viewer
from tests.conftest import Client, make_key, make_user

MIB = 1 << 20


def make_upload_app(
    world: Environment, spool: Path, limits: UploadLimits | None = None
) -> Starlette:
    """Make an application with the REST routes only."""

    async def sign_in(headers: Mapping[str, str], ip: str | None) -> Viewer:
        return await authentication.authenticate_request(world, headers, ip=ip)

    return Starlette(routes=rest_routes.rest_routes(world, sign_in, spool, limits))


async def make_upload_client(
    world: Environment, http: httpx.AsyncClient, name: str, **key_changes: Any
) -> Client:
    """Add a user and return a client with an API key of that user."""
    user = await make_user(world, name)
    key_values = {"scopes": [Scope.MASTER], **key_changes}
    secret = await make_key(world, name, user_id=user.id, role=Role.USER, **key_values)
    return Client(http, world, user, secret)


def error_code(response: httpx.Response) -> str:
    """The code of the only error in a response."""
    (error,) = response.json()["errors"]
    return str(error["extensions"]["code"])


async def load_upload_rows(world: Environment) -> list[Any]:
    """Load the rows of all uploads."""
    return list(await world.database.read(select(*select_columns(Upload))))


def file_names(folder: Path) -> list[str]:
    """The names of the files in a folder."""
    return [path.name for path in folder.iterdir()]


async def assert_nothing_left(world: Environment, spool: Path) -> None:
    """Check that no upload has left a row, a stored object or a file."""
    assert await load_upload_rows(world) == []
    assert [stored async for stored in world.object_store.list()] == []
    assert file_names(spool) == []
