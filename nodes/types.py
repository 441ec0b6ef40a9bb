"""The types that travel between our nodes."""

from __future__ import annotations

from comfy_api.latest import io

Schedule = io.Custom("CACHE_SCHEDULE")
Report = io.Custom("CACHE_REPORT")

CATEGORY = "model/dual cache"
ADVANCED = {"advanced": True}
