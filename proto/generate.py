"""Generates the Python stubs of the contract: `python proto/generate.py [OUTPUT_FOLDER]`, by default into client/.

The stubs are checked in, so that a user needs no compiler; a test generates them again and compares. The compiler is
pinned in pyproject.toml ("dev"): stubs refuse a protobuf runtime older than their compiler, and TensorFlow 2.21 and
tritonclient 2.73 both allow 6.31.
"""

import sys
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent


def generate(output: Path) -> None:
    """Writes `convserve/v1/*_pb2.py`, `.pyi` and `*_pb2_grpc.py` below `output`."""
    sources = sorted(PROTO.glob("convserve/v1/*.proto"))
    services = [source for source in sources if source.stem.endswith("_service")]
    include = [f"-I{PROTO}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    messages = [*include, f"--python_out={output}", f"--pyi_out={output}", *map(str, sources)]
    stubs = [*include, f"--grpc_python_out={output}", *map(str, services)]
    for arguments in (messages, stubs):
        if protoc.main(["protoc", *arguments]) != 0:
            raise SystemExit("protoc failed; its message is above")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO.parent / "client")
