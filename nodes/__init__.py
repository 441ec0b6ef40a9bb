"""What a user drags in. Each node turns widgets into a value.

Only the package `comfy` in here touches ComfyUI beyond its API of nodes: `patching`, `sampling_run` and
`samplers` its models and samplers, `memory` its memory management, `metadata` and `events` the running
prompt, `output_files` and `profile_files` its folders."""

from comfy_api.latest import ComfyExtension

from .cache_compare import CacheCompare
from .cache_report import CacheReport
from .demo_model import DemoCaption, DemoClip, DemoModel
from .dual_cache import DualCache
from .dual_cache_sampler import DualCacheSampler
from .erta import ERTACachePlan
from .feature_forecast import FeatureForecast
from .learned import FitPlan, LearnedSampler, Record, UseLearnedPlan
from .profile_prompts import ProfilePrompts
from .profiles import LoadCacheProfile, PlanCache, ProfileModel
from .schedule_builder import CacheScheduleBuilder
from .types import findable
from .vcache_patch import VCacheAttentionPatch

NODES = [
    findable(node)
    for node in (
        CacheScheduleBuilder,
        DualCache,
        FeatureForecast,
        VCacheAttentionPatch,
        DualCacheSampler,
        CacheReport,
        CacheCompare,
        ProfileModel,
        ProfilePrompts,
        LoadCacheProfile,
        PlanCache,
        ERTACachePlan,
        Record,
        FitPlan,
        UseLearnedPlan,
        LearnedSampler,
        DemoModel,
        DemoCaption,
        DemoClip,
    )
]


class DualCacheExtension(ComfyExtension):
    async def get_node_list(self):
        return NODES
