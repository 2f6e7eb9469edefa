"""Security headers of every HTTP response."""

from starlette.types import Message, Scope, Send

DEFAULT_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",  # for browsers that know no frame-ancestors
}
DENY_ALL_POLICY = "default-src 'none'; frame-ancestors 'none'"
CONTENT_SECURITY_POLICY = "Content-Security-Policy"
CROSS_ORIGIN_RESOURCE_POLICY = "Cross-Origin-Resource-Policy"
GRAPHIQL_FILES_PATH = "/graphiql/"  # a policy of these scripts would apply to the page's workers

_DEFAULT_HEADERS = [
    (name.lower().encode(), value.encode()) for name, value in DEFAULT_HEADERS.items()
]
_POLICY_HEADER = CONTENT_SECURITY_POLICY.lower().encode(), DENY_ALL_POLICY.encode()
_SAME_ORIGIN_HEADER = CROSS_ORIGIN_RESOURCE_POLICY.lower().encode(), b"same-origin"
_CROSS_ORIGIN_HEADER = _SAME_ORIGIN_HEADER[0], b"cross-origin"


def with_security_headers(scope: Scope, send: Send) -> Send:
    """Return an ASGI `send` that adds the security headers a response doesn't have.

    Other sites can't embed responses, except for downloads by signed URL. HSTS is left to the
    proxy that ends TLS.
    """

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"] = list(message.get("headers", ()))
            names = {name for name, _ in headers}
            headers += [pair for pair in _DEFAULT_HEADERS if pair[0] not in names]
            if _POLICY_HEADER[0] not in names and not scope["path"].startswith(GRAPHIQL_FILES_PATH):
                headers.append(_POLICY_HEADER)
            if _SAME_ORIGIN_HEADER[0] not in names:
                signed = b"sig=" in scope["query_string"] and scope["path"].startswith("/rest/")
                headers.append(_CROSS_ORIGIN_HEADER if signed else _SAME_ORIGIN_HEADER)
        await send(message)

    return send_with_headers
