"""Modules that setup.py uses to build the package. Tools, tests and benchmarks also use them."""
