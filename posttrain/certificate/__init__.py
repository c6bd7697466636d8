"""The battery that compares gradients over engines: every trainer, however its rows are spread, makes the same update.

Several published baselines were wrong because an engine dropped micro-batches or averaged each by itself. Here the
same rows go through every trainer under {1, 2 processes} x {8x1, 4x2, 2x4} x engine x offload; each combination either
makes the update of one process with one micro-batch, or is refused before anything is trained.
"""
