"""The archive: a database behind the journals, for search and reports."""
