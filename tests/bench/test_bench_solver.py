"""The bench of learned plans: its page tells the truth about its rows, and an interrupted run goes on."""

import torch

from bench import solver
from bench.solver import EXACT, LEARNED, PLANNED, RUN, Bench, cells_of, page
from demo.weights import load_transformer


def row(name, calls, run, guidance=1.0, cell=None, **more):
    return {"guidance": guidance, "row": name, "calls": calls, "cell": cell or calls, RUN: run, **more}


def data(*rows):
    return {"size": 128, "judge": 2, "learn": 2, "rows": list(rows)}


def test_the_page_marks_the_best_median_and_lists_cells_that_do_not_lead():
    text = page(
        data(
            row("Euler", 6, [40.0, 30.0]),
            row("DPM++ 2M", 6, [41.0, 35.0]),
            row(LEARNED[RUN], 6, [50.0, 33.0]),
            row("Euler", 8, [45.0, 40.0]),
            row(LEARNED[RUN], 8, [60.0, 50.0]),
            row("balanced", 7, [70.0, 30.0]),
        )
    )
    assert "**41.5** / 33.0" in text and "**55.0** / 50.0" in text and "35.0 / 30.0" in text
    assert "guidance 1, 6 calls, worst picture: 33.0 against 35.0 of DPM++ 2M" in text
    assert "6 calls, median" not in text and "8 calls, median" not in text and "8 calls, worst" not in text
    assert "`balanced` at 7 calls 50.0 / 30.0" in text


def test_a_preset_with_fewer_calls_counts_against_a_plan():
    text = page(
        data(
            row("Euler", 8, [40.0, 30.0]), row(LEARNED[RUN], 8, [50.0, 40.0]), row("quality", 7, [60.0, 60.0])
        )
    )
    assert "8 calls, median: 45.0 against 60.0 of quality" in text


def test_where_all_lead_the_page_says_so():
    text = page(data(row("Euler", 6, [40.0, 30.0]), row(LEARNED[RUN], 6, [50.0, 40.0])))
    assert "best median and the best worst picture in every cell" in text


def test_cells_are_those_asked_for():
    assert cells_of(["Euler", "balanced", PLANNED, LEARNED[EXACT]], [6, 8]) == [
        ("Euler", 6),
        ("Euler", 8),
        ("balanced", 0),
        (PLANNED, 6),
        (PLANNED, 8),
        (LEARNED[EXACT], 6),
        (LEARNED[EXACT], 8),
    ]


def test_what_was_sampled_is_not_sampled_again(tmp_path, monkeypatch):
    monkeypatch.setattr(solver, "STEPS", 6)
    bench = Bench(load_transformer(), 1.0, 32, 1, 2, tmp_path)
    first, calls = bench.end(LEARNED[RUN], 3)
    assert calls == 3 and torch.isfinite(first).all()

    def never(*_):
        raise AssertionError("sampled again")

    again = Bench(bench.model, 1.0, 32, 1, 2, tmp_path)
    again.velocity = again.taught_velocity = never
    assert torch.equal(again.end(LEARNED[RUN], 3)[0], first) and again.plan(3, RUN) == bench.plan(3, RUN)
