"""A SCIM client with an API key for domains."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from models.domains.tables import Domain
from models.events.journal import Stream
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from tests.conftest import make_api_key

USER_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:Group"
PATCH_SCHEMA = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
MEDIA_TYPE = "application/scim+json"


def replace_value(path: str, value: object) -> dict[str, object]:
    """A PATCH operation that replaces a value."""
    return {"op": "replace", "path": path, "value": value}


def patch_body(*operations: Mapping[str, object]) -> dict[str, object]:
    """The body of a PATCH."""
    return {"schemas": [PATCH_SCHEMA], "Operations": list(operations)}


@dataclass
class ScimTestClient:
    """A SCIM client that signs in with the API key of some domains."""

    http: httpx.AsyncClient
    environment: Environment
    secret: str
    domain_ids: list[int]

    async def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None,
        **params: Any,
    ) -> httpx.Response:  # fmt: skip
        """Send a request and return the response, whose body is SCIM or empty."""
        response = await self.http.request(
            method,
            f"/scim/v2{path}",
            params=params,
            content=None if body is None else json.dumps(body),
            headers={
                "Authorization": f"Bearer {self.secret}",
                "Content-Type": MEDIA_TYPE,
                **(headers or {}),
            },
        )
        if response.content:
            assert response.headers["content-type"] == MEDIA_TYPE, response.text
        return response

    async def send(
        self, method: str, path: str, body: Any = None, *, status: int = 200, **params: Any
    ) -> Any:
        """Send a request that must be answered with this status; return the JSON of the body."""
        response = await self.request(method, path, body, **params)
        assert response.status_code == status, (response.status_code, response.text)
        return response.json() if response.content else None

    async def create_user(self, local_part: str, **attributes: Any) -> Any:
        """Create the user LOCAL_PART@example.org and return the resource."""
        body = {"schemas": [USER_SCHEMA], "userName": f"{local_part}@example.org", **attributes}
        return await self.send("POST", "/Users", body, status=201)

    async def create_group(self, name: str, member_ids: list[str] | None = None) -> Any:
        """Create a group with these members and return the resource."""
        members = [{"value": key} for key in member_ids or []]
        body = {"schemas": [GROUP_SCHEMA], "displayName": name, "members": members}
        return await self.send("POST", "/Groups", body, status=201)

    async def patch(
        self, path: str, *operations: dict[str, Any], status: int = 200, **params: Any
    ) -> Any:
        """Send a PATCH with these operations and return the resource, or the error."""
        response = await self.request("PATCH", path, patch_body(*operations), **params)
        if response.status_code == 204 and status == 200:  # of a group
            return await self.send("GET", path)
        assert response.status_code == status, (response.status_code, response.text)
        return response.json()

    async def error(
        self, method: str, path: str, body: Any = None, **params: Any
    ) -> tuple[Any, ...]:
        """Send a request that is refused; return status and scimType of the error."""
        response = await self.request(method, path, body, **params)
        error = response.json()
        assert error["schemas"] == ["urn:ietf:params:scim:api:messages:2.0:Error"], error
        assert error["status"] == str(response.status_code)
        assert error["detail"]
        return response.status_code, error.get("scimType")


async def make_scim_domain(environment: Environment, name: str = "example.org") -> int:
    """Add a domain and return its id."""
    domain_id, now = environment.new_id(), environment.now()
    async with environment.write_session() as session:
        session.add(Stream(id=domain_id))
        await session.flush()
        session.add(Domain(id=domain_id, name=name, created_at=now, updated_at=now))
    return domain_id


async def make_scim_client(
    http: httpx.AsyncClient, environment: Environment, *domain_ids: int, **columns: Any
) -> ScimTestClient:
    """Add an API key for SCIM of these domains and return a client with it."""
    values = {"role": Role.ADMIN, "scopes": [Scope.SCIM], "domains": list(domain_ids), **columns}
    name = f"scim{len(domain_ids)}{domain_ids[0] if domain_ids else ''}{columns.get('name', '')}"
    values.pop("name", None)
    secret = await make_api_key(environment, name[:40], **values)
    return ScimTestClient(http, environment, secret, list(domain_ids))
