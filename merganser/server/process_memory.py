"""Memory of a server process."""

import ctypes

M_ARENA_MAX = -8  # mallopt(3)
MAX_ARENAS = 2


def limit_malloc_arenas() -> None:
    """Limit the memory pools of malloc: by default glibc creates up to eight for each CPU.

    Each pool keeps free memory for the threads that use it. Few threads allocate at the same time,
    since Python runs one at a time. Without effect where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, MAX_ARENAS)
