"""Memory of a process, and its garbage collection."""

import ctypes
import gc
from importlib import import_module
from types import ModuleType

M_ARENA_MAX = -8  # mallopt(3)
MAX_ARENAS = 2
GC_THRESHOLDS = (20_000, 5, 5)  # of each generation of the garbage collector


def limit_malloc_arenas() -> None:
    """Limit the memory pools of malloc: by default glibc creates up to eight for each CPU.

    Each pool keeps free memory for the threads that use it. Few threads allocate at the same time,
    since Python runs one at a time. Without effect where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, MAX_ARENAS)


def freeze_loaded_objects() -> None:
    """Exempt the objects that exist now from garbage collection, such as modules and the schema.

    They stay until the process ends. Checking them takes 0.1 seconds per collection. It also writes
    to each of them, so a forked process would copy nearly all memory that it shares. Nothing is
    collected before: there is hardly any garbage after a start, and finding it takes longer.
    """
    gc.freeze()


def import_without_garbage_collection(module_name: str) -> ModuleType:
    """Import a module and freeze its objects. Collections would take a tenth of the time."""
    gc.disable()
    try:
        return import_module(module_name)
    finally:
        freeze_loaded_objects()
        gc.enable()
