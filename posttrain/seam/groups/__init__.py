"""Rows by group: how they are drawn, numbered, counted and validated."""
