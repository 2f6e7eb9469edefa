"""Thread keys of a message: hashes of its references and base subject."""

import re
from collections.abc import Iterable
from hashlib import blake2b

_THREAD_INDEX_HEAD = 22  # characters of Thread-Index that replies share
_KEY_BYTES = 12

_PREFIXES = """
    re fw fwd aw wg antw antwort sv vs vb vl ref rif r i res enc tr rv rsp odp pd ynt ilt bls trs
    doorst ang atb yml fs hl vá továbbítás καθ απ σχετ πρθ отв на пер
    回复 转发 答复 回覆 轉寄 答覆 轉發 返信 転送 답장 회신 전달 تحويل رد השב הועבר
"""
_ANY_PREFIX = "|".join(sorted(map(re.escape, _PREFIXES.split()), key=len, reverse=True))
_PREFIX = re.compile(
    rf"\s*(?:(?:{_ANY_PREFIX})\s?(?:\[\d{{1,4}}\]|\(\d{{1,4}}\)|\^?\d{{1,4}})?\s?[:\uff1a]"
    r"|\[[^\[\]]{1,80}\](?=\s*\S))",
    re.IGNORECASE,
)
_FORWARD_MARK = "(fwd)"


def base_subject(subject: str) -> str:
    """The subject without reply and forward prefixes, case folded.

    Removes prefixes of many languages, list tags and "(fwd)", each repeatedly. In `subject`, each
    run of white space must be one space already.
    """
    at, end = 0, len(subject)
    while match := _PREFIX.match(subject, at):
        at = match.end()
    while subject[max(at, end - len(_FORWARD_MARK)) : end].lower() == _FORWARD_MARK:
        end -= len(_FORWARD_MARK)
        while end > at and subject[end - 1] == " ":
            end -= 1
    return subject[at:end].strip().casefold()


def thread_keys(message_ids: Iterable[str], thread_index: str, base_subject: str) -> list[str]:
    """Return a hash of each Message-ID with the base subject, in order, without repeats.

    A new subject is a new thread. The key of the head of Outlook's Thread-Index is last.
    """
    names = ["id:" + message_id.strip("<>") for message_id in message_ids]
    head = "".join(thread_index.split())[:_THREAD_INDEX_HEAD]
    if len(head) == _THREAD_INDEX_HEAD:
        names.append("index:" + head)
    return list(dict.fromkeys(_thread_key_hash(name, base_subject) for name in names))


def _thread_key_hash(reference: str, subject: str) -> str:
    text = f"{reference}\0{subject}".encode("utf-8", "replace")
    return blake2b(text, digest_size=_KEY_BYTES).hexdigest()
