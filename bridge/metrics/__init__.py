"""What a process measures."""
