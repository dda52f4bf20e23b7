"""Re-exports the build backend of setuptools.

Build frontends run setup.py without its folder on the path. They do add the `backend-path` of
pyproject.toml, which is allowed only for a backend in the source tree. With this module as the
backend, setup.py can import `build_support.toolchain`, no matter who runs it.
"""

from setuptools.build_meta import *  # noqa: F403
