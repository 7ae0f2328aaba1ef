"""The one path from a request to a certificate, in numbered steps."""
