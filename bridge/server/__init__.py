"""The wire: fronts, listeners and gRPC health."""
