// Tables of the Python side, written by tests/make_presets.py. Change them there, then run it again.

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

export const PRESETS = {
  "balanced": {
    "about": "Aggressive steps with a linear forecast of the final hidden state; every third step in full.",
    "generator": {
      "type": "uniform",
      "interval": 3,
      "warmup": 3,
      "tail": 1,
      "start": 0.0,
      "end": 1.0
    },
    "predictor": "linear",
    "snapshots": 2
  },
  "quality": {
    "about": "Every second step in full, a linear forecast between.",
    "generator": {
      "type": "uniform",
      "interval": 2,
      "warmup": 3,
      "tail": 1,
      "start": 0.0,
      "end": 1.0
    },
    "predictor": "linear",
    "snapshots": 2
  },
  "fast": {
    "about": "Every fifth step in full, a linear forecast between.",
    "generator": {
      "type": "uniform",
      "interval": 5,
      "warmup": 3,
      "tail": 1,
      "start": 0.0,
      "end": 1.0
    },
    "predictor": "linear",
    "snapshots": 2
  },
  "duca": {
    "about": "Dual caching: conservative and aggressive steps take turns; a tenth of the tokens is refreshed at random.",
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
    "predictor": "reuse",
    "snapshots": 1
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
    "predictor": "linear",
    "snapshots": 2
  },
  "toca": {
    "about": "Token-wise caching: every step between full ones refreshes a tenth of the tokens, those with the largest values.",
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
    "predictor": "reuse",
    "snapshots": 1
  },
  "fora": {
    "about": "Plain reuse of the final hidden state, every third step in full.",
    "generator": {
      "type": "uniform",
      "interval": 3,
      "warmup": 1,
      "tail": 0,
      "start": 0.0,
      "end": 1.0
    },
    "predictor": "reuse",
    "snapshots": 1
  },
  "off": {
    "about": "Every step in full.",
    "generator": {
      "type": "full"
    },
    "predictor": "reuse",
    "snapshots": 1
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

export const LOW_STEPS = 10;

export const REASONS = {
  "no_snapshot": "nothing was cached for this conditioning, size and batch",
  "unknown": "the cache does not know this model",
  "rising": "the sampler went back to a higher noise level, where cached features are out of date",
  "beyond": "the sampler evaluated the model more often than its steps say",
  "mismatch": "what was cached did not fit the running model call",
  "refused": "the model could not refresh single tokens here",
  "memory": "the cache would not have fitted into memory"
};
