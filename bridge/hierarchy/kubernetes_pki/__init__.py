"""The certificates of a Kubernetes cluster's own parts, and the files for them."""
