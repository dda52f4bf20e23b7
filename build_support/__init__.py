"""What setup.py needs to build the package; tools and tests use the toolchain as well."""
