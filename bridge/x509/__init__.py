"""X.509 as this product needs it: CSRs, the leaf profile, constraints, paths."""
