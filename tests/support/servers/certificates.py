"""Certificates for tests: a CA, and PEM files of what it signs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme


@dataclass(frozen=True)
class Pair:
    """The PEM files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A CA.

    Attributes:
        ca: The PEM file of its own certificate.
    """

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.ca = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *identities: str, **options: Any) -> Pair:
        """Signs a certificate and writes it to NAME.pem and NAME.key, replacing what is there as one should."""
        made = self._ca.issue_cert(*(identities or ("localhost", "127.0.0.1")), **options)
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        for path, content in (
            (pair.key, made.private_key_pem.bytes()),
            (pair.certificate, b"".join(each.bytes() for each in made.cert_chain_pems)),
        ):
            new = path.with_suffix(".new")
            new.write_bytes(content)
            os.replace(new, path)
        return pair
