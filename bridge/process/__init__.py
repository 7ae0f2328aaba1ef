"""How the bridge runs: a parent process and its workers."""
