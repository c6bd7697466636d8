"""What the verbs of the command line do: evaluate, run suites, serve."""
