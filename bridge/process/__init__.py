"""How the bridge runs: one process, or a parent and its workers."""
