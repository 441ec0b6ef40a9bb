"""Feature caching for diffusion transformers, in pure torch: the method without its host.

A host makes a `Controller` for every sampling run, tells it when an evaluation begins, and wraps every model
call in `Controller.call`. `CacheConfig` says what to do; `recipes.from_preset` builds them by name.

Imports point one way, from a package to those above it in this list:

base         errors, names, coordinates on the sampling path, limits, sentences: what every other file may use
schedule     which kind of step runs when: plans, masks of modules, FLOPs, counting of evaluations
cache        snapshots of features, corrections of conservative steps, offloading to main memory
predictors   how a skipped feature is rebuilt from its snapshots
indicators   evidence that decides online whether a planned skip may happen
selectors    which tokens a conservative step refreshes
config       what the user asked for, as one immutable value
recipes      methods by name, from recipes.json
models       the registry of model families, and what each of them can have
hooks        shims on a running model: where features are taken and put back
calibration  profiles of a model, recorded once, and plans made from them
learned      plans whose weights are fitted on the run's own path, and their files
memory       how many bytes a run's caches need, and what gives way
report       what happened, as data, text and metadata of a picture
run          one sampling run: its fitted settings, its branches, its memory, its model calls
controller   the loop: decides for every evaluation how it runs
"""

from .base.errors import CacheMismatch
from .config import CacheConfig
from .controller import Controller
from .recipes import from_preset, preset_names
from .report.run_report import Report
from .schedule.plan import CacheSchedule

__all__ = [
    "CacheConfig",
    "CacheMismatch",
    "CacheSchedule",
    "Controller",
    "Report",
    "from_preset",
    "preset_names",
]
