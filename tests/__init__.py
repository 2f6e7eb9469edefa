"""The tests of Merganser."""

import gc
import sys

# Imported modules stay. Collections during the imports take a fifth of their time.
# `conftest.py` sets other thresholds for the tests themselves.
gc.set_threshold(100_000, 50, 100)
# httpx tries to import this library for each event of a request. It is not installed, and a failed
# import takes 60 µs.
sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]
