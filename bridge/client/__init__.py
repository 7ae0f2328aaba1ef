"""Asks for a certificate as a workload would, for trying and debugging."""
