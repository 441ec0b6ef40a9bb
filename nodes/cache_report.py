"""Cache Report: what a cached run did, as text, as a plot and as JSON, and in a file if asked to."""

from __future__ import annotations

from comfy_api.latest import io

from ..cache_core.report import run_report
from . import sheets
from .comfy import output_files
from .comfy.report_box import no_report
from .comfy.requests import request_of
from .types import CATEGORY, Report, advanced

OTHER = (
    "No run of this model ended with this latent: it is another output of the sampler, another node has "
    "changed it, or the sampler "
    "had no step to run. This is the model's last run.\n\n"
)
NOTHING_CONNECTED = (
    "There is no report to show: connect a report, or a model that Dual Cache has patched together with the "
    "latent it produced."
)
NOT_PATCHED = (
    "There is no report to show: Dual Cache has not patched this model, for instance because that node is "
    "bypassed, so the run was not cached."
)
NOT_SAMPLED = (
    "There is no report to show: no sampler has run this model. The sampler had no step to run (an empty "
    "range of steps, denoise 0 or no noise levels), another model was sampled, or this node ran before the "
    "sampler; connect the latent that the sampler gives to run it later."
)
NO_LATENT = (
    "There is no report to show: connect the latent that this model produced too, so that this node runs "
    "after sampling and finds the run of that latent."
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
        found, note = _report(report, model, latent)
        if found is None:
            plot = output_files.as_image(sheets.sentence_sheet(note))
            data = no_report(note).to_json()
            return io.NodeOutput(note, data, plot, ui={"text": [note], "dual_cache_report": [data]})
        text, data = note + found.text(), found.to_json()
        plot = output_files.as_image(sheets.report_plot(found))
        shown = text + (_saved(found, file_name) if save else "")
        return io.NodeOutput(text, data, plot, ui={"text": [shown], "dual_cache_report": [data]})


def _report(report, model, latent) -> tuple[run_report.Report | None, str]:
    """The report to show with what is said before it, or None with the sentence to show instead."""
    if report is not None:
        return report, ""
    request = None if model is None else request_of(model)
    if model is None:
        return None, NOTHING_CONNECTED
    if request is None:
        return None, NOT_PATCHED
    found, its_own = request.box.report_of(None if latent is None else latent.get("samples"))
    if request.box.remark and not (found and its_own and latent):
        return None, request.box.remark
    if found is None:
        return None, NOT_SAMPLED
    if latent is None:
        return None, NO_LATENT
    return found, "" if its_own else OTHER


def _saved(report: run_report.Report, file_name: str) -> str:
    """Saves a report; where it is, or why it was not saved."""
    try:
        return f"\n\nSaved as {output_files.keep(report.to_json(indent=1), file_name)} in the output folder."
    except (ValueError, OSError) as error:
        return f"\n\nNot saved: {str(error).rstrip('.')}."
