"""Reproducible comparisons: each runs its contenders interleaved in one process and ends with one JSON line."""
