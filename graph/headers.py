"""Headers that every answer over HTTP has, whoever made it."""

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Scope, Send

USUAL = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",  # for browsers that know no frame-ancestors
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"
POLICY = "Content-Security-Policy"
RESOURCE = "Cross-Origin-Resource-Policy"
FILES = "/graphiql/"  # scripts and their workers: a policy of theirs would bind the page's workers


def dressed(scope: Scope, send: Send) -> Send:
    """A `send` that adds what an answer does not say by itself.

    Nothing of ours is shown inside a foreign page, but for bytes that a signed address leads to:
    whoever has it may show them. HSTS is left to the proxy that speaks TLS.
    """

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in USUAL.items():
                headers.setdefault(name, value)
            if not scope["path"].startswith(FILES):
                headers.setdefault(POLICY, NOTHING)
            signed = scope["path"].startswith("/rest/") and b"sig=" in scope["query_string"]
            headers.setdefault(RESOURCE, "cross-origin" if signed else "same-origin")
        await send(message)

    return sending
