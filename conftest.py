"""What every test run has in common: no hub, one thread a process, property tests that do not watch the clock."""

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and tiny tensors gain nothing from threads

settings.register_profile("jumar", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("jumar")
