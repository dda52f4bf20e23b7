"""Computes the digest of csrc. A build records the digest, which identifies its sources."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sources_digest(root: Path) -> str:
    """Return a digest of the names and the contents of all files in csrc."""
    whole = hashlib.sha256()
    for path in sorted(path for path in (root / "csrc").rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:16]
