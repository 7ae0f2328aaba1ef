"""What a caller may have, and whether what came back is that."""
