import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from saccade.errors import DataError
from training import scenes
from training.scene_drawing import PAINTS
from training.scene_objects import RELATIONS, SIZES, TEXTURES, Box, Relation, SceneObject, holds, is_plain
from training.scene_sentences import MOST_WORDS, SHAPE_WORDS, SIZE_WORDS, TEXTURE_WORDS
from training.scenes import Scene, generate_scene, write_scenes


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [generate_scene(seed, size=32) for seed in range(400)]


def thing(box: Box, depth: int = 0) -> SceneObject:
    return SceneObject(colour="red", shape="circle", size="small", texture="plain", box=box, whole=box, depth=depth)


def differ(before: NDArray[np.uint8], after: NDArray[np.uint8], *, by: int = 12) -> NDArray[np.bool_]:
    """Pixels that changed visibly, not by a trace of antialiasing; bool (S, S)."""
    change = np.abs(before.astype(np.int64) - after).max(2)
    return np.asarray(change > by)


def relations_of(subject: SceneObject, other: SceneObject) -> set[str]:
    return {name for name in RELATIONS if holds(name, subject, other)}


def test_a_scene_depends_on_its_seed_alone() -> None:
    first = generate_scene(7)
    random.seed(1)
    generate_scene(8)
    again = generate_scene(7)
    assert (again.objects, again.relations, again.captions) == (first.objects, first.relations, first.captions)
    assert again.pixels.tobytes() == first.pixels.tobytes()
    assert generate_scene(8).captions != first.captions


def test_only_the_pixels_depend_on_the_size() -> None:
    small, large = generate_scene(11, size=64), generate_scene(11, size=300)
    assert small.pixels.shape == (64, 64, 3)
    assert large.pixels.shape == (300, 300, 3)
    assert large.pixels.dtype == np.uint8
    assert (small.objects, small.relations, small.captions) == (large.objects, large.relations, large.captions)
    shrunk = np.asarray(Image.fromarray(large.pixels).resize((64, 64), Image.Resampling.BOX), dtype=np.float64)
    assert np.abs(shrunk - small.pixels).mean() < 6


def test_every_colour_shape_size_texture_and_relation_occurs(many: list[Scene]) -> None:
    objects = [one for scene in many for one in scene.objects]
    assert {one.colour for one in objects} == set(PAINTS)
    assert {one.shape for one in objects} == set(SHAPE_WORDS)
    assert {one.size for one in objects} == set(SIZES)
    assert {one.texture for one in objects} == set(TEXTURES)
    stated = Counter(relation.name for scene in many for caption in scene.captions for relation in caption.relations)
    assert min(stated[name] for name in RELATIONS) > 0.02 * stated.total()
    assert {len(scene.objects) for scene in many} == {2, 3, 4}


def test_no_two_objects_share_their_name_but_half_of_the_scenes_are_confusable(many: list[Scene]) -> None:
    confusable = 0
    for scene in many:
        count = len(scene.objects)
        assert len({(one.colour, one.shape) for one in scene.objects}) == count
        confusable += (
            len({one.colour for one in scene.objects}) < count or len({one.shape for one in scene.objects}) < count
        )
    assert 0.4 < confusable / len(many) < 0.6


def test_objects_are_inside_the_image_and_no_smaller_than_a_seventh_of_it(many: list[Scene]) -> None:
    for scene in many:
        for one in scene.objects:
            x0, y0, x1, y1 = one.whole
            assert 0 < x0 < x1 < 1
            assert 0 < y0 < y1 < 1
            assert max(x1 - x0, y1 - y0) > 1 / 7
            bx0, by0, bx1, by1 = one.box
            assert x0 <= bx0 < bx1 <= x1
            assert y0 <= by0 < by1 <= y1


def test_boxes_are_tight_around_the_visible_pixels() -> None:
    """Recolouring one figure changes exactly its visible pixels, since shadows have no colour."""
    size, tolerance = 224, 2 / 224
    occluded = 0
    for seed in range(60):
        plan = scenes._planned(seed)
        before = scenes._drawn(plan.background, plan.figures, size)
        for index, (figure, described) in enumerate(zip(plan.figures, plan.objects, strict=True)):
            colour = "green" if figure.colour == "purple" else "purple"
            figures = [*plan.figures[:index], replace(figure, colour=colour), *plan.figures[index + 1 :]]
            changed = differ(before, scenes._drawn(plan.background, figures, size))
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            drawn = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / size
            np.testing.assert_allclose(drawn, described.box, atol=tolerance)
            if any(relation == (index, "behind", relation.object) for relation in plan.relations):
                occluded += 1
                alone = scenes._drawn(plan.background, [figure], size)
                recoloured = scenes._drawn(plan.background, [replace(figure, colour=colour)], size)
                assert 0.65 < changed.sum() / differ(alone, recoloured).sum() < 0.97
    assert occluded > 10


def test_no_object_hides_in_the_background() -> None:
    """Taking an object away changes its pixels by far more than an eye or a small network needs."""
    for seed in range(40):
        plan = scenes._planned(seed)
        before = scenes._drawn(plan.background, plan.figures, 96)
        for index, described in enumerate(plan.objects):
            without = scenes._drawn(plan.background, [*plan.figures[:index], *plan.figures[index + 1 :]], 96)
            x0, y0, x1, y1 = (round(96 * value) for value in described.box)
            assert differ(before, without, by=40)[y0:y1, x0:x1].mean() > 0.25


def test_captions_are_five_different_plain_sentences(many: list[Scene]) -> None:
    for scene in many:
        assert len({caption.text for caption in scene.captions}) == 5
        for caption in scene.captions:
            assert caption.text == " ".join(caption.words)
            assert all(word.isalpha() and word.islower() for word in caption.words)
            assert len(caption.words) == len(caption.mentions) <= MOST_WORDS


def test_captions_name_every_object_once_and_mentions_point_at_its_words(many: list[Scene]) -> None:
    for scene in many:
        for caption in scene.captions:
            for index, one in enumerate(scene.objects):
                said = [word for word, mention in zip(caption.words, caption.mentions, strict=True) if mention == index]
                position = caption.mentions.index(index)
                assert tuple(said) == caption.words[position : position + len(said)]
                *attributes, colour, noun = said
                assert colour == one.colour
                assert noun in SHAPE_WORDS[one.shape]
                assert set(attributes) <= {*SIZE_WORDS[one.size], *TEXTURE_WORDS[one.texture]}
                assert caption.words[position - 1] == ("an" if said[0][0] in "aeiou" else "a")
            nouns = {noun for synonyms in SHAPE_WORDS.values() for noun in synonyms}
            assert sum(word in nouns for word in caption.words) == len(scene.objects)


def test_captions_state_only_relations_that_hold(many: list[Scene]) -> None:
    counts = []
    for scene in many:
        for caption in scene.captions:
            assert set(caption.relations) <= set(scene.relations)
            ends = {end for relation in caption.relations for end in (relation.subject, relation.object)}
            assert ends == set(range(len(scene.objects)))
            counts.append(len(caption.relations) == len(scene.objects) - 1)
    assert np.mean(counts) > 0.8


def test_captions_state_a_direction_only_where_it_is_plain(many: list[Scene]) -> None:
    for scene in many:
        for relation in {relation for caption in scene.captions for relation in caption.relations}:
            assert is_plain(relation, scene.objects)
    held = [is_plain(relation, scene.objects) for scene in many for relation in scene.relations]
    assert 0.02 < held.count(False) / len(held) < 0.3  # a score accepts more than a sentence says


def test_a_direction_is_plain_where_its_offset_is_twice_the_one_across() -> None:
    centre = thing((0.4, 0.4, 0.6, 0.6))
    for box, plain in (((0.7, 0.25, 0.9, 0.45), True), ((0.7, 0.24, 0.9, 0.44), False)):  # 0.30 along, 0.15 and 0.16
        assert is_plain(Relation(0, "right of", 1), (thing(box), centre)) is plain
        assert is_plain(Relation(1, "left of", 0), (thing(box), centre)) is plain
    assert is_plain(Relation(0, "on", 1), (thing((0.5, 0.2, 0.7, 0.4)), centre))


def test_the_vocabulary_is_small(many: list[Scene]) -> None:
    words = Counter(word for scene in many for caption in scene.captions for word in caption.words)
    assert 60 <= len(words) <= 100
    assert min(words.values()) >= 5


def test_a_direction_needs_a_dominant_offset() -> None:
    centre = thing((0.4, 0.4, 0.6, 0.6))
    assert relations_of(thing((0.1, 0.4, 0.3, 0.6)), centre) == {"left of"}
    assert relations_of(thing((0.7, 0.2, 0.9, 0.4)), centre) == {"right of"}  # 0.30 along, 0.20 across
    assert relations_of(thing((0.7, 0.19, 0.9, 0.39)), centre) == set()
    assert relations_of(thing((0.35, 0.0, 0.55, 0.2)), centre) == {"above"}
    assert relations_of(centre, thing((0.35, 0.0, 0.55, 0.2))) == {"below"}
    assert relations_of(thing((0.35, 0.4, 0.45, 0.6), depth=0), centre) == set()


def test_on_needs_contact_below_the_centre() -> None:
    base = thing((0.4, 0.6, 0.6, 0.8))
    assert relations_of(thing((0.45, 0.4, 0.6, 0.604)), base) == {"on", "above"}
    assert relations_of(thing((0.45, 0.4, 0.6, 0.58)), base) == {"above"}
    assert relations_of(thing((0.25, 0.4, 0.45, 0.6)), base) == set()


def test_behind_needs_overlap_and_depth() -> None:
    near, far = thing((0.4, 0.4, 0.6, 0.6), depth=1), thing((0.5, 0.3, 0.7, 0.5))
    assert relations_of(far, near) == {"behind"}
    assert relations_of(near, far) == {"in front of"}
    assert relations_of(near, thing((0.59, 0.3, 0.7, 0.5))) == set()
    with pytest.raises(KeyError):
        holds("beside", near, far)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_written_scenes_are_a_captions_data_set(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "new" / "scenes"
    write_scenes(folder, first_seed=12, count=3, size=64, format="png" if suffix == "png" else "jpg")
    assert sorted(path.name for path in folder.iterdir()) == ["captions.json", "images", "scenes.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["scenes"]
    captions = json.loads((folder / "captions.json").read_text())
    assert captions["images"][0] == {"id": 12, "file_name": f"000000012.{suffix}", "width": 64, "height": 64}
    assert len({annotation["id"] for annotation in captions["annotations"]}) == 15
    details = json.loads((folder / "scenes.json").read_text())["scenes"]
    for image, detail in zip(captions["images"], details, strict=True):
        scene = generate_scene(image["id"], size=64)
        texts = [one["caption"] for one in captions["annotations"] if one["image_id"] == image["id"]]
        assert texts == [caption.text for caption in scene.captions]
        assert [one["words"] for one in detail["captions"]] == [list(caption.words) for caption in scene.captions]
        assert [one["mentions"] for one in detail["captions"]] == [list(one.mentions) for one in scene.captions]
        assert detail["relations"] == [list(relation) for relation in scene.relations]
        assert [one["box"] for one in detail["objects"]] == [list(one.box) for one in scene.objects]
        pixels = np.asarray(Image.open(folder / "images" / image["file_name"]), dtype=np.float64)
        assert np.abs(pixels - scene.pixels).mean() < (1e-9 if suffix == "png" else 4)


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        write_scenes(tmp_path, first_seed=0, count=1, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(seed: int, *, size: int) -> Scene:
        if seed == 2:
            raise KeyboardInterrupt
        return generate_scene(seed, size=size)

    monkeypatch.setattr(scenes, "generate_scene", broken)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", first_seed=0, count=4, size=32)
    assert list(tmp_path.iterdir()) == []
