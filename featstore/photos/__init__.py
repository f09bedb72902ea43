"""Photos: files, decoding to pixels, the views that a network sees, augmented copies."""
