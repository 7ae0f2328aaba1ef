"""Certificate revocation lists: read one, and build one."""
