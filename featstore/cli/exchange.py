"""Features from elsewhere and for elsewhere: `import`, `export`."""
