"""What every test run has in common: no hub, one thread a process, property tests that do not watch the clock, no colours or
widths that a terminal or a CI system asks for: what commands write is compared."""

import os

from hypothesis import settings

for name in ("CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "NO_COLOR"):
    os.environ.pop(name, None)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and tiny tensors gain nothing from threads

settings.register_profile("jumar", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("jumar")
