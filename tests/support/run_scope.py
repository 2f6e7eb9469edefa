"""Which part of the tests runs: a sample, those of CI (`CI=1`), or all (`make test-all`).

pytest does not see `CI`: it would print the differences of long texts, which takes hours.
"""

import os

ALL = bool(os.environ.get("ALL_TESTS"))
CI = ALL or bool(os.environ.setdefault("TESTS_IN_CI", os.environ.pop("CI", "")))
