"""Evaluation: seeded generation scored by the verdict, scores of given answers, and their statistics.

Nothing is imported here, so that reading a report does not load torch.
"""
