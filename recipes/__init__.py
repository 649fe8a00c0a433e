"""Recipes that come with the toolkit: YAML files, each the description of one whole loop."""
