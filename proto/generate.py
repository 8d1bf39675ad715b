"""Generates the Python stubs of the protocols: `python proto/generate.py [OUTPUT_FOLDER]`.

By default those of the contract go into client/, and those that only the server speaks, which travel under another name
of their package (convserve_server/open_inference/v2), into server/.

The stubs are checked in, so that a user needs no compiler; a test generates them again and compares. The compiler is
pinned in pyproject.toml ("dev"): stubs refuse a protobuf runtime older than their compiler, and TensorFlow 2.21 and
tritonclient 2.73 both allow 6.31.
"""

import sys
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent


def generate(client: Path, server: Path) -> None:
    """Writes `*_pb2.py` and `.pyi` of all messages, and `*_pb2_grpc.py` of the contract's services.

    Args:
        client: Where the contract's stubs go.
        server: Where messages go that only the server has; of services there are no stubs.
    """
    contract = sorted(PROTO.glob("convserve/v1/*.proto"))
    services = [source for source in contract if source.stem.endswith("_service")]
    open_inference = sorted(PROTO.glob("convserve_server/open_inference/v2/*.proto"))
    include = [f"-I{PROTO}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    for arguments in (
        [f"--python_out={client}", f"--pyi_out={client}", *map(str, contract)],
        [f"--grpc_python_out={client}", *map(str, services)],
        [f"--python_out={server}", f"--pyi_out={server}", *map(str, open_inference)],
    ):
        if protoc.main(["protoc", *include, *arguments]) != 0:
            raise SystemExit("protoc failed; its message is above")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        generate(Path(sys.argv[1]), Path(sys.argv[1]))
    else:
        generate(PROTO.parent / "client", PROTO.parent / "server")
