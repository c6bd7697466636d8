"""The pre-flight: everything that can be known to be wrong before a weight is read."""
