"""What any part of the bridge asks of the machine: clock, logs, files, processes."""
