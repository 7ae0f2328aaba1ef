"""What can be found out before serving."""
