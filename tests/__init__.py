"""The tests of Merganser."""

import gc

# Imported modules stay. Collections during the imports take a fifth of their time.
# `conftest.py` sets other thresholds for the tests themselves.
gc.set_threshold(100_000, 50, 100)
