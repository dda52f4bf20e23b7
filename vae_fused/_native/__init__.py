"""Calls of the operators by the public functions, and the derivatives of the operators."""
