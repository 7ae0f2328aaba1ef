"""The parent of the workers: starts, watches and replaces them; issues nothing."""
