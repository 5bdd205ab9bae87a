"""Block-sparse attention (Big Bird) whose density is prunable like any other unit."""
