"""A domain administrator of another domain, created once in the SQLite store that tests copy."""

from pathlib import Path
from typing import cast

import httpx

from mail.storage.blobs.object_stores import FolderStore
from models.runtime.environment import Environment
from models.store.database import Database
from models.users.roles import AdminPermission, Role, Scope
from resolvers.context import Context
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.conftest import TEST_OPTIONS, GraphQLClient, ManualClock
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.stores.store_fixtures import copy_sqlite_template


async def make_admin_of_another_domain(
    environment: Environment, http: httpx.AsyncClient
) -> GraphQLClient:
    """Create the domain afar.example with a user, and a user of example.org who administers it."""
    platform = Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
    new_user = NewUser(username="x", address="x@afar.example", password_disabled=True)
    await creation_create.create_user(platform, new_user)
    permissions = list(AdminPermission)
    return await make_domain_admin(environment, http, "far", permissions, domains=["afar.example"])


async def add_admin_of_another_domain(store: Path, folder: Path) -> tuple[Path, str]:
    """Copy an SQLite store to this folder and create the administrator in the copy.

    Return the path of the copy, and the secret of the administrator's API key.
    """
    database, blobs = Database(copy_sqlite_template(store, folder)), FolderStore(folder / "blobs")
    environment = Environment(
        database, blobs, signing_secret=b"s" * 32, options=TEST_OPTIONS, now=ManualClock()
    )
    no_http = cast("httpx.AsyncClient", None)  # each test has its own
    client = await make_admin_of_another_domain(environment, no_http)
    await database.close()
    await blobs.close()
    return folder / "mail.db", client.secret
