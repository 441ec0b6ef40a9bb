"""Cache Report: what a cached run did, as text, as a plot and as JSON, and in a file if asked to."""

from __future__ import annotations

from comfy_api.latest import io

from . import sheets
from .comfy import output_files
from .comfy.requests import request_of
from .types import CATEGORY, Report, advanced

OTHER = (
    "No run of this model ended with this latent: it is another output of the sampler, another node has "
    "changed it, or the sampler "
    "had no step to run. This is the model's last run.\n\n"
)


class CacheReport(io.ComfyNode):
    """Shows a CACHE_REPORT, or the report of the patched MODEL that produced a LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CacheReport",
            display_name="Cache Report",
            category=CATEGORY,
            description="Shows what the cache did, step by step. Connect a report, or a model patched by "
            "Dual Cache "
            "together with the latent it produced.",
            inputs=[
                Report.Input(
                    "report", optional=True, tooltip="The report of Dual Cache Sampler or Cache Compare."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="A model patched by Dual Cache; needs the latent, so that this node runs "
                    "after sampling.",
                ),
                io.Latent.Input(
                    "latent", optional=True, tooltip="The latent that the patched model produced."
                ),
                io.Boolean.Input(
                    "save",
                    optional=True,
                    default=False,
                    tooltip="Saves the whole report of each run as a JSON file in ComfyUI's output folder.",
                ),
                advanced(
                    io.String.Input(
                        "file_name",
                        optional=True,
                        default="dual_cache/report",
                        tooltip="Where a report is saved below the output folder; a number is added.",
                    )
                ),
            ],
            outputs=[
                io.String.Output(display_name="text"),
                io.String.Output(display_name="json"),
                io.Image.Output(display_name="plot"),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, save=False, file_name="dual_cache/report"):
        try:
            output_files.check_prefix(file_name)
        except ValueError as error:
            return str(error) if save else True
        return True

    @classmethod
    def execute(
        cls, report=None, model=None, latent=None, save=False, file_name="dual_cache/report"
    ) -> io.NodeOutput:
        note = ""
        if report is None:
            request = request_of(model) if model is not None else None
            if request is None:
                raise ValueError("Cache Report needs a report, or a model that Dual Cache has patched.")
            report, its_own = request.box.report_of(None if latent is None else latent["samples"])
            if latent is None or report is None:
                raise ValueError(
                    "This model has not been sampled yet: connect the latent that it produced to Cache "
                    "Report too."
                )
            note = "" if its_own else OTHER
        text, data = note + report.text(), report.to_json()
        plot = output_files.as_image(sheets.report_plot(report))
        shown = text
        if save:
            try:
                shown += (
                    f"\n\nSaved as {output_files.keep(report.to_json(indent=1), file_name)} in the "
                    "output folder."
                )
            except (ValueError, OSError) as error:
                shown += f"\n\nNot saved: {str(error).rstrip('.')}."
        return io.NodeOutput(text, data, plot, ui={"text": [shown], "dual_cache_report": [data]})
