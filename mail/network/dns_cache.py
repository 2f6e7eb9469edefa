"""A cache of DNS answers that can be listed, with the time of the last use of each answer."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import dns.rdatatype

RESPONSE_SIZE = 512  # bytes of an answer without a stored response, estimated


@dataclass(slots=True)
class CachedAnswer:
    """An answer of the cache."""

    answer: Any  # dns.resolver.Answer, with its time of expiry
    used_at: float  # seconds since 1970

    @property
    def size(self) -> int:
        """The bytes of the response."""
        return len(getattr(self.answer.response, "wire", None) or b"") or RESPONSE_SIZE


class DnsAnswerCache:
    """Keeps the answers that were used last, each for its TTL, as dns.resolver.LRUCache does."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._answers: OrderedDict[Any, CachedAnswer] = OrderedDict()
        self._lock = threading.Lock()
        ANSWER_CACHES.add(self)

    def get(self, key: Any) -> Any:
        """Return the answer to a question, or None if there is none that is still valid."""
        now = time.time()
        with self._lock:
            cached = self._answers.get(key)
            if cached is None:
                return None
            if cached.answer.expiration <= now:
                del self._answers[key]
                return None
            cached.used_at = now
            self._answers.move_to_end(key)
            return cached.answer

    def put(self, key: Any, value: Any) -> None:
        """Store an answer, and remove the least recently used ones if the cache has too many."""
        with self._lock:
            self._answers[key] = CachedAnswer(value, time.time())
            self._answers.move_to_end(key)
            while len(self._answers) > self._max_size:
                self._answers.popitem(last=False)

    def flush(self, key: Any = None) -> None:
        """Remove the answer to a question, or without one all answers."""
        with self._lock:
            if key is None:
                self._answers.clear()
            else:
                self._answers.pop(key, None)

    def list_answers(self) -> list[tuple[Any, CachedAnswer]]:
        """Return the answers that are still valid, with their questions."""
        now = time.time()
        with self._lock:
            answers = list(self._answers.items())
        return [item for item in answers if item[1].answer.expiration > now]


ANSWER_CACHES: WeakSet[DnsAnswerCache] = WeakSet()  # of this process


def question_text(key: Any) -> str:
    """Return the name and the record type of a question, as in "example.org MX"."""
    name, record_type, _ = key
    text = name.to_text(omit_final_dot=True)
    return f"{text} {dns.rdatatype.to_text(record_type)}"
