"""Tests the tests: it makes each formula wrong, and a test has to fail."""
