"""The build backend: that of setuptools, from a folder that a build has on its path.

Build frontends run setup.py without its folder on the path. `backend-path` in pyproject.toml adds
it, so that setup.py imports `build_support.toolchain` like any other program in this folder.
"""

from setuptools.build_meta import *  # noqa: F403
