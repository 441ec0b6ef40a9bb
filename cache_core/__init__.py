"""Feature caching for diffusion transformers in pure torch: schedules, predictors, selectors, sites and the report of a run."""
