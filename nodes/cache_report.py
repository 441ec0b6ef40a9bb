"""Cache Report: what a cached run did, as text and as JSON."""

from __future__ import annotations

from comfy_api.latest import io

from . import host
from .types import CATEGORY, Report


class CacheReport(io.ComfyNode):
    """Shows a CACHE_REPORT, or the report of the patched MODEL that produced a LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CacheReport",
            display_name="Cache Report",
            category=CATEGORY,
            description="Shows what the cache did, step by step. Connect a report, or a model patched by Dual Cache "
                        "together with the latent it produced.",
            inputs=[
                Report.Input("report", optional=True, tooltip="The report of Dual Cache Sampler."),
                io.Model.Input("model", optional=True,
                    tooltip="A model patched by Dual Cache; needs the latent, so that this node runs after sampling."),
                io.Latent.Input("latent", optional=True, tooltip="The latent that the patched model produced."),
            ],
            outputs=[io.String.Output(display_name="text"), io.String.Output(display_name="json")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, report=None, model=None, latent=None) -> io.NodeOutput:
        if report is None:
            request = host.request_of(model) if model is not None else None
            if request is None:
                raise ValueError("Cache Report needs a report, or a model that Dual Cache has patched.")
            report = request.box.report_of(None if latent is None else latent["samples"])
            if latent is None or report is None:
                raise ValueError("This model has not been sampled yet: connect the latent that it produced to Cache Report too.")
        text, data = report.text(), report.to_json()
        return io.NodeOutput(text, data, ui={"text": [text], "dual_cache_report": [data]})
