"""Noise levels of evaluations: the schedule's own where a sampler keeps to it, the device's where not."""

import pytest
import torch

SCHEDULE = [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.fixture
def levels(part):
    return part("nodes.comfy.noise_levels")


class Read(torch.Tensor):
    """A level whose reading by the host is counted."""

    reads = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.__float__, torch.Tensor.item):
            cls.reads += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def given(level):
    return torch.full((2,), level).as_subclass(Read)


def test_a_sampler_on_its_schedule_is_never_waited_for(levels):
    Read.reads, known = 0, levels.NoiseLevels(SCHEDULE, "sample_euler")
    assert [known.of(given(s), on_device=True) for s in SCHEDULE[:-1]] == SCHEDULE[:-1]
    assert Read.reads == 0 and known.trusted
    assert known.of(given(0.1), on_device=True) == pytest.approx(0.1)  # beyond the schedule
    assert Read.reads == 1


def test_a_level_off_the_schedule_is_found_one_evaluation_later(levels):
    Read.reads, known = 0, levels.NoiseLevels(SCHEDULE, "sample_euler")
    assert known.of(given(1.0), on_device=True) == 1.0
    assert known.of(given(0.8), on_device=True) == 0.75
    assert known.of(given(0.6), on_device=True) == pytest.approx(0.6) and not known.trusted
    assert known.of(given(0.5), on_device=True) == 0.5
    assert Read.reads == 2


def test_other_samplers_and_the_cpu_are_read(levels):
    for sampler, on_device in (("sample_heun", True), ("sample_dpm_fast", True), ("sample_euler", False)):
        Read.reads, known = 0, levels.NoiseLevels(SCHEDULE, sampler)
        assert known.of(given(0.9), on_device=on_device) == pytest.approx(0.9)
        assert Read.reads == 1


def test_the_named_samplers_evaluate_once_per_level_of_the_schedule(levels):
    """Asked of ComfyUI's own samplers, with a model of random output."""
    import comfy.k_diffusion.sampling as sampling

    for name in sorted(levels.ON_SCHEDULE):
        sampler = getattr(sampling, f"sample_{name}", None)
        if sampler is None:  # of a newer ComfyUI
            continue
        seen, sigmas = [], torch.tensor([0.95, 0.7, 0.45, 0.2, 0.0])

        class Model:
            class inner_model:
                class model_patcher:
                    model_options: dict = {}

                    @staticmethod
                    def get_model_object(name):
                        import comfy.model_sampling

                        class Flow(
                            comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST
                        ):
                            pass

                        return Flow()

                inner_model = None

            def __call__(self, x, sigma, seen=seen, **options):
                seen.append(float(sigma.flatten()[0]))
                out = 0.9 * x
                for post in options.get("model_options", {}).get("sampler_post_cfg_function", []):
                    post({"denoised": out, "uncond_denoised": out, "model_options": {}})
                return out

        Model.inner_model.inner_model = Model.inner_model
        Model.inner_model.model_sampling = Model.inner_model.model_patcher.get_model_object("model_sampling")
        sampler(Model(), torch.randn(1, 4, 8, 8), sigmas.clone(), extra_args={"seed": 1}, disable=True)
        expected = sigmas[:-1].tolist()
        assert seen == pytest.approx(expected, rel=1e-5), name
