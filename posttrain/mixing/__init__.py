"""`posttrain mix`: proportions of groups found by whole runs, for those who can afford some."""
