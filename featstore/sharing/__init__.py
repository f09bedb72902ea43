"""Sharing: rows of features travel between stores, and a team's repository is one more store.

The files in the order in which a push needs them: `selection` (which tensors and images are meant), `remote` (the
repository and its version), `pairing` (which rows are of the same photo), `transfer` (plan what the other side lacks,
then copy it), `push_pull` (`push`, `pull` and `merge`). `diff` compares two stores and writes nothing.
"""
