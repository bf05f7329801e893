import inspect
import re

from predictor import errors


def classes(base: type) -> list[type]:
    return [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, base) and each is not base]


def test_the_drawn_tree_is_the_real_one():
    drawn = dict(re.findall(r"[├└]── (\w+) +(\d+)", errors.__doc__))
    real = {each.__name__: str(each.status) for each in classes(errors.ServingError)}
    real |= {each.__name__: str(each.exit_code) for each in classes(errors.StartupError)}
    assert drawn == real


def test_codes_are_distinct():
    codes = [each.exit_code for each in classes(errors.StartupError)]
    assert len(set(codes)) == len(codes)
