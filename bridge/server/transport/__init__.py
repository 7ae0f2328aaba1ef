"""What rests on grpcio's private names."""
