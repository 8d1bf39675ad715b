"""The short form of `python -m tests.endurance.applications`: one small model, all of it."""

from __future__ import annotations

import pytest

from tests.endurance import applications
from tests.support.servers.server_process import RunningServer

# Keras' variables tell numpy that they can be copied in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_a_model_of_keras_applications_is_what_it_was(server: RunningServer) -> None:
    model = applications.model_of("MobileNet", 32, alpha=0.25)
    row = applications.compared("MobileNet", model, server.target, applications.pictures(32, 2))
    assert row.is_right, row
    assert row.convolutions == 28
    assert row.calls == (28, 2)  # all but the last convolution only follow each other
    assert max(row.worst) < 1e-4
