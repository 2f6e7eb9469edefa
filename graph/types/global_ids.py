"""Global IDs: opaque for clients, with a prefix for the type."""

from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from struct import iter_unpack
from typing import TYPE_CHECKING, Any

from models.errors import InvalidInput, NotFound
from models.validation_constraints import ValidationConstraint

if TYPE_CHECKING:
    from strawberry import ID  # a slow import for the command line

# a prefix stays when its type is renamed
PREFIXES = {
    "AccessToken": "tok",
    "UserExport": "exp",
    "Address": "adr",
    "ApiKey": "key",
    "AppPassword": "app",
    "Attachment": "att",
    "AuditLogEntry": "aud",
    "SecurityEvent": "evt",
    "Autoreply": "aut",
    "BanPolicy": "bpo",
    "BccRule": "bcc",
    "Certificate": "crt",
    "ClusterNode": "nod",
    "ComposeRequest": "cmp",
    "Connector": "con",
    "ConnectorRun": "crn",
    "ContactSuggestion": "sug",
    "DeletedMessage": "del",
    "DeletedUser": "dus",
    "DkimKey": "dkm",
    "Domain": "dom",
    "AliasDomain": "dal",
    "File": "fil",
    "FileShare": "fsh",
    "Filter": "flt",
    "ForwardingHost": "fwd",
    "HeldCopy": "hcp",
    "Identity": "idt",
    "KeyValueEntry": "kvl",
    "Label": "lab",
    "LegalHold": "lhd",
    "LegalHoldAccess": "lha",
    "LoginPenalty": "pen",
    "Mailbox": "box",
    "Message": "msg",
    "NetworkBan": "ban",
    "OauthClient": "oac",
    "OauthGrant": "oag",
    "PushChannel": "psh",
    "QuarantineItem": "qua",
    "QueueEntry": "que",
    "RateLimitHold": "rhd",
    "RateLimit": "rlm",
    "RecipientRewrite": "rwr",
    "RelayHost": "rly",
    "Resource": "res",
    "SavedSearch": "sea",
    "SenderRule": "srl",
    "Session": "ses",
    "SettingHistoryEntry": "set",
    "SieveScript": "siv",
    "Submission": "sub",
    "Task": "tsk",
    "Thread": "thr",
    "TlsPolicy": "tls",
    "Transport": "tra",
    "Upload": "upl",
    "User": "usr",
    "WebauthnKey": "wak",
    "Webhook": "whk",
    "WebhookDelivery": "whd",
}
TYPE_NAMES = {prefix: kind for kind, prefix in PREFIXES.items()}
MAX_LENGTH = 256
KEY_CHARACTERS = 11  # base64 of 8 bytes without padding
_PADDING_CHARACTER = "A"  # six zero bits
_TO_ID_CHARACTERS = bytes.maketrans(b"+/", b"-_")
_TO_STANDARD_BASE64 = str.maketrans("-_+/", "+/  ")  # "+" and "/" are invalid in global IDs


def encode(type_name: str, key: int) -> "ID":
    """Return the global ID of the row `key` of a type."""
    return encoder(type_name)(key)


def encode_distinct(type_name: str, keys: "Iterable[int]") -> "list[ID]":
    """Return the global IDs of the rows `keys` of a type, each once, in their order."""
    return [encode(type_name, key) for key in dict.fromkeys(keys)]


@cache
def encoder(type_name: str) -> "Callable[[int], ID]":
    """Return the function that encodes row keys of a type as global IDs."""
    prefix = f"{PREFIXES[type_name]}_"

    def encode_key(key: int) -> Any:
        text = b2a_base64(key.to_bytes(8), newline=False).translate(_TO_ID_CHARACTERS)
        return prefix + text[:KEY_CHARACTERS].decode()

    return encode_key


def has_type(type_name: str, id: str) -> bool:
    """Return whether an ID has the prefix of a type. It can be malformed."""
    return id.startswith(f"{PREFIXES[type_name]}_")


def type_name_of_global_id(id: str) -> str:
    """Return the type name of a global ID. Raises InvalidInput for an unknown prefix."""
    if kind := TYPE_NAMES.get(id[:MAX_LENGTH].partition("_")[0]):
        return kind
    raise InvalidInput("Not a global ID.", constraint=ValidationConstraint.ID, path=["id"])


def decode(
    type_name: str, id: str, *, path: str | Sequence[str] = "id", index: int | None = None
) -> int:
    """Return the row key of a global ID.

    Raises InvalidInput with the path of the ID if it is malformed or of another type.
    """
    prefix, _, text = id[:MAX_LENGTH].partition("_")
    try:
        plain = text.replace("-", "+").replace("_", "/")
        key = int.from_bytes(a2b_base64(plain + "="), "big")
        if prefix == PREFIXES[type_name] and 0 < key < 2**63 and encode(type_name, key) == id:
            return key
    except ValueError:
        pass
    full_path = [path] if isinstance(path, str) else path
    raise InvalidInput(
        f"Not the global ID of a {type_name}.",
        constraint=ValidationConstraint.ID,
        path=full_path,
        index=index,
    )


def decode_all(
    type_name: str, global_id_texts: Sequence[str], *, path: str | Sequence[str]
) -> list[int]:
    """Return the row keys of many global IDs in order.

    Raises InvalidInput with the index of the first malformed ID.
    """
    prefix = f"{PREFIXES[type_name]}_"
    prefix_length, id_length = len(prefix), len(prefix) + KEY_CHARACTERS
    encoded_ids = [
        text[prefix_length:]
        for text in global_id_texts
        if len(text) == id_length and text.startswith(prefix)
    ]
    joined = _PADDING_CHARACTER.join([*encoded_ids, ""])
    with suppress(ValueError):
        decoded = a2b_base64(joined.translate(_TO_STANDARD_BASE64))
        # nine bytes each: the key, and a byte that is zero in canonical base64
        if len(decoded) == 9 * len(global_id_texts) and decoded[8::9].count(0) == len(
            global_id_texts
        ):
            keys = [key for (key,) in iter_unpack(">qx", decoded)]
            if not keys or min(keys) > 0:
                return keys
    return [
        decode(type_name, text, path=path, index=nth) for nth, text in enumerate(global_id_texts)
    ]


def decode_path_id(type_name: str, id: str) -> int:
    """Return the row key of a global ID in a URL path. Raises NotFound if it is malformed."""
    try:
        return decode(type_name, id)
    except InvalidInput:
        raise NotFound(id) from None
