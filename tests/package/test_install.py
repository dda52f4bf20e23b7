"""`vae_fused._install` prints a command that reinstalls the same sources."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import vae_fused
from vae_fused import _install
from vae_fused._version import __version__

PIP = "pip install --no-build-isolation --no-deps --force-reinstall --no-cache-dir"
UV = "uv pip install --no-build-isolation --no-deps --reinstall --no-cache"
COMMIT = "5f2a0f83a2b1d9fd7f0ad4f7c1b1c0a9e3a1f001"
GIT = {"vcs": "git", "commit_id": COMMIT, "requested_revision": "main"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Creates a folder of installed packages, the only folder that is searched for metadata."""
    site = tmp_path / "site"
    (site / "vae_fused").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(site)])
    return site


def record(site: Path, origin: dict[str, Any] | str | None, installer: str = "pip") -> None:
    info = site / "vae_fused-0.1.0+torch2.13.cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: vae_fused\nVersion: 0.1.0\n")
    (info / "INSTALLER").write_text(f"{installer}\n")
    if origin is not None:
        text = origin if isinstance(origin, str) else json.dumps(origin)
        (info / "direct_url.json").write_text(text)


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        ({"url": "https://host/a.git", "vcs_info": GIT}, f"git+https://host/a.git@{COMMIT}"),
        (
            {"url": "ssh://git@host/a.git", "vcs_info": GIT, "subdirectory": "b"},
            f"'git+ssh://git@host/a.git@{COMMIT}#subdirectory=b'",
        ),
        ({"url": "https://host/a.tar.gz", "archive_info": {}}, "https://host/a.tar.gz"),
    ],
)
def test_sources_at_an_address_are_installed_from_there(site, origin, source) -> None:
    record(site, origin)
    assert _install.reinstall_command(site / "vae_fused") == f"{PIP} {source}"


def test_a_folder_is_quoted_and_uv_is_told_from_pip(site, tmp_path) -> None:
    folder = tmp_path / "a checkout"
    folder.mkdir()
    record(site, {"url": folder.as_uri(), "dir_info": {}}, installer="uv")
    assert _install.reinstall_command(site / "vae_fused") == f"{UV} '{folder}'"


def test_an_editable_install_stays_editable(site, tmp_path) -> None:
    folder = tmp_path / "checkout"
    (folder / "vae_fused").mkdir(parents=True)
    (folder / "setup.py").touch()
    record(site, {"url": folder.as_uri(), "dir_info": {"editable": True}})
    assert _install.reinstall_command(folder / "vae_fused") == f"{PIP} -e {folder}"
    # A copy of the sources that is not the installed one is compiled in place.
    other = tmp_path / "other"
    (other / "vae_fused").mkdir(parents=True)
    (other / "setup.py").touch()
    command = _install.reinstall_command(other / "vae_fused")
    assert command == f"python setup.py build_ext --inplace (in {other})"


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "{damaged",
        {"url": "file:///nowhere/vae_fused", "dir_info": {}},
        {"url": "https://host/vae_fused-0.1.0-py3-none-any.whl", "archive_info": {}},
    ],
)
def test_without_sources_the_command_names_no_package_of_an_index(site, origin) -> None:
    record(site, origin)
    command = _install.reinstall_command(site / "vae_fused")
    assert command == f"{PIP} . (in the folder with the sources of vae_fused)"


def test_the_version_is_that_of_the_sources_and_of_the_build() -> None:
    info = _install.read_build_info(Path(vae_fused.__file__).parent)
    assert vae_fused.__version__ == info.get("version", __version__)
    assert vae_fused.__version__.split("+")[0] == __version__


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    (tmp_path / "_build_info.json").write_text("{")
    assert _install.read_build_info(tmp_path) == {}
