"""Attacks by HTTP requests: headers, bodies, paths, and requests of foreign web pages."""

import gzip
from typing import Any

from tests.support.attacks.attack_runner import (
    MIB,
    AttackedServer,
    AttackList,
    RawHttpResponse,
    ServerAttack,
    request,
)

QUERY_BODY = b'{"query": "{ viewer { role } }"}'
BAD_INPUT = "400 BAD_USER_INPUT"
POST_HEAD = b"POST /graphql HTTP/1.1\r\nHost: a\r\n"
ATTACKS = AttackList()
attack = ATTACKS.__call__
FOREIGN_ORIGIN = {"Origin": "https://evil.example"}
REVOKE_MUTATION = "mutation{accessTokenRevoke(input:{}){revokedCount}}"
FORM_TYPE = "application/x-www-form-urlencoded"
MULTIPART_BODY = b'--x\r\nContent-Disposition: form-data; name="operations"\r\n\r\n{}\r\n--x--\r\n'

CONTENT_TYPES = {
    "no Content-Type": ("", QUERY_BODY),
    "text/plain": ("text/plain", QUERY_BODY),
    "application/x-www-form-urlencoded": (FORM_TYPE, b"query={viewer{role}}"),
    "multipart/form-data": ("multipart/form-data; boundary=x", MULTIPART_BODY),
    "application/graphql": ("application/graphql", b"{ viewer { role } }"),
    "JSON in UTF-7": ("application/json; charset=utf-7", QUERY_BODY),
    "JSON in UTF-16": ("application/json; charset=utf-16", QUERY_BODY.decode().encode("utf-16")),
}
RAW_REQUESTS = {
    "Content-Length and chunked encoding": (
        POST_HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n",
        BAD_INPUT,
    ),
    "two Content-Length fields": (
        POST_HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        BAD_INPUT,
    ),
    "a negative Content-Length": (POST_HEAD + b"Content-Length: -1\r\n\r\n", BAD_INPUT),
    "a Content-Length with a plus sign": (
        POST_HEAD + b"Content-Length: +5\r\n\r\n",
        BAD_INPUT,
    ),
    "a Content-Length of 30 digits": (
        POST_HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        BAD_INPUT,
    ),
    "invalid chunks": (
        POST_HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        BAD_INPUT,
    ),
    "chunked before another transfer coding": (
        POST_HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        BAD_INPUT,
    ),
    "a chunk of 2^64 bytes": (
        POST_HEAD + b"Content-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n",
        BAD_INPUT,
    ),
    "a space before the colon": (b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n", BAD_INPUT),
    "a folded header field": (b"GET /health HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", BAD_INPUT),
    "NUL in a header": (b"GET /health HTTP/1.1\r\nHost: a\0b\r\n\r\n", BAD_INPUT),
    "a bare carriage return": (b"GET /health HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", BAD_INPUT),
    "HTTP/0.9": (b"GET /health\r\n\r\n", BAD_INPUT),
    "HTTP/2 without negotiation": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD_INPUT),
    "a TLS ClientHello": (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200,
        BAD_INPUT,
    ),
    "an unknown method": (b"HACK /graphql HTTP/1.1\r\nHost: a\r\n\r\n", BAD_INPUT),
    "bytes of every value": (bytes(range(256)) * 8, BAD_INPUT),
    "200 header fields": (
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        BAD_INPUT,
    ),
    "a header field of 100 kB": (
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000,
        "431 TOO_LARGE",
    ),
    "a URL of 100 kB": (b"GET /" + b"x" * 100_000, "431 TOO_LARGE"),
}
UNSAFE_PATHS = {
    "a path above the static files": "/graphiql/x/../../../../etc/passwd",
    "a path above the static files, encoded": "/graphiql/x/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "a path above the static files, with backslashes": "/graphiql/x/..%5c..%5cetc%5cpasswd",
    "a NUL after a name": "/graphiql/x/graphiql.js%00.png",
    "a path above the messages": "/rest/messages/..%2f..%2f..%2fetc%2fpasswd/message.eml",
    "a message ID with SQL": "/rest/messages/msg_'%20OR%201=1--/message.eml",
    "an invalid MIME part number": "/rest/messages/msg_AAAAAAAAAAE/parts/..%2f..%2f1",
    "an invalid attachment ID": "/rest/messages/msg_AAAAAAAAAAE/attachments/att_%00",
}


def _content_type_attack(content_type: str, body: bytes) -> Any:
    async def run(target: AttackedServer) -> RawHttpResponse:
        headers = target.user_headers | ({"Content-Type": content_type} if content_type else {})
        return await target.send_raw(request("POST", "/graphql", headers, body))

    return run


def _raw_attack(data: bytes) -> Any:
    async def run(target: AttackedServer) -> RawHttpResponse:
        response = await target.send_raw(data)
        assert response.raw.count(b"HTTP/1.1 ") == 1  # the rest is not read as a second request
        return response

    return run


def _path_attack(path: str) -> Any:
    async def run(target: AttackedServer) -> RawHttpResponse:
        response = await target.send_raw(request("GET", path, target.user_headers))
        assert b"root:" not in response.body
        return response

    return run


@attack("request: a mutation by GET", "405 BAD_USER_INPUT")
async def _(target: AttackedServer) -> RawHttpResponse:
    return await target.send_raw(
        request("GET", f"/graphql?query={REVOKE_MUTATION}", target.user_headers)
    )


@attack("request: a subscription by GET", BAD_INPUT)
async def _(target: AttackedServer) -> RawHttpResponse:
    path = "/graphql?query=subscription{changes{cursor}}"
    return await target.send_raw(request("GET", path, target.user_headers))


@attack("request: TRACE, which would return credentials", "405 BAD_USER_INPUT")
async def _(target: AttackedServer) -> RawHttpResponse:
    response = await target.send_raw(request("TRACE", "/graphql", target.user_headers))
    assert target.server.secrets["ada"].encode() not in response.raw
    return response


@attack("request: a body of 1 MiB and a byte", "413 TOO_LARGE")
async def _(target: AttackedServer) -> RawHttpResponse:
    return await target.post(b" " * (MIB + 1), **target.user_headers)


@attack("request: 40 MB in chunks", "413 TOO_LARGE", max_growth_kib=24 * 1024)
async def _(target: AttackedServer) -> RawHttpResponse:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = {
        **target.user_headers,
        "Content-Type": "application/json",
        "Transfer-Encoding": "chunked",
    }
    return await target.send_raw(request("POST", "/graphql", head) + chunk * 600)


@attack("request: 1 GB, compressed", "415 BAD_USER_INPUT")
async def _(target: AttackedServer) -> RawHttpResponse:
    compressed = gzip.compress(b" " * 8 * MIB) * 128
    return await target.post(compressed[:MIB], **target.user_headers, Content_Encoding="gzip")


@attack("request: not UTF-8", BAD_INPUT)
async def _(target: AttackedServer) -> RawHttpResponse:
    return await target.post(b'{"query": "{ viewer \xff { role } }"}', **target.user_headers)


@attack("request: half of a surrogate pair by GET", "200 GRAPHQL_PARSE_FAILED")
async def _(target: AttackedServer) -> RawHttpResponse:
    return await target.send_raw(
        request("GET", "/graphql?query={viewer{role}}%ED%A0%80", target.user_headers)
    )


@attack("request: a second request after `Connection: close`", "200")
async def _(target: AttackedServer) -> RawHttpResponse:
    response = await target.send_raw(request("GET", "/health", {}) * 2)
    assert response.raw.count(b"HTTP/1.1 ") == 1
    return response


@attack("request: 5,000 pipelined requests", "some, then hung up")
async def _(target: AttackedServer) -> str:
    response = await target.send_raw(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 5000)
    return "some, then hung up" if response.raw.count(b"HTTP/1.1 200") < 20 else "all"


@attack("request: 1,000 byte ranges", "200")
async def _(target: AttackedServer) -> RawHttpResponse:
    ranges = {"Range": "bytes=" + ",".join(f"{n}-" for n in range(1000))}
    return await target.send_raw(request("GET", "/graphiql/x/json.worker.js", ranges))


@attack("request: a foreign Host", "307")
async def _(target: AttackedServer) -> RawHttpResponse:
    response = await target.send_raw(request("GET", "/", {}, host="evil.example"))
    assert response.headers["location"] == "graphql"
    assert b"evil" not in response.raw
    other = await target.send_raw(request("GET", "/graphql/", {}, host="evil.example"))
    assert (other.status, b"evil" in other.raw) == (404, False)
    return response


@attack("request: X-Forwarded-Host and -Proto", "307")
async def _(target: AttackedServer) -> RawHttpResponse:
    forwarded_headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "javascript"}
    response = await target.send_raw(request("GET", "/", forwarded_headers))
    assert b"evil" not in response.raw
    return response


@attack("request: a request ID that forges log lines", "200")
async def _(target: AttackedServer) -> RawHttpResponse:
    forged = 'x","level":"error","event":"pwned'
    response = await target.post(QUERY_BODY, X_Request_Id=forged)
    assert response.headers["x-request-id"] != forged
    assert "pwned" not in target.server.log
    return response


@attack("browser: a cross-origin request", "200")
async def _(target: AttackedServer) -> RawHttpResponse:
    response = await target.post(QUERY_BODY, **FOREIGN_ORIGIN)
    assert not [name for name in response.headers if name.startswith("access-control-")]
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    return response


@attack("browser: a cross-origin preflight", "403")
async def _(target: AttackedServer) -> RawHttpResponse:
    preflight_headers = FOREIGN_ORIGIN | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    response = await target.send_raw(request("OPTIONS", "/graphql", preflight_headers))
    assert not [name for name in response.headers if name.startswith("access-control-")]
    return response


@attack("browser: GraphiQL in a frame", "200")
async def _(target: AttackedServer) -> RawHttpResponse:
    response = await target.send_raw(request("GET", "/graphql", {"Accept": "text/html"}))
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    for path in ("/nowhere", "/health", "/graphql"):
        headers = (await target.send_raw(request("GET", path, {}))).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers
    return response


@attack("guess: a credential", "401 UNAUTHENTICATED")
async def _(target: AttackedServer) -> RawHttpResponse:
    return await target.post(QUERY_BODY, Authorization=f"Bearer mgk_{'A' * 43}")


@attack("guess: field names, without a credential", "400 GRAPHQL_VALIDATION_FAILED")
async def _(target: AttackedServer) -> RawHttpResponse:
    response = await target.post_document("{ viewer { rol } }", {})
    assert b"Did you mean" not in response.body
    return response


ATTACKS += [
    *(
        ServerAttack(f"kind: {name}", ("415 BAD_USER_INPUT",), _content_type_attack(*type_and_body))
        for name, type_and_body in CONTENT_TYPES.items()
    ),
    *(
        ServerAttack(f"bytes: {name}", (expected,), _raw_attack(data))
        for name, (data, expected) in RAW_REQUESTS.items()
    ),
    *(
        ServerAttack(f"path: {name}", ("404", "404 NOT_FOUND"), _path_attack(path))
        for name, path in UNSAFE_PATHS.items()
    ),
]
