"""Feature caching for diffusion transformers, in pure torch: the method without its host.

A host makes a `Controller` for every sampling run, tells it when an evaluation begins, and wraps every model call in
`Controller.call`. `Settings` says what to do; `recipes.from_preset` builds them by name.

The loop       controller (decides and keeps), clock (which step), history (snapshots, the mixed-age rule), models (met in a run), settings
Schedule       schedule (full, conservative, aggressive), masks (which modules), mask_files (masks of others), cost (FLOPs of a plan)
Indicator      adaptive (gains that follow the data, probes)
Site           levels (where features are put back), sites (shims), flux_blocks (FLUX by hand), layout_wiring and layout_modules
               (all others, by their row), runs (blocks that a mask holds back together), compiled (under torch.compile)
Models         block_table (the rows), layouts (what a row says), families (finding it), fitting (what a model can have),
               detection (no row), self_check (is the row right?)
Selector       selectors (tokens of a conservative step)
Predictor      forecasts (from JSON), predictors (weights over snapshots), groups (per cluster, band or token), table (solved), residual
Profile        profile (the file), recorder (makes it), planner (plans from it), block_plans (BAC), erta (ERTACache)
Memory         footprint (the estimate), memory (the budget), offload (snapshots in main memory)
What happened  logbook, report, reasons (why not as planned), keepsake (for a picture's metadata), comparison, metrics, words
Methods        recipes (by name, from recipes.json)
"""

from .controller import Controller
from .recipes import from_preset, preset_names
from .report import Report
from .schedule import CacheSchedule
from .settings import Settings
from .sites import CacheMismatch

__all__ = ["CacheMismatch", "CacheSchedule", "Controller", "Report", "Settings", "from_preset", "preset_names"]
