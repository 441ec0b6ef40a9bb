"""Learned plans: which evaluations of a run to keep, and weights fitted on the run's own path.

samplers   what deterministic samplers do with the velocities that they are given
features   what a learned step is made of, and the normal equations of its weights
reference  recorded runs, and exact solutions
grid       which evaluations are kept
fit        weights in one pass along the plan's own path; a learned run
learning   from recorded runs to plans
plans      plans as data: their file, what they hold for, which one serves a run
"""
