"""What becomes of figures: stored results, ratios, verdicts, tables and charts."""
