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
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_api_key, make_user

MIB = 1 << 20


def make_upload_app(
    environment: Environment, spool: Path, limits: UploadLimits | None = None
) -> Starlette:
    """Make an application with the REST routes only."""

    async def sign_in(headers: Mapping[str, str], ip: str | None) -> Viewer:
        return await authentication.authenticate_request(environment, headers, ip=ip)

    return Starlette(routes=rest_routes.rest_routes(environment, sign_in, spool, limits))


async def make_upload_client(
    environment: Environment, http: httpx.AsyncClient, name: str, **key_changes: Any
) -> GraphQLClient:
    """Add a user and return a client with an API key of that user."""
    user = await make_user(environment, name)
    key_values = {"scopes": [Scope.FULL], **key_changes}
    secret = await make_api_key(environment, name, user_id=user.id, role=Role.USER, **key_values)
    return GraphQLClient(http, environment, user, secret)


def error_code(response: httpx.Response) -> str:
    """The code of the only error in a response."""
    (error,) = response.json()["errors"]
    return str(error["extensions"]["code"])


async def load_upload_rows(environment: Environment) -> list[Any]:
    """Load the rows of all uploads."""
    return list(await environment.database.read(select(*select_columns(Upload))))


def file_names(folder: Path) -> list[str]:
    """The names of the files in a folder."""
    return [path.name for path in folder.iterdir()]


async def assert_nothing_left(environment: Environment, spool: Path) -> None:
    """Check that no upload has left a row, a stored object or a file."""
    assert await load_upload_rows(environment) == []
    assert [stored async for stored in environment.object_store.list()] == []
    assert file_names(spool) == []
