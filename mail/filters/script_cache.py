"""An LRU cache of compiled scripts by their text."""

import threading
from collections import OrderedDict
from hashlib import sha256

from mail import sieve
from mail.sieve import SieveError, SieveProgram

COMPUTED_ADDRESS = "*"
MAX_PROGRAMS = 256  # programs in the cache

_programs: OrderedDict[bytes, SieveProgram] = OrderedDict()
_lock = threading.Lock()  # scripts run in threads


def compile_script_cached(script_text: str) -> SieveProgram:
    """Return the compiled script. Raises SieveError. CPU-bound: call it in a thread."""
    digest = sha256(script_text.encode(errors="surrogatepass")).digest()
    with _lock:
        if digest in _programs:
            _programs.move_to_end(digest)
            return _programs[digest]
    script = sieve.compile_script(script_text)
    with _lock:
        _programs[digest] = script
        while len(_programs) > MAX_PROGRAMS:
            _programs.popitem(last=False)
    return script


def compile_included_script_or_none(script_text: str | None) -> SieveProgram | None:
    """Return the program of an included script, None if it is missing or does not compile."""
    try:
        return None if script_text is None else compile_script_cached(script_text)
    except SieveError:
        return None


def redirect_addresses(program: SieveProgram) -> set[str]:
    """Return the addresses a script redirects to; `*` for one that is computed at run time."""
    addresses, calls = set[str](), list(program.calls)
    while calls:
        call = calls.pop()
        calls += [inner for block in call.blocks for inner in block]
        if call.name == "redirect":
            address = call.string_argument("address")
            addresses.add(address.lower() if isinstance(address, str) else COMPUTED_ADDRESS)
    return addresses
