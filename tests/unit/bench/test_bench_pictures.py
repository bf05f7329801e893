import io

import numpy as np
from PIL import Image

from bench.client import Sample
from bench.pictures import compared
from bench.workload import Asked

ASKED = Asked("a red circle", seed=1, steps=20, guidance=7.5)


def picture(value: int, status: int = 200) -> Sample:
    pixels = np.full((4, 4, 3), 100, dtype=np.uint8)
    pixels[1, 2, 0] = value
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Sample(ASKED, 0.0, 1.0, status, file.getvalue() if status == 200 else b"{}")


def test_pictures_may_differ_by_one_of_255():
    gate = compared("ours", [([picture(100), picture(100)], [picture(101), picture(100)])])
    assert (gate.pictures, gate.differing, gate.most, gate.passed) == (2, 1, 1, True)


def test_pictures_that_differ_by_more_are_not_the_same():
    assert not compared("ours", [([picture(100)], [picture(98)])]).passed


def test_nothing_to_compare_proves_nothing():
    assert not compared("ours", [([picture(100)], [picture(0, status=429)])]).passed
