"""Performance reports: what was measured, as a page, as markdown and as CSV."""
