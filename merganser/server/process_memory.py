"""Memory of a server process."""

import ctypes
import gc

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
    collected before: there is hardly any garbage after the start, and a search takes longer.
    """
    gc.freeze()


def freeze_loaded_objects_and_collect_garbage_often() -> None:
    """End the start of a server process, during which garbage is rarely collected."""
    freeze_loaded_objects()
    gc.set_threshold(*GC_THRESHOLDS)
