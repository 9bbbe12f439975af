"""What all tests share: no network, one thread of noise, and deterministic hypothesis runs."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

settings.register_profile("planform", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("planform")
