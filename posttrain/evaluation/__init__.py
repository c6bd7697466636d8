"""Evaluation: seeded generation scored by the verdict, and the files that tell a reader what a run did.

Nothing is imported here, so that reading a report does not load torch.
"""
