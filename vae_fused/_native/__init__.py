"""Calls the operators for the public functions, and defines the derivatives of the operators."""
