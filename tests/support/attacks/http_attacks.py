"""Attacks by the shape of requests: heads, bodies, paths, and what browsers can be made to send."""

import gzip
from typing import Any

from tests.support.attacks.attack_runner import MIB, Answer, Attack, Attacks, Siege, request

ASKED = b'{"query": "{ viewer { role } }"}'
BAD = "400 BAD_USER_INPUT"
POST = b"POST /graphql HTTP/1.1\r\nHost: a\r\n"
ATTACKS = Attacks()
attack = ATTACKS.__call__
FOREIGN = {"Origin": "https://evil.example"}
MUTATION = "mutation{tokenRevoke(input:{}){revoked}}"
FORM = "application/x-www-form-urlencoded"
PART = b'--x\r\nContent-Disposition: form-data; name="operations"\r\n\r\n{}\r\n--x--\r\n'

KINDS = {
    "no kind at all": ("", ASKED),
    "plain text": ("text/plain", ASKED),
    "a form": (FORM, b"query={viewer{role}}"),
    "multipart": ("multipart/form-data; boundary=x", PART),
    "GraphQL's own kind": ("application/graphql", b"{ viewer { role } }"),
    "JSON in UTF-7": ("application/json; charset=utf-7", ASKED),
    "JSON in UTF-16": ("application/json; charset=utf-16", ASKED.decode().encode("utf-16")),
}
RAW = {
    "length and chunks, both": (
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n",
        BAD,
    ),
    "two lengths": (
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        BAD,
    ),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", BAD),
    "a length with a plus": (
        POST + b"Content-Length: +5\r\n\r\n",
        BAD,
    ),
    "a length of 30 digits": (
        POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        BAD,
    ),
    "chunks that are no chunks": (
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    "chunks before something else": (
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    "a chunk of 2^64 bytes": (
        POST + b"Content-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n",
        BAD,
    ),
    "a space before the colon": (b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n", BAD),
    "a header folded": (b"GET /health HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", BAD),
    "NUL in a header": (b"GET /health HTTP/1.1\r\nHost: a\0b\r\n\r\n", BAD),
    "a bare carriage return": (b"GET /health HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", BAD),
    "HTTP/0.9": (b"GET /health\r\n\r\n", BAD),
    "HTTP/2 without being asked": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD),
    "TLS where there is none": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200, BAD),
    "an unknown method": (b"HACK /graphql HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    "bytes of no kind": (bytes(range(256)) * 8, BAD),
    "200 headers": (
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        BAD,
    ),
    "a header of 100 kB": (
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000,
        "431 TOO_LARGE",
    ),
    "an address of 100 kB": (b"GET /" + b"x" * 100_000, "431 TOO_LARGE"),
}
PATHS = {
    "out of the files": "/graphiql/x/../../../../etc/passwd",
    "out of the files, encoded": "/graphiql/x/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "out of the files, by backslash": "/graphiql/x/..%5c..%5cetc%5cpasswd",
    "NUL behind a name": "/graphiql/x/graphiql.js%00.png",
    "out of the messages": "/rest/messages/..%2f..%2f..%2fetc%2fpasswd/message.eml",
    "a message of SQL": "/rest/messages/msg_'%20OR%201=1--/message.eml",
    "a part that is none": "/rest/messages/msg_AAAAAAAAAAE/parts/..%2f..%2f1",
    "an attachment that is none": "/rest/messages/msg_AAAAAAAAAAE/attachments/att_%00",
}


def _kind(kind: str, body: bytes) -> Any:
    async def run(siege: Siege) -> Answer:
        headers = siege.key | ({"Content-Type": kind} if kind else {})
        return await siege.raw(request("POST", "/graphql", headers, body))

    return run


def _raw(sent: bytes) -> Any:
    async def run(siege: Siege) -> Answer:
        answer = await siege.raw(sent)
        assert answer.raw.count(b"HTTP/1.1 ") == 1  # nothing behind it was taken for a request
        return answer

    return run


def _path(path: str) -> Any:
    async def run(siege: Siege) -> Answer:
        answer = await siege.raw(request("GET", path, siege.key))
        assert b"root:" not in answer.body
        return answer

    return run


@attack("request: a mutation by GET", "405 BAD_USER_INPUT")
async def _(siege: Siege) -> Answer:
    return await siege.raw(request("GET", f"/graphql?query={MUTATION}", siege.key))


@attack("request: a subscription by GET", BAD)
async def _(siege: Siege) -> Answer:
    path = "/graphql?query=subscription{changes{cursor}}"
    return await siege.raw(request("GET", path, siege.key))


@attack("request: TRACE, which shows credentials", "405 BAD_USER_INPUT")
async def _(siege: Siege) -> Answer:
    answer = await siege.raw(request("TRACE", "/graphql", siege.key))
    assert siege.server.secrets["ada"].encode() not in answer.raw
    return answer


@attack("request: a body of 1 MiB and a byte", "413 TOO_LARGE")
async def _(siege: Siege) -> Answer:
    return await siege.post(b" " * (MIB + 1), **siege.key)


@attack("request: 40 MB in chunks", "413 TOO_LARGE", kib=24 * 1024)
async def _(siege: Siege) -> Answer:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = {**siege.key, "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    return await siege.raw(request("POST", "/graphql", head) + chunk * 600)


@attack("request: 1 GB, compressed", "415 BAD_USER_INPUT")
async def _(siege: Siege) -> Answer:
    bomb = gzip.compress(b" " * 8 * MIB) * 128
    return await siege.post(bomb[:MIB], **siege.key, Content_Encoding="gzip")


@attack("request: not UTF-8", BAD)
async def _(siege: Siege) -> Answer:
    return await siege.post(b'{"query": "{ viewer \xff { role } }"}', **siege.key)


@attack("request: half of a surrogate pair by GET", "200 GRAPHQL_PARSE_FAILED")
async def _(siege: Siege) -> Answer:
    return await siege.raw(request("GET", "/graphql?query={viewer{role}}%ED%A0%80", siege.key))


@attack("request: another one behind `Connection: close`", "200")
async def _(siege: Siege) -> Answer:
    answer = await siege.raw(request("GET", "/health", {}) * 2)
    assert answer.raw.count(b"HTTP/1.1 ") == 1
    return answer


@attack("request: 5,000 at once on one connection", "some, then hung up")
async def _(siege: Siege) -> str:
    answer = await siege.raw(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 5000)
    return "some, then hung up" if answer.raw.count(b"HTTP/1.1 200") < 20 else "all"


@attack("request: a thousand ranges of bytes", "200")
async def _(siege: Siege) -> Answer:
    ranges = {"Range": "bytes=" + ",".join(f"{n}-" for n in range(1000))}
    return await siege.raw(request("GET", "/graphiql/x/json.worker.js", ranges))


@attack("request: a foreign Host", "307")
async def _(siege: Siege) -> Answer:
    answer = await siege.raw(request("GET", "/", {}, host="evil.example"))
    assert answer.headers["location"] == "graphql"
    assert b"evil" not in answer.raw
    other = await siege.raw(request("GET", "/graphql/", {}, host="evil.example"))
    assert (other.status, b"evil" in other.raw) == (404, False)
    return answer


@attack("request: X-Forwarded-Host and -Proto", "307")
async def _(siege: Siege) -> Answer:
    lies = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "javascript"}
    answer = await siege.raw(request("GET", "/", lies))
    assert b"evil" not in answer.raw
    return answer


@attack("request: an id that forges the log", "200")
async def _(siege: Siege) -> Answer:
    forged = 'x","level":"error","event":"pwned'
    answer = await siege.post(ASKED, X_Request_Id=forged)
    assert answer.headers["x-request-id"] != forged
    assert "pwned" not in siege.server.log
    return answer


@attack("browser: a foreign page asks", "200")
async def _(siege: Siege) -> Answer:
    answer = await siege.post(ASKED, **FOREIGN)
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    return answer


@attack("browser: a foreign page asks whether it may", "405 BAD_USER_INPUT")
async def _(siege: Siege) -> Answer:
    asked = FOREIGN | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = await siege.raw(request("OPTIONS", "/graphql", asked))
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    return answer


@attack("browser: our page in a frame", "200")
async def _(siege: Siege) -> Answer:
    answer = await siege.raw(request("GET", "/graphql", {"Accept": "text/html"}))
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    for path in ("/nowhere", "/health", "/graphql"):
        headers = (await siege.raw(request("GET", path, {}))).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers
    return answer


@attack("guess: a credential", "401 UNAUTHENTICATED")
async def _(siege: Siege) -> Answer:
    return await siege.post(ASKED, Authorization=f"Bearer mgk_{'A' * 43}")


@attack("guess: the names of fields, as a stranger", "400 GRAPHQL_VALIDATION_FAILED")
async def _(siege: Siege) -> Answer:
    answer = await siege.ask("{ viewer { rol } }", {})
    assert b"Did you mean" not in answer.body
    return answer


ATTACKS += [
    *(
        Attack(f"kind: {name}", ("415 BAD_USER_INPUT",), _kind(*given))
        for name, given in KINDS.items()
    ),
    *(Attack(f"bytes: {name}", (said,), _raw(sent)) for name, (sent, said) in RAW.items()),
    *(Attack(f"path: {name}", ("404", "404 NOT_FOUND"), _path(it)) for name, it in PATHS.items()),
]
