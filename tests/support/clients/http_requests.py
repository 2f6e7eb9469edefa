"""HTTP requests for GraphQL documents and files."""

from typing import Any

import httpx

from resolvers.files import signed_urls
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient

VIEWER_QUERY = """
{ viewer { role scopes readOnly user { username } apiKey { name }
  token { id current scopes protocol ip expiresAt } } }
"""


async def post_document(
    http: httpx.AsyncClient, document: str, bearer: str = "", **variables: Any
) -> Any:
    """Post a GraphQL document, with a bearer token if one is given, and return the response."""
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    body = {"query": document, "variables": variables}
    return (await http.post("/graphql", json=body, headers=headers)).json()


async def get_path(client: GraphQLClient, path: str, **headers: str) -> httpx.Response:
    """Request a path with the credential of the client."""
    named_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.http.get(path, headers={**client.headers, **named_headers})


def signed_path(client: GraphQLClient, path: str) -> str:
    """The signed URL of a path, for this user."""
    viewer = Viewer(client.user.id, auth_version=1)
    return signed_urls.sign_path(
        client.environment, path, client.user.id, viewer, now=client.environment.now()
    )
