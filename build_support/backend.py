"""The build backend, which is that of setuptools.

Build frontends run setup.py without its folder on the path. They add the `backend-path` of
pyproject.toml, which is allowed only for a backend in the tree. setup.py can then import
`build_support.toolchain`, no matter who runs it.
"""

from setuptools.build_meta import *  # noqa: F403
