import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.scene_objects import RELATIONS, Box, Relation, SceneObject, relations_between
from training.scene_parsing import parse_caption
from training.scene_scores import CaptionScore, PointingCount, SceneReport, point, score_caption
from training.scenes import Scene, generate_scene

BY_NAME = ("relation_share_", "relation_accuracy_")
"""How the figures of single relations begin."""


def thing(colour: str, shape: str, box: Box, *, size: str = "small", texture: str = "plain") -> SceneObject:
    return SceneObject(colour=colour, shape=shape, size=size, texture=texture, box=box, whole=box)


def scene_of(*objects: SceneObject) -> Scene:
    return Scene(
        seed=0,
        pixels=np.zeros((8, 8, 3), np.uint8),
        objects=objects,
        relations=relations_between(objects),
        captions=(),
    )


SCENE = scene_of(
    thing("red", "circle", (0.1, 0.4, 0.3, 0.6), texture="striped"),
    thing("blue", "square", (0.7, 0.4, 0.9, 0.6)),
    thing("red", "square", (0.7, 0.0, 0.95, 0.25), size="medium"),
)


WORDS = ("a", "red", "blue", "small", "circle", "square", "left", "of", "on", "it", "and", "with", "which", "is", "x")


def score(text: str) -> CaptionScore:
    return score_caption(text.split(), SCENE.objects)


def read(text: str) -> list[tuple[str, str, str]]:
    """Every relation of a sentence as colours, which are all different in these tests."""
    parsed = parse_caption(text.split())
    names = [one.colour or "?" for one in parsed.objects]
    return [(names[relation.subject], relation.name, names[relation.object]) for relation in parsed.relations]


def test_every_reference_scores_perfectly() -> None:
    """The parser recovers what the sentence writer stated, in the scene's own numbering, and the scene agrees."""
    for seed in range(300):
        scene = generate_scene(seed, size=32)
        for caption in scene.captions:
            parsed = parse_caption(caption.words)
            numbers = [caption.mentions[one.noun] for one in parsed.objects]
            stated = [
                Relation(number, relation.name, other)
                for relation in parsed.relations
                if (number := numbers[relation.subject]) is not None and (other := numbers[relation.object]) is not None
            ]
            assert sorted(stated) == sorted(caption.relations), caption.text
            for said, number in zip(parsed.objects, numbers, strict=True):
                assert {caption.mentions[index] for index in said.adjectives} == {number}
            result = score_caption(caption.words, scene.objects)
            assert result.objects_correct == result.objects_predicted == result.objects_true == len(scene.objects)
            assert len(result.relations_correct) == len(result.relations_stated) == len(caption.relations)
            assert result.sizes_correct == result.sizes_stated
            assert result.textures_correct == result.textures_stated


@pytest.mark.parametrize(
    ("text", "relations"),
    [
        ("a red circle is left of a blue star", [("red", "left of", "blue")]),
        ("a red disc to the left of a blue star", [("red", "left of", "blue")]),
        ("on the left of a blue star sits a red disc", [("red", "left of", "blue")]),
        ("a red disc resting on a blue block", [("red", "on", "blue")]),
        ("a blue block with a red disc on top of it", [("red", "on", "blue")]),
        ("here is a red hoop partly covering a pink arch", [("red", "in front of", "pink")]),
        (
            "a red heart is above a blue star and left of a pink moon",
            [("red", "above", "blue"), ("red", "left of", "pink")],
        ),
        (
            "a red heart is above a blue star which is left of a pink moon",
            [("red", "above", "blue"), ("blue", "left of", "pink")],
        ),
        (
            "a red heart is above a blue star with a pink moon under it",
            [("red", "above", "blue"), ("pink", "below", "blue")],
        ),
        ("a red heart and a blue star are over a pink moon", [("red", "above", "pink"), ("blue", "above", "pink")]),
        ("a red heart is over a blue star and a pink moon", [("red", "above", "blue"), ("red", "above", "pink")]),
        (
            "we see a red heart over a blue star and a pink moon which is behind a green arch",
            [("red", "above", "blue"), ("red", "above", "pink"), ("pink", "behind", "green")],
        ),
        (
            "a red heart over a blue star and a pink moon sits behind a green arch",
            [("red", "above", "blue"), ("pink", "behind", "green")],
        ),
        (
            "a red heart with a blue star over it and a pink moon is behind a green arch and above a black cross",
            [("blue", "above", "red"), ("pink", "behind", "green"), ("pink", "above", "black")],
        ),
    ],
)
def test_each_form_of_the_grammar_is_read(text: str, relations: list[tuple[str, str, str]]) -> None:
    assert read(text) == relations


def test_a_noun_phrase_is_read_with_its_words() -> None:
    parsed = parse_caption(["we", "see", "a", "little", "spotted", "orange", "crescent", "beneath", "a", "plus"])
    moon, cross = parsed.objects
    assert (moon.colour, moon.shape, moon.size, moon.texture) == ("orange", "moon", "small", "dotted")
    assert (moon.adjectives, moon.noun) == ((3, 4, 5), 6)
    assert (cross.colour, cross.shape, cross.adjectives, cross.noun) == (None, "cross", (), 9)


@pytest.mark.parametrize(
    ("text", "objects", "relations"),
    [
        ("", 0, 0),
        ("a red", 0, 0),
        ("a red circle is left of", 1, 0),
        ("a red circle is left of a blue", 1, 0),
        ("a red circle is left of a blue and a pink star", 2, 1),
        ("left of left of a red circle", 1, 0),
        ("a red circle with it and which it", 1, 0),
        ("a red circle to the left a blue star", 2, 0),
    ],
)
def test_what_is_cut_off_or_garbled_is_not_counted_as_said(text: str, objects: int, relations: int) -> None:
    parsed = parse_caption(text.split())
    assert (len(parsed.objects), len(parsed.relations)) == (objects, relations)


@given(st.lists(st.sampled_from(WORDS)))
def test_any_words_can_be_scored(words: list[str]) -> None:
    result = score_caption(words, SCENE.objects)
    assert 0 <= result.objects_correct <= min(result.objects_predicted, result.objects_true)
    assert not Counter(result.relations_correct) - Counter(result.relations_stated)


def test_a_right_sentence() -> None:
    text = "a striped red disc is left of a small blue block which is under a big red square"
    assert score(text) == CaptionScore(
        objects_predicted=3,
        objects_true=3,
        objects_correct=3,
        objects_untied=0,
        relations_stated=("left of", "below"),
        relations_correct=("left of", "below"),
        sizes_stated=2,
        sizes_correct=1,
        textures_stated=1,
        textures_correct=1,
    )


@pytest.mark.parametrize(
    ("text", "untied"),
    [
        ("a red disc is left of a blue block", 0),
        ("a red disc is a blue block", 2),
        ("a red disc is left of a blue block which is a red square", 1),
        ("a red disc with a blue block right of it and a red square", 1),
        ("", 0),
    ],
)
def test_objects_in_no_relation_are_untied(text: str, untied: int) -> None:
    assert score(text).objects_untied == untied


def test_an_object_is_colour_and_shape_together() -> None:
    """Red, blue, circle and square are all in the scene, but no blue circle is."""
    result = score("a blue circle is left of a blue square")
    assert (result.objects_predicted, result.objects_correct) == (2, 1)
    assert (result.relations_stated, result.relations_correct) == (("left of",), ())


def test_an_object_named_twice_is_correct_once() -> None:
    result = score("a red circle is left of a red circle")
    assert (result.objects_predicted, result.objects_correct) == (2, 1)
    assert (result.relations_stated, result.relations_correct) == (("left of",), ())


def test_what_is_said_of_an_object_named_again_is_wrong() -> None:
    """Of the same two objects a sentence could go on saying the same for ever."""
    result = score("a red circle is left of a blue square that is right of a red circle")
    assert (result.objects_predicted, result.objects_correct) == (3, 2)
    assert (result.relations_stated, result.relations_correct) == (("left of", "right of"), ("left of",))


def test_a_relation_that_does_not_hold_is_wrong() -> None:
    result = score("a red circle is right of a blue square and over a red square")
    assert (result.objects_correct, len(result.relations_stated), len(result.relations_correct)) == (3, 2, 0)


def test_attributes_of_objects_that_are_not_there_are_not_counted() -> None:
    result = score("a small striped green star is left of a plain blue square")
    assert (result.sizes_stated, result.textures_stated, result.textures_correct) == (0, 1, 1)


def looking_at(cells: list[int], count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    alphas = np.full((len(cells), count), 0.01, np.float32)
    alphas[np.arange(len(cells)), cells] = 0.5
    return alphas


def test_pointing_asks_where_the_centre_of_the_brightest_cell_is() -> None:
    """On a grid of 2 rows and 5 columns the centres are at x = 0.1, 0.3, ... 0.9 and y = 0.25, 0.75.

    The red square is (0.7, 0.0, 0.95, 0.25): only cell 4 is inside, with its centre on the lower edge. The red circle
    and the blue square lie between the rows.
    """
    words = ["a", "medium", "red", "square", "over", "a", "blue", "square"]
    looks = looking_at([0, 4, 3, 4, 0, 0, 4, 9], 10)
    assert point(words, looks, (2, 5), SCENE.objects) == PointingCount(nouns=2, nouns_inside=1, words=5, words_inside=3)


def test_pointing_reads_the_grid_row_by_row_and_skips_wrong_objects() -> None:
    """On 5 x 2 the centres are at x = 0.25, 0.75 and y = 0.1, 0.3, ...: cell 5 is (0.75, 0.5), in the blue square."""
    words = ["a", "green", "star", "left", "of", "a", "blue", "square"]
    looks = looking_at([0, 0, 0, 0, 0, 0, 4, 5], 10)
    assert point(words, looks, (5, 2), SCENE.objects) == PointingCount(nouns=1, nouns_inside=1, words=2, words_inside=1)


def test_pointing_ties_go_to_the_first_cell() -> None:
    flat = np.full((2, 1), 1.0)
    everywhere = scene_of(thing("red", "circle", (0.0, 0.0, 0.5, 0.5)))
    assert point(["red", "circle"], flat, (1, 1), everywhere.objects).words_inside == 2
    assert point(["red", "circle"], np.full((2, 4), 0.25), (2, 2), everywhere.objects).words_inside == 2


@pytest.mark.parametrize("shape", [(1, 10), (2, 9), (2,)])
def test_pointing_refuses_alphas_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        point(["red", "circle"], np.zeros(shape), (2, 5), SCENE.objects)


def test_a_report_divides_sums_not_means() -> None:
    report = SceneReport()
    report.add(
        score("a red circle is left of a blue square"), PointingCount(nouns=2, nouns_inside=1, words=4, words_inside=1)
    )
    report.add(score("a big red square"))
    figures = report.as_json()
    assert json.loads(json.dumps(figures)) == figures
    assert {name: value for name, value in figures.items() if not name.startswith(BY_NAME)} == {
        "captions": 2,
        "object_precision": 1.0,
        "object_recall": 0.5,
        "object_f1": pytest.approx(2 / 3),
        "objects_tied": pytest.approx(2 / 3),
        "relation_accuracy": 1.0,
        "relations_per_caption": 0.5,
        "size_accuracy": 0.0,
        "texture_accuracy": None,
        "pointing_nouns": 0.5,
        "pointing_words": 0.25,
    }


def test_a_report_tells_the_relations_of_each_name() -> None:
    report = SceneReport()
    report.add(score("a red circle is left of a blue square and over a red square"))
    report.add(score("a red circle is right of a blue square"))
    report.add(score("a red circle is left of a blue square"))
    figures = {name: value for name, value in report.as_json().items() if name.startswith(BY_NAME)}
    assert len(figures) == 2 * len(RELATIONS)
    assert {name: value for name, value in figures.items() if value} == {
        "relation_share_left_of": 0.5,
        "relation_accuracy_left_of": 1.0,
        "relation_share_right_of": 0.25,
        "relation_share_above": 0.25,
    }
    assert figures["relation_accuracy_above"] == figures["relation_accuracy_right_of"] == 0
    assert figures["relation_share_in_front_of"] == 0
    assert figures["relation_accuracy_in_front_of"] is None


def test_an_empty_report_claims_nothing() -> None:
    figures = SceneReport().as_json()
    assert figures.pop("captions") == 0
    assert set(figures.values()) == {None}
