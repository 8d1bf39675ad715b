"""The short form of `python -m tests.endurance.applications`: the first third of a small model."""

from __future__ import annotations

import pytest

from tests.endurance import applications
from tests.support.keras.truth import keras
from tests.support.servers.server_process import RunningServer

# Keras' variables tell numpy that they can be copied in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_a_model_of_keras_applications_is_what_it_was(server: RunningServer) -> None:
    whole = applications.model_of("MobileNet", 32, alpha=0.25)
    model = keras.Model(whole.input, whole.get_layer("conv_pw_4_relu").output)
    row = applications.compared("MobileNet", model, server.target, applications.pictures(32, 2))
    assert row.is_right, row
    assert row.convolutions == 9
    assert row.calls == (9, 1)  # they only follow each other
    assert max(row.worst) < 1e-4
