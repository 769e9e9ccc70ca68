"""The pruning engine. Knows no web, queue or SQL; usable as a library on its own."""

import os

# OpenMP's threads wait for each other by spinning, which starves them all as soon as the machine does anything else:
# with both cores of a small machine busy elsewhere an epoch took 5.3 s, and 1.0 s with threads that sleep. Read when
# torch is loaded, hence here; an operator who sets it keeps it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
