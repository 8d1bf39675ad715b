"""The image that the others are built on: as it is, as a registry has it, or made here of Debian's packages."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.containers.engine import Engine, NoEngineError
from tests.support.repository import ROOT

NAME = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "server/Dockerfile").read_text(), re.MULTILINE)[1]  # type: ignore[index]
_PACKAGES = "python3,python3-venv,ca-certificates"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def provide(engine: Engine, folder: Path) -> str:
    """Sees to it that the engine has the image; returns how.

    Args:
        engine: The engine.
        folder: Where a root file system may be made.

    Raises:
        NoEngineError: If the image is not to be had.
    """
    if not engine.run(["docker", "image", "inspect", NAME], {}).returncode:
        return "it was there"
    if not engine.run(["docker", "pull", NAME], {}).returncode:
        return "pulled"
    if not shutil.which("debootstrap"):
        raise NoEngineError(f"{NAME} cannot be pulled, and to make one debootstrap is missing (Debian: debootstrap)")
    release, system = NAME.rpartition("-")[2], folder / "system"
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", release, str(system)]
    with (folder / "debootstrap.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
    # Whom this machine trusts, which may be a proxy before the registries.
    shutil.copy(_CERTIFICATES, system / _CERTIFICATES.lstrip("/"))
    packed = subprocess.Popen(
        ["tar", "-C", str(system), "--exclude=./var/cache/apt/*", "-c", "."], stdout=subprocess.PIPE
    )
    subprocess.run(
        ["docker", "import", "--change", 'CMD ["python3"]', "-", NAME],
        stdin=packed.stdout, env=engine.environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    if packed.wait():
        raise SystemExit(f"tar ended with status {packed.returncode}")
    shutil.rmtree(system)
    return "made with debootstrap, for it cannot be pulled"
