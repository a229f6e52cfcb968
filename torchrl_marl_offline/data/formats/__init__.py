"""Readers: one file for each format, and from_arrays."""
