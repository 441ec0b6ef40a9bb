/** Ids of the nodes that show something, as nodes/ registers them. They are public: saved workflows hold them. */

export const BUILDER = "CacheScheduleBuilder";
export const SAMPLER = "DualCacheSampler";
export const PATCH = "DualCache";
export const FORECAST = "FeatureForecast";
export const PLANNER = "PlanCache";
export const REPORT = "CacheReport";
