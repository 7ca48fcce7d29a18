"""merkit_export."""
