"""The example workflows and the subgraph blueprint, described with `litegraph.Graph`: their nodes, their
wiring, their notes."""

from __future__ import annotations

from cache_core.recipes import from_preset
from cache_core.schedule.cost import FLUX_DEV, peak_bytes
from demo.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZE, SIZES, TEXTURES

from .litegraph import Graph, Slot

BLUEPRINT = "Text to Image (Dual Cache)"
SAMPLER, SCHEDULE, PATCH, REPORT, PICTURE, TEXT, COMPARE = 740, 700, 480, 600, 340, 180, 1000
"""Heights of nodes that show more than their widgets."""

HUB = "https://huggingface.co/"
FLUX_TEXT = HUB + "comfyanonymous/flux_text_encoders/resolve/main/"
KONTEXT = HUB + "Comfy-Org/flux1-kontext-dev_ComfyUI/resolve/main/split_files/diffusion_models/"
WAN_21 = HUB + "Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/"
WAN_22 = HUB + "Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/"
QWEN = HUB + "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/"
Z_IMAGE = HUB + "Comfy-Org/z_image/resolve/main/split_files/diffusion_models/"
Z_TEXT = HUB + "Comfy-Org/z_image_turbo/resolve/main/split_files/text_encoders/"
FLUX_VAE = HUB + "Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/"


def model_file(folder: str, url: str) -> tuple[str, str, str]:
    """Name, address and folder of a file to download."""
    return url.rsplit("/", 1)[1], url, folder


def counts(preset: str, steps: int) -> str:
    """What a preset plans, as text."""
    kinds = from_preset(preset).schedule_for(steps).counts()
    return ", ".join(
        f"{kinds[k]} {word}"
        for k, word in (("F", "full"), ("C", "conservative"), ("A", "aggressive"))
        if kinds[k]
    )


def memory(preset: str, steps: int) -> str:
    """What a preset's cache holds for FLUX.1-dev at 1024 x 1024, as text."""
    settings = from_preset(preset)
    held = settings.predictor.needs * (2 if settings.predictor.probe else 1)
    count = peak_bytes(settings.schedule_for(steps), FLUX_DEV, snapshots=held, level=settings.level)
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def listed(files) -> str:
    """A note's paragraph on the files to download."""
    rows = "\n".join(f"- `models/{folder}`: [{name}]({url})" for name, url, folder in files)
    return f"**Files.** ComfyUI offers to download what is missing. Each model has its own licence.\n\n{rows}"


def unmeasured(family: str, steps: int) -> str:
    """The note of a family that the tests know only as a small random model."""
    return f"""**What to expect.** The preset *balanced* plans {counts("balanced", steps)}: aggressive steps skip all blocks of
{family} and rebuild their result. Speed and quality on the real weights have not been measured by this project; the tests run \
small random models of the family.
Compare for yourself: bypass the node, or sample with fewer steps. Cache Report says what ran and how long it took."""


def loaders(g: Graph, unet, text, vae, text_type: str) -> tuple[Slot, Slot, Slot]:
    """A column of loaders for a diffusion model, one or two text encoders and a VAE."""
    g.column("Models")
    model = g.node("UNETLoader", unet_name=unet[0], models=[unet])["MODEL"]
    if len(text) == 2:
        clip = g.node(
            "DualCLIPLoader",
            tall=172,
            clip_name1=text[0][0],
            clip_name2=text[1][0],
            type=text_type,
            models=text,
        )["CLIP"]
    else:
        clip = g.node("CLIPLoader", tall=140, clip_name=text[0][0], type=text_type, models=text)["CLIP"]
    return model, clip, g.node("VAELoader", tall=108, vae_name=vae[0], models=[vae])["VAE"]


def prompts(g: Graph, clip: Slot, positive: str, negative: str | None) -> tuple[Slot, Slot]:
    """A column of prompts; without a negative one, its place is taken by the positive one zeroed out."""
    g.column("Prompt", 400)
    good = g.node("CLIPTextEncode", title="Positive prompt", tall=TEXT, clip=clip, text=positive)[
        "CONDITIONING"
    ]
    if negative is None:
        return good, g.node("ConditioningZeroOut", title="No negative prompt", conditioning=good)[
            "CONDITIONING"
        ]
    return good, g.node("CLIPTextEncode", title="Negative prompt", tall=TEXT, clip=clip, text=negative)[
        "CONDITIONING"
    ]


def patched_sampling(g: Graph, model: Slot, **settings) -> tuple[Slot, Slot]:
    """Dual Cache before a KSampler; returns the patched model and the latent."""
    g.column("Sampling with Dual Cache", 360)
    model = g.node("DualCache", tall=PATCH, model=model)["MODEL"]
    settings = {"sampler_name": "euler", "scheduler": "simple", **settings}
    return model, g.node("KSampler", model=model, control="randomize", **settings)["LATENT"]


def picture(g: Graph, latent: Slot, vae: Slot, prefix: str) -> None:
    """A column that decodes and saves a picture."""
    g.column("Picture")
    g.node(
        "SaveImage",
        tall=PICTURE,
        filename_prefix=prefix,
        images=g.node("VAEDecode", samples=latent, vae=vae)["IMAGE"],
    )


def report(g: Graph, **source: Slot) -> None:
    """A column with the report."""
    g.column("What the cache did", 460)
    g.node("CacheReport", tall=REPORT, **source)


def demo_model(g: Graph, **captions: str) -> tuple[Slot, Slot, Slot, list[Slot]]:
    """A column with the embedded model: its model, its VAE, an empty latent, and a conditioning per
    caption."""
    g.column("Model and captions")
    model = g.node("DualCacheDemoModel", tall=96)  # the front end adds a badge
    texts = [
        g.node("DualCacheDemoCaption", title=f"Caption: {title}", caption=text)["CONDITIONING"]
        for title, text in captions.items()
    ]
    return (
        model["MODEL"],
        model["VAE"],
        g.node("EmptySD3LatentImage", width=SIZE, height=SIZE)["LATENT"],
        texts,
    )


PLANNED_SPEEDUP = 2.0
DEMO_SAMPLING = {"steps": 30, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}


def embedded(g: Graph) -> None:
    g.column("Start here", 480)
    g.note(
        f"""## Dual Cache in one minute

Press **Run**. Nothing is downloaded: the model, 13 million parameters in the layout of FLUX, comes with the pack, and a CPU draws the
picture in seconds.

A diffusion transformer runs all of its blocks at every step, although what they give changes little from one step to the next.
**Dual Cache Sampler** works like KSampler, but runs only some steps in full:

| | step | what runs |
|---|---|---|
| **F** | full | everything |
| **C** | conservative | a few tokens are computed afresh, the rest is replayed |
| **A** | aggressive | the blocks are skipped |

With *balanced*, 30 steps are {counts("balanced", 30)}; the bars on the node show them. **Cache Report** shows what really ran.

**Try next**

- preset *off*: every step in full, for comparison
- preset *fast*: {counts("fast", 30)}
- preset *duca*: {counts("duca", 30)}
- a **Cache Schedule Builder** on the input *schedule*
- another caption, of these words: {", ".join(SIZES)}; {", ".join(COLOURS)}; {", ".join(SHAPES)}; {", ".join(PLACES)};
then *on* and {", ".join(TEXTURES)}; {", ".join(BACKGROUNDS)}. Two objects are joined by *and*.
""",
        740,
    )
    model, vae, latent, (positive, negative) = demo_model(
        g, positive="a large red heart center on a checkered white background", negative=""
    )
    g.column("Sampling", 360)
    out = g.node(
        "DualCacheSampler",
        tall=SAMPLER,
        model=model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        **DEMO_SAMPLING,
    )
    picture(g, out["latent"], vae, "dual_cache/embedded")
    report(g, report=out["report"])


def compare_cached_uncached(g: Graph) -> None:
    g.column("Start here", 480)
    g.note(
        f"""## With and without the cache

Press **Run**. **Cache Compare** samples the same caption and seed three ways:

- *uncached*: all 30 steps in full
- *cached*: by the plan of *balanced*, {counts("balanced", 30)}
- *fewer steps*: the fair rival, the same model with as many steps as fit into the cached run's seconds

Drag over the picture to compare; the buttons below it choose the rival, and *difference* shows where it differs. The table says what each
took and how close it came to the uncached picture. On a busy computer choose *equal calls*, or more *repeats*.

To compare on a model of your own, replace the loader, the captions and the size, and set what you use.
""",
        480,
    )
    model, vae, latent, (positive, negative) = demo_model(
        g,
        positive="a medium yellow star left and a small blue circle right on a striped navy background",
        negative="",
    )
    g.column("Cache", 360)
    model = g.node("DualCache", tall=PATCH, model=model)["MODEL"]
    g.column("Uncached, cached, fewer steps", 480)
    out = g.node(
        "CacheCompare",
        tall=COMPARE,
        model=model,
        vae=vae,
        positive=positive,
        negative=negative,
        latent_image=latent,
        seed=7,
        **DEMO_SAMPLING,
    )
    g.column("As one picture", 480)
    g.node("PreviewImage", title="Sheet", tall=PICTURE, images=out["sheet"])
    report(g, report=out["report"])


def planned(g: Graph) -> None:
    g.column("Start here", 480)
    g.note(
        f"""## A plan made for the model

A *profile* is a small file that says how a model's features move from step to step; the pack brings one for its embedded model. From it
**Plan Cache** finds which steps to run in full and how best to rebuild the others, for the speed-up that you ask for.

Press **Run** and compare: the first picture runs all 30 steps in full, the second half of them by the plan, the third a third of
them by *fast*, a preset that knows nothing of the model ({counts("fast", 30)}).

**For a model of your own**: put **Profile Model** between its loader and KSampler, queue a dozen different prompts, and take it out again.
Then choose its file in **Load Cache Profile**. It holds for the sampler, steps, guidance and size that you recorded. The preset *planned*
finds it by itself.
""",
        440,
    )
    model, vae, latent, (positive, negative) = demo_model(
        g,
        positive="a small green ring left and a large orange star right on a dotted gray background",
        negative="",
    )
    shared = {
        "model": model,
        "positive": positive,
        "negative": negative,
        "latent_image": latent,
        "seed": 3,
        **DEMO_SAMPLING,
    }
    g.column("Plan", 360)
    profile = g.node("LoadCacheProfile")["profile"]
    plan = g.node("PlanCache", tall=PATCH + 100, profile=profile, speedup=PLANNED_SPEEDUP)["schedule"]
    g.column("Every step in full")
    plain = g.node("KSampler", title="KSampler: uncached", **shared)["LATENT"]
    g.column("By the plan", 360)
    by_plan = g.node("DualCacheSampler", tall=SAMPLER, schedule=plan, **shared)
    g.column("By a preset", 360)
    by_preset = g.node("DualCacheSampler", tall=SAMPLER, preset="fast", **shared)
    g.column("Pictures")
    for title, latent in (("Uncached", plain), ("Planned", by_plan["latent"]), ("Fast", by_preset["latent"])):
        g.node(
            "PreviewImage",
            title=title,
            tall=PICTURE,
            images=g.node("VAEDecode", samples=latent, vae=vae)["IMAGE"],
        )
    report(g, report=by_plan["report"])


def inpainting(g: Graph) -> None:
    g.column("Start here", 480)
    g.note(
        """## Inpainting with the cache

Runs without a download. The first sampler draws a picture. **Set Latent Noise Mask** then marks its right half, and a second sampler with
another caption draws that half anew and leaves the left half as it was.

Each **Dual Cache Sampler** keeps a cache of its own, for the length of its run; a mask changes nothing about the plan.

**With your own picture:** replace the first sampler by *Load Image* and *VAE Encode*, and paint the mask in the mask editor. FLUX.1 Fill
works the same way: its *InpaintModelConditioning* takes the place of the mask node.
""",
        400,
    )
    model, vae, latent, (before, after, nothing) = demo_model(
        g,
        before="a small red circle left on a plain beige background",
        after="a small red circle left and a small blue star right on a plain beige background",
        negative="",
    )
    shared = {"model": model, "negative": nothing, **DEMO_SAMPLING}
    g.column("First picture", 360)
    first = g.node("DualCacheSampler", tall=SAMPLER, positive=before, latent_image=latent, seed=3, **shared)[
        "latent"
    ]
    g.node(
        "PreviewImage",
        title="Before",
        tall=PICTURE,
        images=g.node("VAEDecode", samples=first, vae=vae)["IMAGE"],
    )
    g.column("Mask: the right half")
    nowhere = g.node("SolidMask", title="Whole picture: keep", value=0.0, width=SIZE, height=SIZE)["MASK"]
    half = g.node("SolidMask", title="Right half: draw anew", value=1.0, width=SIZE // 2, height=SIZE)["MASK"]
    mask = g.node("MaskComposite", destination=nowhere, source=half, x=SIZE // 2, y=0, operation="add")[
        "MASK"
    ]
    masked = g.node("SetLatentNoiseMask", samples=first, mask=mask)["LATENT"]
    g.column("Second picture", 360)
    second = g.node("DualCacheSampler", tall=SAMPLER, positive=after, latent_image=masked, seed=5, **shared)
    g.node(
        "SaveImage",
        title="After",
        tall=PICTURE,
        filename_prefix="dual_cache/inpainting",
        images=g.node("VAEDecode", samples=second["latent"], vae=vae)["IMAGE"],
    )
    report(g, report=second["report"])


def flux_dev_text_to_image(g: Graph) -> None:
    unet = model_file("diffusion_models", HUB + "Comfy-Org/flux1-dev/resolve/main/flux1-dev.safetensors")
    text = [
        model_file("text_encoders", FLUX_TEXT + name)
        for name in ("clip_l.safetensors", "t5xxl_fp16.safetensors")
    ]
    vae = model_file("vae", FLUX_VAE + "ae.safetensors")
    g.column("Start here", 480)
    g.note(
        f"""## FLUX.1-dev with a schedule

**Cache Schedule Builder** plans the steps and shows them; **Dual Cache Sampler** runs the plan.
With *balanced*, 28 steps are {counts("balanced", 28)}.

- More fidelity: *quality*, {counts("quality", 28)}. More speed: *fast*, {counts("fast", 28)}.
- *duca* and *toca* add conservative steps, which hold {memory("duca", 28)} at 1024 x 1024; *balanced* holds {memory("balanced", 28)}.
- Choose *custom* for settings of your own, or write the steps one by one in *explicit*.

Use 20 steps or more: in fewer there is little to skip.

{listed([unet, *text, vae])}
""",
        520,
    )
    model, clip, vae_slot = loaders(g, unet, text, vae, "flux")
    latent = g.node("EmptySD3LatentImage", width=1024, height=1024)["LATENT"]
    positive, negative = prompts(
        g, clip, "A lighthouse on a cliff at dawn, waves below, a sign that reads 'OPEN', photograph", None
    )
    guided = g.node("FluxGuidance", conditioning=positive, guidance=3.5)["CONDITIONING"]
    g.column("Plan", 360)
    schedule = g.node("CacheScheduleBuilder", steps=28, tall=SCHEDULE)["schedule"]
    g.column("Sampling", 360)
    out = g.node(
        "DualCacheSampler",
        tall=SAMPLER,
        control="randomize",
        model=model,
        positive=guided,
        negative=negative,
        latent_image=latent,
        schedule=schedule,
        steps=28,
        cfg=1.0,
    )
    picture(g, out["latent"], vae_slot, "dual_cache/flux_dev")
    report(g, report=out["report"])


def flux_kontext_edit(g: Graph) -> None:
    unet = model_file("diffusion_models", KONTEXT + "flux1-dev-kontext_fp8_scaled.safetensors")
    text = [
        model_file("text_encoders", FLUX_TEXT + name)
        for name in ("clip_l.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors")
    ]
    vae = model_file("vae", FLUX_VAE + "ae.safetensors")
    g.column("Start here", 480)
    g.note(
        f"""## Editing a picture with FLUX.1 Kontext

Choose a picture in **Load Image** and say in the prompt what to change and what to keep.

**Dual Cache** patches the model, and the ordinary **KSampler** runs it. With *balanced*, 20 steps are {counts("balanced", 20)}.
Small detail such as lettering asks for *quality*: {counts("quality", 20)}.

**Cache Report** takes the patched model and the latent it gave.

{listed([unet, *text, vae])}
""",
        450,
    )
    model, clip, vae_slot = loaders(g, unet, text, vae, "flux")
    g.column("Picture to edit")
    scaled = g.node(
        "FluxKontextImageScale", image=g.node("LoadImage", image="example.png", tall=PICTURE)["IMAGE"]
    )["IMAGE"]
    latent = g.node("VAEEncode", pixels=scaled, vae=vae_slot)["LATENT"]
    positive, negative = prompts(
        g, clip, "Turn this picture into a pencil drawing on rough paper. Keep the composition.", None
    )
    positive = g.node("ReferenceLatent", conditioning=positive, latent=latent)["CONDITIONING"]
    positive = g.node("FluxGuidance", conditioning=positive, guidance=2.5)["CONDITIONING"]
    model, out = patched_sampling(
        g, model, positive=positive, negative=negative, latent_image=latent, steps=20, cfg=1.0
    )
    picture(g, out, vae_slot, "dual_cache/flux_kontext")
    report(g, model=model, latent=out)


def wan22_video(g: Graph) -> None:
    unet = model_file("diffusion_models", WAN_22 + "diffusion_models/wan2.2_ti2v_5B_fp16.safetensors")
    text = [model_file("text_encoders", WAN_21 + "umt5_xxl_fp8_e4m3fn_scaled.safetensors")]
    vae = model_file("vae", WAN_22 + "vae/wan2.2_vae.safetensors")
    g.column("Start here", 480)
    g.note(
        f"""## Wan 2.2 video, 5B

{unmeasured("Wan", 20)}

For a video from a picture, connect *Load Image* to *start_image*. With the two models of Wan 2.2 14B, put one Dual Cache node on each.

{listed([unet, *text, vae])}
""",
        440,
    )
    model, clip, vae_slot = loaders(g, unet, text, vae, "wan")
    model = g.node("ModelSamplingSD3", model=model, shift=8.0)["MODEL"]
    positive, negative = prompts(
        g,
        clip,
        "A fox trots through fresh snow towards the camera at sunrise, the camera moves slowly left",
        "overexposed, static, blurred details, subtitles, watermark, worst quality, deformed limbs",
    )
    latent = g.node("Wan22ImageToVideoLatent", vae=vae_slot, width=1280, height=704, length=121)["LATENT"]
    model, out = patched_sampling(
        g,
        model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        steps=20,
        cfg=5.0,
        sampler_name="uni_pc",
    )
    g.column("Video")
    frames = g.node("VAEDecode", samples=out, vae=vae_slot)["IMAGE"]
    video = g.node("CreateVideo", tall=136, images=frames, fps=24.0)["VIDEO"]
    g.node("SaveVideo", tall=PICTURE, video=video, filename_prefix="dual_cache/wan22")
    report(g, model=model, latent=out)


def qwen_image(g: Graph) -> None:
    unet = model_file("diffusion_models", QWEN + "diffusion_models/qwen_image_fp8_e4m3fn.safetensors")
    text = [model_file("text_encoders", QWEN + "text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors")]
    vae = model_file("vae", QWEN + "vae/qwen_image_vae.safetensors")
    g.column("Start here", 480)
    g.note(
        f"""## Qwen-Image

{unmeasured("Qwen-Image", 20)}

With a Lightning LoRA of 4 or 8 steps leave the cache out: in so few steps there is little to skip.

{listed([unet, *text, vae])}
""",
        430,
    )
    model, clip, vae_slot = loaders(g, unet, text, vae, "qwen_image")
    model = g.node("ModelSamplingAuraFlow", model=model, shift=3.1)["MODEL"]
    latent = g.node("EmptySD3LatentImage", width=1328, height=1328)["LATENT"]
    positive, negative = prompts(
        g,
        clip,
        "A bookshop at dusk, a painted sign that reads 'Old Maps & New Stories', warm light, rain",
        "",
    )
    model, out = patched_sampling(
        g, model, positive=positive, negative=negative, latent_image=latent, steps=20, cfg=4.0
    )
    picture(g, out, vae_slot, "dual_cache/qwen_image")
    report(g, model=model, latent=out)


def z_image(g: Graph) -> None:
    unet = model_file("diffusion_models", Z_IMAGE + "z_image_bf16.safetensors")
    text = [model_file("text_encoders", Z_TEXT + "qwen_3_4b.safetensors")]
    vae = model_file("vae", HUB + "Comfy-Org/z_image_turbo/resolve/main/split_files/vae/ae.safetensors")
    g.column("Start here", 480)
    g.note(
        f"""## Z-Image

{unmeasured("Z-Image", 25)}

This is the undistilled model at 25 steps. Z-Image-Turbo needs 8; in so few steps there is little to skip. Z-Image needs a ComfyUI newer
than 0.3.64.

{listed([unet, *text, vae])}
""",
        420,
    )
    model, clip, vae_slot = loaders(g, unet, text, vae, "lumina2")
    model = g.node("ModelSamplingAuraFlow", model=model, shift=3.0)["MODEL"]
    latent = g.node("EmptySD3LatentImage", width=1024, height=1024)["LATENT"]
    positive, negative = prompts(
        g, clip, "A ceramic teapot in the shape of an owl on a linen cloth, soft window light", ""
    )
    model, out = patched_sampling(
        g,
        model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        steps=25,
        cfg=4.0,
        sampler_name="res_multistep",
    )
    picture(g, out, vae_slot, "dual_cache/z_image")
    report(g, model=model, latent=out)


def blueprint(g: Graph) -> dict:
    """Prompts, empty latent, Dual Cache Sampler and decoding in one node, for any model that takes a
    16-channel latent."""
    given = {
        name: g.entry(name, kind)
        for name, kind in (
            ("model", "MODEL"),
            ("clip", "CLIP"),
            ("vae", "VAE"),
            ("schedule", "CACHE_SCHEDULE"),
            ("prompt", "STRING"),
            ("negative", "STRING"),
            ("width", "INT"),
            ("height", "INT"),
            ("seed", "INT"),
            ("steps", "INT"),
            ("cfg", "FLOAT"),
            ("preset", "COMBO"),
        )
    }
    g.column("Prompt and size", 400)
    texts = [
        g.node("CLIPTextEncode", title=title, tall=TEXT, clip=given["clip"], text=given[name])["CONDITIONING"]
        for title, name in (("Positive prompt", "prompt"), ("Negative prompt", "negative"))
    ]
    latent = g.node("EmptySD3LatentImage", width=given["width"], height=given["height"])["LATENT"]
    g.column("Sampling", 360)
    out = g.node(
        "DualCacheSampler",
        tall=SAMPLER,
        control="randomize",
        positive=texts[0],
        negative=texts[1],
        latent_image=latent,
        **{name: given[name] for name in ("model", "schedule", "seed", "steps", "cfg", "preset")},
    )
    g.column("Picture")
    image = g.node("VAEDecode", samples=out["latent"], vae=given["vae"])["IMAGE"]
    about = (
        "Text to image with Dual Cache: prompts, latent, cached sampling and decoding in one node. "
        "Connect a model, its text encoder and its VAE; a schedule is optional."
    )
    return g.blueprint(
        BLUEPRINT,
        about,
        ["dual cache", "caching", "faster sampling"],
        "Image generation and editing/Text to image",
        {"IMAGE": image, "report": out["report"]},
    )


WORKFLOWS = {  # function: title, preset and steps of the thumbnail's plan
    embedded: ("Start here", "balanced", 30),
    compare_cached_uncached: ("Cached and uncached", "balanced", 30),
    planned: ("Planned", "planned", 30),
    inpainting: ("Inpainting", "balanced", 30),
    flux_dev_text_to_image: ("FLUX.1-dev", "balanced", 28),
    flux_kontext_edit: ("FLUX.1 Kontext edit", "balanced", 20),
    wan22_video: ("Wan 2.2 video", "balanced", 20),
    qwen_image: ("Qwen-Image", "balanced", 20),
    z_image: ("Z-Image", "balanced", 25),
}
