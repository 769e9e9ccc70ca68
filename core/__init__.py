"""The pruning engine. Knows no web, queue or SQL; usable as a library on its own."""

import os

# How often OpenMP's threads look for work before they sleep. Left alone they look for so long that they starve each
# other as soon as the machine does anything else. ResNet-20 on the digits, two threads, seconds an epoch on an idle
# and on a busy machine of two cores: left alone 0.6 and 5; asleep at once 1.3 and 1.0; this 0.5 and 1.5. Read when
# torch is loaded, hence here; an operator who sets it keeps it.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
