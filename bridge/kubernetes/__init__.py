"""The API servers of the clusters whose workloads ask for certificates."""
