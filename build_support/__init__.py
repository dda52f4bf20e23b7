"""Modules that setup.py uses to build the package. The tools and tests also use toolchain.py."""
