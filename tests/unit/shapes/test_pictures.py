import random

from pictures import COLOURS, SHAPES, SIDE, Picture, caption, draw, every_picture, random_picture


def test_every_combination_once_and_no_shape_on_its_own_colour():
    pictures = every_picture()
    combinations = {(each.colour, each.shape, each.background) for each in pictures}
    assert len(combinations) == len(pictures) == len(COLOURS) * (len(COLOURS) - 1) * len(SHAPES)
    assert all(each.colour != each.background for each in pictures)
    assert {each.size for each in pictures} == {"small", "large"}


def test_prompts_are_english():
    assert Picture("orange", "circle", "blue", "large").prompt == "a large orange circle on a blue background"
    assert Picture("red", "square", "orange", "small").prompt == "a small red square on an orange background"


def test_captions_say_less_now_and_then_and_never_something_wrong():
    rng = random.Random(0)
    captions = [(picture := random_picture(rng), caption(picture, rng)) for _ in range(2000)]
    silent = sum(text == "" for _, text in captions)
    full = sum(text == picture.prompt for picture, text in captions)
    assert 100 < silent < 300
    assert full > 700
    for picture, text in captions:
        said = set(text.split())
        own = {picture.colour, picture.background, picture.shape, picture.size}
        assert said & {*COLOURS, *SHAPES, "small", "large"} <= own


def test_a_seed_fixes_the_picture_and_the_shape_stays_in_the_frame():
    for picture in every_picture()[::10]:
        first, again = (draw(picture, random.Random(3)) for _ in range(2))
        assert first.tobytes() == again.tobytes()
        frame = {first.getpixel((x, y)) for i in range(SIDE) for x, y in ((i, 0), (i, SIDE - 1), (0, i), (SIDE - 1, i))}
        assert frame == {COLOURS[picture.background]}
