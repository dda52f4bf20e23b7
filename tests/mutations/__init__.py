"""Judges the tests: every formula is made wrong, and a test has to fail."""
