"""The page's settings: they go into a link and come out of it, and become a Conv2D."""

import dataclasses
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convserve.errors import InvalidArgumentError
from convserve.initializers import HeNormal
from convserve.play.convolution.calls import outcome
from convserve.play.convolution.settings import OBJECTS, Settings, named, parts_of, resized, text_of
from convserve.regularizers import L2

CHANGED = {
    "picture": "numbers",
    "size": 32,
    "grey": True,
    "grid": ((1.0, 2.5), (-3.0, 0.0)),
    "filters": 6,
    "kernel_size": (3, 5),
    "strides": (2, 1),
    "padding": "1,2,0,0",
    "data_format": "channels_first",
    "dilation_rate": (1, 2),
    "groups": 2,
    "activation": "relu",
    "use_bias": False,
    "kernel": "numbers",
    "numbers": (((1.0, 0.0), (0.0, 1.0)), ((0.5, 0.0), (0.0, -1.0))),
    "seed": 7,
    "kernel_initializer": "he_normal(seed=3)",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2(l2=0.1)",
    "bias_regularizer": "l1",
    "activity_regularizer": "l1l2(l1=0.1, l2=0.2)",
    "kernel_constraint": "max_norm(max_value=1.0, axis=[0, 1])",
    "bias_constraint": "non_neg",
    "name": "edges",
    "dtype": "mixed_float16",
    "trainable": False,
    "input_shape": "600,None,3",
    "shared_range": True,
    "filter": 1,
    "row": 2,
    "column": 3,
}


def test_every_setting_is_tried_here():
    assert set(CHANGED) == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("name", CHANGED)
def test_a_link_carries_each_setting(name):
    settings = dataclasses.replace(Settings(), **{name: CHANGED[name]})
    assert settings.to_query().keys() == {name}
    assert Settings.from_query(dict(parse_qsl(urlencode(settings.to_query())))) == settings


def test_a_link_carries_all_settings_at_once():
    settings = Settings(**CHANGED)
    assert Settings.from_query(dict(parse_qsl(urlencode(settings.to_query())))) == settings
    assert Settings.from_query({}) == Settings()
    assert Settings().to_query() == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("filters", "many"), ("kernel_size", "3"), ("strides", "1,2,3"), ("padding", "full"), ("padding", "1,1"),
        ("use_bias", "True"), ("grid", "1,2;3"), ("grid", ";".join(["1"] * 9)), ("numbers", "1,x"), ("dtype", "int8"),
        ("picture", "cat"), ("kernel", "sobel"), ("data_format", "NHWC"), ("activation", "rely"),
        ("kernel_regularizer", "L3(l3=1)"), ("grid", ""), ("grid", "nan"),
        ("numbers", "1,inf"), ("kernel_size", "3,1000000"), ("filters", "9999999"),
        ("dilation_rate", "1,7"), ("seed", "99999999999999999999"), ("size", "2000000000"), ("size", "0"),
        ("padding", "0,0,0,65"), ("strides", "1,513"), ("groups", "1025"), ("picture", ""), ("kernel", ""),
        ("dtype", ""), ("kernel_initializer", ""), ("kernel_regularizer", "(l2=1)"),
    ],
)  # fmt: skip
def test_a_link_that_cannot_be_read_names_the_setting(name, text):
    with pytest.raises(InvalidArgumentError, match=r"Expected .* Received") as refused:
        Settings.from_query({name: text})
    assert [violation.field for violation in refused.value.violations] == [name]


def test_what_refuses_the_input_comes_before_what_refuses_input_shape():
    made = outcome(Settings(picture="digit", size=16, kernel_size=(17, 1), input_shape="2,2,3"), client=None)
    assert [text.count("height 16") for text in made.refusals["picture"]] == [1, 0]


def test_settings_become_a_conv2d_with_every_parameter():
    settings = Settings(**{**CHANGED, "strides": (1, 1)})
    conv2d = settings.conv2d(2)
    assert (conv2d.filters, conv2d.kernel_size, conv2d.groups, conv2d.name) == (6, (3, 5), 2, "edges")
    assert conv2d.padding == ((1, 2), (0, 0))
    assert conv2d.kernel_initializer == HeNormal(seed=3)
    assert conv2d.kernel_regularizer == L2(0.1)
    assert conv2d.input_shape == (600, None, 3)
    assert Settings().conv2d(3).kernel_initializer.seed == 0


def test_a_classic_kernel_filters_each_channel_by_itself():
    conv2d = Settings(kernel="gaussian", filters=9, groups=4).conv2d(3, (5, 5))
    assert (conv2d.filters, conv2d.groups, conv2d.kernel_size) == (3, 3, (5, 5))


@pytest.mark.parametrize(
    "text", ["l2(", "l2(0.1)", "l2(l2=x)", "l2.l2", "l2(**{})", "1", "l2(l2=0.1); l1", "__import__('os')"]
)
def test_what_is_no_name_with_parameters_is_refused(text):
    with pytest.raises(InvalidArgumentError) as refused:
        named(text, "kernel_regularizer")
    assert refused.value.violations[0].field == "kernel_regularizer"


@given(st.sampled_from(["l2", "max_norm"]), st.text(alphabet="abc=,.01 "))
def test_a_name_and_its_parameters_are_taken_apart_again(name, parameters):
    assert parts_of(text_of(name, parameters)) == (name, parameters.strip())


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_link_carries_every_number_exactly(number):
    settings = Settings(grid=((number, 1.0),))
    assert Settings.from_query(settings.to_query()).grid == settings.grid


def test_differences_leave_out_where_one_looks():
    other = dataclasses.replace(Settings(), strides=(2, 2), row=9)
    assert Settings().differences(other) == [("strides", "1,1", "2,2")]
    assert Settings().differences(dataclasses.replace(Settings(), activation="relu")) == [
        ("activation", "None", "relu")
    ]


def test_a_matrix_is_cut_off_or_continued():
    assert resized(((1.0, 2.0), (3.0, 4.0)), 1, 3) == ((1.0, 2.0, 0.0),)
    assert resized(((1.0,),), 2, 2) == ((1.0, 0.0), (0.0, 0.0))


def test_objects_are_those_that_conv2d_has():
    assert {name for name in OBJECTS if hasattr(Settings().conv2d(1), name)} == set(OBJECTS)
