"""The time budget of a call, and failover when a backend fails."""
