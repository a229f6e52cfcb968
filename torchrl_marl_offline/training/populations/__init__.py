"""Many losses of one structure, trained as one computation."""
