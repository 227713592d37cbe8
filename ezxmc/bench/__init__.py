"""Measurements of ezxmc against named alternatives, each pair of figures from one run."""
