"""How fast it is, as ratios to a hand-written floor, and what is left of it after a crash."""

import os

os.environ.setdefault("MERGANSER_AUTO_CREATE_DOMAINS", "on")  # accounts are created in domains
