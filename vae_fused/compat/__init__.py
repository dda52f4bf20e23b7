"""Replacements for classes of other libraries, which need not be installed."""
