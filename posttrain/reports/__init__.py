"""Reports: the files of a run's folder, comparisons of runs, pages and plots for a reader who was not there.

Nothing is imported here, so that reading a report does not load torch.
"""
