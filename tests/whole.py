"""Whether all is to be tried, as in CI.

pytest does not hear of it: it would write out how texts differ, which of large ones takes hours.
"""

import os

CI = bool(os.environ.setdefault("TESTS_IN_CI", os.environ.pop("CI", "")))
