"""Modules that setup.py uses to build the package. Tools and tests use the toolchain, too."""
