"""Determines how a copy of the package was built and installed, and how to reinstall it.

The module imports only the standard library, so that `python -m vae_fused.env` can use it when
torch is broken.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vae_fused._version import __version__

# pip and uv cache a wheel under the URL of its sources, and reuse it with any version of torch. An
# isolated build does not see the installed torch.
_OPTIONS = "--no-build-isolation --no-deps"
_COMMANDS = {
    "pip": f"pip install {_OPTIONS} --force-reinstall --no-cache-dir",
    "uv": f"uv pip install {_OPTIONS} --reinstall --no-cache",
}


def read_build_info(package: Path) -> dict[str, Any]:
    """Return the build record that setup.py wrote into the folder `package`, or {} without one."""
    try:
        text = (package / "_build_info.json").read_text(encoding="utf-8")
        info: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return {}
    return info


def reinstall_command(package: Path) -> str:
    """Return the command that compiles a copy of the package for the installed torch.

    The command names the sources from which the copy was installed, never a package from an index.
    pip and uv record these sources in `direct_url.json`, which the direct URL specification of the
    Python Packaging User Guide defines.

    Args:
        package: the folder of the copy.

    Returns:
        One line. If the sources are not recorded, the line names the folder in which to run the
        command.
    """
    try:
        installer, source = _installer_and_source(package)
    except Exception:  # damaged metadata must not make the import of the package fail
        installer, source = "pip", ""
    if source:
        return f"{_COMMANDS[installer]} {source}"
    if (package.parent / "setup.py").is_file():
        return f"python setup.py build_ext --inplace (in {package.parent})"
    return f"{_COMMANDS[installer]} . (in the folder with the sources of vae_fused)"


def _installer_and_source(package: Path) -> tuple[str, str]:
    """Return the installer of `package` and its argument for the sources, or "" if unrecorded."""
    for distribution in importlib.metadata.distributions(name="vae_fused"):
        recorded = json.loads(distribution.read_text("direct_url.json") or "{}")
        editable = recorded.get("dir_info", {}).get("editable", False)
        folder = _local_path(recorded) / "vae_fused" if editable else None
        installed = Path(str(distribution.locate_file("vae_fused"))).resolve()
        if package.resolve() in (folder, installed):
            by_uv = (distribution.read_text("INSTALLER") or "").strip() == "uv"
            return "uv" if by_uv else "pip", _source(recorded)
    return "pip", ""


def _local_path(recorded: dict[str, Any]) -> Path:
    path = Path(url2pathname(urlsplit(recorded["url"]).path))
    return (path / str(recorded.get("subdirectory", ""))).resolve()


def _source(recorded: dict[str, Any]) -> str:
    """Return the installer's argument for the recorded sources, or "" for a wheel."""
    url = recorded.get("url", "")
    if "dir_info" in recorded:
        path = _local_path(recorded)
        option = "-e " if recorded["dir_info"].get("editable") else ""
        return option + shlex.quote(str(path)) if path.is_dir() else ""
    if "vcs_info" in recorded:
        url = "{vcs}+{url}@{commit_id}".format(url=url, **recorded["vcs_info"])
    elif urlsplit(url).path.endswith(".whl"):
        return ""
    if url and recorded.get("subdirectory"):
        url += f"#subdirectory={recorded['subdirectory']}"
    return shlex.quote(url) if url else ""


_info = read_build_info(Path(__file__).parent)
version: str = _info.get("version", __version__)  # includes the build label
