"""A study as a page: its photos, features, and what heads make of them; and ratings, from which a head learns at once."""
