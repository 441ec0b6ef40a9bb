"""Lists of captions, and nodes that are made while a graph runs: each report and each picture is that of its
own run."""

from tests.comfy.executing import graph, reports

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black", "red", "blue")


def test_every_item_of_a_list_shows_its_own_report(execute, part):
    """However many there are."""
    captions = [f"a {size} {c} star center" for size in ("large", "small") for c in COLOURS[:5]]
    box = part("nodes.comfy.report_box").ReportBox
    kept, add = [], box.add
    box.add = lambda self, report, samples: (kept.append(report), add(self, report, samples))[1]
    try:
        outputs = execute(graph(*captions))
    finally:
        box.add = add
    assert not execute.errors and len(kept) == len(captions) == len(reports(outputs)) == 10
    assert [r["wall_seconds"] for r in reports(outputs)] == [r.wall_seconds for r in kept]
    assert not any("No run of this model" in text for text in outputs["8"]["text"])


def test_reports_are_bounded_by_their_size(part):
    module, run_report = part("nodes.comfy.report_box"), part("cache_core.report.run_report")
    import torch

    def report(steps):
        return run_report.Report([run_report.StepRecord(i, 0, 1.0, "F", "F") for i in range(steps)])

    latents = [torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(200)]
    box = module.ReportBox(limit=module._size(report(30)) * 50)
    for latent in latents:
        box.add(report(30), latent)
    found = [box.report_of(latent)[1] for latent in latents]
    assert found == [False] * 150 + [True] * 50
    box.add(report(10_000), latents[0])  # larger than the limit alone, and still the last run
    assert len(box.report.records) == 10_000 and box.report_of(latents[0])[1]
    assert not box.report_of(latents[-1])[1]
    assert module.MOST_BYTES // module._size(report(30)) > 500
