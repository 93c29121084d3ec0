"""The coloured shapes: scenes, captions, prompts, and a detector that sees what was drawn."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import shapes_encode, shapes_lit, shapes_teacher
from demo.t2i import detector, models, prompts, shapes
from demo.t2i.shapes import Thing
from lit_jax.config import EncodeConfig, TrainConfig, from_mapping
from lit_jax.models import registry
from lit_jax.models.pixart.config import PixArtConfig

EXAMPLES = [shapes.example(5, index) for index in range(150)]


def see(*things: Thing) -> list[detector.Found]:
    return detector.detect(shapes.render(things))


def test_an_image_is_a_function_of_seed_and_index() -> None:
    assert shapes.example(5, 3) == EXAMPLES[3]
    assert shapes.example(6, 3) != EXAMPLES[3] != EXAMPLES[4]


def test_the_detector_sees_every_scene_as_it_was_drawn() -> None:
    for example in EXAMPLES:
        found = see(*example.things)
        drawn = Counter((thing.shape, thing.colour) for thing in example.things)
        assert Counter((thing.shape, thing.colour) for thing in found) == drawn
        for thing in example.things:
            nearest = min(found, key=lambda f: (f.x - thing.x) ** 2 + (f.y - thing.y) ** 2)
            # Centres of mass: that of a triangle lies lower.
            assert abs(nearest.x - thing.x) < 0.3 and -0.3 < nearest.y - thing.y < 2.2


def test_what_is_no_shape_is_not_seen() -> None:
    image = np.full((32, 32, 3), shapes.BACKGROUND, np.uint8)
    assert detector.detect(image) == []
    image[4:28, 14:18] = shapes.COLOURS["red"]  # a bar
    assert detector.detect(image) == []
    noise = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    assert detector.detect(noise) == []
    with pytest.raises(ValueError, match=r"uint8 \[32, 32, 3\]"):
        detector.detect(np.zeros((16, 16, 3), np.uint8))


def test_a_shape_of_a_colour_between_two_has_none() -> None:
    image = np.full((32, 32, 3), shapes.BACKGROUND, np.uint8)
    image[4:14, 4:14] = (130, 230, 235)  # light cyan
    assert detector.detect(image) == []


def test_captions_tell_the_scene() -> None:
    for example in EXAMPLES:
        count, colours = len(example.things), {thing.colour for thing in example.things}
        for caption in (example.long, example.short):
            said = caption.replace("crosses", "crosss").replace("background", "")
            named = Counter(word.rstrip("s") for word in said.split())
            assert {t.shape.rstrip("s") for t in example.things} <= set(named)
            if count > 1 and len({thing.shape for thing in example.things}) == 1:
                assert named[shapes.NUMBERS[count - 1]] == 1
        assert all(colour in example.long for colour in colours)


@pytest.mark.parametrize(
    "first, second, where",
    [(0, 1, "left of"), (3, 2, "right of"), (1, 3, "above"), (2, 0, "below"), (0, 3, None)],
)
def test_relations_are_those_of_the_picture(first: int, second: int, where: str | None) -> None:
    assert shapes.relation(first, second) == where
    things = [Thing("circle", "red", *shapes.PLACES[first])]
    things += [Thing("square", "red", *shapes.PLACES[second])]
    found = {thing.shape: thing for thing in see(*things)}
    if where:
        assert detector.is_placed(found["circle"], where, found["square"])
        assert not detector.is_placed(found["square"], where, found["circle"])


RED_CIRCLE = Thing("circle", "red", 8, 8)
BLUE_SQUARE = Thing("square", "blue", 24, 8)
RED_SQUARE = Thing("square", "red", 24, 8)
BLUE_CIRCLE = Thing("circle", "blue", 8, 8)


def asked(tag: str, prompt: str) -> prompts.Prompt:
    """The evaluation prompt of a tag with this text."""
    return next(p for p in prompts.prompts(1000) if (p["tag"], p["prompt"]) == (tag, prompt))


@pytest.mark.parametrize(
    "tag, text, right, wrong",
    [
        ("single_object", "a circle", [RED_CIRCLE], [BLUE_SQUARE]),
        ("two_object", "a circle and a square", [RED_CIRCLE, BLUE_SQUARE], [RED_CIRCLE]),
        (
            "counting",
            "a photo of two circles",
            [RED_CIRCLE, Thing("circle", "red", 24, 24)],
            [RED_CIRCLE, Thing("circle", "red", 24, 24), Thing("circle", "red", 24, 8)],
        ),
        ("colors", "a photo of a red circle", [RED_CIRCLE], [BLUE_CIRCLE]),
        (
            "position",
            "a photo of a circle left of a square",
            [RED_CIRCLE, BLUE_SQUARE],
            [Thing("circle", "red", 24, 8), Thing("square", "blue", 8, 8)],
        ),
        (
            "color_attr",
            "a photo of a red circle and a blue square",
            [RED_CIRCLE, BLUE_SQUARE],
            [BLUE_CIRCLE, RED_SQUARE],
        ),
    ],
)
def test_every_tag_has_its_rule(
    tag: str, text: str, right: list[Thing], wrong: list[Thing]
) -> None:
    prompt = asked(tag, text)
    assert detector.is_correct(see(*right), prompt)
    assert not detector.is_correct(see(*wrong), prompt)


@pytest.mark.parametrize(
    "things, tag, text",
    [
        # Only the surest thing of a class is looked at: a blob of its shape beside it is no excuse.
        (
            [(24, 24, 8, 8, 0.99), (4, 24, 6, 6, 0.8)],
            "position",
            "a photo of a square left of a circle",
        ),
        # Colours do not leak from one thing to another.
        ([(8, 8, 8, 8, 0.9)], "colors", "a photo of a blue square"),
    ],
)
def test_the_surest_things_count(
    things: list[tuple[float, float, int, int, float]], tag: str, text: str
) -> None:
    circle = detector.Found("circle", "red", 16, 24, 8, 8, 0.95)
    found = [circle, *(detector.Found("square", "red", *thing) for thing in things)]
    found.append(detector.Found("square", "blue", 4, 24, 4, 4, 0.75))
    assert not detector.is_correct(found, asked(tag, text))
    assert detector.is_correct([circle, found[-1]], asked(tag, text))


def test_prompts_are_drawn_without_repetition() -> None:
    chosen = prompts.prompts(24)
    assert chosen == prompts.prompts(24)
    assert len({prompt["prompt"] for prompt in chosen}) == len(chosen)
    assert Counter(prompt["tag"] for prompt in chosen) == {
        tag: 12 if tag in ("single_object", "counting") else 24 for tag in prompts.TAGS
    }


def test_scores_of_a_folder(tmp_path: Path) -> None:
    """Two images per prompt, the first right and the second blank: half of everything."""
    scenes = {
        "single_object": [Thing("circle", "red", 16, 16)],
        "two_object": [RED_CIRCLE, BLUE_SQUARE],
        "counting": [RED_CIRCLE, Thing("circle", "red", 24, 24)],
        "colors": [RED_CIRCLE],
        "position": [RED_CIRCLE, BLUE_SQUARE],
        "color_attr": [RED_CIRCLE, BLUE_SQUARE],
    }
    texts = {
        "single_object": "a circle",
        "two_object": "a circle and a square",
        "counting": "a photo of two circles",
        "colors": "a photo of a red circle",
        "position": "a photo of a circle left of a square",
        "color_attr": "a photo of a red circle and a blue square",
    }
    for number, (tag, things) in enumerate(scenes.items()):
        samples = tmp_path / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(asked(tag, texts[tag])) + "\n")
        Image.fromarray(shapes.render(tuple(things))).save(samples / "0000.png")
        Image.fromarray(shapes.render(())).save(samples / "0001.png")
    scores = detector.score(tmp_path)
    assert scores == dict.fromkeys(("overall", *prompts.TAGS), 0.5)
    for path in (tmp_path / "00002" / "samples").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="no images for counting"):
        detector.score(tmp_path)


def test_a_folder_of_images_with_captions(tmp_path: Path) -> None:
    shapes.write_folder(tmp_path / "images", 3, seed=5)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names[:3] == ["000000.long.txt", "000000.png", "000000.short.txt"] and len(names) == 9
    stem = tmp_path / "images" / "000002"
    assert stem.with_suffix(".short.txt").read_text() == EXAMPLES[2].short + "\n"
    with Image.open(stem.with_suffix(".png")) as image:
        assert np.array_equal(np.asarray(image), shapes.render(EXAMPLES[2].things))
    shapes.write_folder(tmp_path / "images", 3, seed=5)  # what is there stays
    with pytest.raises(ValueError, match="holds 3 images, not 4; choose another folder"):
        shapes.write_folder(tmp_path / "images", 4, seed=5)
    with pytest.raises(ValueError, match="at least 1"):
        shapes.write_folder(tmp_path / "none", 0, seed=5)


def built(config: TrainConfig) -> PixArtConfig:
    network: PixArtConfig = registry.model_config(config.model.name, **config.model.overrides)
    return network


def test_students_differ_in_the_recipe_only() -> None:
    """Otherwise their comparison would say nothing; and they fit the teacher and the data."""
    rows = []
    for recipe in ("distilled", "inherited", "scratch"):
        content = shapes_lit.get_config(recipe).to_dict()
        config = from_mapping(TrainConfig, content)
        assert bool(config.inherit.source) == (recipe != "scratch")
        assert bool(config.distill.teacher) == (recipe == "distilled")
        content["inherit"].pop("source"), content["distill"].pop("teacher")
        rows.append(content)
    assert rows[0] == rows[1] == rows[2]
    student, teacher = (
        built(config),
        from_mapping(TrainConfig, shapes_teacher.get_config().to_dict()),
    )
    assert (student.mixer, student.num_heads, student.kernel_size) == ("linear", 2, 5)
    assert (config.distill.noise_weight, config.distill.variance_weight) == (1.0, 0.05)
    assert student.cross_heads == built(teacher).cross_heads == 4
    assert config.data == teacher.data and config.data.caption_weights == (0.6, 0.4)


def test_data_fit_the_models() -> None:
    config = from_mapping(EncodeConfig, shapes_encode.get_config().to_dict())
    network = built(from_mapping(TrainConfig, shapes_teacher.get_config().to_dict()))
    vae = json.loads((models.SHIPPED["vae"].parent / "config.json").read_text())
    text = json.loads((models.SHIPPED["text_encoder"].parent / "config.json").read_text())
    downsampling = 2 ** (len(vae["block_out_channels"]) - 1)
    assert config.resolution == shapes.SIDE == downsampling * network.image_size[0]
    assert network.in_channels == vae["latent_channels"]
    assert network.caption_channels == text["d_model"]
    assert config.text is not None and config.text.max_length == network.model_max_length
    assert config.source.caption_kinds == ("long", "short")
