"""Scenes, clips, edits and emoji of the further embedded models: drawing them in batches, captions."""

import dataclasses

import pytest
import torch

from demo import clips, edit, emoji, render, scenes
from demo.train_emoji import Captions

torch.set_num_threads(1)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(tokens):
    """Tokens that are not zero, as a sorted list, because their order carries nothing."""
    return sorted(t.nonzero().flatten().tolist() for t in tokens if t.any())


def tiny_emoji(count=3, size=scenes.SIZE):
    """Emoji of one colour each, opaque discs."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    disc = (x**2 + y**2 < 0.8).half()
    colours = torch.eye(3).half()[:count, :, None, None]
    full = torch.cat([colours * disc, disc.expand(count, 1, -1, -1)], 1)
    half = torch.nn.functional.avg_pool2d(full.float(), 2).half()
    return emoji.EmojiSet(["red apple", "dog face", "bow and arrow"][:count], full, half)


# --- drawing and captions -------------------------------------------------------------------------


def test_a_batch_of_scenes_equals_the_scenes_drawn_one_by_one():
    stills = render.random_stills(12, gen())
    drawn = render.draw_stills(stills)
    for i in range(12):
        one = torch.from_numpy(scenes.draw_scene(stills.scene(i))).permute(2, 0, 1)
        assert (drawn[i] - one).square().mean() < 1e-4


def test_a_batch_of_scenes_is_encoded_as_its_captions_are():
    stills = render.random_stills(40, gen())
    tokens, pooled = render.encode_stills(stills)
    for i in range(40):
        one = scenes.encode_caption(scenes.caption_of(stills.scene(i)))
        assert rows(tokens[i]) == rows(one[0]) and torch.equal(pooled[i], one[1])


def test_a_batch_of_clips_is_encoded_as_its_captions_are():
    some = clips.random_clips(60, gen())
    tokens = clips.encode_clips(some, 64)
    for i in range(60):
        assert rows(tokens[i]) == rows(clips.encode_clip_caption(some.caption(i), 64))


@pytest.mark.parametrize(
    ("word", "axis", "sign"), [("right", 1, 1), ("left", 1, -1), ("down", 0, 1), ("up", 0, -1)]
)
def test_objects_move_where_the_caption_says(word, axis, sign):
    some = clips.random_clips(1, gen())
    fields = {f: torch.zeros_like(getattr(some, f)) for f in some.__dataclass_fields__}
    fields["motion"] += 2 * list(clips.DIRECTIONS).index(word) + 1
    fields["place"] += clips.EDGE / 2
    one = clips.Clips(**fields)
    assert one.caption(0) == f"a small red circle moving {word} fast on a plain white background"
    away = (clips.draw_clips(one)[0] - torch.tensor(scenes.BACKGROUNDS["white"])[None, :, None, None]).abs()
    mass = away.sum(1)
    at = torch.arange(clips.EDGE).float()
    centre = (mass.sum(2 - axis) * at).sum(1) / mass.sum((1, 2))
    assert torch.allclose(centre.diff(), torch.full((4,), sign * clips.SPEEDS["fast"]), atol=0.5)


def test_what_leaves_at_an_edge_comes_in_at_the_opposite_one():
    some = clips.random_clips(4, gen())
    moved = dataclasses.replace(some, place=some.place + 40, phase=some.phase + 40)
    rolled = clips.draw_clips(some).roll((40, 40), (3, 4))
    assert torch.allclose(clips.draw_clips(moved), rolled, atol=2e-3)


def test_a_pan_moves_the_background_alone():
    some = clips.random_clips(300, gen(3))
    panned = dataclasses.replace(some, pan=torch.full((300,), 2))
    i = next(
        i for i in range(300) if some.texture[i] and not some.two[i] and some.motion[i, 0] == clips.STILL
    )
    still, moving = (
        clips.draw_clips(clips.Clips(*(getattr(v, f)[i : i + 1] for f in v.__dataclass_fields__)))[0]
        for v in (dataclasses.replace(some, pan=torch.zeros(300, dtype=torch.long)), panned)
    )
    x, y = (int(v) for v in some.place[i])
    assert torch.equal(still[0], still[4]) and torch.equal(still[4, :, y, x], moving[4, :, y, x])
    far = (y + 64) % clips.EDGE  # a row that the object does not reach
    assert torch.equal(moving[1, :, far], still[0, :, far].roll(-clips.PAN_PIXELS, 1))
    assert not torch.equal(moving[1], still[1])


@pytest.mark.parametrize(
    ("caption", "message"),
    [("a red elephant", "word 'elephant'"), ("a red star and a blue ring and a green heart", "at most two")],
)
def test_clip_captions_that_cannot_be_shown(caption, message):
    with pytest.raises(ValueError, match=message):
        clips.encode_clip_caption(caption)


def test_edits_are_encoded_as_their_instructions_are():
    edits = edit.random_edits(render.random_stills(80, gen()), gen(1))
    tokens, pooled = edit.encode_edits(edits)
    assert set(edits.change.tolist()) == {0, 1, 2, 3}
    for i in range(80):
        one = edit.encode_instruction(edits.instruction(i))
        assert rows(tokens[i]) == rows(one[0]) and torch.equal(pooled[i], one[1])


def test_an_edit_changes_what_it_says_and_nothing_else():
    edits = edit.random_edits(render.random_stills(80, gen()), gen(1))
    for i in range(80):
        old, new, k = edits.before.scene(i), edits.after.scene(i), int(edits.which[i])
        words = edits.instruction(i).split()
        assert old != new
        if words[2] == "background":
            assert old.things == new.things and words[-1] == new.colour
        else:
            assert (old.texture, old.colour) == (new.texture, new.colour)
            assert [t for j, t in enumerate(old.things) if j != k] == [
                t for j, t in enumerate(new.things) if j != k
            ]
            assert words[2:4] == [old.things[k].colour, old.things[k].shape]


@pytest.mark.parametrize("text", ["make the elephant blue", "make the red circle loud", "blue"])
def test_instructions_that_cannot_be_followed(text):
    with pytest.raises(ValueError, match="does not know the instruction"):
        edit.encode_instruction(text)


def test_emoji_captions_are_split_into_things_and_ground():
    assert emoji.split_caption("a bow and arrow and a dog face on a mint background") == [
        ("bow", 0),
        ("arrow", 0),
        ("dog", 1),
        ("face", 1),
        ("mint", 2),
    ]
    assert emoji.split_caption("") == []
    with pytest.raises(ValueError, match="at most two"):
        emoji.split_caption("a cat and a dog and a fox")


def test_a_batch_of_pictures_is_encoded_as_its_captions_are():
    some = tiny_emoji()
    text = emoji.EmojiText(some.vocabulary)
    pictures = emoji.random_pictures(20, 3, gen(), 0.5)
    tokens, pooled = text(*Captions(text, some.names, "cpu").of(pictures))
    told, told_pooled = text.encode([pictures.caption(i, some.names) for i in range(20)])
    assert torch.allclose(tokens.sum(1), told.sum(1), atol=1e-5)
    assert torch.allclose(pooled, told_pooled, atol=1e-5)
    with pytest.raises(ValueError, match="word 'elephant'"):
        text.encode(["an elephant"])


def test_emoji_stand_where_the_caption_says():
    some = tiny_emoji()
    pictures = emoji.random_pictures(40, 3, gen(), 1.0)
    drawn = emoji.draw_pictures(pictures, some)
    for i in range(40):
        assert drawn[i, :, 128, 64].argmax() == pictures.which[i, 0]
        assert drawn[i, :, 128, 192].argmax() == pictures.which[i, 1]
