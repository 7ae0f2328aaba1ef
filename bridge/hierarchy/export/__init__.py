"""The shapes in which an issuing CA and its trust anchor are handed to others."""

from bridge.hierarchy.export.throwaway_files import WARNING, Layout, write

__all__ = ["WARNING", "Layout", "write"]
