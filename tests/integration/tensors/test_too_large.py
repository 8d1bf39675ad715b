"""Calls that a few bytes ask for and no machine can answer: refused by size, limit and setting, nothing allocated."""

import re

import grpc
import pytest

from convserve.v1.conv2d_pb2 import ExplicitPadding, Padding, Size2D
from convserve.v1.convolution_service_pb2 import GetServerInfoRequest
from tests.support.processes import forget_peak, status
from tests.support.raw.calls import checked, conv2d, convolve_request, layer, plan_request, raw_caller, tensor

B = 2**31 - 1
SAME = Padding(mode=2)
ALL_AROUND = Padding(explicit=ExplicitPadding(top=B, bottom=B, left=B, right=B))
# What is too large, and the setting that says so.
TOO_LARGE = {
    "filters": ([conv2d(filters=B)], "--max-message-bytes"),
    "filters with a bias": ([conv2d(filters=B, use_bias=True)], "--max-message-bytes"),
    "padding at one side": ([conv2d(padding=Padding(explicit=ExplicitPadding(left=B)))], "--max-message-bytes"),
    "padding of rows": ([conv2d(padding=Padding(explicit=ExplicitPadding(top=B, bottom=B)))], "--max-message-bytes"),
    "kernel": ([conv2d(kernel_size=Size2D(height=B, width=1), padding=SAME)], "--max-call-bytes"),
    "kernel in both directions": (
        [conv2d(kernel_size=Size2D(height=2**20, width=2**20), padding=SAME)],
        "--max-call-bytes",
    ),
    "kernel and filters": (
        [conv2d(filters=2**16, kernel_size=Size2D(height=2**13, width=2**13), padding=SAME)],
        "--max-call-bytes",
    ),
    "what is between two layers": ([conv2d(filters=B), conv2d()], "--max-call-bytes"),
    "weights of a second layer": ([conv2d(filters=2**16), conv2d(filters=2**16)], "--max-call-bytes"),
    "layers": ([conv2d()] * 65, "--max-layers-per-call"),
    "many layers": ([conv2d()] * 1000, "--max-layers-per-call"),
}
EVERY = pytest.mark.parametrize(("configs", "setting"), TOO_LARGE.values(), ids=TOO_LARGE)


@pytest.fixture(scope="module")
def caller(server):
    with raw_caller(server.target) as connected:
        connected.check_service()
        yield connected


@pytest.fixture(autouse=True)
def resident(server, caller):
    """Asserts that a test made the server's resident memory grow neither for good nor for a moment."""
    forget_peak(server.process.pid)
    before = status(server.process.pid, "VmRSS")
    yield
    assert status(server.process.pid, "VmHWM") - before < 100_000 * 1024
    caller.check_service()


def refusal(method, request, reason):
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=60)
    return checked(caught.value, grpc.StatusCode.INVALID_ARGUMENT, reason)


@EVERY
def test_a_call_above_a_limit_is_refused_by_size_limit_and_setting(caller, configs, setting):
    text, fields = refusal(caller.stub.Convolve, convolve_request(*map(layer, configs)), "TOO_LARGE")
    limits = caller.stub.GetServerInfo(GetServerInfoRequest(), timeout=60).server_info.limits
    limit = getattr(limits, setting.removeprefix("--").replace("-", "_"))
    named = re.fullmatch(
        rf".*: Expected at most {limit} .* the server's {setting}\. Received a call with (\d+): .*", text
    )
    assert named, text
    assert int(named[1]) > limit
    weights = caller.stub.Plan(plan_request(*map(layer, configs)), timeout=60).plan.weight_bytes
    is_for_weights = setting == "--max-call-bytes" and weights > limit
    assert list(fields) == ["layers" if setting == "--max-layers-per-call" or is_for_weights else "input"]


@EVERY
def test_its_plan_says_the_same_and_is_a_plan(caller, configs, setting):
    text, _ = refusal(caller.stub.Convolve, convolve_request(*map(layer, configs)), "TOO_LARGE")
    planned = caller.stub.Plan(plan_request(*map(layer, configs)), timeout=60)
    assert not planned.admission.admitted
    if setting == "--max-message-bytes":  # a stream would carry it
        assert "the server's --max-call-bytes" in planned.admission.refusal
    else:
        assert planned.admission.refusal == text
    assert len(planned.plan.layers) == len(configs)
    assert planned.plan.memory_bytes >= planned.plan.output_bytes > 0


@pytest.mark.parametrize(
    "config",
    [
        conv2d(padding=ALL_AROUND),
        conv2d(filters=B, padding=ALL_AROUND),
        conv2d(filters=B, kernel_size=Size2D(height=B, width=B), padding=SAME),
    ],
    ids=["padding", "padding and filters", "kernel and filters"],
)
def test_what_64_bits_cannot_count_is_refused_too(caller, config):
    for method, request in ((caller.stub.Convolve, convolve_request), (caller.stub.Plan, plan_request)):
        text, _ = refusal(method, request(layer(config)), "INVALID_TENSOR")
        assert "Expected a call of fewer than 2**63 bytes and operations. Received " in text


@pytest.mark.parametrize(
    "changes",
    [
        {"strides": Size2D(height=B, width=B)},
        {"strides": Size2D(height=B, width=B), "padding": SAME},
        {"kernel_size": Size2D(height=2, width=2), "dilation_rate": Size2D(height=B, width=B), "padding": SAME},
        {"padding": Padding(explicit=ExplicitPadding(top=10**9, left=10**9)), "strides": Size2D(height=B, width=B)},
    ],
    ids=["strides", "strides same", "dilation", "padding that strides skip"],
)
def test_large_numbers_that_need_no_memory_are_computed(caller, changes):
    planned = caller.stub.Plan(plan_request(layer(conv2d(**changes))), timeout=60)
    assert planned.admission.admitted
    answered = caller.stub.Convolve(convolve_request(layer(conv2d(**changes))), timeout=60)
    assert answered.output.shape == planned.plan.output_shape


def test_a_tensor_that_claims_more_than_it_has_allocates_nothing(caller):
    claim = tensor(0, shape=(1, 2**15, 2**15, 1))
    text, _ = refusal(caller.stub.Convolve, convolve_request(input=claim), "INVALID_TENSOR")
    assert "Expected 4294967296 bytes, as shape (1, 32768, 32768, 1) and dtype float32 need. Received 4 bytes." in text
