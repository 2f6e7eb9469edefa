"""Global ids: opaque to clients, typed for us."""

import base64

import strawberry

from models.errors import Invalid

# kept when a type is renamed
PREFIXES = {
    "AccessToken": "tok",
    "Address": "adr",
    "ApiKey": "key",
    "Attachment": "att",
    "Domain": "dom",
    "Mailbox": "box",
    "Message": "msg",
    "Submission": "sub",
    "Task": "tsk",
    "Thread": "thr",
    "Upload": "upl",
    "User": "usr",
}
KINDS = {prefix: kind for kind, prefix in PREFIXES.items()}
LONGEST = 256


def encode(kind: str, key: int) -> strawberry.ID:
    """The id a client sees for the row `key` of `kind`."""
    text = base64.urlsafe_b64encode(key.to_bytes(8, "big")).decode().rstrip("=")
    return strawberry.ID(f"{PREFIXES[kind]}_{text}")


def kind_of(id: str) -> str:
    """The kind an id names. Raises Invalid where it names none."""
    if kind := KINDS.get(id[:LONGEST].partition("_")[0]):
        return kind
    raise Invalid("not an id of ours", constraint="id", path=["id"])


def decode(kind: str, id: str, *, path: str = "id", index: int | None = None) -> int:
    """The row's key. Raises Invalid when `id` is of another kind or none of ours."""
    prefix, _, text = id[:LONGEST].partition("_")
    try:
        key = int.from_bytes(base64.urlsafe_b64decode(text + "="), "big")
        if prefix == PREFIXES[kind] and 0 < key < 2**63 and encode(kind, key) == id:
            return key
    except ValueError:
        pass
    raise Invalid(f"not the id of a {kind}", constraint="id", path=[path], index=index)
