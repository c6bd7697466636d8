"""Algorithms and theory that need arrays alone: neither models nor training libraries."""
