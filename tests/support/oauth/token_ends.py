"""The ways in which users, clients and administrators end the token of a client."""

from tests.conftest import GraphQLClient
from tests.support.oauth.oauth_flow import OauthBrowser, TestClient

ENDS_BY_ADMINISTRATOR = ("grant", "client", "sessions", "password", "suspension", "account")
DOCUMENTS = {
    "tokens of the user": "mutation { accessTokenRevoke(input: {all: true}) { revokedCount } }",
    "sessions": 'mutation { sessionTerminate(input: {users: {usernames: ["ada"]}, '
    "revokeTokens: true}) { errors { code } } }",
    "password": 'mutation { userUpdate(input: {users: {usernames: ["ada"]}, '
    'set: {password: "another good pass phrase"}}) { errors { code } } }',
    "suspension": 'mutation { userUpdate(input: {users: {usernames: ["ada"]}, '
    "set: {suspended: true}}) { errors { code } } }",
    "account": 'mutation { userDelete(input: {users: {usernames: ["ada"]}}) { errors { code } } }',
}
GRANTS = "{ users { nodes { oauthGrants { nodes { id clientId } } } } }"
GRANT_REVOKE = """mutation ($id: ID!) { oauthGrantRevoke(input: {oauthGrants: [{id: $id}]}) {
  errors { code } } }"""
CLIENT_DELETE = """mutation ($id: String!) {
  oauthClientDelete(input: {oauthClients: [{clientId: $id}]}) { errors { code } } }"""


async def end_token(
    way: str, browser: OauthBrowser, client: TestClient, token: str, administrator: GraphQLClient
) -> None:
    """End a token of ada. Fails on errors."""
    if way == "token":
        response = await browser.post_as_client("/oauth/revoke", client, token=token)
        assert response.status_code == 200
        return
    document, variables = DOCUMENTS.get(way, ""), dict[str, str]()
    if way == "grant":
        data = await administrator(GRANTS)
        (grant_id,) = (
            grant["id"]
            for user in data["users"]["nodes"]
            for grant in user["oauthGrants"]["nodes"]
            if grant["clientId"] == client.client_id
        )
        document, variables = GRANT_REVOKE, {"id": grant_id}
    elif way == "client":
        document, variables = CLIENT_DELETE, {"id": client.client_id}
    (payload,) = (await administrator(document, **variables)).values()
    assert not payload.get("errors"), payload
