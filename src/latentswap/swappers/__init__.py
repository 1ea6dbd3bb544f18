"""(source, target) → swapped face, one paper per file."""
