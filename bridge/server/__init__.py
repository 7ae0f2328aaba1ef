"""The wire: fronts, listeners, health, metrics."""
