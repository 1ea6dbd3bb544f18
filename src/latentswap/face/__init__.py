"""Finding faces, aligning them, masking them and pasting them back."""
