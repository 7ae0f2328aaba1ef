"""One deadline for a call, and what happens when a backend fails."""
