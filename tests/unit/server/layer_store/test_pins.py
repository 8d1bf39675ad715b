"""Which names hold which layers."""

from hypothesis import given
from hypothesis import strategies as st

from convserve_server.layer_store.pins import LayerPins

KEYS = [bytes([number]) * 32 for number in range(3)]
STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove", "forget"]), st.sampled_from("ab"), st.sampled_from(KEYS)))


@given(STEPS)
def test_a_layer_is_held_for_as_long_as_a_name_holds_it(steps):
    pins, expected = LayerPins(), set()
    for step, name, key in steps:
        if step == "add":
            pins.add(name, key)
            expected.add((name, key))
        elif step == "remove":
            mine = {each for each in expected if each[0] == name}
            expected -= mine
            assert pins.remove(name) == {held for _, held in mine} - {held for _, held in expected}
        else:
            assert pins.forget(key) == any(held == key for _, held in expected)
            expected = {each for each in expected if each[1] != key}
        assert pins.digests() == {held for _, held in expected} == {each for each in KEYS if each in pins}


def test_whether_a_layer_is_held_is_no_question_to_every_name():
    """Else an eviction among many layers that are pinned would take seconds, and the store's lock for as long."""
    asked = 0

    class Key(bytes):
        def __hash__(self):
            nonlocal asked
            asked += 1
            return bytes.__hash__(self)

    pins = LayerPins()
    for number in range(100):
        pins.add(f"name {number}", number.to_bytes(32, "big"))
    assert Key((99).to_bytes(32, "big")) in pins
    assert asked == 1
