// Tables of the Python side, written by python -m tools.regenerate. Do not edit.

export const FORMAT = 1;

export const KIND = "cache_schedule";

export const MAX_STEPS = 10000;

export const DEFAULT_RATIO = 0.1;

export const GENERATORS = {
  "full": [],
  "uniform": [
    "interval",
    "warmup",
    "tail",
    "start",
    "end"
  ],
  "dual": [
    "interval",
    "order",
    "ratio",
    "warmup",
    "tail",
    "start",
    "end"
  ],
  "duca_dit": [
    "interval",
    "ratio"
  ],
  "modulo": [
    "interval",
    "warmup"
  ],
  "growing": [
    "growth",
    "warmup"
  ]
};

export const GENERATOR_DEFAULTS = {
  "full": {},
  "uniform": {
    "warmup": 1,
    "tail": 0,
    "start": 0.0,
    "end": 1.0
  },
  "dual": {
    "order": "CA",
    "ratio": 0.1,
    "warmup": 1,
    "tail": 0,
    "start": 0.0,
    "end": 1.0
  },
  "duca_dit": {
    "ratio": 0.05
  },
  "modulo": {
    "warmup": 1
  },
  "growing": {
    "warmup": 1
  }
};

export const LAYOUTS = {
  "published": [
    16,
    18
  ],
  "built": [
    16,
    24
  ]
};

export const FLUX_DEV = {
  "width": 3072,
  "image_tokens": 4096,
  "text_tokens": 512,
  "double": 19,
  "single": 38
};

export const LATENT_VALUES = 64;

export const PRESETS = {
  "balanced": {
    "about": "Every third step in full. In between, every token takes reuse, a line or a parabola, whichever predicts a cheap probe of the step best.",
    "generator": {
      "type": "uniform",
      "interval": 3,
      "warmup": 3,
      "tail": 1,
      "start": 0.0,
      "end": 1.0
    },
    "least_steps": 12,
    "level": "final",
    "snapshots": 6,
    "aggressive": 0.0
  },
  "quality": {
    "about": "Every second step in full. In between, a linear forecast whose gain is learned at every full step, as in adaptive.",
    "generator": {
      "type": "uniform",
      "interval": 2,
      "warmup": 3,
      "tail": 1,
      "start": 0.0,
      "end": 1.0
    },
    "least_steps": 12,
    "level": "final",
    "snapshots": 2,
    "aggressive": 0.0
  },
  "fast": {
    "about": "Every fourth step in full, with the predictor of balanced in between.",
    "generator": {
      "type": "uniform",
      "interval": 4,
      "warmup": 3,
      "tail": 1,
      "start": 0.0,
      "end": 1.0
    },
    "least_steps": 12,
    "level": "final",
    "snapshots": 6,
    "aggressive": 0.0
  },
  "adaptive": {
    "about": "Every third step in full. In between, a linear forecast whose gain is learned at every full step from the last forecast error.",
    "generator": {
      "type": "uniform",
      "interval": 3,
      "warmup": 3,
      "tail": 1,
      "start": 0.0,
      "end": 1.0
    },
    "least_steps": 12,
    "level": "final",
    "snapshots": 2,
    "aggressive": 0.0
  },
  "planned": {
    "about": "Full steps and weights solved for this model at a third of the calls, if a profile of it is found; otherwise as balanced.",
    "generator": {
      "type": "uniform",
      "interval": 3,
      "warmup": 3,
      "tail": 1,
      "start": 0.0,
      "end": 1.0
    },
    "least_steps": 12,
    "level": "final",
    "snapshots": 6,
    "aggressive": 0.0
  },
  "duca": {
    "about": "Dual caching: conservative and aggressive steps alternate; a conservative step refreshes a random tenth of the tokens.",
    "generator": {
      "type": "dual",
      "interval": 5,
      "order": "CA",
      "ratio": 0.1,
      "warmup": 3,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "final",
    "snapshots": 1,
    "aggressive": 0.0
  },
  "duca + forecast": {
    "about": "Dual caching with a linear forecast of the final hidden state on aggressive steps.",
    "generator": {
      "type": "dual",
      "interval": 5,
      "order": "CA",
      "ratio": 0.1,
      "warmup": 3,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "final",
    "snapshots": 2,
    "aggressive": 0.0
  },
  "toca": {
    "about": "Token-wise caching: every step between full steps refreshes a tenth of the tokens, those with the largest value norms.",
    "generator": {
      "type": "dual",
      "interval": 4,
      "order": "C",
      "ratio": 0.1,
      "warmup": 3,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "final",
    "snapshots": 1,
    "aggressive": 0.0
  },
  "fora": {
    "about": "Reuse of the final hidden state; every third step in full.",
    "generator": {
      "type": "uniform",
      "interval": 3,
      "warmup": 1,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "final",
    "snapshots": 1,
    "aggressive": 0.0
  },
  "delta-dit": {
    "about": "The double-stream blocks run on every step; what the single-stream blocks add is kept from every third step.",
    "generator": {
      "type": "uniform",
      "interval": 3,
      "warmup": 1,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "stack",
    "snapshots": 1,
    "aggressive": 0.3333333333333333
  },
  "taylorseer": {
    "about": "Extrapolates every module's output by a Taylor series of finite differences.",
    "generator": {
      "type": "uniform",
      "interval": 6,
      "warmup": 3,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "module",
    "snapshots": 2,
    "aggressive": 0.0
  },
  "taylorseer-lite": {
    "about": "TaylorSeer's series of second order on one tensor, the final hidden state.",
    "generator": {
      "type": "uniform",
      "interval": 5,
      "warmup": 3,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "final",
    "snapshots": 3,
    "aggressive": 0.0
  },
  "ab-cache": {
    "about": "Extrapolates the model's output through its last two full values.",
    "generator": {
      "type": "modulo",
      "interval": 6,
      "warmup": 5
    },
    "level": "output",
    "snapshots": 2,
    "aggressive": 0.0
  },
  "foca": {
    "about": "Extrapolates every module's output by BDF2, calibrated with a Heun step.",
    "generator": {
      "type": "uniform",
      "interval": 5,
      "warmup": 3,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "module",
    "snapshots": 3,
    "aggressive": 0.0
  },
  "hyca": {
    "about": "Extrapolates what each block adds; its channels form two clusters, each with the rule that predicts it best.",
    "generator": {
      "type": "uniform",
      "interval": 5,
      "warmup": 4,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "block",
    "snapshots": 3,
    "aggressive": 0.0
  },
  "hicache": {
    "about": "TaylorSeer with damped Hermite polynomials instead of powers.",
    "generator": {
      "type": "uniform",
      "interval": 5,
      "warmup": 3,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "module",
    "snapshots": 3,
    "aggressive": 0.0
  },
  "spectrum": {
    "about": "Fits Chebyshev polynomials to the final hidden states of all full steps by ridge regression and blends the fit with a line; intervals grow.",
    "generator": {
      "type": "growing",
      "growth": 0.75,
      "warmup": 5
    },
    "level": "final",
    "snapshots": 100,
    "aggressive": 0.0
  },
  "spectrum corrected": {
    "about": "Spectrum without the penalty on the constant term of its fit, so that the feature does not shrink.",
    "generator": {
      "type": "growing",
      "growth": 0.75,
      "warmup": 5
    },
    "level": "final",
    "snapshots": 100,
    "aggressive": 0.0
  },
  "meancache": {
    "about": "Extrapolates the model's output by its mean velocity over the last full steps, with the published list of 17 full steps.",
    "kinds": "FFFFFFFFFAFAAAAAAFAAAAAAFAAAAAAFAAAAAAFAAAAAAFAAFF",
    "level": "output",
    "snapshots": 2,
    "aggressive": 0.0
  },
  "freqca": {
    "about": "Reuses the low spatial frequencies of the final hidden state and extrapolates the high ones.",
    "generator": {
      "type": "uniform",
      "interval": 5,
      "warmup": 3,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "final",
    "snapshots": 3,
    "aggressive": 0.0
  },
  "tap": {
    "about": "Every token takes reuse, a line or a parabola, whichever predicts its modulated input best.",
    "generator": {
      "type": "uniform",
      "interval": 5,
      "warmup": 3,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "level": "final",
    "snapshots": 6,
    "aggressive": 0.0
  },
  "dicache": {
    "about": "Moves what all blocks add along its last change, as far as the first block's output has moved.",
    "generator": {
      "type": "uniform",
      "interval": 3,
      "warmup": 3,
      "tail": 1,
      "start": 0.0,
      "end": 1.0
    },
    "level": "stack",
    "snapshots": 4,
    "aggressive": 0.017543859649122806
  },
  "off": {
    "about": "Every step in full.",
    "generator": {
      "type": "full"
    },
    "level": "final",
    "snapshots": 1,
    "aggressive": 0.0
  }
};

export const CUSTOM = "custom";

export const PATTERNS = {
  "aggressive only": "A",
  "conservative, aggressive": "CA",
  "aggressive, conservative": "AC",
  "conservative only": "C"
};

export const FROM_PRESET = "from preset";

export const FROM_RECIPE = "from recipe";

export const RECIPE = {
  "format": 1,
  "kind": "cache_recipe"
};

export const FORECASTS = {
  "reuse": 1,
  "linear": 2,
  "newton": 3,
  "taylor": 2,
  "adams_bashforth": 3,
  "rk2": 3,
  "bdf2": 2,
  "adams_moulton": 3,
  "foca": 3,
  "foca_heun": 3,
  "hermite": 3,
  "mean_velocity": 3,
  "chebyshev": 100,
  "spectrum": 100,
  "probe_gain": 4
};

export const LOW_STEPS = 10;

export const REASONS = {
  "no_snapshot": "nothing was cached for this conditioning, size and batch",
  "plain": "this model or this way of sampling it cannot be cached",
  "guard": "the model was given something else than at the step before",
  "control": "what a control network adds has changed in strength",
  "stale": "what was cached of a conditioning was older than the plan allows",
  "rising": "the sampler went back to a higher noise level, where cached features are out of date",
  "beyond": "the sampler evaluated the model more often than its steps say",
  "mismatch": "what was cached did not fit the running model call",
  "refused": "the model could not refresh single tokens here",
  "memory": "the cache would not have fitted into memory"
};
