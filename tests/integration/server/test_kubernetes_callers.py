"""The callers of the trial on a cluster, at one server."""

import itertools
import json

from tests.kubernetes import callers
from tests.support.servers.server_process import numpy_server


class After:
    """A file that is there after it was looked for so many times."""

    def __init__(self, times):
        self._looks, self._times = itertools.count(), times

    def exists(self):
        return next(self._looks) > self._times


def told(capsys):
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    return json.loads(line)


def test_the_callers_count_right_answers_and_tell_wrong_ones(capsys, monkeypatch):
    with numpy_server() as running:
        status = callers.main(running.target, After(200))
        found = told(capsys)
        monkeypatch.setattr(callers, "_MIDDLE", callers._MIDDLE + 1)
        assert callers.main(running.target, After(20)) == 1
    assert found.keys() == {"without retries", "with retries", "mapped items"}
    assert [each["wrong"] for each in found.values()] == [[], [], []]
    assert 190 < sum(each["answers"] for each in found.values()) < 210
    assert status == (0 if all(each["answers"] for each in found.values()) else 1)
    assert any("1: [" in wrong for each in told(capsys).values() for wrong in each["wrong"])
