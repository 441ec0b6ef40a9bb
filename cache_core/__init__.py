"""Feature caching for diffusion transformers, in pure torch: the method without its host.

A host makes a `Controller` for every sampling run, tells it when an evaluation begins, and wraps every model call in
`Controller.call`. `Settings` says what to do; `recipes.from_preset` builds them by name.
"""

from .controller import Controller
from .recipes import from_preset, preset_names
from .report import Report
from .schedule import CacheSchedule
from .settings import Settings
from .sites import CacheMismatch

__all__ = ["CacheMismatch", "CacheSchedule", "Controller", "Report", "Settings", "from_preset", "preset_names"]
