"""The operators as the public functions call them, and their derivatives."""
