"""Who is asking: from a credential, never from a CSR, to a name."""
