"""Trials of tests/endurance in their short forms."""

from __future__ import annotations

import pytest

from tests.endurance.batch import batch_often_killed
from tests.endurance.bombs import ALL_RPCS, explode
from tests.endurance.connections import crowd
from tests.endurance.drains import drain_often
from tests.endurance.fuzz import corpus, fuzz
from tests.endurance.interrupts import interrupt_often
from tests.endurance.kernels import compare
from tests.endurance.kills import kill_often
from tests.endurance.large_transfers import large_transfers
from tests.endurance.network import bad_network
from tests.endurance.overload import overload
from tests.endurance.starvation import starve
from tests.endurance.stops import stop_often
from tests.support.servers.server_process import numpy_server


@pytest.mark.slow  # make slow
def test_more_than_the_server_can_do_is_answered_rightly_or_refused() -> None:
    # So much more that the line is full within seconds on a machine that has other things to do.
    found = overload(seconds=8, times=6)
    assert found.alive
    assert not found.wrong
    assert found.answered
    assert found.refused["OverloadedError"]
    assert found.grown_bytes < 200_000_000


@pytest.mark.parametrize("store", [True, False], ids=["durable", "layers lost"])
def test_a_pipeline_over_a_server_that_is_killed_loses_and_doubles_nothing(store: bool) -> None:
    found = kill_often(items=600, kills=2, store=store, serve=numpy_server)
    assert found.kills == 2
    assert (found.right, found.lost, found.doubled, found.wrong) == (600, 0, 0, 0)


def test_a_batch_whose_client_and_server_are_killed_loses_and_doubles_nothing() -> None:
    found = batch_often_killed(items=150, kills=1, side=96, serve=numpy_server)
    assert (found.client_kills, found.server_kills) == (1, 1)
    assert (found.right, found.lost, found.doubled, found.wrong, found.strange_files) == (150, 0, 0, 0, 0)


def test_a_batch_that_is_interrupted_twice_ends() -> None:
    found = interrupt_often(times=4, serve=numpy_server)
    assert (found.times, found.defects) == (4, [])


@pytest.mark.slow  # how many can be moved follows from the time of one alone, on a machine that does nothing else
def test_of_large_tensors_that_cannot_all_be_moved_in_time_some_are() -> None:
    found = large_transfers(callers=6, side=300, samples=1, possible=0.5, serve=numpy_server)
    assert not found.wrong
    assert found.answered >= found.possible // 2
    assert found.answered + sum(found.refused.values()) == 6


def test_a_server_that_is_told_to_stop_answers_every_call_that_it_took() -> None:
    found = stop_often(times=2, callers=24, serve=numpy_server)
    assert (found.answered, found.statuses) == (found.calls, ())


def test_calls_over_a_network_that_delays_swallows_and_cuts_end_in_time() -> None:
    found = bad_network(calls=60, serve=numpy_server)
    assert not found.defects
    assert found.calls == 60
    assert found.answered


@pytest.mark.parametrize("tokens", [True, False], ids=["known callers", "anybody"])
def test_connections_that_nobody_needs_keep_nobody_out(tokens: bool) -> None:
    found = crowd(2, max_connections=40, tokens=tokens, serve=numpy_server)
    assert not found.failures
    assert found.kept
    assert found.new
    assert found.closed
    assert found.alive
    assert found.max_descriptors < 40 + 8 + 100


def test_messages_that_nobody_means_are_answered() -> None:
    assert corpus()
    found = fuzz(inputs=3_000, seed=1, serve=numpy_server)
    assert not found.defects
    assert found.inputs == 3_000
    assert len(found.outcomes) > 50


@pytest.mark.parametrize("attack", ["Convolve without a message", "Watch without a message"])
def test_calls_without_a_message_keep_no_thread_from_others(attack: str) -> None:
    found = starve(attack, seconds=0.5, connections=2, calls=150, serve=numpy_server)  # of 256 threads
    assert not found.failed
    assert found.answered
    assert found.outcomes["RESOURCE_EXHAUSTED"]


@pytest.mark.slow  # test_stopping_servers.py has the reason for it in a moment
def test_a_stop_of_one_of_two_servers_costs_callers_without_retries_nothing() -> None:
    found = drain_often(times=10, pre_stop_s=0)
    assert found.calls
    assert (found.failed, found.statuses) == ({}, [])


def test_messages_of_empty_messages_take_little_more_than_their_bytes() -> None:
    names = {"ConvolveStream", "FindMissingLayers", "ModelInfer", "Check", "GetServers", "ServerReflectionInfo"}
    found = explode(4, [rpc for rpc in ALL_RPCS if rpc.name in names], serve=numpy_server)
    assert found.worst.keys() == names
    assert not found.defects


def test_what_onednn_computes_wrongly_by_itself_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    found = compare(calls=400, seed=3, known=0.9)
    assert found.onednn
    assert (found.wrong, found.dead) == ([], [])
    assert found.calls >= 400
