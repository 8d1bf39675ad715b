"""How much of a volume the layers in a folder of it may take."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

log = logging.getLogger("convserve")


def volume_budget(folder: Path, held: int, given: int, setting: str) -> int:
    """Returns what layers that take `held` bytes already may take: what is given, with a warning if it is not there.

    Of 0, it is that and nine tenths of what is free. A quota, as of Kubernetes' emptyDir, is not seen.
    """
    free = shutil.disk_usage(folder).free
    if given > held + free:
        log.warning("%s is %d, but %s holds %d and has %d free", setting, given, folder, held, free)
    return given or held + free * 9 // 10
