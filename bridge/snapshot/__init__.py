"""What one request decides by: built, proven, swapped."""
