"""Models: a tiny one made from its configuration, a packaged real one, and loading from a folder or the Hub."""
