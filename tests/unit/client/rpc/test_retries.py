"""What both clients share: targets, deadlines, retries, and requests that are refused before anything is sent."""

from __future__ import annotations

import inspect
import itertools
import sys
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

import convserve
from convserve import (
    AsyncClient,
    AsyncStoredLayer,
    Client,
    Conv2D,
    DeadlineExceededError,
    InvalidArgumentError,
    InvalidRequestError,
    InvalidTensorError,
    Layer,
    OverloadedError,
    RetryRule,
    StoredLayer,
    TooLargeError,
    UnavailableError,
)
from convserve._rpc import channel, requests, retries
from convserve.protocol.call_arguments import LONGEST_S, checked_timeout
from convserve.protocol.status import from_rpc_error

X = np.zeros((1, 8, 8, 3), np.float32)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:50051", "dns:///localhost:50051"),
        ("convserve.svc:50051", "dns:///convserve.svc:50051"),
        ("unix:///run/convserve.sock", "unix:///run/convserve.sock"),
        ("dns:///a:1", "dns:///a:1"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("10.0.0.1:1, localhost:2", "ipv4:10.0.0.1:1,127.0.0.1:2"),
        ("[::1]:1,[::2]:2", "ipv6:[::1]:1,[::2]:2"),
        (" localhost:1 ", "dns:///localhost:1"),
        ("[fe80::1%eth0]:1", "dns:///[fe80::1%eth0]:1"),
        ("convserve_gpu:65535", "dns:///convserve_gpu:65535"),
        ("dns://8.8.8.8/a:1", "dns://8.8.8.8/a:1"),
        ("ipv4:10.0.0.1:1", "ipv4:10.0.0.1:1"),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("unix:x.sock", "unix:x.sock"),
        ("unix:./1234", "unix:./1234"),
        ("unix-abstract:x", "unix-abstract:x"),
        ("xds:///a", "xds:///a"),
        ("vsock:3:1", "vsock:3:1"),
    ],
)
def test_targets(target: Any, expected: str) -> None:
    assert channel.channel_target(target) == expected


NO_TARGETS = {
    "empty": ["", "  ", [""], "10.0.0.1:1,", "local host:1", "h\x1b:1", "\n"],
    "several are": [[], "a:1,b:2", "10.0.0.1:1,mylocalhost:2", "10.0.0.1:1,[::1]:2", "ipv4:a:1"],
    "it has no port": [
        *("gpu-host", "127.0.0.1", "[::1]", "[fe80::1%eth0]", "dns:1", "dns:50051", "dns:///a", "dns:a"),
        *("10.0.0.1:1,10.0.0.2", "ipv4:10.0.0.1"),
    ],
    "its port": [
        *("gpu-host:", "localhost:port", "localhost:0", "localhost:70000", "localhost:-1", "localhost:1.5"),
        *("localhost:²", "localhost:٣", "localhost:000001", "host:1?x", "10.0.0.1:1,10.0.0.2:0"),
    ],
    "leave out 'http://'": ["http://127.0.0.1:1", "10.0.0.1:1,http://10.0.0.2:1"],
    "leave out 'https://'": ["https://gpu-host:1/"],
    "leave out 'grpc://'": ["grpc://gpu-host:1"],
    "leave out '/v2'": ["127.0.0.1:1/v2"],
    "leave out '/'": ["localhost:1/"],
    "brackets": ["::1:50051", "::1", "fe80::1%eth0:1", "2001:db8::1:50051"],
    "is no host": [
        *(":50051", "256.1.1.1:1", "1.2.3:1", "1:1", "ü:1", "*:1", "-a:1", "user@host:1", "[host]:1", "a:1:1"),
        "host]:1",
    ],
    "a port has a host before it": ["unix:1234"],
    "no path of a socket": ["unix:", "unix:///", "unix:/a/", "unix:a\0b"],
    "after unix://": ["unix://", "unix://a/b", "unix://50051"],
    "Received": [3, None, [3], b"a:1", {}],
}


@pytest.mark.parametrize(("why", "target"), [(why, each) for why, targets in NO_TARGETS.items() for each in targets])
def test_what_is_no_target_is_refused_in_plain_words(why: str, target: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^target: Expected 'host:port', 'unix:///path'") as caught:
        channel.channel_target(target)
    assert why in str(caught.value)
    for client in (convserve.Client, convserve.AsyncClient):
        if target is not None:  # which is that of the environment
            with pytest.raises(InvalidRequestError, match=r"^target: Expected"):
                client(target)


def test_who_names_no_target_has_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for named, expected in ((None, "localhost:50051"), ("", "localhost:50051"), ("gpu-host:7", "gpu-host:7")):
        if named is not None:
            monkeypatch.setenv("CONVSERVE_TARGET", named)
        for client in (convserve.Client(), convserve.AsyncClient(), convserve.Client(None)):
            assert client._target == f"dns:///{expected}"
    assert convserve.Client("localhost:1")._target == "dns:///localhost:1"
    monkeypatch.setenv("CONVSERVE_TARGET", "http://gpu-host:7")
    with pytest.raises(InvalidRequestError, match=r"CONVSERVE_TARGET: Expected .* leave out 'http://'"):
        convserve.Client()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("-inf"), -(10**400), "60", True, [1]])
def test_timeouts_that_make_no_sense(timeout: Any) -> None:
    with pytest.raises(InvalidRequestError, match="timeout: Expected"):
        Client(timeout=timeout)


@pytest.mark.parametrize("timeout", [None, float("inf"), np.float32("inf"), 1e10, 10**400, sys.maxsize, 1e300])
def test_timeouts_for_as_long_as_it_takes(timeout: Any) -> None:
    assert checked_timeout(timeout) == LONGEST_S
    Client(timeout=timeout).close()


def test_timeouts_are_any_numbers() -> None:
    assert [checked_timeout(each) for each in (np.float32(0.5), np.int64(3), Fraction(1, 4))] == [0.5, 3, 0.25]


@pytest.mark.parametrize("name", ["attempts", "initial_s", "factor", "longest_s", "budget"])
@pytest.mark.parametrize("value", [-1, float("nan"), "1", None, True])
def test_retry_rules_that_make_no_sense(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"retry.{name}: Expected a number"):
        RetryRule(**{name: value})
    RetryRule(**{name: float("inf")})
    with pytest.raises(InvalidRequestError, match=rf"retry.{name}: .* Received "):
        RetryRule(**{name: 10**400})


@pytest.mark.parametrize("name", ["attempts", "initial_s", "factor", "longest_s"])
@pytest.mark.parametrize("value", [1e10, sys.float_info.max, float("inf"), 10**300, 1e-320, Fraction(1, 3**200)])
def test_retry_rules_of_any_size_have_delays(name: str, value: Any) -> None:
    if name == "attempts" and value < 1:
        return
    rule = RetryRule(**{"attempts": 10**9, name: value})
    delays = [rule.delay_s(attempt, UnavailableError("gone")) for attempt in (1, 2, 40, 10**6)]
    assert all(delay is not None and 0 <= delay <= rule.longest_s for delay in delays)


@pytest.mark.parametrize("rule", [3, 0, False, 2.5, "none", {"attempts": 1}])
def test_what_is_no_retry_rule_is_refused(rule: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^retry: Expected a convserve.RetryRule or None. Received retry="):
        Client(retry=rule)


def test_delays_grow_are_jittered_and_end() -> None:
    rule = RetryRule(attempts=4, initial_s=1, factor=2, longest_s=3)
    error = UnavailableError("gone")
    for attempt, longest in ((1, 1), (2, 2), (3, 3)):
        delays = {rule.delay_s(attempt, error) for _ in range(50)}
        assert len(delays) > 1
        assert all(longest / 2 <= delay <= longest for delay in delays if delay is not None)
    assert rule.delay_s(4, error) is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Deadline Exceeded", r"in one call\.$"),
        ("Expected a deadline that can be met.", r"call\. \(Expected a deadline"),
    ],
)
def test_why_a_server_refused_a_call_before_its_deadline_is_told(said: str, told: str) -> None:
    call = retries.Call(RetryRule(), retries.Deadline(60), retries.RetryBudget(RetryRule()), is_divisible=True)
    with pytest.raises(DeadlineExceededError, match=f"timeout=60 seconds.*{told}"):
        call.delay_after(DeadlineExceededError(said))


def unavailable(text: str) -> Any:
    code = grpc.StatusCode.UNAVAILABLE
    return from_rpc_error(SimpleNamespace(code=lambda: code, details=lambda: text, trailing_metadata=lambda: ()))  # type: ignore[arg-type]


def test_a_server_that_was_killed_is_not_taken_for_one_that_asks_for_tls() -> None:
    call = retries.Call(RetryRule(attempts=2), retries.Deadline(60), retries.RetryBudget(RetryRule()))
    call.delay_after(unavailable("Socket closed"))
    with pytest.raises(UnavailableError, match="running there"):
        call.delay_after(unavailable("connections to all backends failing; last error: Connection refused"))


def test_what_is_wrong_with_tls_is_told_whichever_address_failed_last() -> None:
    def failed(why: str) -> Any:
        return unavailable(f"failed to connect to all addresses; last error: {why}")

    refused, handshake, closed = (
        "ipv6:%5B::1%5D:1: Connection refused",
        "ipv4:127.0.0.1:1: CERTIFICATE_VERIFY_FAILED: no issuer",
        "ipv4:127.0.0.1:1: Socket closed",
    )
    for first, told in (
        (handshake, "--tls-ca"),
        (closed, "does it ask for TLS"),
        (refused, r"serve` running there\? .*ipv6:\[::1\]:1"),
    ):
        call = retries.Call(RetryRule(attempts=2), retries.Deadline(60), retries.RetryBudget(RetryRule()))
        call.delay_after(failed(first))
        with pytest.raises(UnavailableError, match=rf"{told}.* The client tried 2 times \(RetryRule\)\.$"):
            call.delay_after(failed(refused))


def test_refused_calls_are_sent_again_only_as_often_as_the_budget_allows() -> None:
    rule = RetryRule(attempts=1000, budget=3)
    budget = retries.RetryBudget(rule)
    refusal = OverloadedError("busy")

    def retried() -> int:
        call = retries.Call(rule, retries.Deadline(60), budget)
        for number in itertools.count():
            try:
                call.delay_after(refusal)
            except OverloadedError:
                return number
        raise AssertionError

    assert (retried(), retried()) == (3, 0)
    for _ in range(4):
        budget.record_success()
    assert retried() == 2
    for _ in range(100):
        budget.record_success()
    assert retried() == 3
    call = retries.Call(rule, retries.Deadline(60), budget)  # nobody answered: that is no overload
    assert all(call.delay_after(UnavailableError("gone")) >= 0 for _ in range(10))


def test_overloaded_server_names_its_own_delay() -> None:
    delays = {RetryRule().delay_s(1, OverloadedError("busy", retry_after_s=9.0)) for _ in range(50)}
    assert 9.0 <= min(delays) < max(delays) <= 13.5  # those that were refused together do not come back together


def test_wrong_calls_are_not_retried() -> None:
    assert RetryRule().delay_s(1, InvalidArgumentError()) is None


@pytest.mark.parametrize(
    ("layers", "x", "words"),
    [
        ([], X, "layers: Expected"),
        ("conv", X, r"layers: Expected .* Received 'conv'\. client\.layer\('conv'\) is"),
        ([Conv2D(4, 3), "conv"], X, r"client\.layer\('conv'\) is"),
        ([Conv2D(4, 3), 3], X, "layers: Expected"),
        (Conv2D(4, 3), X[0], "Expected 4 dimensions"),
        (Conv2D(4, 3), X.astype(np.int64), "int64"),
        (Conv2D(4, 3), [["a"]], "input: Expected an array"),
        (Conv2D(4, 9), X, "at least 9"),
        (Conv2D(4, 3, kernel_initializer="identity"), X, "kernel_initializer: .*2-D"),
        (Conv2D(4, 3, groups=2), X, "groups: "),
        (Layer(Conv2D(4, 3, use_bias=False), np.zeros((3, 3, 2, 4))), X, "input: Expected as many channels"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_sent(layers: Any, x: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        requests.convolve_request(layers, x, None)


def test_field_names_its_layer_in_a_chain() -> None:
    with pytest.raises(InvalidTensorError, match=r"layers\[1\]\.input: .*height of at least 7"):
        requests.convolve_request([Conv2D(4, 3), Conv2D(4, 7)], X, None)


def test_wrong_output_dtype_is_refused() -> None:
    with pytest.raises(InvalidTensorError, match=r"output_dtype: .*uint8"):
        requests.convolve_request(Conv2D(4, 3), X, "uint8")


def test_weights_above_2_gib_are_to_be_put_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_MAX_MESSAGE_BYTES", 1000)
    layer = Layer(Conv2D(84, 1, use_bias=False), np.zeros((1, 1, 3, 84)))
    with pytest.raises(
        TooLargeError, match=r"^layers: Expected weights below 2 GiB.*Received 1008 bytes: put the layers"
    ):
        requests.convolve_request(layer, np.zeros((1, 2, 2, 3), "f4"), None)


def test_tensors_of_any_size_make_a_request() -> None:
    assert requests.convolve_request(Conv2D(2**23, 1), X, None).is_large


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    }


def test_both_clients_have_the_same_names_and_arguments() -> None:
    blocking, awaited = public(Client), public(AsyncClient)
    assert list(blocking) == list(awaited)
    for name, signature in blocking.items():
        assert shape(signature) == shape(awaited[name]), name


def test_stored_layers_of_both_clients_have_the_same_names_and_arguments() -> None:
    blocking, awaited = public(StoredLayer), public(AsyncStoredLayer)
    assert list(blocking) == list(awaited)
    for name, signature in blocking.items():
        assert shape(signature) == shape(awaited[name]), name


def shape(signature: inspect.Signature) -> list[tuple[str, Any, Any]]:
    """Returns all of a signature but the types, which differ where one client's layers are meant."""
    return [(each.name, each.kind, each.default) for each in signature.parameters.values()]
