"""Security headers of every HTTP response."""

from starlette.types import Message, Scope, Send

USUAL = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",  # for browsers that know no frame-ancestors
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"
POLICY = "Content-Security-Policy"
RESOURCE = "Cross-Origin-Resource-Policy"
FILES = "/graphiql/"  # a policy of these scripts would apply to the page's workers

_USUAL = [(name.lower().encode(), value.encode()) for name, value in USUAL.items()]
_POLICY = POLICY.lower().encode(), NOTHING.encode()
_OURS = RESOURCE.lower().encode(), b"same-origin"
_ANYBODYS = _OURS[0], b"cross-origin"


def dressed(scope: Scope, send: Send) -> Send:
    """Return an ASGI `send` that adds the security headers a response doesn't have.

    Other sites can't embed responses, except for downloads by signed URL. HSTS is left to the
    proxy that ends TLS.
    """

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"] = list(message.get("headers", ()))
            there = {name for name, _ in headers}
            headers += [pair for pair in _USUAL if pair[0] not in there]
            if _POLICY[0] not in there and not scope["path"].startswith(FILES):
                headers.append(_POLICY)
            if _OURS[0] not in there:
                signed = b"sig=" in scope["query_string"] and scope["path"].startswith("/rest/")
                headers.append(_ANYBODYS if signed else _OURS)
        await send(message)

    return sending
