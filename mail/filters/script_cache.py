"""An LRU cache of compiled scripts by their text."""

import threading
from collections import OrderedDict
from hashlib import sha256

from mail import sieve
from mail.sieve import Program, SieveError

ANYBODY = "*"
MOST = 256  # programs in the cache

_kept: OrderedDict[bytes, Program] = OrderedDict()
_lock = threading.Lock()  # scripts run in threads


def program_of(text: str) -> Program:
    """Return the compiled script. Raises SieveError. CPU-bound: call it in a thread."""
    digest = sha256(text.encode(errors="surrogatepass")).digest()
    with _lock:
        if digest in _kept:
            _kept.move_to_end(digest)
            return _kept[digest]
    made = sieve.compiled(text)
    with _lock:
        _kept[digest] = made
        while len(_kept) > MOST:
            _kept.popitem(last=False)
    return made


def included(text: str | None) -> Program | None:
    """Return the program of an included script, None if it is missing or does not compile."""
    try:
        return None if text is None else program_of(text)
    except SieveError:
        return None


def redirects(program: Program) -> set[str]:
    """Return the addresses a script redirects to; `*` for one that is computed at run time."""
    found, calls = set[str](), list(program.calls)
    while calls:
        call = calls.pop()
        calls += [inner for block in call.blocks for inner in block]
        if call.name == "redirect":
            address = call.string("address")
            found.add(address.lower() if isinstance(address, str) else ANYBODY)
    return found
