"""An app behind a gate until its body is closed, and the dry run of that."""
