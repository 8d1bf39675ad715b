"""What `convserve` offers, and that it says so in one way."""

import convserve


def test_what_is_listed_is_public_and_there() -> None:
    assert set(dir(convserve)) == {*convserve.__all__, "importing", "keras", "plot", "ray"}
    assert all(hasattr(convserve, name) for name in convserve.__all__)
    assert convserve.__all__ == sorted(convserve.__all__)
    kinds = [getattr(convserve, name) for name in convserve.__all__ if isinstance(getattr(convserve, name), type)]
    assert {kind.__module__ for kind in kinds} == {"convserve", "convserve.errors"}
