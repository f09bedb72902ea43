"""Photos: the files, their pixels, the views that networks see, augmented copies."""
