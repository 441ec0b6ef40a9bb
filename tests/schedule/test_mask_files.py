"""Published routers and block lists become the masks that their papers run, and no file that is not one is
read."""

import json

import pytest
import torch
from safetensors.torch import save_file

from cache_core.recipes import from_json, settings_of
from cache_core.schedule.mask_files import columns, read_scores, router_mask, split_mask
from tools import import_router

NAMES = ("block.0.attn", "block.0.mlp", "block.1.attn", "block.1.mlp")
SCORES = [[0.9, 0.1, 0.0, 1.0], [0.1, 0.11, 0.05, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]


def test_columns_run_as_the_blocks_do():
    assert columns(block=2) == NAMES
    assert columns(double=1, single=2) == ("double.0.attn", "double.0.mlp", "single.0", "single.1")


def rows(mask):
    return [sorted(mask.at(i)) for i in range(mask.steps)]


def test_scores_above_the_threshold_are_computed():
    assert rows(router_mask(SCORES, NAMES)) == [["*"], ["block.0.mlp"], [], sorted(NAMES)]
    truths = (torch.tensor(SCORES) > 0.1).tolist()
    assert (
        router_mask(truths, NAMES)
        == router_mask(torch.tensor(SCORES, dtype=torch.bfloat16), NAMES, 0.104)
        == router_mask(SCORES, NAMES)
    )
    assert rows(router_mask(SCORES, NAMES, threshold=0.5))[1] == []


def test_learning_to_cache_counts_from_the_last_step():
    """Its sampler runs in full where the steps left are odd, and finds a step's row by the timestep, which
    falls."""
    assert rows(router_mask(SCORES, NAMES, paired=True)) == [["*"], ["block.0.mlp"], ["*"], sorted(NAMES)]
    assert rows(router_mask(SCORES, NAMES, paired=True, reverse=True)) == [
        ["*"],
        [],
        ["*"],
        ["block.0.attn", "block.1.mlp"],
    ]
    assert rows(router_mask(SCORES[:3], NAMES, paired=True)) == [["*"], ["*"], []]


@pytest.mark.parametrize(
    "scores",
    [
        [],
        [[]],
        [[0.5] * 3],
        [[0.5] * 4, [0.5] * 3],
        [0.5] * 4,
        "x",
        None,
        [["a"] * 4],
        [[float("nan")] * 4],
        [[2.0] * 4],
        [[-1] * 4],
        {"a": 1},
        [[10**400] * 4],
        torch.zeros(2, 4, 1),
        torch.zeros(1, 4, dtype=torch.complex64),
        torch.zeros(10_001, 4),
    ],
    ids=lambda s: str(s)[:30],
)
def test_tables_that_are_none_are_refused_in_a_sentence(scores):
    with pytest.raises(ValueError, match=r"^scores must [^\n]+\.$"):
        router_mask(scores, NAMES)


def test_files_give_their_tables(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(SCORES), encoding="utf-8")
    save_file({"anything": torch.tensor(SCORES)}, tmp_path / "r.safetensors")
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    save_file({f"routers.{i}.prob": row.clone() for i, row in enumerate(logits)}, tmp_path / "l.safetensors")
    assert torch.equal(read_scores(tmp_path / "r.json"), torch.tensor(SCORES))
    assert torch.equal(read_scores(tmp_path / "r.safetensors"), torch.tensor(SCORES))
    assert torch.allclose(read_scores(tmp_path / "l.safetensors"), logits.double().sigmoid())
    assert router_mask(read_scores(tmp_path / "r.json"), NAMES) == router_mask(SCORES, NAMES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.pt", b""),
        ("r.pth", b"PK"),
        ("none.json", None),
        ("r.json", b""),
        ("r.json", b"{"),
        ("r.json", b"\xff\xfe"),
        ("r.json", b"[" * 10**5),
        ("r.json", b'"x"'),
        ("r.json", b'{"a": 1}'),
        ("r.json", b"[[1e400, {}]]"),
        ("r.safetensors", b""),
        ("r.safetensors", b"\xff" * 64),
    ],
    ids=lambda x: str(x)[:20],
)
def test_files_that_are_no_router_are_refused_in_a_sentence(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        read_scores(tmp_path / name)


@pytest.mark.parametrize(
    "sizes", [{}, {"a": 2, "b": 2}, {"0.prob": 2, "2.prob": 2}, {"0.prob": 2, "1.prob": 3}], ids=str
)
def test_files_with_other_tensors_are_refused_in_a_sentence(tmp_path, sizes):
    save_file({name: torch.zeros(n) for name, n in sizes.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"^odd.safetensors must hold [^\n]+\.$"):
        read_scores(tmp_path / "odd.safetensors")


def test_background_blocks_are_refreshed_by_the_list():
    blocks = ("double.0", "single.0", "single.1")
    mask = split_mask(8, blocks, ("single.1",), (4, 6), start=2)
    assert mask.kinds == "FFCCFCFC" and mask.at(3) == {"double.0", "single.0"}
    assert mask.runs and not split_mask(8, blocks, ("single.1",), (4, 6), runs=False).runs
    assert split_mask(4, blocks, blocks, (2,), runs=False).kinds == "FAFA"
    with pytest.raises(ValueError, match=r"^background must be among the blocks, unlike single.2\.$"):
        split_mask(8, blocks, ("single.2",), ())


def test_a_router_becomes_a_recipe(tmp_path, capsys):
    (tmp_path / "mine.json").write_text(json.dumps(SCORES), encoding="utf-8")
    import_router.main([str(tmp_path / "mine.json"), "--blocks", "block=2"])
    settings = settings_of(from_json(capsys.readouterr().out))
    assert (
        settings.mask == router_mask(SCORES, NAMES)
        and settings.level == "module"
        and settings.method == "mine"
    )


@pytest.mark.parametrize("blocks", ["block=3", "block", "block=x", "=2", "block=-1", "block=99999"])
def test_a_router_for_another_model_is_refused_in_a_sentence(tmp_path, capsys, blocks):
    (tmp_path / "mine.json").write_text(json.dumps(SCORES), encoding="utf-8")
    with pytest.raises(SystemExit) as refused:
        import_router.main([str(tmp_path / "mine.json"), "--blocks", blocks])
    said = refused.value.code if isinstance(refused.value.code, str) else capsys.readouterr().err
    assert said.strip().endswith(".") and "Traceback" not in said
