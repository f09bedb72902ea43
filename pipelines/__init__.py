"""Recipes: photographs and labels in, tables out; one file per paper, and the demo."""
