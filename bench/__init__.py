"""Benchmarks, one command each: JSON in `results`, and a picture or a page in docs out.

rivals      inside ComfyUI, against fewer steps and the caches of others; with rivals_worker (what runs in
            ComfyUI) and rivals_page
quality     kinds of steps and token choices
forecasts   every predictor at the same full steps
profile     plans from a profile
transfer    plans away from where the profile was recorded
calibrated  ERTACache and HyCa's clusters from a file
masks       plans module by module, with routers (training one)
overhead    what our own code costs
solver      learned plans against samplers and caches at equal calls
gpu         check and bench on a GPU inside ComfyUI; with gpu_host, gpu_models, gpu_run, gpu_sections,
            gpu_memory, gpu_bundle, gpu_page
measured    writes the measurement behind each preset into the recipes
"""
