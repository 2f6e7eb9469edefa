"""Security keys in a headless Chromium."""

import json

from playwright.async_api import Page

from tests.support.servers.merganser_server import MerganserProcess

# Creates a key of the (virtual) authenticator with the options of a registration challenge.
CREATE_KEY_SCRIPT = """async (options) => {
  const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(options);
  return JSON.stringify(await navigator.credentials.create({publicKey}));
}"""


async def plug_in_security_key(page: Page) -> None:
    """Plug in a virtual security key, which always confirms."""
    session = await page.context.new_cdp_session(page)
    await session.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2",
        "transport": "usb",
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    await session.send("WebAuthn.addVirtualAuthenticator", {"options": options})


async def register_security_key(page: Page, server: MerganserProcess, username: str) -> None:
    """Register a key of the authenticator for a user. The page must be one of the server."""
    async with server.open_client(username) as client:
        payload = await client.run_mutation(
            "webauthnChallenge", {"ceremony": "REGISTRATION"}, "challenge"
        )
        response = await page.evaluate(CREATE_KEY_SCRIPT, payload["challenge"])
        input_fields = {"name": "Blue", "response": json.loads(response)}
        await client.run_mutation("webauthnRegister", input_fields)
