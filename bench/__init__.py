"""How fast it is, as ratios to a hand-written floor, and what is left of it after a crash."""
