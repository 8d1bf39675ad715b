"""The contract: its stubs are current, it is linted, and a breaking change would be seen."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convserve.initializers import Initializer
from convserve.layers.arguments import DTYPE_POLICIES
from convserve.v1 import conv2d_pb2, convolution_service_pb2, error_pb2, initializer_pb2, layer_service_pb2, tensor_pb2
from tests.support.repository import ROOT

PROTO = ROOT / "proto"
BUF = Path(sys.executable).with_name("buf")


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("root", "package"), [("client", "convserve/v1"), ("server", "convserve_server/open_inference/v2")]
)
def test_stubs_are_what_the_generator_makes(tmp_path: Path, root: str, package: str) -> None:
    subprocess.run([sys.executable, PROTO / "generate.py", tmp_path], check=True)
    made, kept = tmp_path / package, ROOT / root / package
    names = sorted(path.name for path in made.iterdir())
    assert names == sorted(path.name for path in kept.glob("*_pb2*"))
    assert filecmp.cmpfiles(made, kept, names, shallow=False) == (names, [], [])


def test_stubs_load_on_every_protobuf_that_is_allowed() -> None:
    """Generated code refuses a runtime older than its generator; pyproject.toml's lower bound is that version."""
    assert "# Protobuf Python Version: 6.31.1" in (ROOT / "client/convserve/v1/tensor_pb2.py").read_text()
    assert '"protobuf>=6.31.1' in (ROOT / "pyproject.toml").read_text()


def test_breaking_change_is_seen(tmp_path: Path) -> None:
    changed = tmp_path / "proto"
    shutil.copytree(PROTO, changed)
    same = buf("breaking", str(changed), "--against", str(PROTO))
    assert same.returncode == 0, same.stderr
    tensor = changed / "convserve/v1/tensor.proto"
    tensor.write_text(
        tensor.read_text().replace("repeated int64 shape = 2", "repeated int64 shape = 3").replace("3 to 14", "4 to 14")
    )
    broken = buf("breaking", str(changed), "--against", str(PROTO))
    assert broken.returncode != 0
    assert "tensor.proto" in broken.stdout


def test_uncommented_field_is_seen(tmp_path: Path) -> None:
    changed = tmp_path / "proto"
    shutil.copytree(PROTO, changed)
    tensor = changed / "convserve/v1/tensor.proto"
    tensor.write_text(tensor.read_text().replace("  // The element type. It must be set.\n", ""))
    answer = buf("lint", str(changed))
    assert answer.returncode != 0
    assert "comment" in answer.stdout


@pytest.mark.parametrize("service", [convolution_service_pb2, layer_service_pb2])
def test_payload_is_the_last_field_of_every_message_that_has_one(service: object) -> None:
    """A writer may then put the head first and the caller's own memory behind it."""
    messages = {**service.DESCRIPTOR.message_types_by_name, **tensor_pb2.DESCRIPTOR.message_types_by_name}  # type: ignore[attr-defined]
    carrying = 0
    for message in messages.values():
        for field in message.fields:
            if field.name == "piece" or (field.message_type and field.message_type.name == "Tensor"):
                carrying += 1
                assert field.number == 15 == max(each.number for each in message.fields), message.name
    assert carrying


def test_every_reason_has_one_exception_class() -> None:
    from convserve.protocol.status import CLASS_OF_REASON

    names = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 (no dictionary)
    assert set(CLASS_OF_REASON) == names
    assert len(set(CLASS_OF_REASON.values())) == len(names)


def test_contract_and_client_know_the_same_names() -> None:
    kinds = initializer_pb2.Initializer.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert {field.name for field in kinds} == {member.keras_name for member in Initializer.members.values()}
    policies = {name.removeprefix("DTYPE_POLICY_").lower() for name in conv2d_pb2.DtypePolicy.keys()}  # noqa: SIM118
    assert policies - {"unspecified"} == set(DTYPE_POLICIES)
